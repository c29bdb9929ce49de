from __future__ import annotations

import math

import pytest

from gateway import wire
from gateway.core.events import Slo
from gateway.core.outcomes import Denial
from gateway.intake import checks
from gateway.intake.checks import MAX_BELIEF_ATOMS
from gateway.intake.client_request import ClientRequest, Sampling
from gateway.intake.denied import Denied
from gateway.intake.lengths import ExpectedLength, expected_without_model
from length_model.core.belief import DEFAULT_PRIOR, truncated
from protos.v1 import astrolabe_dispatch_pb2 as pb
from simcore.types import LengthBelief


def test_the_id_is_the_messages_then_the_metadatas_then_a_new_one() -> None:
    message = pb.GenerateRequest(request_id="from-message")
    assert wire.client_request(message, request_id="from-metadata").request_id == "from-message"
    assert wire.client_request(pb.GenerateRequest(), request_id="from-metadata").request_id == "from-metadata"
    assert checks.request_id_of("mine") == "mine"
    made = {checks.request_id_of("") for _ in range(100)}
    assert len(made) == 100


@pytest.mark.parametrize("request_id", ["x" * 129, "bell\x07", "naïve", "a\nb"])
def test_ids_that_would_spoil_logs_are_refused(request_id: str) -> None:
    with pytest.raises(Denied, match="printable ASCII") as caught:
        checks.request_id_of(request_id)
    assert caught.value.denial is Denial.INVALID


def test_a_policy_may_be_an_alias_or_absent() -> None:
    assert checks.policy_of("") == ""
    assert checks.policy_of("min_lunmnix_load") == "llumnix_freeness"
    with pytest.raises(Denied, match="did you mean 'least_requests'"):
        checks.policy_of("least_request")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": 0}, "max_tokens must be >= 1, got 0"),
        ({"max_tokens": -(2**31)}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 1.5}, "min_p must be in .0, 1., got 1.5"),
        ({"min_p": math.nan}, "min_p"),
        ({"presence_penalty": -2.5}, "presence_penalty"),
        ({"frequency_penalty": math.inf}, "frequency_penalty"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be > 0"),
        ({"repetition_penalty": math.inf}, "repetition_penalty"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 6, "max_tokens": 5}, "min_tokens must be from 0 to max_tokens, got 6 of 5"),
        ({"logit_bias": {1: math.nan}}, "logit_bias"),
        ({"logit_bias": dict.fromkeys(range(checks.MAX_BIASED + 1), 1.0)}, "logit_bias"),
        ({"bad_words": ["a", ""]}, "bad_words"),
        ({"stop": [""]}, "stop string"),
        ({"stop": ["x"] * (checks.MAX_STOPS + 1)}, "stop has 17 strings"),
        ({"stop": ["x" * (checks.MAX_STOP_CHARS + 1)]}, "257"),
        ({"stop_token_ids": [1] * (checks.MAX_STOP_TOKEN_IDS + 1)}, "stop_token_ids"),
    ],
)
def test_sampling_that_no_engine_takes(fields: dict[str, object], words: str) -> None:
    with pytest.raises(Denied, match=words):
        checks.check_sampling(Sampling(**fields))  # type: ignore[arg-type]


def test_sampling_at_its_limits_passes() -> None:
    checks.check_sampling(Sampling())
    checks.check_sampling(Sampling(max_tokens=1, temperature=0, top_p=1, top_k=0, stop_token_ids=[2]))


@pytest.mark.parametrize(
    ("fields", "how_well"),
    [
        ({"temperature": 0.0, "seed": 1}, "exact"),
        ({"temperature": 0.5, "seed": 1}, "approximate"),
        ({"frequency_penalty": 1.0, "repetition_penalty": 1.0, "min_p": 0.1, "min_tokens": 5}, "exact"),
        ({"repetition_penalty": 1.5, "logit_bias": {3: 1.0}}, "exact"),
        ({"frequency_penalty": 1.0, "repetition_penalty": 1.5}, "approximate"),
        ({"logit_bias": {3: 1.0}}, "exact"),
        ({"presence_penalty": 1.0}, "approximate"),
        ({"presence_penalty": 0.0}, "exact"),
        ({"bad_words": ["a b"]}, "approximate"),
    ],
)
def test_how_well_another_node_could_go_on(fields: dict[str, object], how_well: str) -> None:
    assert checks.continuation_of(Sampling(**fields)) == how_well  # type: ignore[arg-type]


