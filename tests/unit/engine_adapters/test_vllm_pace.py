from __future__ import annotations

import pytest

from engine_adapters.vllm.publisher import LONGEST_PAUSE_S, PATIENCE_S, SHORTEST_PAUSE_S, ReadingPace


def after(duration_s: float, *, busy: bool = True) -> ReadingPace:
    """After a step that ended at 100."""
    pace = ReadingPace()
    pace.ended(100.0 - duration_s, 100.0, busy=busy)
    return pace


def test_who_has_seen_no_step_waits_to_be_woken() -> None:
    assert ReadingPace().pause_s(0.0) is None
    assert after(0.01, busy=False).pause_s(100.0) is None


def test_steps_of_the_same_length_take_one_look_each() -> None:
    """A quarter of a step after the next one's end."""
    assert after(0.012).pause_s(100.003) == pytest.approx(0.012)


@pytest.mark.parametrize("duration_s", [0.0, 0.002, 0.02, 0.2, 5.0])
def test_no_step_is_left_lying_for_long_and_no_look_follows_at_once(duration_s: float) -> None:
    pace = after(duration_s)
    now_s, pauses = 100.0, []
    while (pause_s := pace.pause_s(now_s)) is not None:
        pauses.append(pause_s)
        now_s += pause_s
    assert SHORTEST_PAUSE_S <= min(pauses) <= max(pauses) <= LONGEST_PAUSE_S
    assert now_s == pytest.approx(100.0 + PATIENCE_S, abs=LONGEST_PAUSE_S)


def test_a_step_that_takes_longer_than_the_one_before_is_looked_for_again_soon() -> None:
    pace = after(0.012)
    assert pace.pause_s(100.016) == pytest.approx(0.003)
