"""A simulated fleet with the scaler: what starts, serves, leaves and costs."""

from __future__ import annotations

import math
import random
from typing import Any

import msgspec
import pytest

from bench.measure.scaling import GroupCourse, ScalingResult, ScalingTimeline, flaps, scaling_measures
from bench.simcluster import SimCluster, SimResult
from bench.simcluster.perfect import PERFECT
from bench.simcluster.scaling import ConnectorFails, ScaledFleet, ScaledGroup
from bench.simcluster.start_time import StartTime, parse_start_time
from bench.simcluster.world import GatewayRestarts, WorldEvent
from bench.workload.item import WorkloadItem
from gateway.core.moves.config import MovesConfig
from gateway.core.router import RouterConfig
from gateway.core.scale.config import ScaleConfig, ScaleGroup
from simcore.types import Outcome
from tests.helpers.simulated import cluster_nodes, poisson

COLD_S = 12.0


def fleet(plan: list[tuple[float, int]] | None = None, *, seed: int = 0, least: int = 1, **world: Any) -> ScaledFleet:
    """One group `n` of up to six nodes; with a plan it wants as many as that says, else always six."""
    ahead = {"plan": {"n": plan}, "ahead_s": {"n": 0.0}} if plan is not None else {}
    config = ScaleConfig(
        rule=PERFECT if plan is not None else "static",
        options=ahead,
        groups=(ScaleGroup(name="n", min=least, max=6, price_per_hour=8.0, cold_start_s=COLD_S),),
    )
    group = ScaledGroup(**{"node": cluster_nodes(1)[0], "start_time": parse_start_time(f"{COLD_S}"), **world})
    return ScaledFleet(config=config, groups={"n": group}, seed=seed)


def run(
    scaled: ScaledFleet,
    items: list[WorkloadItem],
    world: list[tuple[float, WorldEvent | ConnectorFails]] | None = None,
    policy: str = "least_requests",
    **moves: Any,
) -> tuple[SimResult, ScalingResult]:
    """Runs to the end; nothing may be left anywhere."""
    cluster = SimCluster([], RouterConfig(policy=policy, moves=MovesConfig(**moves)), scaled=scaled)
    result = cluster.run(items, world or [])
    cluster.router.check_quiescent()
    assert cluster.busy_nodes() == []
    assert cluster.free_blocks() == [spec.config.num_blocks for spec in cluster.specs()]
    assert result.scaling is not None
    return result, result.scaling


def ends(result: SimResult) -> set[Outcome]:
    return {row.outcome for row in result.results}


def test_a_node_serves_so_long_after_it_was_asked_for_as_a_start_takes() -> None:
    items = poisson(400, 6.0)
    result, scaling = run(fleet(), items)
    began_s = items[0].arrival_s
    asked_s = scaling.decisions[0].now_s
    assert asked_s == pytest.approx(began_s + 5.0)
    for name in ("n-1", "n-5"):
        first_s = min(row.arrival_s for row in result.results if row.node_id == name)
        assert asked_s + COLD_S <= first_s < asked_s + COLD_S + 3.0
    assert ends(result) == {Outcome.STOP}
    timeline = scaling.timeline
    assert max(timeline.total("starting")) == 5
    assert timeline.total("serving")[-1] == 6


def test_nodes_are_paid_for_from_the_wish_to_the_stop() -> None:
    items = poisson(400, 6.0)
    _, scaling = run(fleet(), items)
    lasts_s = scaling.ended_s - scaling.began_s
    assert scaling.node_s == {"n": pytest.approx(lasts_s + 5 * (lasts_s - 5.0))}
    assert scaling.cost == pytest.approx(8.0 * scaling.node_s["n"] / 3600)
    measures = scaling_measures(scaling)
    assert measures["nodes_mean"] == pytest.approx(scaling.node_s["n"] / lasts_s)
    assert (measures["nodes_peak"], measures["node_starts"], measures["flaps_per_hour"]) == (6.0, 5.0, 0.0)


def test_who_leaves_finishes_what_it_has_and_gets_nothing_new() -> None:
    items = poisson(500, 6.0)
    result, scaling = run(fleet([(0.0, 4), (30.0, 1)], nodes=4), items, empty_leaving=False)
    assert ends(result) == {Outcome.STOP}
    assert scaling.stops == 3
    retired = next(decision for decision in scaling.decisions if decision.actions)
    gone = {action.node_id for action in retired.actions}
    assert len(gone) == 3
    late = {row.node_id for row in result.results if row.arrival_s > retired.now_s + 0.1}
    assert not late & gone
    ended_late = [row for row in result.results if row.node_id in gone and row.arrival_s + (row.e2e_s or 0) > 31.0]
    assert ended_late, "nobody was under way when they were asked to leave"
    assert max(scaling.timeline.total("draining")) == 3
    assert scaling.timeline.total("draining")[-1] == 0


def test_a_node_on_its_way_out_is_taken_back_at_once() -> None:
    items = poisson(500, 6.0)
    result, scaling = run(fleet([(0.0, 4), (30.0, 1), (36.0, 4)], nodes=4), items, empty_leaving=False)
    kinds = [[type(action).__name__ for action in decision.actions] for decision in scaling.decisions]
    assert kinds[0] == ["RetireNode"] * 3
    assert kinds[1][:1] == ["RetireNode"]
    assert ends(result) == {Outcome.STOP}


def test_a_start_that_is_not_wanted_any_more_is_cancelled() -> None:
    result, scaling = run(fleet([(0.0, 1), (20.0, 3), (23.0, 1)]), poisson(300, 4.0))
    assert scaling.starts == 2
    assert scaling.stops == 2
    assert {row.node_id for row in result.results} == {"n-0"}
    assert scaling.node_s["n"] == pytest.approx(scaling.ended_s - scaling.began_s + 2 * 10.0)


