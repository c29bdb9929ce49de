"""One simulated engine: what it refuses, when things happen, what it tells."""

from __future__ import annotations

import math

import msgspec
import pytest

from simcore.node import NodeEvent, SimNode, SimRequest
from simcore.types import EngineConfig
from tests.helpers.step_time import SECOND

SMALL = EngineConfig(
    model="m", max_num_seqs=4, max_num_batched_tokens=32, block_size_tokens=16, num_blocks=8, max_model_len_tokens=120
)


def request(request_id: str, prompt: int, output: int, priority: int = 0) -> SimRequest:
    return SimRequest(
        request_id=request_id,
        prompt_tokens=prompt,
        output_tokens=output,
        max_output_tokens=output,
        priority=priority,
    )


def node(config: EngineConfig = SMALL) -> SimNode:
    return SimNode("n", config, SECOND)


def finish_times(simulated: SimNode, until_s: float = math.inf) -> dict[str, float]:
    return {r: at_s for kind, r, at_s in simulated.advance(until_s) if kind == "finished"}


@pytest.mark.parametrize(
    ("prompt", "output", "words"),
    [
        (0, 1, "prompt and output must be >= 1"),
        (1, 0, "prompt and output must be >= 1"),
        (119, 2, "121 tokens exceed max_model_len_tokens 120"),
    ],
)
def test_what_can_never_run_is_refused(prompt: int, output: int, words: str) -> None:
    simulated = node()
    with pytest.raises(ValueError, match=words):
        simulated.add(request("a", prompt, output), 0.0)
    simulated.check()
    assert not simulated.has_work


def test_a_request_that_the_kv_blocks_never_hold_is_refused() -> None:
    tiny = EngineConfig(model="m", num_blocks=2, block_size_tokens=16, max_model_len_tokens=4096)
    simulated = node(tiny)
    with pytest.raises(ValueError, match="needs 3 KV blocks, the engine has 2"):
        simulated.add(request("a", 30, 4), 0.0)
    # The last token is never computed, so 30 + 3 tokens need room for 32 only.
    simulated.add(request("a", 30, 3), 0.0)
    assert finish_times(simulated) == {"a": 3.0}


def test_a_second_request_of_the_same_id_is_refused_and_the_first_goes_on() -> None:
    simulated = node()
    simulated.add(request("a", 5, 2), 0.0)
    with pytest.raises(ValueError, match="'a' is already here"):
        simulated.add(request("a", 5, 2), 0.0)
    assert finish_times(simulated) == {"a": 2.0}
    simulated.add(request("a", 5, 2), 9.0)
    assert finish_times(simulated) == {"a": 11.0}


def test_an_idle_node_begins_when_woken_and_a_busy_one_when_its_step_ends() -> None:
    simulated = node()
    assert simulated.next_step_s == math.inf
    simulated.add(request("a", 5, 2), 3.0)
    assert simulated.next_step_s == 3.0
    simulated.step(3.0)
    simulated.add(request("b", 5, 1), 3.5)
    assert simulated.next_step_s == 4.0
    assert finish_times(simulated) == {"a": 5.0, "b": 5.0}
    assert simulated.next_step_s == math.inf
    # Woken while the last step is still under way.
    simulated.add(request("c", 5, 1), 4.5)
    assert simulated.next_step_s == 5.0


def test_a_step_without_work_is_an_error() -> None:
    with pytest.raises(ValueError, match="no work"):
        node().step(0.0)


def test_advance_runs_the_steps_that_begin_before_the_time_given() -> None:
    simulated = node()
    simulated.add(request("a", 5, 3), 0.0)
    assert simulated.advance(1.0) == [NodeEvent("first_token", "a", 1.0)]
    assert simulated.advance(1.0) == []
    assert simulated.advance(1.5) == []
    assert simulated.seq == 2
    assert simulated.advance(math.inf) == [NodeEvent("finished", "a", 3.0)]


