"""What a forecast says, in cases small enough to reckon by hand, and what it refuses."""

from __future__ import annotations

import msgspec
import pytest

from simcore.lookahead import WhatIf
from simcore.node import SimNode
from simcore.scenarios import OVERDUE_TOKENS
from simcore.trace import TraceSnapshot
from simcore.types import HEADROOM_HORIZONS_S, Candidate, EngineConfig, Forecast, LengthBelief, Quantiles
from tests.helpers.step_time import SECOND
from tests.unit.simcore.test_node import SMALL, node, request


def known(tokens: int) -> LengthBelief:
    return LengthBelief((tokens,))


def candidate(prompt: int, output: int | LengthBelief, request_id: str = "new", limit: int = 64) -> Candidate:
    belief = output if isinstance(output, LengthBelief) else known(output)
    return Candidate(request_id=request_id, prompt_tokens=prompt, max_output_tokens=limit, belief=belief)


def what_if(config: EngineConfig = SMALL, scenarios: int = 8) -> WhatIf:
    return WhatIf("n", config, SECOND, scenarios=scenarios)


def shown(snapshot: TraceSnapshot, free_at_s: float) -> SimNode:
    """The engine that a trace shows. How long its answers are is for beliefs to say."""
    return SimNode.from_snapshot(
        snapshot, "n", SECOND, output_tokens=lambda s: s.max_output_tokens, free_at_s=free_at_s
    )


def same(value: float) -> Quantiles:
    return Quantiles(value, value, value)


def test_an_idle_node() -> None:
    answer = what_if().forecast([candidate(5, 4)])
    assert answer == [
        Forecast(
            request_id="new",
            node_id="n",
            ttft_s=same(1.0),
            tpot_s=same(1.0),
            e2e_s=same(4.0),
            preemptions=0.0,
            kv_headroom_blocks=7,
            harm_s=same(0.0),
            trace_seq=0,
            state_age_s=0.0,
            preemption_probability=0.0,
            clear_start_s=same(0.0),
            kv_headroom_path=(7,) * len(HEADROOM_HORIZONS_S),
        )
    ]


def test_a_one_token_answer_has_no_time_between_tokens() -> None:
    assert what_if().forecast([candidate(5, 1)])[0].tpot_s == same(0.0)


def test_the_candidate_waits_for_the_step_in_progress() -> None:
    simulated = node()
    simulated.add(request("a", 5, 3), 0.0)
    simulated.step(0.0)
    asking = what_if()
    asking.rebase_node(simulated, {"a": known(3)}, 0.25)
    assert asking.forecast([candidate(5, 4)])[0].e2e_s == same(0.75 + 4.0)
    asking.rebase_node(shown(simulated.snapshot(0.25), 1.0), {"a": known(3)}, 0.25)
    answer = asking.forecast([candidate(5, 4)])[0]
    assert (answer.e2e_s, answer.trace_seq) == (same(0.75 + 4.0), 1)


def test_an_engine_that_plans_ahead_lets_the_candidate_in_a_step_later_from_either_base() -> None:
    ahead = msgspec.structs.replace(SMALL, async_scheduling=True)
    simulated = node(ahead)
    simulated.add(request("a", 5, 6), 0.0)
    simulated.step(0.0)
    from_node, from_snapshot = what_if(ahead), what_if(ahead)
    from_node.rebase_node(simulated, {"a": known(6)}, 0.25)
    from_snapshot.rebase_node(shown(simulated.snapshot(1.0), 1.0), {"a": known(6)}, 0.25)
    answers = [asking.forecast([candidate(5, 4)])[0] for asking in (from_node, from_snapshot)]
    assert [a.ttft_s for a in answers] == [same(0.75 + 1.0 + 1.0)] * 2