@pytest.mark.parametrize("seed", [0, 2, 3, 4])
def test_failed_starts_are_paid_for_until_they_are_given_up_and_tried_again(seed: int) -> None:
    items = poisson(1200, 4.0, seed=seed)
    result, scaling = run(fleet(seed=seed, failed_starts=0.5), items)
    assert ends(result) == {Outcome.STOP}
    assert scaling.failed_starts > 0
    assert scaling.starts > 5
    assert scaling.timeline.total("serving")[-1] >= 3
    assert scaling.peak_nodes <= 6


def test_requests_of_a_node_that_vanishes_go_on_elsewhere() -> None:
    result, scaling = run(fleet(nodes=6, vanish_s=60.0, seed=2), poisson(600, 6.0))
    assert scaling.vanished > 2
    moved = [row for row in result.results if row.outcome is Outcome.STOP]
    assert len(moved) > 0.97 * len(result.results)


def test_the_same_seed_gives_the_same_run() -> None:
    first, again, other = (
        run(fleet(seed=seed, failed_starts=0.3, vanish_s=90.0, start_time=parse_start_time("8/20")), poisson(400, 6.0))
        for seed in (1, 1, 2)
    )
    assert msgspec.json.encode(first[0]) == msgspec.json.encode(again[0])
    assert msgspec.json.encode(first[0]) != msgspec.json.encode(other[0])


def test_a_new_gateway_knows_who_is_to_leave() -> None:
    items = poisson(400, 6.0)
    plan = [(0.0, 4), (20.0, 2)]
    result, scaling = run(fleet(plan, nodes=4), items, [(items[0].arrival_s + 20.3, GatewayRestarts())])
    assert scaling.stops == 2
    assert ends(result) <= {Outcome.STOP, Outcome.INTERNAL}


def test_a_cluster_without_a_scaler_tells_nothing_of_one() -> None:
    assert SimCluster(cluster_nodes(2), RouterConfig(policy="random")).run(poisson(20, 4.0)).scaling is None


def test_the_first_request_of_an_empty_fleet_waits_for_a_node() -> None:
    items = [
        *poisson(20, 4.0),
        *(msgspec.structs.replace(i, request_id=f"late {i.request_id}") for i in poisson(20, 4.0)),
    ]
    late = [msgspec.structs.replace(item, arrival_s=item.arrival_s + 400.0) for item in items[20:]]
    result, scaling = run(fleet([(0.0, 1), (30.0, 0)], least=0), [*items[:20], *late])
    assert ends(result) == {Outcome.STOP}
    assert 0 in scaling.timeline.total("serving")
    waited_s = result.results[20].ttft_s
    assert waited_s is not None
    assert COLD_S < waited_s < COLD_S + 7.0


def test_a_fleet_that_never_starts_is_an_error_and_no_endless_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.simcluster.scaling.STUCK_S", 300.0)
    with pytest.raises(ValueError, match="none starts"):
        run(fleet([(0.0, 1)], nodes=0, least=0, failed_starts=1.0), poisson(3, 4.0))


@pytest.mark.parametrize("policy", ["round_robin", "min_total_latency"])
def test_nodes_outside_the_scaler_stay(policy: str) -> None:
    fixed = [msgspec.structs.replace(spec, node_id=f"mine-{spec.node_id}") for spec in cluster_nodes(2)]
    scaled = fleet([(0.0, 2), (20.0, 0)], nodes=2, least=0)
    cluster = SimCluster(fixed, RouterConfig(policy=policy), scaled=scaled)
    result = cluster.run(poisson(300, 6.0))
    assert {row.outcome for row in result.results} == {Outcome.STOP}
    assert [spec.node_id for spec in cluster.specs()] == ["mine-n0", "mine-n1"]


def test_start_times_are_read_and_drawn() -> None:
    rng = random.Random(3)
    assert parse_start_time("30") == StartTime(kind="fixed", low_s=30.0, high_s=30.0)
    spread = [parse_start_time("20:60").draw(rng) for _ in range(2000)]
    assert 20.0 <= min(spread) < 22.0 < 58.0 < max(spread) <= 60.0
    drawn = sorted(parse_start_time("40/90").draw(rng) for _ in range(4000))
    assert drawn[2000] == pytest.approx(40.0, rel=0.05)
    assert drawn[3600] == pytest.approx(90.0, rel=0.08)
    for wrong in ("", "soon", "60:20", "-1", "0/5", "1:2:3", f"{math.inf}"):
        with pytest.raises(ValueError, match="start-up time"):
            parse_start_time(wrong)


def test_a_flap_is_a_turn_soon_after_a_change() -> None:
    def turned(*steps: tuple[float, int]) -> int:
        course = GroupCourse(wanted=[nodes for _, nodes in steps])
        return flaps(ScalingTimeline(at_s=[at_s for at_s, _ in steps], groups={"n": course}))

    assert turned((0, 1), (10, 2), (20, 3)) == 0
    assert turned((0, 1), (10, 2), (20, 1)) == 1
    assert turned((0, 1), (10, 2), (20, 2), (30, 1), (40, 2)) == 2
    assert turned((0, 1), (10, 2), (611, 1)) == 0
    assert turned() == 0


def test_a_fleet_that_cannot_be_is_refused() -> None:
    good = fleet()
    for change in ({"failed_starts": 1.5}, {"nodes": -1}, {"vanish_s": 0.0}):
        with pytest.raises(ValueError, match="group 'n'"):
            fleet(**change)
    with pytest.raises(ValueError, match="the world"):
        ScaledFleet(config=good.config, groups={"m": good.groups["n"]})
