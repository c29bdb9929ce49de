"""What a node foresees: with a state, with reservations, with an old state, with none."""

from __future__ import annotations

import math

import msgspec
import pytest

from length_model.core.belief import DEFAULT_PRIOR, known
from predictor.core.estimator import OVERDUE_LEAST_S, Estimator, NoForecast
from predictor.core.traced_engine import TracedEngine
from simcore.cost.step_time import StepTimeModel
from simcore.node import SimNode, SimRequest
from simcore.prefix import block_hashes
from simcore.trace import CacheDelta, StepBatch
from simcore.types import Candidate, EngineConfig, Forecast, LengthBelief

STEP_TIME = StepTimeModel(
    name="test/test",
    constant_s=0.02,
    prefill_work_s_per_token2=0.0,
    decode_kv_s_per_token=0.0,
    per_seq_s=0.0,
    dense_knots_tokens=(1, 64),
    dense_knots_s=(0.0, 0.03),
)
CONFIG = EngineConfig(
    model="m", max_num_seqs=4, max_num_batched_tokens=64, block_size_tokens=4, num_blocks=200, max_model_len_tokens=400
)


def candidate(name: str, prompt_tokens: int = 30, output_tokens: int = 20) -> Candidate:
    return Candidate(request_id=name, prompt_tokens=prompt_tokens, max_output_tokens=100, belief=known(output_tokens))


class Rig:
    """An engine, its trace, and forecasts of it."""

    def __init__(self) -> None:
        self.node = SimNode("n", CONFIG, STEP_TIME)
        self.traced = TracedEngine("n", CONFIG, STEP_TIME)
        self.estimator = Estimator(self.traced)
        self.now_s = 0.0

    def connect(self) -> Rig:
        self.traced.on_snapshot(self.node.snapshot(self.now_s), self.now_s)
        return self

    def dispatch(self, what: Candidate) -> None:
        self.traced.reserve(what, now_s=self.now_s, ttl_s=30.0)
        request = SimRequest(
            request_id=what.request_id,
            prompt_tokens=what.prompt_tokens,
            output_tokens=what.belief.atoms_tokens[0],
            max_output_tokens=what.max_output_tokens,
        )
        self.node.add(request, self.now_s)

    def step(self, steps: int = 1) -> None:
        for _ in range(steps):
            delta = self.node.step(max(self.now_s, self.node.next_step_s))
            self.now_s = delta.end_s
            assert not self.traced.on_delta(delta, self.now_s)

    def one(self, what: Candidate) -> Forecast:
        (answer,) = self.estimator.forecast([what], self.now_s)
        assert isinstance(answer, Forecast)
        return answer


def test_an_idle_node_answers_what_it_then_does() -> None:
    rig = Rig().connect()
    foreseen = rig.one(candidate("a"))
    rig.dispatch(candidate("a"))
    rig.step()
    assert foreseen.ttft_s.p50 == pytest.approx(rig.now_s)
    rig.step(19)
    assert not rig.node.has_work
    assert foreseen.e2e_s.p50 == pytest.approx(rig.now_s)
    assert foreseen.source == "simulated"
    assert foreseen.state_age_s == 0.0


def test_reservations_count_like_requests_that_are_there() -> None:
    reserved, there = Rig().connect(), Rig().connect()
    for i in range(6):
        reserved.traced.reserve(candidate(f"r{i}"), now_s=0.0, ttl_s=30.0)
        there.dispatch(candidate(f"r{i}"))
    there.connect()
    assert reserved.one(candidate("new")).e2e_s == there.one(candidate("new")).e2e_s
    before, after = reserved.traced.load(0.0), there.traced.load(0.0)
    assert before is not None
    assert after is not None
    assert (before.waiting, before.reserved, after.waiting, after.reserved) == (6, 6, 6, 0)
    assert before.unprocessed_tokens == after.unprocessed_tokens == 6 * 50
    assert before.waiting_prompt_blocks == after.waiting_prompt_blocks == 6 * 8


def test_an_idle_engine_begins_with_all_that_came_in_one_moment() -> None:
    together, apart = Rig().connect(), Rig().connect()
    for i in range(3):
        together.traced.reserve(candidate(f"r{i}"), now_s=0.0002 * i, ttl_s=30.0, sent=True)
        apart.traced.reserve(candidate(f"r{i}"), now_s=0.002 * i, ttl_s=30.0, sent=True)
    together.now_s = apart.now_s = 0.01
    # 90 tokens of prompt take two steps of 64; alone, the first 30 tokens take one and the rest another.
    first, second = STEP_TIME.seconds(StepBatch(64, 0.0, 3)), STEP_TIME.seconds(StepBatch(26 + 30, 0.0, 2, 2, 0))
    assert together.one(candidate("new")).ttft_s.p50 == pytest.approx(first + second - 0.01, abs=0.002)
    assert apart.one(candidate("new")).ttft_s.p50 > together.one(candidate("new")).ttft_s.p50


