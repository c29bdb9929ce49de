"""What a replay puts on the wire, what it makes of failures, and what it warns of."""

from __future__ import annotations

import msgspec
import pytest

from bench.client.open_loop import _OUTCOME_OF_CODE, ReplayPlan, common_limit_tokens, request_message
from bench.client.session import _difference
from bench.measure.results import RequestResult, Summary, summarise
from bench.run.live import complaints
from bench.workload.item import WorkloadItem
from gateway.core.outcomes import CODES
from protos.v1 import astrolabe_dispatch_pb2 as pb
from simcore.types import Outcome

TEXT = WorkloadItem(request_id="r1", arrival_s=0.0, prompt_tokens=4, output_tokens=70, prompt="why is it so")
COUNTED = WorkloadItem(request_id="r2", arrival_s=0.0, prompt_tokens=9, output_tokens=5, predicted_output_tokens=8)


def plan(**changes: object) -> ReplayPlan:
    return msgspec.structs.replace(ReplayPlan(items=[TEXT, COUNTED], run_id="x", vocab_size=50), **changes)


def message_of(item: WorkloadItem, index: int = 0, **changes: object) -> pb.GenerateRequest:
    return request_message(item, plan(**changes), index, limit_tokens=common_limit_tokens([TEXT, COUNTED]))


def test_known_lengths_are_the_engines_limit_and_the_gateways_belief() -> None:
    message = message_of(TEXT, lengths="known")
    assert (message.request_id, message.text) == ("x-r1", "why is it so")
    assert (message.sampling.max_tokens, message.sampling.ignore_eos) == (70, True)
    assert list(message.belief.atoms_tokens) == [70]
    assert message.sampling.emulated_output_tokens == 0


@pytest.mark.parametrize("lengths", ["none", "predicted"])
def test_a_length_that_is_not_told_stands_only_where_the_emulated_engine_looks(lengths: str) -> None:
    message = message_of(COUNTED, 1, lengths=lengths)
    assert message.sampling.emulated_output_tokens == 5
    assert message.sampling.max_tokens == 2048, "the same for all"
    assert not message.sampling.ignore_eos
    assert list(message.belief.atoms_tokens) == ([8] if lengths == "predicted" else [])
    long = msgspec.structs.replace(TEXT, output_tokens=3000)
    assert common_limit_tokens([TEXT, long, COUNTED]) == 3000


def test_natural_length_leaves_the_end_to_the_model() -> None:
    message = message_of(TEXT, natural_length=True)
    assert not message.sampling.ignore_eos
    assert not message.sampling.HasField("max_tokens")


def test_items_without_text_get_made_up_ids_of_their_length() -> None:
    ids = message_of(COUNTED, 1).token_ids.ids
    assert len(ids) == 9
    assert max(ids) < 50
    assert ids == message_of(COUNTED, 1).token_ids.ids


def test_every_status_of_a_failed_call_means_an_outcome() -> None:
    failed = {o: c.grpc for o, c in CODES.items() if c.grpc}
    assert set(failed.values()) == set(_OUTCOME_OF_CODE)
    assert all(failed[outcome] == code for code, outcome in _OUTCOME_OF_CODE.items())


def live(*, late_s: float = 0.0, outcome: Outcome = Outcome.LENGTH, stretch: float = 1.0) -> Summary:
    rows = [
        RequestResult(
            request_id=f"r{i}",
            arrival_s=float(i),
            sent_s=i * stretch + late_s,
            node_id="n",
            outcome=outcome,
            prompt_tokens=1,
            output_tokens=1,
        )
        for i in range(10)
    ]
    return summarise(rows)


@pytest.mark.parametrize(
    ("summary", "says"),
    [
        (live(stretch=1.05), "the offered rate was not kept: 0.95 of 1.00"),
        (live(late_s=0.2), "requests left up to 0.20 s late"),
        (live(outcome=Outcome.NODE_LOST), "10 of 10 requests did not complete: 10 node_lost"),
    ],
)
def test_a_run_that_cannot_be_believed_says_so(summary: Summary, says: str) -> None:
    assert any(says in complaint for complaint in complaints(summary))


@pytest.mark.parametrize(
    ("ttft_s", "delivery_s", "time_scale", "warned"),
    [(0.3, 0.1, 1.0, True), (0.3, 0.04, 1.0, False), (3.0, 0.1, 1.0, False), (0.3, 0.1, 4.0, False)],
)
def test_time_lost_between_client_and_gateway_is_told(
    ttft_s: float, delivery_s: float, time_scale: float, warned: bool
) -> None:
    row = RequestResult(
        request_id="r",
        arrival_s=0.0,
        node_id="n",
        outcome=Outcome.LENGTH,
        prompt_tokens=1,
        output_tokens=1,
        ttft_s=ttft_s,
        delivery_s=delivery_s,
    )
    assert any("between client and gateway" in c for c in complaints(summarise([row]), time_scale=time_scale)) == warned


def test_a_good_run_has_nothing_to_complain_of() -> None:
    assert complaints(live(late_s=0.01)) == []
    assert complaints(live(late_s=0.5), time_scale=10.0) == [], "0.05 s of the clock"


def test_preemptions_are_unknown_when_a_node_came_or_started_anew() -> None:
    assert _difference({"a": 3, "b": 0}, {"a": 5, "b": 1}) == 3
    assert _difference({"a": 3}, {"a": 3, "b": 0}) is None
    assert _difference({"a": 3}, {"a": 1}) is None


def test_prompts_that_share_named_blocks_begin_with_the_same_tokens() -> None:
    shared = [
        WorkloadItem(
            request_id=f"r{index}",
            arrival_s=0.0,
            prompt_tokens=tokens,
            output_tokens=5,
            prefix_ids=ids,
            prefix_block_tokens=16,
        )
        for index, (tokens, ids) in enumerate(((40, (1, 2)), (50, (1, 2, 3)), (50, (1, 9, 8))))
    ]
    first, second, third = (list(message_of(item, index).token_ids.ids) for index, item in enumerate(shared))
    assert [len(first), len(second), len(third)] == [40, 50, 50]
    assert first[:32] == second[:32]
    assert first[:16] == third[:16]
    assert first[16:32] != third[16:32]
    assert first[32:] != second[32:40]
