"""The publisher's account of the engine: what it makes of steps that run on for requests that are gone."""

from __future__ import annotations

import msgspec
import pytest

from engine_adapters.vllm.account import Account, Arrival, Output, Step, Truth
from engine_adapters.vllm.frames import SCHEMA, Hello, Reader
from engine_adapters.vllm.request_ids import engine_request_id, own_request_id
from simcore.trace import Scheduled, StepBatch, TraceDelta, TraceSnapshot, parent_id
from simcore.types import EngineConfig


def arrival(name: str, *, prompt: int = 10, priority: int = 0, at_s: float = 0.0) -> Arrival:
    return Arrival(name, prompt, 100, priority, at_s)


def step(
    scheduled: dict[str, int],
    outputs: dict[str, int],
    *,
    events: list[Arrival | str] | None = None,
    preempted: list[str] | None = None,
    admitted: dict[str, int] | None = None,
    finished: frozenset[str] = frozenset(),
    drafted: dict[str, int] | None = None,
) -> Step:
    return Step(
        start_s=1.0,
        end_s=2.0,
        events=events or [],
        preempted=preempted or [],
        admitted=admitted or {},
        scheduled=scheduled,
        drafted=drafted or {},
        outputs=[Output(i, n, i in finished) for i, n in outputs.items()],
        free_blocks=50,
    )


class Pair:
    """An account and a reader that follows it."""

    def __init__(self, *, by_priority: bool = False) -> None:
        self.account = Account(by_priority=by_priority, free_blocks=100)
        self.reader = Reader()
        self.reader.read(Hello(SCHEMA, EngineConfig(model="m"), 1))
        self.reader.read(self.account.snapshot())

    def apply(self, taken: Step) -> TraceDelta:
        delta = self.account.apply(taken)
        assert delta is not None
        read = self.reader.read(delta)
        assert isinstance(read, TraceDelta)
        return read

    def snapshot(self) -> TraceSnapshot:
        read = self.reader.read(self.account.snapshot())
        assert isinstance(read, TraceSnapshot)
        return read


def test_a_prompt_then_decoding_and_the_features_of_each_batch() -> None:
    pair = Pair()
    first = pair.apply(step({"a": 6}, {"a": 1}, events=[arrival("a")], admitted={"a": 4}))
    assert [r.request_id for r in first.arrived] == ["a"]
    assert first.scheduled == (Scheduled("a", 6, 1, 4),)
    assert first.batch == StepBatch(6, 6 * (4 + 3.0), 1, 0, 0)
    second = pair.apply(step({"a": 1}, {"a": 1}))
    assert second.scheduled == (Scheduled("a", 1, 1),)
    assert second.batch == StepBatch(0, 0.0, 0, 1, 11)
    assert pair.snapshot().running[0].output_tokens == 2
    assert pair.snapshot().running[0].computed_tokens == 11


def test_one_is_admitted_past_others_and_names_its_lora_adapter() -> None:
    pair = Pair()
    names = ("a", "b", "c")
    events: list[Arrival | str] = [msgspec.structs.replace(arrival(i), adapter=f"adapter-{i}") for i in names]
    first = pair.apply(step({"a": 10, "c": 10}, {"a": 1, "c": 1}, events=events))
    assert [r.adapter for r in first.arrived] == ["adapter-a", "adapter-b", "adapter-c"]
    shown = pair.snapshot()
    assert [r.adapter for r in (*shown.running, *shown.waiting)] == ["adapter-a", "adapter-c", "adapter-b"]


def test_a_step_in_flight_for_a_request_that_has_ended_names_it_no_more_but_counts_its_work() -> None:
    pair = Pair()
    pair.apply(step({"a": 10, "b": 10}, {"a": 1, "b": 1}, events=[arrival("a"), arrival("b")], admitted={}))
    ended = pair.apply(step({"a": 1, "b": 1}, {"a": 1, "b": 1}, finished=frozenset({"a"})))
    assert ended.finished == ("a",)
    after = pair.apply(step({"a": 1, "b": 1}, {"b": 1}))
    assert [s.request_id for s in after.scheduled] == ["b"]
    assert after.batch.decode_seqs == 2


def test_aborted_in_flight_and_preempted_after_its_end_are_dropped() -> None:
    pair = Pair()
    pair.apply(step({"a": 10, "b": 10}, {"a": 1, "b": 1}, events=[arrival("a"), arrival("b")]))
    aborted = pair.apply(step({"a": 1, "b": 1}, {"b": 1}, events=["a"]))
    assert aborted.aborted == ("a",)
    assert [s.request_id for s in aborted.scheduled] == ["b"]
    late = pair.apply(step({"b": 1}, {"b": 1}, preempted=["a"]))
    assert late.preempted == ()


