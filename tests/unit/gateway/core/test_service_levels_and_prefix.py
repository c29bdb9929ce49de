"""Service levels, prefix affinity, and the few that are worth asking."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.core import events as ev
from gateway.core.decision.later_cost import LATER_WAITS_PER_WAIT
from gateway.core.decision.policies.prefix_affinity import PrefixAffinity
from gateway.core.decision.policies.registry import canonical_name
from gateway.core.decision.policies.slo_goodput import SloGoodput
from gateway.core.decision.service_levels import is_infeasible, shortfall_s
from gateway.core.nodes.prefix_index import PrefixIndex
from gateway.core.queue.queue import HoldConfig
from gateway.core.router import RouterConfig
from simcore.cache_summary import CacheSummary
from simcore.types import Forecast, LengthBelief, Outcome, Quantiles
from tests.helpers.routing import CheckedRouter, engine_config, every, forecast, node_load, node_view, only, shape

IDS = ("a", "b", "c")
VIEWS = [node_view(node_id) for node_id in IDS]


def same(value: float) -> Quantiles:
    return Quantiles(value, value, value)


def costs(request: ev.RequestShape, **said: Forecast) -> list[float | None]:
    return list(SloGoodput().costs(request, VIEWS, said))


# --- slo_goodput ------------------------------------------------------------------------------------------------------


def test_among_nodes_that_meet_the_levels_the_least_harm_wins() -> None:
    request = shape(slo=ev.Slo(ttft_s=1.0, deadline_s=10.0))
    a, b, c = costs(request, a=forecast("a", 1.0, 3.0), b=forecast("b", 9.0, 0.5), c=forecast("c", 11.0, 0.0))
    assert (a, b) == (3.0, 0.5), "the slower node: its answer is in time, and it harms less"
    assert c == 3.0 + 1.0, "late by a second: behind all that are in time"


def test_when_none_meets_them_the_least_late_wins() -> None:
    request = shape(slo=ev.Slo(ttft_s=0.5))
    a, b, _ = costs(request, a=forecast("a", ttft_s=same(2.0)), b=forecast("b", harm_s=5.0, ttft_s=same(0.7)))
    assert a is not None
    assert b is not None
    assert b < a


def test_levels_are_held_against_the_90th_percentile() -> None:
    request = shape(slo=ev.Slo(ttft_s=1.0))
    assert shortfall_s(request, forecast("a", ttft_s=Quantiles(0.4, 0.3, 1.5))) == pytest.approx(0.5)
    assert shortfall_s(request, forecast("a", ttft_s=Quantiles(0.9, 0.9, 0.9))) == 0.0


def test_a_slow_pace_counts_for_each_token() -> None:
    request = shape(slo=ev.Slo(tpot_s=0.01), belief=LengthBelief((101,)))
    assert shortfall_s(request, forecast("a", tpot_s=same(0.02))) == pytest.approx(1.0)


def test_who_asks_for_nothing_is_placed_by_total_latency() -> None:
    a, b, c = costs(shape(), a=forecast("a", 1.0, 10.0), b=forecast("b", 1.5, 0.0))
    later_s = 0.1 * LATER_WAITS_PER_WAIT
    assert a == pytest.approx(1.0 + 10.0 + later_s)
    assert b == pytest.approx(1.5 + later_s)
    assert c is None


# --- what cannot be met -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slo", "waited_s", "infeasible"),
    [
        (ev.Slo(ttft_s=0.2), 0.0, False),
        (ev.Slo(ttft_s=0.2), 0.15, True),
        (ev.Slo(deadline_s=0.9), 0.0, True),
        (ev.Slo(tpot_s=0.01), 0.0, True),
        (ev.Slo(), 9.0, False),
    ],
    ids=["in time", "waited too long", "deadline", "pace", "nothing asked"],
)
def test_infeasible_is_what_the_median_misses(slo: ev.Slo, waited_s: float, infeasible: bool) -> None:
    assert is_infeasible(slo, forecast("a", 1.0), waited_s=waited_s) is infeasible


def world(**config: Any) -> CheckedRouter:
    made = CheckedRouter("slo_goodput", **config)
    made.join("a", "b")
    for node_id in ("a", "b"):
        made.note(node_id, running=10, free_blocks=500)
    return made


def arrive(made: CheckedRouter, e2e_s: float, request_id: str = "r") -> list[ev.AnyAction]:
    asks = every(made.arrive(request_id, slo=ev.Slo(deadline_s=5.0)), ev.AskForecast)
    return made.answer(asks, {"a": e2e_s, "b": e2e_s})


def test_by_default_what_cannot_be_met_is_served() -> None:
    assert every(arrive(world(), 9.0), ev.Dispatch)


def test_it_can_be_refused_at_once() -> None:
    made = world(infeasible="refuse")
    finish = only(arrive(made, 9.0), ev.Finish)
    assert finish.outcome is Outcome.OVERLOADED
    assert finish.retry_after_s is not None
    assert "forecast to miss" in finish.detail
    assert every(arrive(made, 4.0, "s"), ev.Dispatch), "others are served"
    made.end("s")
    made.router.check_quiescent()


def test_it_can_wait_behind_all_others() -> None:
    made = world(infeasible="hold")
    assert not every(arrive(made, 9.0, "late"), ev.Dispatch)
    made.arrive("fine", slo=ev.Slo(deadline_s=5.0))
    assert made.router.queue_status().held == 2
    made.now_s = 0.3
    asks = every(made.fire_due(), ev.AskForecast)
    assert [ask.candidate.request_id for ask in asks] == ["fine", "fine", "late", "late"]
    made.answer(asks, {"a": 4.0, "b": 4.0})
    assert set(made.at) == {"fine", "late"}, "and is served where there is room"


def test_holding_the_infeasible_needs_a_queue() -> None:
    with pytest.raises(ValueError, match="nothing is held"):
        RouterConfig(infeasible="hold", hold=HoldConfig(when="never"))


# --- prefix affinity --------------------------------------------------------------------------------------------------


def prompt(*names: int, request_id: str = "r") -> ev.RequestShape:
    return shape(request_id, prompt_tokens=16 * len(names) + 1, block_hashes=names)


def indexes() -> dict[str, PrefixIndex]:
    return {node_id: PrefixIndex() for node_id in IDS}


def cheapest(index: dict[str, PrefixIndex], request: ev.RequestShape, **tokens: int) -> str:
    views = [
        node_view(
            n,
            node_load(n, running=1, unprocessed_tokens=tokens.get(n, 0)),
            cached_tokens=16 * index[n].cached_blocks(request.block_hashes),
        )
        for n in IDS
    ]
    priced = PrefixAffinity().costs(request, views, {})
    return min(zip(priced, IDS, strict=True), key=lambda pair: pair[0] or 0.0)[1]


def test_the_longest_known_beginning_wins_until_its_node_has_more_to_do_than_that_saves() -> None:
    index = indexes()
    index["b"].sent("r1", (1, 2, 3), engine_config(), 0.0)
    index["c"].sent("r2", (1, 9), engine_config(), 0.0)
    request = prompt(1, 2, 3, 4)
    assert [index[n].cached_blocks(request.block_hashes) for n in IDS] == [0, 3, 1]
    assert cheapest(index, request) == "b"
    assert cheapest(index, request, b=31) == "b"
    assert cheapest(index, request, b=33) == "c"
    assert cheapest(index, request, b=49, c=49) == "a", "48 tokens saved, 49 to wait for"


def test_without_a_match_it_is_least_unprocessed_tokens() -> None:
    assert cheapest(indexes(), prompt(5, 6), a=30, b=20, c=10) == "c"


def test_the_router_remembers_where_prompts_went() -> None:
    made = CheckedRouter("prefix_affinity")
    made.join(*IDS)
    chosen = set()
    for i in range(20):
        made.arrive(f"r{i}", prompt_tokens=3201, block_hashes=tuple(range(200)))
        chosen.add(made.at[f"r{i}"])
        made.end(f"r{i}")
        made.note(made.at[f"r{i}"])
    assert len(chosen) == 1
    assert canonical_name("kvaware") == "prefix_affinity"


def test_what_a_node_tells_of_its_cache_counts_whoever_sent_it_there() -> None:
    made = CheckedRouter("prefix_affinity")
    for node_id in IDS:
        asked = made.tell(ev.NodeJoined(node_id=node_id, config=engine_config(prefix_cache_traced=True)))
        assert every(asked, ev.AskCache) == [ev.AskCache(node_id=node_id)]
        made.note(node_id)
    names = tuple(range(1, 200))
    whole = CacheSummary(number=5, whole=True, stored=names, names=len(names))
    assert not made.tell(ev.CacheTold(node_id="b", summary=whole))
    made.arrive("r", prompt_tokens=3201, block_hashes=names)
    assert made.at["r"] == "b"
    made.end("r")
    made.note("b")
    gap = CacheSummary(number=8, evicted=names, names=0)
    assert made.tell(ev.CacheTold(node_id="b", summary=gap)) == [ev.AskCache(node_id="b")]


def test_nodes_that_do_not_know_their_cache_are_not_asked_for_it() -> None:
    made = CheckedRouter("prefix_affinity")
    assert not every(made.tell(ev.NodeJoined(node_id="a", config=engine_config())), ev.AskCache)


# --- the few that are worth asking ------------------------------------------------------------------------------------


def test_those_of_least_estimated_cost_are_asked_and_the_unknown_last() -> None:
    made = CheckedRouter("min_total_latency", ask=3, hold=HoldConfig(when="never"))
    for i in range(8):
        made.join(f"n{i}", load=False)
        made.note(f"n{i}", running=10, unprocessed_tokens=1000, free_blocks=100 * i)
    made.join("x", load=False)
    assert [ask.node_id for ask in every(made.arrive("r"), ev.AskForecast)] == ["n7", "n6", "n5"]
    for i in range(1, 8):
        made.tell(ev.NodeLost(node_id=f"n{i}"))
    asked = [ask.node_id for ask in every(made.arrive("s"), ev.AskForecast)]
    assert set(asked) == {"x", "n0"}, "both are worth it where only two are left"


def test_equals_are_asked_in_turn_by_chance() -> None:
    made = CheckedRouter("min_total_latency", ask=2)
    made.join(*IDS)
    asked = {ask.node_id for i in range(20) for ask in every(made.arrive(f"r{i}"), ev.AskForecast)}
    assert asked == set(IDS)


def test_a_large_fleet_costs_no_more_questions() -> None:
    made = CheckedRouter("min_total_latency", look=10)
    made.join(*(f"n{i}" for i in range(100)))
    assert all(len(every(made.arrive(f"r{i}"), ev.AskForecast)) == 4 for i in range(5))