def test_the_nearer_deadline_counts() -> None:
    assert checks.slo_of(Slo(), None) == Slo()
    assert checks.slo_of(Slo(ttft_s=1, tpot_s=2, deadline_s=3), None) == Slo(ttft_s=1, tpot_s=2, deadline_s=3)
    assert checks.slo_of(Slo(deadline_s=3), 2.0).deadline_s == 2.0
    assert checks.slo_of(Slo(deadline_s=3), 9.0).deadline_s == 3.0
    assert checks.slo_of(Slo(), 2.0).deadline_s == 2.0


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_service_levels_are_numbers_of_seconds(value: float) -> None:
    with pytest.raises(Denied, match=r"slo\.ttft_s"):
        checks.slo_of(Slo(ttft_s=value), None)


def test_a_client_may_bring_a_belief() -> None:
    assert checks.said_belief([5, 50, 500]) == LengthBelief((5, 50, 500))
    assert checks.said_belief(()) is None


def test_a_decision_without_a_text_rests_on_the_clients_belief_or_the_prior_under_its_limit() -> None:
    request = pb.PlaceRequest(prompt_tokens=5, max_output_tokens=100)
    asked = wire.placement_request(request)
    assert (asked.prompt, checks.check_placement(asked, asked.prompt_tokens)) == (None, 100)
    expected = expected_without_model(checks.said_belief(asked.belief_tokens), 100)
    assert (expected.belief, expected.source) == (truncated(DEFAULT_PRIOR, 100), "prior")
    request.belief.atoms_tokens.extend([5, 50, 500])
    asked = wire.placement_request(request)
    expected = expected_without_model(checks.said_belief(asked.belief_tokens), 100)
    assert (expected.belief, expected.source) == (LengthBelief((5, 50, 100)), "client")


def test_only_what_nothing_can_end_runs_to_its_limit() -> None:
    assert checks.runs_to_limit(Sampling(ignore_eos=True, max_tokens=5))
    assert not checks.runs_to_limit(Sampling(max_tokens=5))
    assert not checks.runs_to_limit(Sampling(ignore_eos=True, stop_token_ids=[7]))
    assert not checks.runs_to_limit(Sampling(ignore_eos=True, stop=["."]))


@pytest.mark.parametrize("atoms", [[3, 2], [0, 1], [1] * (MAX_BELIEF_ATOMS + 1)])
def test_beliefs_that_are_none(atoms: list[int]) -> None:
    with pytest.raises(Denied, match="belief"):
        checks.said_belief(atoms)


def test_a_shape_carries_all_that_the_router_needs() -> None:
    request = ClientRequest(
        prompt="never looked at",
        model="m",
        priority=-2,
        session="s",
        policy="random",
        slo=Slo(deadline_s=4),
        resume="off",
        sampling=Sampling(seed=1),
    )
    expected = ExpectedLength(belief=LengthBelief((4,)), source="hashed")
    shape = checks.request_shape(request, request_id="r", prompt_tokens=7, max_output_tokens=9, expected=expected)
    assert (shape.belief, shape.belief_source) == (LengthBelief((4,)), "hashed")
    assert (shape.model, shape.priority, shape.session, shape.policy) == ("m", -2, "s", "random")
    assert (shape.prompt_tokens, shape.max_output_tokens, shape.slo.deadline_s) == (7, 9, 4)
    assert (shape.resume, shape.continuation) == ("off", "approximate")
    assert not shape.place_only


@pytest.mark.parametrize(("prompt", "output"), [(0, 5), (5, 0)])
def test_a_placement_needs_sizes(prompt: int, output: int) -> None:
    asked = wire.placement_request(pb.PlaceRequest(prompt_tokens=prompt, max_output_tokens=output))
    with pytest.raises(Denied, match=">= 1"):
        checks.check_placement(asked, asked.prompt_tokens)