def test_what_was_sent_while_a_step_runs_waits_for_its_end() -> None:
    rig = Rig().connect()
    rig.dispatch(candidate("a", output_tokens=50))
    rig.step(5)
    ended_s = rig.now_s
    step_s = rig.node.step(ended_s).duration_s
    rig.now_s = ended_s + 0.25 * step_s
    early = rig.one(candidate("new"))
    rig.now_s = ended_s + 0.75 * step_s
    late = rig.one(candidate("new"))
    assert early.ttft_s.p50 - late.ttft_s.p50 == pytest.approx(0.5 * step_s)
    assert early.state_age_s == pytest.approx(0.25 * step_s)
    assert early.trace_seq == 5


def test_load_equals_the_engines_own_account() -> None:
    rig = Rig().connect()
    for i in range(7):
        rig.dispatch(candidate(f"r{i}", prompt_tokens=40 + i, output_tokens=10 + i))
    for _ in range(12):
        rig.step()
        load = rig.traced.load(rig.now_s)
        assert load == rig.node.load(rig.now_s)


def test_released_and_expired_reservations_stop_counting() -> None:
    rig = Rig().connect()
    alone = rig.one(candidate("new"))
    for i in range(8):
        rig.traced.reserve(candidate(f"r{i}"), now_s=0.0, ttl_s=1.0 if i else 50.0)
    assert rig.one(candidate("new")).e2e_s.p50 > alone.e2e_s.p50
    assert rig.traced.release("r0")
    assert not rig.traced.release("r0")
    rig.now_s = 1.5
    assert rig.one(candidate("new")).e2e_s == alone.e2e_s
    load = rig.traced.load(rig.now_s)
    assert load is not None
    assert load.waiting == 0


def test_a_batch_of_questions_is_answered_in_order_and_a_bad_one_harms_no_other() -> None:
    rig = Rig().connect()
    answers = rig.estimator.forecast(
        [candidate("a"), candidate("too long", prompt_tokens=5000), candidate("b", prompt_tokens=60)], 0.0
    )
    assert isinstance(answers[0], Forecast)
    assert isinstance(answers[1], NoForecast)
    assert "5000" in answers[1].reason
    assert isinstance(answers[2], Forecast)
    assert answers[2].request_id == "b"
    assert answers[2].e2e_s.p50 > answers[0].e2e_s.p50
    assert rig.estimator.forecast([], 0.0) == []


def test_without_any_state_the_answer_is_a_pessimistic_prior() -> None:
    rig = Rig()
    blind = rig.one(candidate("a"))
    assert blind.source == "prior"
    assert blind.state_age_s == math.inf
    assert rig.traced.load(0.0) is None
    assert not rig.traced.synchronised
    rig.connect()
    for i in range(5):
        rig.dispatch(candidate(f"r{i}"))
    busy = rig.one(candidate("a"))
    assert blind.ttft_s.p50 > busy.ttft_s.p50
    assert blind.e2e_s.p50 > busy.e2e_s.p50
    (refused,) = Rig().estimator.forecast([candidate("x", prompt_tokens=401)], 0.0)
    assert isinstance(refused, NoForecast)


def test_an_idle_node_that_is_followed_is_never_stale() -> None:
    rig = Rig().connect()
    rig.now_s = 1000.0
    answer = rig.one(candidate("a"))
    assert answer.state_age_s == 0.0
    assert answer.ttft_s.p50 < 0.1


def test_a_state_that_should_have_moved_on_shifts_and_widens_the_answers() -> None:
    rig = Rig().connect()
    rig.dispatch(candidate("r"))
    rig.step(3)
    fresh = rig.one(candidate("a"))
    rig.now_s += 4.0
    stale = rig.one(candidate("a"))
    assert stale.state_age_s == pytest.approx(4.0)
    hidden_s = 4.0 - OVERDUE_LEAST_S
    # Both wait for a step in progress, but not for the same one.
    assert stale.ttft_s.p50 - fresh.ttft_s.p50 == pytest.approx(hidden_s / 2, abs=0.05)
    assert stale.ttft_s.p90 - fresh.ttft_s.p90 == pytest.approx(0.9 * hidden_s, abs=0.05)
    assert stale.e2e_s.p90 - stale.e2e_s.p50 > fresh.e2e_s.p90 - fresh.e2e_s.p50 + 1.0
    assert stale.tpot_s.p50 == pytest.approx(fresh.tpot_s.p50, rel=0.05)
    assert stale.trace_seq == fresh.trace_seq == 3


def test_a_lost_connection_ages_the_state_even_of_an_idle_node() -> None:
    rig = Rig().connect()
    rig.traced.on_disconnect()
    rig.now_s = 7.0
    answer = rig.one(candidate("a"))
    assert answer.state_age_s == pytest.approx(7.0)
    assert answer.ttft_s.p90 > 6.0
    assert not rig.traced.synchronised
    rig.connect()
    assert rig.one(candidate("a")).ttft_s.p90 < 0.1