def test_harm_is_the_summed_delay_of_those_already_there() -> None:
    second_per_sequence = msgspec.structs.replace(SECOND, constant_s=0.0, per_seq_s=1.0)
    simulated = SimNode("n", SMALL, second_per_sequence)
    simulated.add(request("a", 5, 6), 0.0)
    simulated.add(request("b", 5, 3), 0.0)
    simulated.step(0.0)
    asking = WhatIf("n", SMALL, second_per_sequence)
    asking.rebase_node(simulated, {"a": known(6), "b": known(3)}, 2.0)
    # a has 5 steps left, b 2, the candidate runs for 4: a waits 4 s longer, b 2 s.
    assert asking.forecast([candidate(5, 4)])[0].harm_s == same(6.0)
    # Behind a full batch it harms nobody.
    full = EngineConfig(model="m", max_num_seqs=2, num_blocks=8, max_model_len_tokens=64)
    asking = WhatIf("n", full, second_per_sequence)
    seated = msgspec.structs.replace(simulated.snapshot(2.0), config=full)
    asking.rebase_node(shown(seated, 2.0), {"a": known(3), "b": known(3)}, 2.0)
    answer = asking.forecast([candidate(5, 4)])[0]
    assert (answer.ttft_s, answer.harm_s) == (same(4.0 + 1.0), same(0.0))


def test_preemption_by_the_candidate_shows_as_harm_and_is_counted() -> None:
    config = EngineConfig(
        model="m", max_num_seqs=4, max_num_batched_tokens=64, block_size_tokens=4, num_blocks=8, max_model_len_tokens=64
    )
    simulated = node(config)
    simulated.add(request("a", 13, 12), 0.0)
    simulated.step(0.0)
    asking = what_if(config)
    asking.rebase_node(simulated, {"a": known(12)}, 1.0)
    answer = asking.forecast([candidate(13, 12)])[0]
    assert (answer.preemptions, answer.preemption_probability) == (1.0, 1.0)
    # a writes its last token 11 s from now; then all blocks are free. Before that the two never fit together.
    assert answer.clear_start_s == same(11.0)
    assert answer.kv_headroom_blocks == 0
    assert answer.harm_s == same(0.0), "under FCFS the one who came last pays"
    assert answer.e2e_s.mean > 12.0


def test_preemptions_may_depend_on_what_lengths_turn_out_to_be() -> None:
    config = EngineConfig(
        model="m", max_num_seqs=4, max_num_batched_tokens=64, block_size_tokens=4, num_blocks=8, max_model_len_tokens=64
    )
    simulated = node(config)
    simulated.add(request("a", 13, 12), 0.0)
    simulated.step(0.0)
    asking = what_if(config, scenarios=4)
    asking.rebase_node(simulated, {"a": LengthBelief((2, 3, 4, 12))}, 1.0)
    answer = asking.forecast([candidate(13, 4)])[0]
    assert answer.preemption_probability == 0.25
    # a needs 4 blocks for up to 16 tokens in KV and 7 for its longest answer, the candidate 4: only that answer is in
    # the way, for its 11 seconds.
    assert answer.clear_start_s.mean == pytest.approx(11.0 / 4)


def test_a_seat_and_the_end_of_the_queue_are_waited_for_too() -> None:
    config = EngineConfig(model="m", max_num_seqs=1, num_blocks=20, max_model_len_tokens=200)
    simulated = node(config)
    for name, tokens in (("a", 5), ("b", 7)):
        simulated.add(request(name, 5, tokens), 0.0)
    simulated.step(0.0)
    asking = what_if(config)
    asking.rebase_node(simulated, {"a": known(5), "b": known(7)}, 1.0)
    assert asking.forecast([candidate(5, 4)])[0].clear_start_s == same(4.0 + 7.0)


