"""Classes of requests: what they weigh in a placement, what nodes are known to have of them, Llumnix' headroom."""

from __future__ import annotations

import math
import random

import pytest

from gateway.core import events as ev
from gateway.core.decision.class_weights import ARRIVALS_OVER, ClassWeights, Weights
from gateway.core.decision.policies.estimated_latency import EstimatedLatency
from gateway.core.decision.policies.registry import make_policy
from gateway.core.nodes.freeness import REAL_LOAD_TOKENS, freeness, has_high
from gateway.core.nodes.pace import Pace
from gateway.core.priority import PriorityConfig
from gateway.core.queue.queue import HoldConfig
from simcore.types import CLASSES, NodePace, class_of
from tests.helpers.routing import (
    TOTAL_BLOCKS,
    CheckedRouter,
    engine_config,
    every,
    forecast,
    node_load,
    node_view,
    only,
    shape,
)

PACE = NodePace(batches=(1, 48), step_s=(0.02, 0.03), kv_s_per_token=1e-7, prefill_s_per_token=1e-4)


def test_a_class_is_the_priority_within_bounds() -> None:
    assert [class_of(p) for p in (-(2**31), -9, -1, 0, 3, 2**31)] == [-CLASSES, -CLASSES, -1, 0, 3, CLASSES]


def test_a_second_weighs_by_class() -> None:
    config = PriorityConfig(weight=4.0)
    assert [config.weight_of(p) for p in (-2, -1, 0, 1)] == [16.0, 4.0, 1.0, 0.25]
    assert config.weight_there({-1: 1}, 4) == pytest.approx((4.0 + 3.0) / 4)
    assert config.weight_there({-1: 2}, 1) == 4.0, "a note that is behind our own account"
    assert config.weight_there({}, 0) == 1.0


@pytest.mark.parametrize("weight", [0.5, 0.0, -1.0, math.nan, math.inf])
def test_a_weight_that_cannot_be_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="weight must be >= 1"):
        PriorityConfig(weight=weight)


def test_nothing_is_weighed_where_all_are_alike() -> None:
    nodes = [node_view("a"), node_view("b")]
    assert ClassWeights(PriorityConfig()).weigh(shape(), nodes) is None
    assert ClassWeights(PriorityConfig(weight=1.0)).weigh(shape(priority=-1), nodes) is None
    weights = ClassWeights(PriorityConfig(weight=4.0)).weigh(shape(priority=-1), nodes)
    assert weights == [(4.0, 1.0, 1.0), (4.0, 1.0, 1.0)]


def test_those_to_come_weigh_what_came_of_late() -> None:
    classes = ClassWeights(PriorityConfig(weight=4.0))
    for i in range(20 * ARRIVALS_OVER):
        classes.placed(shape(priority=-(i % 2)))
    weights = classes.weigh(shape(), [node_view("a")])
    assert weights is not None
    assert weights[0].later == pytest.approx(2.5, abs=0.01)


@pytest.mark.parametrize("policy", ["min_total_latency", "estimated_latency"])
def test_harm_to_a_higher_class_costs_more(policy: str) -> None:
    load = node_load("a", running=8, free_blocks=900, unprocessed_tokens=800)
    plain, high = (node_view("a", load, pace=_pace(), classes=classes) for classes in ({}, {-1: 2}))
    forecasts = {"a": forecast("a", e2e_s=2.0, harm_s=1.0)}
    costs = [make_policy(policy, random.Random(0)).costs(shape(), [view], forecasts)[0] for view in (plain, high)]
    assert costs[0] is not None
    assert costs[1] is not None
    assert costs[1] > costs[0]


