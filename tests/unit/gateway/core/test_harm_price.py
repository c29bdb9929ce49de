"""What a second of harm counts for, and where the default policy sends requests because of it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gateway.core.decision.harm_price import LARGEST_SHARE, price_of_harm, prompts_share
from gateway.core.decision.later_cost import LATER_WAITS_PER_WAIT, room_s
from gateway.core.decision.policies.estimated_latency import EstimatedLatency
from gateway.core.decision.policies.min_total_latency import MinTotalLatency
from gateway.core.nodes.pace import Pace
from gateway.core.nodes.view import NodeView
from simcore.types import Forecast, NodePace
from tests.helpers.routing import forecast, node_load, node_view, shape

SEATS = 48


def seen(node_id: str, *, step_s: float = 0.02, running: int = 8) -> NodeView:
    """A node whose steps take `step_s`, whatever the batch."""
    steps = (step_s, step_s)
    told = NodePace(batches=(1, SEATS), step_s=steps, kv_s_per_token=0.0, prefill_s_per_token=1e-4)
    return node_view(node_id, node_load(node_id, running=running), pace=Pace(told, SEATS))


def costs(views: list[NodeView], *forecasts: Forecast) -> list[float]:
    found = MinTotalLatency().costs(shape(), views, {f.node_id: f for f in forecasts})
    assert all(cost is not None for cost in found)
    return [cost or 0.0 for cost in found]


def price_at(views: list[NodeView], at: int, **told: Any) -> float:
    """By how much a second of harm at one node makes it dearer. Its own end is so far off that its forecast counts."""
    plain = [forecast(view.node_id, e2e_s=1000.0, **told) for view in views]
    harmed = [*plain[:at], forecast(views[at].node_id, e2e_s=1000.0, harm_s=1.0, **told), *plain[at + 1 :]]
    return costs(views, *harmed)[at] - costs(views, *plain)[at]


def test_the_price_grows_with_the_pace() -> None:
    assert price_of_harm(1.0) == 2.0
    assert price_of_harm(1.5) == 3.0


@pytest.mark.parametrize(
    ("told", "believed"),
    [(0.3, 0.3), (-1.0, 0.0), (math.nan, 0.0), (-math.inf, 0.0), (math.inf, LARGEST_SHARE), (1000.0, LARGEST_SHARE)],
)
def test_a_share_that_cannot_be_harms_nobody(told: float, believed: float) -> None:
    assert prompts_share(told) == believed


def test_on_equal_nodes_a_second_counts_twice() -> None:
    assert price_at([seen("a"), seen("b")], 0) == pytest.approx(2.0)


def test_a_second_costs_more_where_answers_are_slow() -> None:
    views = [seen("fast", step_s=0.01), seen("slow", step_s=0.03)]
    assert price_at(views, 0) == pytest.approx(2.0 * 0.01 / 0.02)
    assert price_at(views, 1) == pytest.approx(2.0 * 0.03 / 0.02)


def test_the_fleets_pace_is_that_of_its_readers() -> None:
    views = [seen("fast", step_s=0.01, running=29), seen("slow", step_s=0.03, running=9)]
    fleet_pace_s = (30 * 0.01 + 10 * 0.03) / 40
    assert price_at(views, 1) == pytest.approx(2.0 * 0.03 / fleet_pace_s)


def test_prompts_of_others_make_a_node_slow() -> None:
    views = [seen("a"), seen("b")]
    busy = forecast("a", e2e_s=0.1, prefill_share=0.5), forecast("b", e2e_s=0.1)
    calm, other = EstimatedLatency().costs(shape(), views, {})
    assert calm is not None
    slowed = costs(views, *busy)
    assert slowed[0] == pytest.approx(calm + shape().expected_tokens * 0.02), "each token takes twice as long"
    assert slowed[1] == other


def test_a_node_that_tells_no_pace_is_priced_by_its_forecast_alone() -> None:
    view = node_view("a", node_load("a", running=4))
    later_s = LATER_WAITS_PER_WAIT * 0.1 + room_s(shape(), view)
    assert costs([view], forecast("a", e2e_s=2.0, harm_s=5.0)) == [pytest.approx(2.0 + 5.0 + later_s)]


def test_the_long_prompt_goes_where_it_stops_the_swift() -> None:
    # Alike in all that a sum of seconds sees: the same end, the same harm.
    views = [seen("slow", step_s=0.04), seen("swift", step_s=0.02)]
    slow, swift = costs(views, *(forecast(v.node_id, e2e_s=60.0, harm_s=8.0) for v in views))
    assert swift < slow