def test_a_long_prompt_is_prefilled_in_chunks_beside_decoding() -> None:
    simulated = node()
    simulated.add(request("short", 4, 9), 0.0)
    simulated.step(0.0)
    simulated.add(request("long", 70, 1), 1.0)
    batches = [simulated.step(float(t)).batch for t in (1, 2, 3)]
    assert [(b.prefill_tokens, b.decode_seqs) for b in batches] == [(31, 1), (31, 1), (8, 1)]
    assert [b.prefill_work_tokens2 for b in batches] == [31 * 15.5, 31 * (31 + 15.5), 8 * (62 + 4)]
    assert [b.decode_kv_tokens for b in batches] == [5, 6, 7]


def test_a_delta_tells_all_that_happened_in_its_step() -> None:
    simulated = node()
    simulated.add(request("a", 20, 1), 0.0)
    simulated.add(request("b", 20, 2), 0.0)
    simulated.add(request("c", 20, 2), 0.0)
    assert simulated.abort("c")
    delta = simulated.step(0.5)
    assert (delta.seq, delta.start_s, delta.end_s) == (1, 0.5, 1.5)
    assert [r.request_id for r in delta.arrived] == ["a", "b"]
    assert delta.aborted == ("c",)
    assert [(s.request_id, s.tokens, s.produced) for s in delta.scheduled] == [("a", 20, 1), ("b", 12, 0)]
    assert delta.finished == ("a",)
    assert delta.free_blocks == 7
    assert simulated.step(1.5).arrived == ()


def test_the_last_to_run_is_preempted_and_comes_back_to_its_own_blocks() -> None:
    config = EngineConfig(
        model="m", max_num_seqs=4, max_num_batched_tokens=64, block_size_tokens=4, num_blocks=8, max_model_len_tokens=64
    )
    simulated = node(config)
    simulated.add(request("a", 13, 12), 0.0)
    simulated.add(request("b", 13, 12), 0.0)
    deltas = []
    while simulated.has_work:
        deltas.append(simulated.step(float(simulated.seq)))
        simulated.check()
    preempting = [d for d in deltas if d.preempted]
    assert [d.preempted for d in preempting] == [("b",)]
    back = next(s for d in deltas for s in d.scheduled if s.request_id == "b" and d.seq > preempting[0].seq)
    # b held 4 blocks; a took one of them (the last) each time it grew: what is left is found again.
    assert back.cached_tokens in {4, 8, 12}
    assert simulated.load(0.0).preemptions_total == 1


def test_without_prefix_caching_a_preempted_request_starts_from_nothing() -> None:
    config = EngineConfig(
        model="m",
        max_num_seqs=4,
        max_num_batched_tokens=64,
        block_size_tokens=4,
        num_blocks=8,
        max_model_len_tokens=64,
        enable_prefix_caching=False,
    )
    simulated = node(config)
    simulated.add(request("a", 13, 12), 0.0)
    simulated.add(request("b", 13, 12), 0.0)
    cached: list[int] = []
    while simulated.has_work:
        cached.extend(s.cached_tokens for s in simulated.step(float(simulated.seq)).scheduled)
    assert simulated.load(0.0).preemptions_total == 1
    assert set(cached) == {0}


def test_nobody_is_admitted_whose_whole_prompt_does_not_fit_though_the_first_chunk_would() -> None:
    simulated = node()
    simulated.add(request("a", 31, 40), 0.0)
    simulated.step(0.0)
    simulated.add(request("b", 110, 1), 1.0)
    delta = simulated.step(1.0)
    assert [s.request_id for s in delta.scheduled] == ["a"]
    assert simulated.load(2.0).waiting == 1