def test_a_gap_asks_for_a_new_trace_and_reservations_survive_it() -> None:
    rig = Rig().connect()
    rig.dispatch(candidate("a"))
    rig.node.step(0.0)
    lost_then = rig.node.step(rig.node.next_step_s)
    assert rig.traced.on_delta(lost_then, 1.0)
    assert not rig.traced.synchronised
    rig.traced.reserve(candidate("on its way"), now_s=1.0, ttl_s=30.0)
    rig.connect()
    load = rig.traced.load(1.0)
    assert load is not None
    assert (load.running, load.waiting, load.reserved) == (1, 1, 1)


def test_a_request_of_others_gets_the_prior_cut_at_its_limit() -> None:
    rig = Rig().connect()
    rig.node.add(SimRequest(request_id="foreign", prompt_tokens=10, output_tokens=5, max_output_tokens=50), 0.0)
    rig.connect()
    load = rig.traced.load(0.0)
    assert load is not None
    mean = sum(min(a, 50) for a in DEFAULT_PRIOR.atoms_tokens) / len(DEFAULT_PRIOR.atoms_tokens)
    assert load.unprocessed_tokens == 10 + round(mean)


def test_expected_lengths_follow_what_has_been_produced() -> None:
    rig = Rig().connect()
    uncertain = Candidate(request_id="a", prompt_tokens=10, max_output_tokens=100, belief=LengthBelief((2, 4, 30)))
    rig.traced.reserve(uncertain, now_s=0.0, ttl_s=30.0)
    rig.node.add(SimRequest(request_id="a", prompt_tokens=10, output_tokens=40, max_output_tokens=100), 0.0)
    expected = []
    for produced in range(1, 36):
        rig.step()
        load = rig.traced.load(rig.now_s)
        assert load is not None
        # All tokens but the last one produced are computed.
        expected.append(load.unprocessed_tokens + 10 + produced - 1 - 10)
    assert expected[0] == 12
    assert expected[1] == expected[2] == 17
    assert expected[3] == expected[28] == 30
    assert expected[29:34] == [40] * 5, "overdue: ten more than it had when the last atom was passed"


def test_a_prompt_that_the_prefix_cache_holds_starts_sooner() -> None:
    rig = Rig().connect()
    names = block_hashes(range(200), CONFIG.block_size_tokens)
    plain = candidate("x", 200, 20)
    asked = msgspec.structs.replace(plain, block_hashes=names)
    assert not rig.traced.on_cache(CacheDelta(0, True, names, ()))
    new, cached = rig.one(plain), rig.one(asked)
    assert (new.cached_tokens, cached.cached_tokens) == (0, 196)
    # Four steps of prefill against one with four tokens.
    assert new.ttft_s.p50 - cached.ttft_s.p50 > 3 * STEP_TIME.constant_s
    assert new.e2e_s.p50 - cached.e2e_s.p50 > 3 * STEP_TIME.constant_s
    # A trace that begins anew has yet to tell what is cached.
    rig.connect()
    assert rig.one(asked).cached_tokens == 0


def named(name: str, ids: range, output_tokens: int = 20) -> Candidate:
    names = block_hashes(ids, CONFIG.block_size_tokens)
    return msgspec.structs.replace(candidate(name, len(ids), output_tokens), block_hashes=names)


def send(rig: Rig, what: Candidate) -> None:
    """To the node, which was asked about it: a dispatch comes without block names."""
    rig.one(what)
    rig.traced.dispatched(msgspec.structs.replace(what, block_hashes=()), rig.now_s)
    request = SimRequest(
        request_id=what.request_id,
        prompt_tokens=what.prompt_tokens,
        output_tokens=what.belief.atoms_tokens[0],
        max_output_tokens=what.max_output_tokens,
        block_hashes=what.block_hashes,
    )
    rig.node.add(request, rig.now_s)


def first_token_s(rig: Rig, name: str) -> float:
    while not rig.node.output_tokens(name):
        rig.step()
    return rig.now_s


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_prompts_ahead_leave_what_begins_alike(steps: int) -> None:
    rig = Rig().connect()
    send(rig, named("first", range(300)))
    send(rig, named("second", range(260)))
    rig.step(steps)
    asked = named("new", range(280))
    forecast = rig.one(asked)
    assert forecast.cached_tokens == 276
    assert rig.one(candidate("plain", 280)).ttft_s.p50 > forecast.ttft_s.p50 + 3 * STEP_TIME.constant_s
    asked_s = rig.now_s
    send(rig, asked)
    assert first_token_s(rig, "new") - asked_s == pytest.approx(forecast.ttft_s.p50)


def test_what_has_ended_before_it_was_computed_leaves_nothing() -> None:
    rig = Rig().connect()
    send(rig, named("first", range(300)))
    assert rig.one(named("new", range(280))).cached_tokens == 276
    rig.traced.ended("first")
    assert rig.one(named("new", range(280))).cached_tokens == 0
