"""How drafts fare is learned from the trace, and is what forecasts go by."""

from __future__ import annotations

from predictor.core.draft_learning import KEPT_STEPS, DraftLearner
from predictor.core.traced_engine import TracedEngine
from simcore.trace import Scheduled, TraceDelta, TraceSnapshot
from simcore.types import Candidate, EngineConfig, LengthBelief, RequestState
from tests.helpers.step_time import STEP_TIME


def delta(seq: int, *scheduled: Scheduled, finished: tuple[str, ...] = ()) -> TraceDelta:
    return TraceDelta(
        seq=seq, start_s=float(seq), duration_s=0.01, scheduled=scheduled, finished=finished, free_blocks=900
    )


def odds_of(learner: DraftLearner) -> dict[tuple[int, int], float]:
    return {(drafts, right): count for drafts, right, count in learner.odds.lines}


def test_steps_that_verify_drafts_are_counted_and_nothing_else() -> None:
    learner = DraftLearner(2, always_all=False)
    first = odds_of(learner)
    learner.add(
        delta(
            1,
            Scheduled("a", 3, 3, drafts=2),
            Scheduled("b", 1, 1),
            Scheduled("a prompt", 40, 1),
            Scheduled("a part of a prompt", 40, 0),
            Scheduled("one that found its prompt cached", 1, 1, 48, drafts=2),
            Scheduled("one that has ended", 1, 1, drafts=2),
            finished=("one that has ended",),
        )
    )
    assert odds_of(learner) == {**first, (2, 2): first[2, 2] + 1, (0, 0): 1.0}


def test_an_engine_that_plans_ahead_always_has_all_drafts() -> None:
    learner = DraftLearner(2, always_all=True)
    first = odds_of(learner)
    learner.add(delta(1, Scheduled("a", 1, 1, drafts=1), Scheduled("b", 1, 1), Scheduled("c", 2, 2, drafts=2)))
    assert odds_of(learner) == {**first, (2, 1): first[2, 1] + 1}


def test_what_was_seen_long_ago_counts_less() -> None:
    learner = DraftLearner(1, always_all=True)
    for right in (1, 0):
        for seq in range(int(2 * KEPT_STEPS)):
            learner.add(delta(seq, Scheduled("a", 1 + right, 1 + right, drafts=1)))
    odds = odds_of(learner)
    assert odds[1, 0] > 3 * odds[1, 1]


def test_forecasts_go_by_how_many_drafts_are_right() -> None:
    config = EngineConfig(model="m", num_speculative_tokens=3, num_blocks=1000, async_scheduling=True)
    here = RequestState(request_id="a", prompt_tokens=50, output_tokens=1, computed_tokens=50, max_output_tokens=2000)
    candidate = Candidate(request_id="c", prompt_tokens=20, max_output_tokens=200, belief=LengthBelief((200,)))
    e2e_s = []
    for right in (0, 3):
        engine = TracedEngine("n", config, STEP_TIME)
        engine.on_snapshot(
            TraceSnapshot(seq=0, at_s=0.0, config=config, running=(here,), waiting=(), free_blocks=900), 0.0
        )
        for seq in range(1, 400):
            engine.on_delta(delta(seq, Scheduled("a", 1 + right, 1 + right, drafts=3)), 0.0)
        e2e_s.append(engine.what_if(0.0, 0.0)[0].forecast([candidate])[0].e2e_s.mean)
    assert 3.5 < e2e_s[0] / e2e_s[1] < 4.0