@pytest.mark.parametrize("steps", [0, 1, 2, 6])
def test_abort_frees_everything_whatever_the_state(steps: int) -> None:
    """Before any step, while prefilling, while decoding; the others go on."""
    simulated = node()
    simulated.add(request("a", 40, 20), 0.0)
    simulated.add(request("b", 40, 5), 0.0)
    for _ in range(steps):
        simulated.step(simulated.next_step_s)
    assert simulated.abort("a")
    simulated.check()
    assert not simulated.abort("a")
    assert set(finish_times(simulated)) <= {"b"}
    assert simulated.load(0.0).free_blocks == SMALL.num_blocks


def test_abort_of_the_last_request_leaves_an_idle_node() -> None:
    simulated = node()
    simulated.add(request("a", 40, 20), 0.0)
    simulated.step(0.0)
    simulated.abort("a")
    assert not simulated.has_work
    assert simulated.next_step_s == math.inf
    assert simulated.advance(math.inf) == []


def test_load_counts_what_is_left_and_takes_beliefs_where_given() -> None:
    simulated = node()
    simulated.add(request("a", 20, 10), 0.0)
    simulated.add(request("b", 33, 10), 0.0)
    simulated.step(0.0)
    load = simulated.load(1.0)
    assert (load.running, load.waiting, load.free_blocks, load.total_blocks) == (2, 0, 5, 8)
    assert load.unprocessed_tokens == (20 + 10 - 20) + (33 + 10 - 12)
    assert simulated.load(1.0, {"a": 3}).unprocessed_tokens == (20 + 3 - 20) + (33 + 10 - 12)
    simulated.add(request("c", 33, 10), 1.0)
    assert simulated.load(1.0).waiting_prompt_blocks == 3


def test_a_copy_goes_its_own_way() -> None:
    simulated = node()
    simulated.add(request("a", 20, 4), 0.0)
    simulated.step(0.0)
    other = simulated.copy()
    other.add(request("b", 20, 4), 1.0)
    assert finish_times(other) == {"a": 4.0, "b": 5.0}
    assert finish_times(simulated) == {"a": 4.0}
    simulated.check()
    other.check()


def test_a_node_takes_more_requests_than_it_first_had_room_for() -> None:
    simulated = node(EngineConfig(model="m", max_num_seqs=300, max_num_batched_tokens=8192, num_blocks=1000))
    for i in range(300):
        simulated.add(request(f"r{i}", 5, 1 + i % 7), 0.0)
    simulated.check()
    assert len(finish_times(simulated)) == 300
    simulated.check()


def test_priority_runs_first_and_is_preempted_last() -> None:
    config = EngineConfig(
        model="m",
        max_num_seqs=1,
        max_num_batched_tokens=32,
        num_blocks=8,
        max_model_len_tokens=64,
        scheduling_policy="priority",
    )
    simulated = node(config)
    for request_id, priority in (("late", 2), ("first", 0), ("next", 1), ("also next", 1)):
        simulated.add(request(request_id, 4, 1, priority), 0.0)
    assert list(finish_times(simulated)) == ["first", "next", "also next", "late"]


def test_blocks_that_are_stored_are_found_and_take_the_place_of_the_oldest() -> None:
    config = msgspec.structs.replace(SMALL, enable_prefix_caching=True, num_blocks=8)
    simulated = node(config)
    block = config.block_size_tokens
    simulated.store_blocks(tuple(range(1, 6)))
    assert simulated.cached_blocks(tuple(range(1, 7)), 8 * block) == (5, 0)
    simulated.store_blocks(tuple(range(11, 16)))
    # Of the first ones the last go first, as they do when a request has ended.
    assert simulated.cached_blocks(tuple(range(1, 7)), 8 * block) == (3, 0)
    assert simulated.cached_blocks(tuple(range(11, 16)), 8 * block) == (5, 0)
    assert simulated.free_blocks == 8
    found = msgspec.structs.replace(request("r", 5 * block + 1, 2), block_hashes=tuple(range(11, 16)))
    simulated.add(found, 0.0)
    assert simulated.step(0.0).batch.prefill_tokens == 1
    simulated.check()
