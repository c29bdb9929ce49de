from __future__ import annotations

import math

import pytest

from gateway.core.events import Slo
from gateway.core.outcomes import Denial
from gateway.intake import admission
from gateway.intake.admission import MAX_BELIEF_ATOMS, Refused, Sizes
from gateway.intake.lengths import Expected
from length_model.core.belief import DEFAULT_PRIOR, truncated
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from simcore.types import LengthBelief


def test_the_id_is_the_messages_then_the_metadatas_then_a_new_one() -> None:
    assert admission.request_id_of("from-message", "from-metadata") == "from-message"
    assert admission.request_id_of("", "from-metadata") == "from-metadata"
    made = {admission.request_id_of("", "") for _ in range(100)}
    assert len(made) == 100


@pytest.mark.parametrize("request_id", ["x" * 129, "bell\x07", "naïve", "a\nb"])
def test_ids_that_would_spoil_logs_are_refused(request_id: str) -> None:
    with pytest.raises(Refused, match="printable ASCII") as caught:
        admission.request_id_of(request_id, "")
    assert caught.value.denial is Denial.INVALID


def test_a_policy_may_be_an_alias_or_absent() -> None:
    assert admission.policy_of("") == ""
    assert admission.policy_of("min_lunmnix_load") == "llumnix_freeness"
    with pytest.raises(Refused, match="did you mean 'least_requests'"):
        admission.policy_of("least_request")


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
        ({"stop": [""]}, "stop string"),
        ({"stop": ["x"] * (admission.MAX_STOPS + 1)}, "stop has 17 strings"),
        ({"stop": ["x" * (admission.MAX_STOP_CHARS + 1)]}, "257"),
        ({"stop_token_ids": [1] * (admission.MAX_STOP_TOKEN_IDS + 1)}, "stop_token_ids"),
    ],
)
def test_sampling_that_no_engine_takes(fields: dict[str, object], words: str) -> None:
    with pytest.raises(Refused, match=words):
        admission.check_sampling(types_pb.SamplingParams(**fields))  # type: ignore[arg-type]


def test_sampling_at_its_limits_passes() -> None:
    admission.check_sampling(types_pb.SamplingParams())
    admission.check_sampling(types_pb.SamplingParams(max_tokens=1, temperature=0, top_p=1, top_k=0, stop_token_ids=[2]))


def test_the_nearer_deadline_counts() -> None:
    assert admission.slo_of(pb.Slo(), None) == Slo()
    assert admission.slo_of(pb.Slo(ttft_s=1, tpot_s=2, deadline_s=3), None) == Slo(ttft_s=1, tpot_s=2, deadline_s=3)
    assert admission.slo_of(pb.Slo(deadline_s=3), 2.0).deadline_s == 2.0
    assert admission.slo_of(pb.Slo(deadline_s=3), 9.0).deadline_s == 3.0
    assert admission.slo_of(pb.Slo(), 2.0).deadline_s == 2.0


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_service_levels_are_numbers_of_seconds(value: float) -> None:
    with pytest.raises(Refused, match=r"slo\.ttft_s"):
        admission.slo_of(pb.Slo(ttft_s=value), None)


def test_a_client_may_bring_a_belief() -> None:
    said = types_pb.LengthBelief(atoms_tokens=[5, 50, 500])
    assert admission.said_belief(said) == LengthBelief((5, 50, 500))
    assert admission.said_belief(types_pb.LengthBelief()) is None


def test_a_decision_without_a_text_rests_on_the_clients_belief_or_the_prior_under_its_limit() -> None:
    request = pb.PlaceRequest(prompt_tokens=5, max_output_tokens=100)
    shape = admission.place_shape(request, request_id="r")
    assert (shape.belief, shape.belief_source) == (truncated(DEFAULT_PRIOR, 100), "prior")
    request.belief.atoms_tokens.extend([5, 50, 500])
    shape = admission.place_shape(request, request_id="r")
    assert (shape.belief, shape.belief_source) == (LengthBelief((5, 50, 100)), "client")


def test_only_what_nothing_can_end_runs_to_its_limit() -> None:
    assert admission.runs_to_limit(types_pb.SamplingParams(ignore_eos=True, max_tokens=5))
    assert not admission.runs_to_limit(types_pb.SamplingParams(max_tokens=5))
    assert not admission.runs_to_limit(types_pb.SamplingParams(ignore_eos=True, stop_token_ids=[7]))
    assert not admission.runs_to_limit(types_pb.SamplingParams(ignore_eos=True, stop=["."]))


@pytest.mark.parametrize("atoms", [[3, 2], [0, 1], [1] * (MAX_BELIEF_ATOMS + 1)])
def test_beliefs_that_are_none(atoms: list[int]) -> None:
    with pytest.raises(Refused, match="belief"):
        admission.said_belief(types_pb.LengthBelief(atoms_tokens=atoms))


def test_a_shape_carries_all_that_the_router_needs() -> None:
    request = pb.GenerateRequest(
        model="m", priority=-2, session="s", policy="random", slo=pb.Slo(deadline_s=4), text="never looked at"
    )
    expected = Expected(belief=LengthBelief((4,)), source="hashed")
    shape = admission.generate_shape(
        request, request_id="r", sizes=Sizes(7, 9), expected=expected, call_deadline_s=None
    )
    assert (shape.belief, shape.belief_source) == (LengthBelief((4,)), "hashed")
    assert (shape.model, shape.priority, shape.session, shape.policy) == ("m", -2, "s", "random")
    assert (shape.prompt_tokens, shape.max_output_tokens, shape.slo.deadline_s) == (7, 9, 4)
    assert not shape.place_only


@pytest.mark.parametrize(("prompt", "output"), [(0, 5), (5, 0)])
def test_a_placement_needs_sizes(prompt: int, output: int) -> None:
    with pytest.raises(Refused, match=">= 1"):
        admission.place_shape(pb.PlaceRequest(prompt_tokens=prompt, max_output_tokens=output), request_id="r")
