"""The timeline of the page for the person on call, and when a service level is kept."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.core.events import Slo
from gateway.core.scale.config import Objective
from gateway.ui.timeline import KEPT, Sample, Timeline, Totals, is_kept, pause_s

OBJECTIVE = Objective(ttft_s=2.0, tpot_s=0.1)


def add(timeline: Timeline, totals: Totals, now_s: float, **now: Any) -> Sample:
    state: dict[str, Any] = {"at_s": 1e9 + now_s, "under_way": 0, "held": 0, "nodes_up": 1, "scaled": None, **now}
    return timeline.add(totals, now_s, **state)


def test_a_sample_tells_what_has_happened_since_the_one_before() -> None:
    timeline, totals = Timeline(10.0), Totals()
    totals.placed, totals.ended, totals.failed = 20, 10, 1
    first = add(timeline, totals, 15.0, held=3)
    assert (first.placed_per_s, first.ended_per_s, first.failed, first.held) == (4.0, 2.0, 1, 3)
    totals.placed, totals.promised, totals.kept = 30, 8, 6
    second = add(timeline, totals, 25.0, scaled={"wanted": 4, "serving": 2, "starting": 2, "draining": 0})
    assert (second.placed_per_s, second.ended_per_s, second.failed) == (1.0, 0.0, 0)
    assert (second.promised, second.kept, second.wanted, second.starting) == (8, 6, 4, 2)
    assert (first.wanted, timeline.since(0)) == (None, (2, [first, second]))
    assert (timeline.since(1), timeline.since(2)) == ((2, [second]), (2, []))


def test_it_forgets_what_is_older_than_an_hour() -> None:
    timeline = Timeline(0.0)
    for number in range(KEPT + 5):
        add(timeline, Totals(), float(number + 1))
    assert len(timeline.samples) == KEPT
    assert timeline.samples[0].at_s == 1e9 + 6
    assert timeline.since(2) == (KEPT + 5, list(timeline.samples))


@pytest.mark.parametrize(("unix_s", "pause"), [(1e9, 5.0), (1e9 + 1.25, 3.75), (1e9 + 4.75, 5.25), (1e9 + 4.25, 0.75)])
def test_samples_of_all_processes_are_taken_at_the_same_moments(unix_s: float, pause: float) -> None:
    assert pause_s(unix_s, 5.0) == pause


@pytest.mark.parametrize(
    ("asked", "objective", "times", "kept"),
    [
        (Slo(), None, {}, None),
        (Slo(), OBJECTIVE, {}, True),
        (Slo(), OBJECTIVE, {"ttft_s": 2.5}, False),
        (Slo(), OBJECTIVE, {"e2e_s": 2.5}, False),
        (Slo(ttft_s=3.0), OBJECTIVE, {"ttft_s": 2.5, "e2e_s": 3.0}, True),
        (Slo(ttft_s=0.5), None, {"ttft_s": 0.6}, False),
        (Slo(tpot_s=0.05), None, {"ttft_s": 1.0, "e2e_s": 1.6}, False),
        (Slo(deadline_s=1.4), None, {"e2e_s": 1.5}, False),
        (Slo(deadline_s=1.6), None, {"e2e_s": 1.5}, True),
        (Slo(ttft_s=5.0), None, {"whole": False}, False),
        (Slo(), None, {"whole": False}, None),
        (Slo(ttft_s=5.0), None, {"ttft_s": None}, True),
        (Slo(tpot_s=0.001), None, {"output_tokens": 1}, True),
    ],
)
def test_when_a_service_level_is_kept(
    asked: Slo, objective: Objective | None, times: dict[str, Any], kept: Any
) -> None:
    ended: dict[str, Any] = {"ttft_s": 1.0, "e2e_s": 1.5, "output_tokens": 11, "whole": True, **times}
    assert is_kept(asked, objective, **ended) is kept