def test_kv_headroom_is_told_by_horizon() -> None:
    config = EngineConfig(
        model="m",
        max_num_seqs=4,
        max_num_batched_tokens=64,
        block_size_tokens=1,
        num_blocks=60,
        max_model_len_tokens=64,
    )
    # The prompt and one more block a second, but for the last token, which is written nowhere.
    answer = what_if(config).forecast([candidate(5, 30)])[0]
    assert HEADROOM_HORIZONS_S == (1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
    assert answer.kv_headroom_path == (55, 54, 51, 46, 36, 26)


def test_reserved_requests_stand_before_the_candidate() -> None:
    simulated = node(EngineConfig(model="m", max_num_seqs=1, num_blocks=8, max_model_len_tokens=64))
    asking = WhatIf("n", simulated.config, SECOND)
    seen = shown(simulated.snapshot(0.0), 0.0)
    seen.add(request("reserved", 5, 7), 0.0)
    asking.rebase_node(seen, {"reserved": known(7)}, 0.0)
    assert asking.forecast([candidate(5, 2)])[0].e2e_s == same(9.0)


def test_candidates_are_answered_each_as_if_alone() -> None:
    simulated = node()
    for i in range(6):
        simulated.add(request(f"r{i}", 30, 10), 0.0)
    simulated.step(0.0)
    beliefs = {f"r{i}": LengthBelief((5, 9, 20)) for i in range(6)}
    candidates = [candidate(5 + 20 * i, LengthBelief((3, 30)), f"c{i}") for i in range(4)]
    asking = what_if()
    asking.rebase_node(simulated, beliefs, 1.0)
    together = asking.forecast(candidates)
    alone = []
    for c in candidates:
        asking.rebase_node(simulated, beliefs, 1.0)
        alone.extend(asking.forecast([c]))
    assert together == alone


def test_a_snapshot_says_the_same_as_the_node() -> None:
    simulated = node()
    for i in range(5):
        simulated.add(request(f"r{i}", 30, 10), 0.0)
    for _ in range(3):
        simulated.step(simulated.next_step_s)
    beliefs = {f"r{i}": LengthBelief((5, 9, 20)) for i in range(5)}
    asking = what_if()
    asking.rebase_node(simulated, beliefs, 3.0)
    first = asking.forecast([candidate(30, LengthBelief((3, 30)))])
    asking.rebase_node(shown(simulated.snapshot(3.0), 3.0), beliefs, 3.0)
    assert asking.forecast([candidate(30, LengthBelief((3, 30)))]) == first


def test_quantiles_spread_over_what_is_not_known() -> None:
    answer = what_if(scenarios=4).forecast([candidate(5, LengthBelief((10, 20, 30, 40)))])[0]
    assert (answer.e2e_s.mean, answer.e2e_s.p50) == (25.0, 25.0)
    assert answer.e2e_s.p90 == pytest.approx(37.0)
    assert answer.ttft_s == same(1.0)


def test_an_outlived_belief_ends_soon() -> None:
    simulated = node(EngineConfig(model="m", max_num_seqs=1, num_blocks=20, max_model_len_tokens=200))
    simulated.add(request("a", 5, 60), 0.0)
    for _ in range(20):
        simulated.step(simulated.next_step_s)
    asking = WhatIf("n", simulated.config, SECOND)
    asking.rebase_node(simulated, {"a": LengthBelief((3, 9))}, 20.0)
    assert asking.forecast([candidate(5, 1)])[0].e2e_s == same(OVERDUE_TOKENS + 1.0)


def test_an_engine_that_plans_ahead_takes_a_newcomer_one_step_later() -> None:
    ahead = msgspec.structs.replace(SMALL, async_scheduling=True)
    simulated = node(ahead)
    asking = what_if(ahead)
    asking.rebase_node(shown(simulated.snapshot(0.0), 0.0), {}, 0.0)
    assert asking.forecast([candidate(5, 4)])[0].ttft_s == same(1.0), "an idle engine has planned nothing"
    simulated.add(request("a", 5, 3), 0.0)
    simulated.add(request("b", 5, 1), 0.0)
    simulated.add(request("c", 31, 2), 0.0)
    beliefs = {"a": known(3), "b": known(1), "c": known(2)}
    asking.rebase_node(shown(simulated.snapshot(0.0), 0.0), beliefs, 0.0)
    # c is prefilled with 22 tokens, then with 9 beside a: the candidate's 5 fit there.
    answer = asking.forecast([candidate(5, 2), candidate(30, 2)])
    assert [a.ttft_s for a in answer] == [same(2.0), same(3.0)]
    assert [a.harm_s for a in answer] == [same(0.0)] * 2


def test_lengths_are_cut_where_the_engine_cuts_them() -> None:
    # 120 tokens of the model, of which 100 are prompt.
    assert what_if().forecast([candidate(100, 500, limit=500)])[0].e2e_s == same(3.0 + 20.0)
    assert what_if().forecast([candidate(5, 500, limit=7)])[0].e2e_s == same(7.0)


def test_a_changed_belief_is_seen() -> None:
    simulated = node(EngineConfig(model="m", max_num_seqs=1, num_blocks=20, max_model_len_tokens=200))
    simulated.add(request("a", 5, 60), 0.0)
    simulated.step(0.0)
    asking = WhatIf("n", simulated.config, SECOND)
    for tokens in (10, 30):
        asking.rebase_node(simulated, {"a": known(tokens)}, 1.0)
        assert asking.forecast([candidate(5, 1)])[0].e2e_s == same(tokens - 1 + 1.0)


@pytest.mark.parametrize(("model", "waits_s"), [("n", 0.0), ("a", 0.0), ("b", 5.0)])
def test_who_asks_for_one_adapter_too_many_waits_for_a_place(model: str, waits_s: float) -> None:
    """`n` is the engine's own name, `a` in use."""
    config = msgspec.structs.replace(SMALL, model="n", max_loras=1)
    busy = SimNode("n", config, SECOND)
    busy.add(msgspec.structs.replace(request("x", 2, 5), adapter="a"), 0.0)
    question = what_if(config)
    question.rebase_node(busy, {"x": known(5)}, 0.0)
    asked = msgspec.structs.replace(candidate(2, 3), model=model)
    assert question.forecast([asked])[0].ttft_s.mean == waits_s + 1.0


def test_what_is_missing_or_impossible_is_refused() -> None:
    simulated = node()
    simulated.add(request("a", 5, 3), 0.0)
    asking = what_if()
    with pytest.raises(ValueError, match="no length belief for request 'a'"):
        asking.rebase_node(simulated, {}, 0.0)
    with pytest.raises(ValueError, match=r"prompt of 120 tokens .* leaves no room"):
        what_if().forecast([candidate(120, 1)])
    with pytest.raises(ValueError, match="scenarios must be >= 1"):
        what_if(scenarios=0)


def test_room_grows_with_the_node() -> None:
    config = EngineConfig(model="m", max_num_seqs=400, max_num_batched_tokens=8192, num_blocks=4000)
    simulated = node(config)
    for i in range(300):
        simulated.add(request(f"r{i}", 5, 5), 0.0)
    asking = WhatIf("n", config, SECOND)
    asking.rebase_node(simulated, {f"r{i}": known(5) for i in range(300)}, 0.0)
    assert asking.forecast([candidate(5, 2)])[0].e2e_s == same(2.0)


@pytest.mark.parametrize("jumping", [True, False])
def test_a_block_that_two_hold_is_free_once_and_when_both_have_gone(jumping: bool) -> None:
    config = EngineConfig(
        model="m",
        max_num_seqs=4,
        max_num_batched_tokens=64,
        block_size_tokens=4,
        num_blocks=12,
        max_model_len_tokens=64,
    )
    simulated = node(config)
    for name, tokens in (("a", 12), ("b", 3)):
        shared = msgspec.structs.replace(request(name, 17, tokens), block_hashes=(1, 2, 3, 4))
        simulated.add(shared, 0.0)
        simulated.step(simulated.next_step_s)
    asking = WhatIf("n", config, SECOND, jumping=jumping)
    asking.rebase_node(simulated, {"a": known(12), "b": known(3)}, 2.0)
    # 6 are held: 4 by both, one each. b ends in 2 s; 5 blocks are a's until it ends 10 s from now, so a prompt of 9
    # blocks comes in then, and one that begins alike, and needs 5 more, as soon as the step is over.
    late, soon = asking.forecast(
        [candidate(36, 1), msgspec.structs.replace(candidate(36, 1), block_hashes=(1, 2, 3, 4))]
    )
    assert (late.cached_tokens, soon.cached_tokens) == (0, 16)
    assert (late.ttft_s, soon.ttft_s) == (same(11.0), same(1.0))