def test_an_estimate_is_the_sum_of_what_each_side_bears() -> None:
    busy = node_load("a", running=8, waiting=2, free_blocks=3, unprocessed_tokens=8000, prefill_tokens=900)
    views, policy = [node_view("a", busy, pace=_pace()), node_view("b", pace=_pace())], EstimatedLatency()
    plain = policy.weighted(shape(), views, None)
    sides = [policy.weighted(shape(), views, [Weights(*side)] * 2) for side in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    for node, whole in enumerate(plain):
        assert whole is not None
        assert sum(side[node] or 0.0 for side in sides) == pytest.approx(whole)
        assert all((side[node] or 0.0) >= 0.0 for side in sides)
    assert sides[1][1] == 0.0, "nobody is there to be harmed"


def test_a_high_request_prefers_a_fast_node_where_another_spares_those_there() -> None:
    """`slow` has nobody whom it would disturb; at `fast` ten are there, and it would be done sooner."""
    slow = node_view("slow", pace=_pace(3.0))
    fast = node_view("fast", node_load("fast", running=10, free_blocks=900, unprocessed_tokens=8000), pace=_pace())
    forecasts = {"slow": forecast("slow", e2e_s=6.0), "fast": forecast("fast", e2e_s=3.0, harm_s=10.0)}
    normal, high = (
        make_policy("min_total_latency", random.Random(0)).costs(shape(priority=priority), [slow, fast], forecasts)
        for priority in (0, -1)
    )
    assert normal[0] is not None
    assert normal[1] is not None
    assert high[0] is not None
    assert high[1] is not None
    assert normal[0] < normal[1]
    assert high[1] < high[0]


def _pace(factor: float = 1.0) -> Pace:
    told = NodePace(
        batches=PACE.batches,
        step_s=tuple(factor * s for s in PACE.step_s),
        kv_s_per_token=PACE.kv_s_per_token,
        prefill_s_per_token=factor * PACE.prefill_s_per_token,
    )
    return Pace(told, 48)


# --- what is known of the classes at a node ---------------------------------------------------------------------------


def test_the_router_counts_the_classes_that_it_has_at_each_node() -> None:
    world = CheckedRouter("least_requests")
    world.join("a")
    for name, priority in (("n", 0), ("h1", -1), ("h2", -1), ("low", 99)):
        world.arrive(name, priority=priority)
    assert world.router.views(world.now_s)[0].classes == {-1: 2, CLASSES: 1}
    before = world.router.views(world.now_s)[0]
    for name in ("n", "h1", "low"):
        world.end(name)
    assert world.router.views(world.now_s)[0].classes == {-1: 1}
    assert before.classes == {-1: 2, CLASSES: 1}, "a view does not change"
    world.end("h2")
    assert world.router.views(world.now_s)[0].classes == {}
    world.router.check_quiescent()


def test_what_others_have_at_a_node_counts_as_it_says_itself() -> None:
    world = CheckedRouter("least_requests")
    world.join("a")

    def classes() -> dict[int, int]:
        return dict(world.router.views(world.now_s)[0].classes)

    world.arrive("mine", priority=-1)
    world.note("a", running=3, classes={-1: 3, 2: 1}, dispatch_seq=1)
    assert classes() == {-1: 3, 2: 1}
    world.end("mine")
    assert classes() == {-1: 3, 2: 1}, "until the node says otherwise"
    world.note("a", running=2, classes={-1: 2}, dispatch_seq=1)
    assert classes() == {-1: 2}
    world.note("a", dispatch_seq=1)
    assert classes() == {}
    world.note("a", running=1, classes={-1: 1}, dispatch_seq=1)
    world.tell(ev.NodeLost(node_id="a"))
    world.join("a")
    assert classes() == {}


# --- Llumnix ----------------------------------------------------------------------------------------------------------


def test_virtual_usage_has_the_four_cases_of_algorithm_1() -> None:
    config = engine_config()
    running = node_load("a", running=4, free_blocks=TOTAL_BLOCKS - 80)
    assert freeness(running, config, keeps_headroom=False) == (TOTAL_BLOCKS - 80) / 4, "physical usage"
    queued = node_load("a", running=4, waiting=2, waiting_prompt_blocks=30, free_blocks=TOTAL_BLOCKS - 80)
    assert freeness(queued, config, keeps_headroom=False) == (TOTAL_BLOCKS - 110) / 4, "what the queue wants"
    real_blocks = REAL_LOAD_TOKENS // config.block_size_tokens
    assert freeness(running, config, keeps_headroom=True) == (real_blocks - 80) / 4, "headroom"
    full = node_load("a", running=4, free_blocks=TOTAL_BLOCKS - real_blocks)
    assert freeness(full, config, keeps_headroom=True) == 0.0, "1,600 tokens are all that it has"
    assert freeness(running, config, keeps_headroom=False, leaves=True) == -math.inf, "a node that leaves"


def test_the_headroom_of_a_small_node_is_not_negative() -> None:
    small = node_load("a", running=1, free_blocks=40, total_blocks=50)
    assert freeness(small, engine_config(), keeps_headroom=True) == 40.0


def test_headroom_parts_high_requests_from_others() -> None:
    assert has_high({-1: 1, 2: 3})
    assert not has_high({2: 3})
    busy = node_load("a", running=4, free_blocks=TOTAL_BLOCKS - 80)
    emptier = node_load("b", running=4, free_blocks=TOTAL_BLOCKS - 40)
    views = [node_view("high", busy, classes={-1: 1}), node_view("normal", emptier)]
    policy = make_policy("llumnix_freeness", random.Random(0))
    high, normal = (policy.costs(shape(priority=priority), views, {}) for priority in (-1, 0))
    assert high[0] is not None
    assert high[1] is not None
    assert normal[0] is not None
    assert normal[1] is not None
    assert high[0] < high[1]
    assert normal[1] < normal[0]
    idle = policy.costs(shape(priority=-1), [views[0], node_view("idle")], {})
    assert idle[1] == -TOTAL_BLOCKS, "an idle node keeps no headroom"


# --- the gateway's queue, and what people are told --------------------------------------------------------------------


def test_of_those_who_wait_the_higher_class_goes_first_and_the_decision_says_who_minds_it() -> None:
    world = CheckedRouter("least_requests", hold=HoldConfig(when="always"))
    world.join("a", config=engine_config(max_num_seqs=2))
    for name in ("r1", "r2"):
        world.arrive(name)
    world.note("a", running=2, free_blocks=900)
    for name, priority in (("normal", 0), ("high", -1)):
        assert not every(world.arrive(name, priority=priority), ev.Dispatch)
    world.note("a", running=1, free_blocks=950)
    dispatch = only(world.end("r1") + _until_due(world), ev.Dispatch)
    assert dispatch.request_id == "high"
    assert "priority -1: its engine takes requests as they come" in dispatch.decision.reason


@pytest.mark.parametrize(("large", "small", "passes"), [(-1, 0, False), (0, 0, True), (0, -1, True), (-1, -1, True)])
def test_one_that_fits_nowhere_yet_is_passed_by_nobody_of_a_lower_class(large: int, small: int, passes: bool) -> None:
    world = CheckedRouter("least_requests", hold=HoldConfig(when="always"))
    world.join("a")
    world.note("a", running=48, free_blocks=10)
    for name, priority, prompt_tokens in (("large", large, 3200), ("small", small, 32)):
        assert not every(world.arrive(name, priority=priority, prompt_tokens=prompt_tokens), ev.Dispatch)
    world.note("a", running=40, free_blocks=100)
    assert bool(every(_until_due(world), ev.Dispatch)) is passes
    world.note("a", running=10, free_blocks=500)
    assert "large" in {action.request_id for action in every(_until_due(world), ev.Dispatch)}


def test_an_engine_that_goes_by_priority_is_told_apart() -> None:
    world = CheckedRouter("least_requests")
    world.join("a", config=engine_config(scheduling_policy="priority"))
    assert "priority" not in only(world.arrive("n"), ev.Dispatch).decision.reason
    reason = only(world.arrive("h", priority=-1), ev.Dispatch).decision.reason
    assert "priority -1: its engine goes by priorities too" in reason


def _until_due(world: CheckedRouter) -> list[ev.AnyAction]:
    world.now_s += 1.0
    return world.fire_due()