def test_preempted_goes_to_the_front_and_is_admitted_again_with_what_the_cache_kept() -> None:
    pair = Pair()
    pair.apply(step({"a": 10, "b": 10}, {"a": 1, "b": 1}, events=[arrival("a"), arrival("b")]))
    pair.apply(step({"a": 1}, {"a": 1}, preempted=["b"], events=[arrival("c")]))
    assert [r.request_id for r in pair.snapshot().waiting] == ["b", "c"]
    assert pair.snapshot().waiting[0].preemptions == 1
    again = pair.apply(step({"a": 1, "b": 3}, {"a": 1, "b": 1}, admitted={"b": 8}))
    assert again.scheduled[1] == Scheduled("b", 3, 1, 8)
    assert pair.snapshot().running[1].computed_tokens == 11


def test_priority_queue_keeps_vllms_order() -> None:
    pair = Pair(by_priority=True)
    events: list[Arrival | str] = [
        arrival("late", priority=1, at_s=3.0),
        arrival("urgent", priority=0, at_s=4.0),
        arrival("early", priority=1, at_s=2.0),
    ]
    pair.apply(step({}, {}, events=events))
    assert [r.request_id for r in pair.snapshot().waiting] == ["urgent", "early", "late"]


def test_arrived_and_aborted_between_two_steps_leaves_no_trace() -> None:
    pair = Pair()
    assert pair.account.apply(step({}, {}, events=[arrival("a"), "a"])) is None
    assert pair.account.seq == 0


def test_the_same_request_may_leave_and_come_back_at_once() -> None:
    pair = Pair()
    one, two = "cmpl-astrolabe=r1=-0-aaaaaaaa", "cmpl-astrolabe=r1=-0-bbbbbbbb"
    pair.apply(step({one: 10}, {one: 1}, events=[arrival(one)]))
    delta = pair.apply(step({one: 1}, {}, events=[one, arrival(two)]))
    assert delta.aborted == ("r1",)
    assert [r.request_id for r in delta.arrived] == ["r1"]
    assert delta.scheduled == ()


def test_two_requests_of_one_name_are_told_apart() -> None:
    pair = Pair()
    one, two = "cmpl-astrolabe=r1=-0-aaaaaaaa", "cmpl-astrolabe=r1=-0-bbbbbbbb"
    pair.apply(step({}, {}, events=[arrival(one), arrival(two)]))
    assert [r.request_id for r in pair.snapshot().waiting] == ["r1", two]


def test_rejected_drafts_are_not_computed() -> None:
    pair = Pair()
    pair.apply(step({"a": 10}, {"a": 1}, events=[arrival("a")]))
    delta = pair.apply(step({"a": 4}, {"a": 2}, drafted={"a": 3}))
    assert delta.scheduled == (Scheduled("a", 2, 2, drafts=3),)
    assert delta.batch == StepBatch(3, 0.0, 0, 1, 11)
    assert pair.snapshot().running[0].computed_tokens == 12
    delta = pair.apply(step({"a": 4}, {"a": 1}, drafted={"a": 3}))
    assert delta.scheduled == (Scheduled("a", 1, 1, drafts=3),)
    assert pair.snapshot().running[0].computed_tokens == 13


def test_starting_over_leaves_a_gap() -> None:
    pair = Pair()
    pair.apply(step({"a": 10}, {"a": 1}, events=[arrival("a")]))
    truth = Truth(
        at_s=9.0,
        running=[(arrival("b"), 3, 12, 0)],
        waiting=[(arrival("c"), 0, 0, 1)],
        free_blocks=7,
        preemptions_total=4,
    )
    pair.account.restart(truth)
    assert pair.account.seq == 3
    assert [r.request_id for r in pair.snapshot().running] == ["b"]
    assert pair.snapshot().free_blocks == 7


def test_our_own_ids_are_found_in_the_engines() -> None:
    for shape in ("cmpl-{}-0-1a2b3c4d", "generate-tokens-{}-1a2b3c4d", "{}"):
        assert own_request_id(shape.format(engine_request_id("req-1=x"))) == "req-1=x"
    assert own_request_id("chatcmpl-7f") == "chatcmpl-7f"


@pytest.mark.parametrize("name", ["req-1", "req-1=x", "a~2", "7_x"])
@pytest.mark.parametrize("random", ["", "-1a2b3c4d", "-12345678"])
def test_a_call_that_was_split_has_its_own_name_once_and_children_that_know_it(name: str, random: str) -> None:
    """As vLLM names them: answers `<k>_<id>`, prompts `<id>-<i>`, long embeddings in chunks, beams."""
    base = engine_request_id(name)
    for shapes in (
        [f"chatcmpl-{base}{random}"],
        [f"{k}_chatcmpl-{base}{random}" for k in range(12)],
        [f"cmpl-{base}-{i}{random}" for i in range(12)],
        [f"{k}_cmpl-{base}-{i}{random}" for i in range(12) for k in range(3)],
        [f"embd-{base}-{i}{random}" for i in range(3)],
        [f"score-{base}-{i}{random}" for i in range(3)],
        [f"transcribe-{base}{random}"],
    ):
        names = [own_request_id(shape) for shape in shapes]
        assert names[0] == name
        assert len(set(names)) == len(names)
        assert all(parent_id(child) == name for child in names[1:])
    for shape in (f"chatcmpl-{base}-{'0' * 32}-beam-1{random}", f"embd-{base}-prompt-0-chunk-1{random}"):
        assert parent_id(own_request_id(shape)) == name
