"""What other routers do, as policies: their formulas on loads made by hand, and the accounts that they keep."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from gateway.core import events as ev
from gateway.core.decision.policies.aibrix_least_latency import AibrixLeastLatency
from gateway.core.decision.policies.base import NodeView, PlacementWatcher, Policy, Served
from gateway.core.decision.policies.dynamo_kv import DynamoKv
from gateway.core.decision.policies.llmd_affinity import MOST_TOKENS, LlmdAffinity
from gateway.core.decision.policies.llmd_default import LlmdDefault
from gateway.core.decision.policies.lmetric import LMetric
from gateway.core.decision.policies.planetserve import PlanetServe
from gateway.core.decision.policies.registry import make_policy, policy_names
from gateway.core.queue.queue import HoldConfig
from gateway.core.router import RouterConfig
from simcore.types import Outcome
from tests.helpers.routing import CheckedRouter, engine_config, node_load, node_view, shape


def view(node_id: str, *, in_flight: int = 0, cached: int = 0, **load: Any) -> NodeView:
    return node_view(node_id, node_load(node_id, **load), in_flight=in_flight, cached_tokens=cached)


def unknown(node_id: str) -> NodeView:
    return msgspec.structs.replace(view(node_id), load=None)


def price(policy: Policy, *views: NodeView, **request: Any) -> list[float | None]:
    return ask(policy, shape(**request), *views)


def ask(policy: Policy, request: ev.RequestShape, *views: NodeView) -> list[float | None]:
    return list(policy.costs(request, views, {}))


def costs(policy: str, *views: NodeView, **request: Any) -> list[float | None]:
    return price(make_policy(policy, random.Random(0)), *views, **request)


def prompt(names: Sequence[int], *, request_id: str = "r", tokens: int | None = None) -> ev.RequestShape:
    """A prompt of full blocks with these names, unless it is said to have more tokens."""
    return shape(request_id, prompt_tokens=16 * len(names) if tokens is None else tokens, block_hashes=tuple(names))


# --- llm-d, weighted scorers ------------------------------------------------------------------------------------------


def test_llmd_adds_four_scores_by_their_weights() -> None:
    a, b, c = costs(
        "llmd_default",
        view("a", cached=160, waiting=4, free_blocks=263),
        view("b", cached=80, waiting=2, free_blocks=526),
        view("c", waiting=0, free_blocks=1052),
        prompt_tokens=160,
    )
    assert a == pytest.approx(9 - (3 * 1.0 + 2 * 0.0 + 2 * 0.25 + 2 * 0.5))
    assert b == pytest.approx(9 - (3 * 0.5 + 2 * 0.5 + 2 * 0.5 + 2 * 0.5))
    assert c == pytest.approx(9 - (3 * 0.0 + 2 * 1.0 + 2 * 1.0 + 2 * 0.5))


def test_llmd_scores_equal_queues_alike_and_blocks_by_what_the_node_has() -> None:
    small: dict[str, Any] = {"total_blocks": 100, "free_blocks": 50}
    large: dict[str, Any] = {"total_blocks": 1000, "free_blocks": 500}
    a, b = costs("llmd_default", view("a", waiting=7, **small), view("b", waiting=7, **large))
    assert a == b == pytest.approx(9 - (0 + 2 + 1 + 2))
    assert costs("llmd_default", unknown("x"), view("a"))[0] is None


def test_llmd_gives_prompts_that_nobody_knows_to_whom_they_went_longest_ago() -> None:
    policy = LlmdDefault()
    views = [view("a"), view("b"), view("c")]
    for i, node in enumerate((views[1], views[0], views[2])):
        request = shape(f"r{i}")
        priced = ask(policy, request, *views)
        never = {v.node_id for v in views} - {v.node_id for v in (views[1], views[0], views[2])[:i]}
        best = min(cost for cost in priced if cost is not None)
        assert {v.node_id for v, cost in zip(views, priced, strict=True) if cost == best} == never
        policy.placed(request, node)
    assert price(policy, *views) == pytest.approx([4.0, 3.0, 5.0]), "b, then a, then c"
    ask(policy, warm := prompt((1, 2), request_id="warm"), view("a", cached=16), *views[1:])
    policy.placed(warm, views[1])
    assert price(policy, *views) == pytest.approx([4.0, 3.0, 5.0]), "a prompt that somebody knows changes nothing"


def test_llmd_alone_scores_a_cold_prompt_in_full() -> None:
    assert costs("llmd_default", view("a")) == [pytest.approx(3.0)]


# --- llm-d, affinity filter -------------------------------------------------------------------------------------------


def test_the_filter_keeps_who_has_four_fifths_of_the_prompt() -> None:
    a, b, c = costs("llmd_affinity", view("a", cached=800), view("b", cached=784), view("c"), prompt_tokens=1000)
    assert a == 200.0, "800 of the 992 tokens of full blocks"
    assert b == MOST_TOKENS + 1 + 216, "784 of 992 are less than 0.80"
    assert c == MOST_TOKENS + 1 + 1000


def test_without_anybody_who_has_it_the_least_tokens_win() -> None:
    policy = LlmdAffinity()
    policy.placed(shape("long", prompt_tokens=5000), view("a", cached=1000))
    assert price(policy, view("a"), view("b"), prompt_tokens=100) == [4100.0, 100.0]
    policy.began(shape("long", prompt_tokens=5000), "a")
    assert price(policy, view("a"), view("b"), prompt_tokens=100) == [100.0, 100.0]


@pytest.mark.parametrize(("under_way", "is_kept"), [(18 * 15_928, True), (18 * 15_928 + 1, False)])
def test_the_filter_lets_go_where_the_wait_is_18_s_longer(under_way: int, is_kept: bool) -> None:
    policy = LlmdAffinity()
    policy.placed(shape("queue", prompt_tokens=under_way), view("a"))
    holder, other = price(policy, view("a", cached=992), view("b"), prompt_tokens=1000)
    assert holder == under_way + 8
    assert other == 1000 + (MOST_TOKENS + 1 if is_kept else 0)


def test_the_filter_weighs_the_best_of_both_sides() -> None:
    policy = LlmdAffinity()
    policy.placed(shape("queue", prompt_tokens=10**6), view("a"))
    a, b, c = price(policy, view("a", cached=992), view("b", cached=992), view("c"), prompt_tokens=1000)
    assert b is not None
    assert a is not None
    assert c is not None
    assert b < a < c, "another holder is free"


# --- Dynamo -----------------------------------------------------------------------------------------------------------


def test_dynamo_adds_blocks_to_prefill_and_blocks_held() -> None:
    policy = DynamoKv()
    first = prompt((1, 2, 3, 4), request_id="first", tokens=70)
    policy.placed(first, view("a", cached=32))
    second = prompt((1, 2, 9), request_id="second")
    a, b = ask(policy, second, view("a", cached=32), view("b"))
    assert a == pytest.approx((38 + 48) / 16 - 2 + (4 + 1) + 1), "38 of 70 tokens to prefill; blocks 1 and 2 are shared"
    assert b == pytest.approx(3 + 3)
    policy.began(first, "a")
    assert ask(policy, second, view("a", cached=32)) == [pytest.approx(3 - 2 + 5 + 1)]
    policy.left(first, "a", None)
    assert ask(policy, second, view("a", cached=32)) == [pytest.approx(3 - 2 + 3)]


def test_dynamo_credits_no_more_than_there_is_to_prefill() -> None:
    assert costs("dynamo_kv", view("a", cached=1600), prompt_tokens=160) == [pytest.approx(10.0)]


def test_dynamo_holds_a_shared_block_as_long_as_anybody_does() -> None:
    policy = DynamoKv()
    one, two = prompt((1, 2), request_id="one"), prompt((1, 3), request_id="two")
    for request in (one, two):
        policy.placed(request, view("a"))
        policy.began(request, "a")
    policy.left(one, "a", None)
    assert ask(policy, prompt((1, 2)), view("a")) == [pytest.approx(2 + 2 + 1)]
    policy.left(two, "a", None)
    assert ask(policy, prompt((1, 2)), view("a")) == [pytest.approx(2 + 2)]


# --- cache_aware ------------------------------------------------------------------------------------------------------


def test_cache_aware_follows_the_longest_match_above_its_threshold() -> None:
    request: dict[str, Any] = {"prompt_tokens": 160}
    assert costs("cache_aware", view("a", cached=48), view("b", in_flight=9, cached=64), **request) == [1.0, 0.0]
    assert costs("cache_aware", view("a", in_flight=3, cached=48), view("b", in_flight=2), **request) == [1.0, 0.0]
    equal = view("a", in_flight=3, cached=64), view("b", in_flight=2, cached=64)
    assert costs("cache_aware", *equal, **request) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("busy", "idle", "is_uneven"), [(65, 0, True), (64, 0, False), (195, 130, False), (196, 130, True), (66, 1, True)]
)
def test_cache_aware_goes_to_the_least_loaded_while_loads_are_uneven(busy: int, idle: int, is_uneven: bool) -> None:
    holder = view("a", in_flight=busy, cached=160)
    assert costs("cache_aware", holder, view("b", in_flight=idle), prompt_tokens=160) == (
        [1.0, 0.0] if is_uneven else [0.0, 1.0]
    )


# --- AIBrix -----------------------------------------------------------------------------------------------------------


def test_aibrix_takes_the_best_match_that_is_not_much_busier_than_the_others() -> None:
    def order(*views: NodeView) -> list[float | None]:
        return costs("aibrix_prefix", *views, prompt_tokens=1600)

    # Loads 6, 4, 3: mean 4.33, deviation 1.53.
    assert order(view("a", in_flight=6, cached=1600), view("b", in_flight=4, cached=800), view("c", in_flight=3)) == [
        2.0,
        0.0,
        1.0,
    ]
    # Loads 5, 4, 3: mean 4, deviation 1, and 5 is not above.
    assert order(view("a", in_flight=5, cached=1600), view("b", in_flight=4, cached=800), view("c", in_flight=3)) == [
        0.0,
        1.0,
        2.0,
    ]
    assert order(view("a", in_flight=2, cached=800), view("b", in_flight=1, cached=800)) == [1.0, 0.0]
    assert order(view("a", in_flight=1), view("b")) == [1.0, 0.0], "no match: fewest requests"


@pytest.mark.parametrize(("busy", "is_uneven"), [(13, True), (12, False)])
def test_aibrix_matches_only_the_least_loaded_while_loads_are_uneven(busy: int, is_uneven: bool) -> None:
    """2 x (mean + 1) is 12.4 and 12.0 with five nodes that have 1, 2, 5, 5 and 13 or 12 requests."""
    views = [view("a", in_flight=1), view("b", in_flight=2, cached=1600)]
    views += [view("c", in_flight=5), view("d", in_flight=5), view("e", in_flight=busy)]
    order = costs("aibrix_prefix", *views, prompt_tokens=1600)
    assert order.index(0.0) == (0 if is_uneven else 1)


def test_aibrix_sees_no_unevenness_in_small_gaps() -> None:
    views = [view("a", cached=0), view("b", in_flight=7, cached=1600), *[view(f"n{i}") for i in range(60)]]
    assert costs("aibrix_prefix", *views, prompt_tokens=1600)[0] == 0.0, "7 is more than a deviation above the mean"


def test_aibrix_least_latency_prices_a_typical_request_by_past_times() -> None:
    policy = AibrixLeastLatency()
    assert price(policy, view("a"), view("b")) == [0.0, 0.0]
    policy.left(shape(prompt_tokens=100), "a", Served(ttft_s=0.1, e2e_s=1.1, output_tokens=50))
    policy.left(shape(prompt_tokens=300), "a", Served(ttft_s=0.3, e2e_s=3.3, output_tokens=150))
    policy.left(shape(prompt_tokens=400), "b", Served(ttft_s=0.2, e2e_s=1.2, output_tokens=100))
    # Typical: (200 + 400) / 2 prompt tokens and 100 of output.
    a, b, c = price(policy, view("a"), view("b"), view("c"))
    assert a == pytest.approx(1e3 * (0.4 / 400 * 300 + 4.0 / 200 * 100))
    assert b == pytest.approx(1e3 * (0.2 / 400 * 300 + 1.0 / 100 * 100))
    assert c == 0.0, "a node that has served nothing is tried"


def test_aibrix_least_latency_learns_from_whole_answers_only() -> None:
    policy = AibrixLeastLatency()
    policy.left(shape(), "a", None)
    policy.left(shape(), "a", Served(ttft_s=None, e2e_s=1.0, output_tokens=5))
    assert price(policy, view("a")) == [0.0]


# --- production-stack -------------------------------------------------------------------------------------------------


def test_production_stack_sets_the_share_cached_against_load_above_the_mean() -> None:
    a, b, c = costs(
        "production_stack",
        view("a", in_flight=6, cached=800),
        view("b", in_flight=3, cached=400),
        view("c", in_flight=0),
        prompt_tokens=800,
    )
    assert (a, b, c) == pytest.approx((1.0 - 1.0, 0.0 - 0.5, -1.0))


def test_production_stack_reads_nothing_into_the_loads_of_an_idle_fleet() -> None:
    a, b = costs("production_stack", view("a", in_flight=1, cached=100), view("b"), prompt_tokens=100)
    assert (a, b) == pytest.approx((0.5 - 1.0, -0.5)), "the mean of 0.5 counts as 1"


def test_production_stack_goes_by_the_last_minute_where_nobody_has_the_prompt() -> None:
    a = msgspec.structs.replace(view("a", in_flight=9), dispatches_60s=3)
    b = msgspec.structs.replace(view("b"), dispatches_60s=5)
    assert costs("production_stack", a, b) == [3.0, 5.0]


def test_prefixaware_looks_at_nothing_but_the_match() -> None:
    views = view("a", in_flight=500, cached=64), view("b", cached=32), view("c")
    assert costs("production_stack_prefix", *views, prompt_tokens=100) == [-64.0, -32.0, 0.0]


# --- weights ----------------------------------------------------------------------------------------------------------


def test_weights_say_how_many_requests_are_equal_loads() -> None:
    fast = msgspec.structs.replace(view("a", in_flight=7), weight=4.0)
    assert costs("weighted_least_requests", fast, view("b", in_flight=2), view("c")) == [2.0, 3.0, 1.0]


def test_weights_come_by_node_or_by_profile() -> None:
    world = CheckedRouter(
        "weighted_least_requests", weights={"h100/m": 3.0, "special": 6.0}, hold=HoldConfig(when="never")
    )
    world.join("plain")
    for node_id in ("fast", "special"):
        world.tell(ev.NodeJoined(node_id=node_id, config=engine_config(), profile="h100/m"))
    for i in range(100):
        world.arrive(f"r{i}")
    assert Counter(world.at.values()) == {"plain": 10, "fast": 30, "special": 60}
    world.tell(ev.NodeJoined(node_id="fast", config=engine_config(), profile="other"))
    for i in range(11):
        world.arrive(f"later{i}")
    assert Counter(world.at.values())["fast"] == 30, "it has come back as another machine, with 30 requests of ours"


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_weights_must_be_numbers_above_0(weight: float) -> None:
    with pytest.raises(ValueError, match=r"weights must be > 0, got .* for 'h100/m'"):
        RouterConfig(weights={"h100/m": weight})


# --- PlanetServe ------------------------------------------------------------------------------------------------------


def test_planetserve_follows_the_longest_of_the_last_ten_prompts() -> None:
    policy = PlanetServe()
    policy.placed(prompt((1, 2, 3), request_id="x"), view("a"))
    policy.placed(prompt((1, 2), request_id="y"), view("b"))
    for node_id, request_id in (("a", "x"), ("b", "y")):
        policy.left(shape(request_id), node_id, None)
    views = [view("a"), view("b"), view("c")]
    assert ask(policy, prompt((1, 2, 3, 4)), *views) == [0.0, 1.0, 2.0]
    for i in range(10):
        policy.placed(prompt((100 + i,), request_id=f"z{i}"), view("a"))
        policy.left(shape(f"z{i}"), "a", None)
    assert ask(policy, prompt((1, 2, 3, 4)), *views) == [2.0, 0.0, 1.0], "ten others have come since"


def test_planetserve_leaves_out_hits_above_the_80th_percentile() -> None:
    policy = PlanetServe()
    names = tuple(range(200))
    for i, node_id in enumerate("abcde"):
        policy.placed(prompt(names[: 100 + 10 * i], request_id=f"r{i}"), view(node_id))
        policy.placed(prompt((), request_id=f"q{i}", tokens=2048 * i), view(node_id))
    order = ask(policy, prompt(names), *[view(node_id) for node_id in "abcde"])
    assert order[3] == 0.0, "e matches more, but has most to do: four of five lie at or below the percentile"
    assert order[4] == max(cost for cost in order if cost is not None)


def test_planetserve_without_a_hit_goes_by_latency_times_batches() -> None:
    policy = PlanetServe()
    policy.placed(shape("a1", prompt_tokens=2049), view("a"))
    policy.placed(shape("b1", prompt_tokens=2048), view("b"))
    assert price(policy, view("a"), view("b"), view("c")) == [2.0, 1.0, 0.0]
    policy.left(shape("a1"), "a", Served(0.1, 0.071 + 8 * 0.1, 10))
    policy.left(shape("b1"), "b", Served(0.1, 0.1, 10))
    assert price(policy, view("a"), view("b"), view("c")) == [1.0, 1.0, 0.0], "idle all: fewest requests ever"
    for node_id in "abc":
        policy.placed(shape("more", prompt_tokens=100), view(node_id))
    assert price(policy, view("a"), view("b"), view("c")) == [2.0, 1.0, 0.0], "0.171, 0.075 and 0.071 s a batch"


# --- LMetric ----------------------------------------------------------------------------------------------------------


def test_lmetric_multiplies_tokens_to_prefill_by_requests() -> None:
    policy = LMetric()
    policy.placed(shape("x", prompt_tokens=500), view("a", cached=100))
    views = view("a", in_flight=1), view("b", in_flight=9, cached=900), view("c", in_flight=3)
    assert price(policy, *views, prompt_tokens=1000) == [(400 + 1000) * 2.0, 100 * 10.0, 1000 * 4.0]
    policy.began(shape("x", prompt_tokens=500), "a")
    assert price(policy, *views, prompt_tokens=1000)[0] == 1000 * 2.0


def test_lmetric_counts_a_whole_hit_as_one_token() -> None:
    assert costs("lmetric", view("a", in_flight=4, cached=1008), prompt_tokens=1000) == [5.0]


# --- accounts ---------------------------------------------------------------------------------------------------------

WATCHERS = [name for name in policy_names() if isinstance(make_policy(name, random.Random(0)), PlacementWatcher)]


def test_those_that_keep_accounts_are_told() -> None:
    expected = {"llmd_default", "llmd_affinity", "dynamo_kv", "aibrix_least_latency", "planetserve", "lmetric"}
    ours = {"estimated_latency", "min_total_latency", "slo_goodput"}
    assert set(WATCHERS) == expected | ours


def account(world: CheckedRouter, policy: str) -> Policy:
    return world.router._pipeline.policy(policy)


@pytest.mark.parametrize("policy", ["llmd_affinity", "dynamo_kv", "lmetric"])
def test_accounts_are_given_back_however_a_request_ends(policy: str) -> None:
    world = CheckedRouter(policy, hold=HoldConfig(when="never"), retry_burst=100)
    world.join("a", "b")
    before = list(account(world, policy).costs(shape(), [view("a"), view("b")], {}))
    names = tuple(range(4))
    for i in range(6):
        world.arrive(f"r{i}", prompt_tokens=64, block_hashes=names, slo=ev.Slo(deadline_s=5.0 if i == 4 else None))
    busy = list(account(world, policy).costs(shape(), [view("a"), view("b")], {}))
    assert busy != before
    world.tokens("r0")
    world.end("r0")
    world.end("r1", Outcome.ENGINE_FAILED, "it broke")
    world.tell(ev.ClientGone(request_id="r2"))
    world.tell(ev.NodeLost(node_id=world.at["r3"]))
    world.now_s = 6.0
    world.fire_due()
    for request_id in ("r1", "r3", "r5"):
        world.end(request_id)
    world.router.check_quiescent()
    assert list(account(world, policy).costs(shape(), [view("a"), view("b")], {})) == before


def test_a_placement_that_others_carry_out_is_in_no_account() -> None:
    world = CheckedRouter("lmetric")
    world.join("a")
    world.arrive("r", place_only=True)
    assert account(world, "lmetric").costs(shape(), [view("a")], {}) == [32.0]


def test_an_account_opened_late_hears_of_earlier_requests_without_harm() -> None:
    world = CheckedRouter("least_requests", hold=HoldConfig(when="never"))
    world.join("a")
    world.arrive("early")
    for policy in WATCHERS:
        world.tell(ev.PolicySet(policy=policy))
    world.tell(ev.PolicySet(policy="least_requests"))
    world.arrive("late")
    for request_id in ("early", "late"):
        world.tokens(request_id)
        world.end(request_id)
    assert account(world, "lmetric").costs(shape(), [view("a")], {}) == [32.0]
    assert account(world, "dynamo_kv").costs(shape(), [view("a")], {}) == [4.0]


def test_a_router_tells_what_a_request_took() -> None:
    world = CheckedRouter("aibrix_least_latency")
    world.join("a", "b")
    world.arrive("r")
    world.now_s = 0.5
    world.tokens("r", 1)
    world.now_s = 2.5
    world.tokens("r", 99)
    world.end("r")
    costs_ms = account(world, "aibrix_least_latency").costs(shape(), [view("a"), view("b")], {})
    assert sorted(cost for cost in costs_ms if cost is not None) == pytest.approx([0.0, 2500.0])


def test_what_others_place_counts_too() -> None:
    world = CheckedRouter("random", hold=HoldConfig(when="never"))
    world.join("a", "b")
    world.tell(ev.PolicySet(policy="lmetric"))
    world.tell(ev.PolicySet(policy="random"))
    world.arrive("r", prompt_tokens=1000)
    world.arrive("s", policy="lmetric")
    assert world.at["s"] != world.at["r"]


def test_a_prompt_is_cached_only_once_it_has_been_sent() -> None:
    """Else each first prompt would count as cached where it goes, and be nothing to prefill."""
    world = CheckedRouter("lmetric", hold=HoldConfig(when="never"))
    world.join("a")
    world.arrive("r", prompt_tokens=1600, block_hashes=tuple(range(100)))
    assert account(world, "lmetric").costs(shape(), [view("a")], {}) == [1632.0]
