"""Each published scaling rule against its formula, worked by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from gateway.core.scale.config import ScaleConfig
from gateway.core.scale.events import RequestCame, RequestDone, RequestPlaced
from gateway.core.scale.fleet import FleetState, GroupState
from gateway.core.scale.rules.apportion import provisioned, wish
from gateway.core.scale.rules.registry import make_rule
from simcore.types import NodeLoad
from tests.helpers.routing import TOTAL_BLOCKS, node_load
from tests.helpers.scaling_rules import RuleWorld, scale_config, seen_node


def world(rule: str, options: Mapping[str, Any] | None = None, *, nodes: int = 2, **changes: Any) -> RuleWorld:
    return RuleWorld(scale_config(rule, options, **changes), nodes=nodes, start_s=0.0, now_s=0.0)


def ask(one: RuleWorld, after_s: float = 5.0) -> int:
    """The number that the rule wants at the next tick."""
    told = one.tick(after_s)
    assert told is not None
    return told.wanted["n"]


def came(one: RuleWorld, count: int, over_s: float, *, prompt: int = 256, output: int = 1) -> None:
    for number in range(count):
        request = RequestCame(prompt_tokens=prompt, expected_tokens=float(output))
        one.rule.came(request, one.now_s + number * over_s / count)


def done(one: RuleWorld, e2e_s: float, *, prompt: int = 256, output: int = 1, ttft_s: float = 0.1) -> None:
    one.rule.done(
        RequestDone(
            node_id="n-0", prompt_tokens=prompt, output_tokens=output, waited_s=0.0, ttft_s=ttft_s, e2e_s=e2e_s
        ),
        one.now_s,
    )


def placed(one: RuleWorld, ttft_s: float | None, e2e_s: float | None, tpot_s: float | None = None) -> None:
    one.rule.placed(RequestPlaced(node_id="n-0", waited_s=1.0, ttft_s=ttft_s, e2e_s=e2e_s, tpot_s=tpot_s), one.now_s)


def load_of(**changes: Any) -> Any:
    def load(node_id: str) -> NodeLoad:
        return node_load(node_id, **changes)

    return load


def test_inferline_of_the_lab() -> None:
    """20 requests of 257 tokens a second over the whole window against 2,570 tokens a second: 2 nodes; 30: 3; and
    fewer only after 10 s, when the look-back has forgotten."""
    one = world("inferline", {"look_back_time_scale_up": 40.0, "look_back_time_scale_down": 40.0}, nodes=1)
    one.tick()
    for _ in range(60):
        one.now_s += 0.1
        done(one, 0.1)
    assert one.rule.tick(one.fleet(), one.now_s) is not None
    wanted = []
    for rate in (*[20] * 10, *[30] * 10, *[10] * 20):
        came(one, rate * 5, 5.0)
        wanted.append(ask(one))
    assert wanted[3:10] == [2] * 7
    assert wanted[10] == 3, "the partial windows of the step are up at once"
    assert set(wanted[11:20]) == {3}
    assert wanted[-1] == 1
    assert wanted == sorted(wanted[:20]) + sorted(wanted[20:], reverse=True)


def test_inferline_of_the_paper() -> None:
    """μ 10 a second, ρ 0.8: one node is planned for 8 a second. 7 a second even: nothing; 40: 5 nodes at once; down
    15 s after the last change by the most of the last 30 s in 5 s windows."""
    one = world("inferline", {"preset": "paper", "requests_per_s": 10.0, "service_time_s": 2.0}, nodes=1)
    wanted = []
    for rate in (*[7] * 16, *[40] * 4, *[7] * 30):
        came(one, rate * 5, 5.0)
        wanted.append(ask(one))
    assert set(wanted[:16]) == {1}
    assert wanted[16:20] == [5] * 4 or max(wanted[16:20]) == 6, wanted
    assert wanted[-1] == 1
    # After the burst its rate is within 30 s for six ticks.
    assert min(wanted[20:25]) >= 5


def test_preemptive_and_reactive_add_one_and_no_more_while_it_starts() -> None:
    for rule in ("preemptive", "reactive"):
        one = RuleWorld(scale_config(rule, {"max_slo_in_seconds": 12.0}), nodes=2, start_s=20.0, now_s=0.0)
        placed(one, 1.0, 10.9)
        done(one, 12.0)
        assert ask(one) == 2, rule
        placed(one, 1.0, 11.0)
        done(one, 12.1)
        assert ask(one) == 3, rule
        placed(one, 1.0, 50.0)
        done(one, 50.0)
        assert ask(one) == 3, "one starts already"
        one.tick(20.0)
        placed(one, 1.0, 50.0)
        done(one, 50.0)
        assert ask(one) == 4, rule


def test_preemptive_lets_one_go_when_fewer_would_be_quick_enough() -> None:
    """0.8 of 12 s are 9.6 s; with three nodes 6.3 s become 9.45 s on two, and on two 12.6 s on one."""
    one = world("preemptive", {"max_slo_in_seconds": 12.0}, nodes=3)
    wanted = []
    for _ in range(60):
        came(one, 1, 1.0)
        placed(one, 1.0, 5.2)
        wanted.append(ask(one))
    assert wanted[:12] == [3] * 12
    assert set(wanted[14:]) == {2}


def test_freeness_is_blocks_per_request_and_the_band_is_kept() -> None:
    """100 blocks free less 40 wanted by 8 that run: 7.5 < 10 for 10 s: one more; 61 > 60 for 10 s: one fewer."""
    one = world("freeness", nodes=3)
    one.load = load_of(running=8, free_blocks=100, waiting_prompt_blocks=40, waiting=2)
    assert [ask(one) for _ in range(3)] == [3, 3, 4]
    one = world("freeness", nodes=3)
    one.load = load_of(running=1, free_blocks=61)
    assert [ask(one) for _ in range(3)] == [3, 3, 2]
    one.load = load_of(running=2, free_blocks=61)
    assert [ask(one) for _ in range(6)] == [2] * 6


def test_freeness_drains_who_has_fewest_running() -> None:
    one = world("freeness", nodes=3)
    running = {"n-0": 3, "n-1": 1, "n-2": 2}
    one.load = lambda node_id: node_load(node_id, running=running[node_id], free_blocks=300)
    for _ in range(3):
        told = one.tick()
    assert told is not None
    assert told.leave == ("n-1", "n-2", "n-0")


def test_ray_serve() -> None:
    """2 x 5 ongoing at 2 each: 5 replicas, after 30 s; 2 ongoing: 1, after the mean has come down and 600 s."""
    one = world("concurrency", nodes=2)
    one.load = load_of(running=3, waiting=2)
    assert [ask(one) for _ in range(7)] == [2] * 6 + [5]
    one.load = load_of(running=0)
    one.held = 2
    wanted = [ask(one) for _ in range(130)]
    assert wanted[:119] == [5] * 119
    assert wanted[-1] == 1


@pytest.mark.parametrize(("preset", "target"), [("kserve", 70.0), ("aibrix_kpa", 10.0)])
def test_knative_panics_at_twice_what_is_ready_and_does_not_go_down_in_it(preset: str, target: float) -> None:
    one = world("concurrency", {"preset": preset, "target": target}, nodes=1)
    per_node = round(target / 2)
    one.load = lambda node_id: node_load(node_id, running=per_node)
    assert [ask(one) for _ in range(40)] == [1] * 40
    one.load = lambda node_id: node_load(node_id, running=10 * per_node)
    told = one.tick()
    if preset == "kserve":
        assert told is not None
        assert told.wanted["n"] == 3, "the mean of 6 s, two readings: 5.5 x 35 of 70"
        assert told.seen["in_panic"] == 1.0
    one.load = load_of(running=0)
    assert min(ask(one) for _ in range(8)) >= one.log[-9][0].groups[0].count


def test_skyserve_divides_the_rate_of_a_minute() -> None:
    one = world("qps", {"target_qps_per_replica": 2.5}, nodes=1)
    wanted = []
    for _ in range(90):
        came(one, 50, 5.0)
        wanted.append(ask(one))
    assert wanted[0] == 1
    assert wanted[-1] == 4, "10 a second at 2.5"
    first = wanted.index(4)
    assert 300.0 <= 5.0 * first <= 400.0


def test_aibrix_apa_multiplies_by_use_over_target() -> None:
    """3 nodes 80 % full at a target of 50 %: ceil(4.8); within 10 %: as it is; 4 in 5 is more than twice down."""
    one = world("kv_utilisation", nodes=3)
    one.load = load_of(free_blocks=round(0.2 * TOTAL_BLOCKS))
    assert ask(one) == 5
    one = world("kv_utilisation", nodes=3)
    one.load = load_of(free_blocks=round(0.46 * TOTAL_BLOCKS))
    assert ask(one) == 3
    one = world("kv_utilisation", nodes=8)
    one.load = load_of(free_blocks=round(0.95 * TOTAL_BLOCKS))
    wanted = [ask(one, 10.0) for _ in range(40)]
    assert wanted[0] == 4, "nothing else has been asked for within 300 s"
    one = world("kv_utilisation", nodes=2)
    one.load = load_of(free_blocks=0)
    assert ask(one) == 4


def test_wva_needs_demand_over_85_percent_of_capacity() -> None:
    """Two nodes of 80 % of their blocks: supply 1.6 caches. 1.8 in use: 1.8 / 0.85 - 1.6 = 0.52 caches, one node of
    0.8; 0.5 in use: spare 1.6 - 0.5 / 0.7 = 0.89: one fewer."""
    one = world("kv_utilisation", {"preset": "wva"}, nodes=2)
    one.load = load_of(free_blocks=round(0.1 * TOTAL_BLOCKS))
    assert ask(one) == 3
    one = world("kv_utilisation", {"preset": "wva"}, nodes=2)
    one.load = load_of(free_blocks=round(0.75 * TOTAL_BLOCKS))
    assert ask(one) == 1


def llmd(one: RuleWorld, saturation: float, ticks: int) -> list[int]:
    """Wishes while predicted TTFT is so much of 3 s."""
    wanted = []
    for _ in range(ticks):
        placed(one, 3.0 * saturation - 1.0, None, 0.001)
        wanted.append(ask(one, 15.0))
    return wanted


def test_llmd_slo_law() -> None:
    """s 0.99: 4 + ceil(4 (0.99 / 0.55 - 1)) = 8, once it has been asked for during 30 s; s 0.5: as it is; s 0.1: down,
    by none for 180 s, then by one in 120 s."""
    one = world("llmd_slo", nodes=4, max=32)
    wanted = llmd(one, 0.99, 4)
    assert wanted[:3] == [4, 4, 4]
    assert wanted[3] in (7, 8, 9), "a histogram knows times to a tenth"
    inside = llmd(one, 0.5, 30)
    assert set(inside[8:]) == {inside[-1]}, "once 60 s of histogram and 45 s of mean have forgotten"
    down = llmd(one, 0.1, 40)
    assert all(before - after in (0, 1) for before, after in itertools.pairwise(down))
    assert inside[-1] - down[-1] in (3, 4)


def test_llmd_slo_credits_nodes_that_start_and_only_upwards() -> None:
    one = RuleWorld(scale_config("llmd_slo", max=64), nodes=4, start_s=math.inf, now_s=0.0)
    for _ in range(40):
        placed(one, 100.0, None, 0.001)
        one.tick(15.0)
    # 4 ready at the clamp of 2.0 ask for ceil(4 x 2 / 0.55) = 15, however many start.
    assert one.count == 15


def test_llmd_tokens_takes_the_larger_of_both() -> None:
    """64,000 prompt tokens at 16,000 a second are 4 s, 2.67 of 1.5; 2 caches 90 % full are 2.25 of 0.8: 3 and 3."""
    one = world("llmd_tokens", {"peakPrefillThroughput": 16_000.0}, nodes=2)
    one.load = load_of(prefill_tokens=32_000)
    assert ask(one) == 3
    one = world("llmd_tokens", {"peakPrefillThroughput": 16_000.0}, nodes=2)
    one.load = load_of(free_blocks=round(0.1 * TOTAL_BLOCKS))
    assert ask(one) == 3
    one = world("llmd_tokens", {"peakPrefillThroughput": 16_000.0}, nodes=2)
    one.load = load_of(prefill_tokens=25_000)
    assert ask(one) == 2, "3.125 s of 3.0: within the tolerance"


def test_llmd_tokens_calibrates_by_the_pace() -> None:
    one = world("llmd_tokens", nodes=1)
    one.load = load_of(prefill_tokens=1)
    told = one.tick()
    assert told is not None
    config = one.fleet().groups[0].serving[0].view.config
    tokens = min(config.max_num_batched_tokens, config.max_model_len_tokens)
    assert told.seen["peak_prefill_tokens_per_s"] == pytest.approx(tokens / (0.02 + tokens * 1e-4))


def test_dynamo_easy_mode() -> None:
    one = world("dynamo", nodes=3)
    uses = {"n-0": 0.5, "n-1": 0.5, "n-2": 1.1}
    one.load = lambda node_id: node_load(
        node_id, free_blocks=0, waiting_prompt_blocks=round((uses.get(node_id, 0.0) - 1.0) * TOTAL_BLOCKS)
    )
    assert ask(one) == 4, "one of them above 100 %"
    uses["n-2"] = 0.7
    assert ask(one) == 4, "not all below 60 %"
    uses["n-2"] = 0.5
    assert ask(one) == 3


def test_dynamo_by_estimates_asks_what_one_fewer_would_have() -> None:
    """16 prompts of 1,000 tokens that wait at 0.1 ms and the share of a step each: above 0.5 s on all nodes, one more;
    on one of two only: none; nothing waits: one fewer."""
    options = {"optimization_target": "sla", "ttft": 500.0, "itl": 50.0}
    one = world("dynamo", options, nodes=2)
    came(one, 1, 1.0, prompt=100)
    one.load = load_of(prefill_tokens=16_000)
    assert ask(one) == 3
    one.load = lambda node_id: node_load(node_id, prefill_tokens=0 if node_id == "n-0" else 16_000)
    assert ask(one) == 3
    one.load = load_of(prefill_tokens=0)
    assert ask(one) == 2


def test_a_service_level_is_square_root_staffing() -> None:
    """25 a second of 256 + 1 tokens at 2,570 a second: R = 2.5; level 4: β = 1, ceil(2.5 + 1.58) = 5 nodes."""
    for level, nodes in ((0, 3), (1, 3), (2, 4), (4, 5), (8, 6)):
        one = world("service_level", {"service_level": level, "tokens_per_s": 2570.0}, nodes=1)
        wanted = []
        for _ in range(40):
            came(one, 125, 5.0)
            wanted.append(ask(one))
        assert wanted[-1] == nodes, level


def groups(*counts: int, prices: tuple[float, ...], most: int = 4, **changes: Any) -> FleetState:
    config: ScaleConfig = scale_config("static", min=1, max=most)
    states = []
    for number, (count, price) in enumerate(zip(counts, prices, strict=True)):
        group = msgspec.structs.replace(config.groups[0], name=f"g{number}", price_per_hour=price)
        nodes = tuple(seen_node(f"g{number}-{i}", None) for i in range(count))
        states.append(
            GroupState(group=group, serving=nodes, draining=(), starting=(), start_p50_s=1.0, start_p90_s=1.0)
        )
    return FleetState(now_s=0.0, groups=tuple(states), **changes)


def test_more_are_of_the_cheapest_group_with_room_and_fewer_of_the_dearest() -> None:
    fleet = groups(2, 3, 2, prices=(5.0, 1.0, 3.0), fixed=(seen_node("f", None),))
    assert provisioned(fleet) == 8
    assert wish(fleet, 11, seen={}, why="").wanted == {"g0": 2, "g1": 4, "g2": 4}
    assert wish(fleet, 99, seen={}, why="").wanted == {"g0": 4, "g1": 4, "g2": 4}
    assert wish(fleet, 6, seen={}, why="").wanted == {"g0": 1, "g1": 3, "g2": 1}
    assert wish(fleet, 0, seen={}, why="").wanted == {"g0": 1, "g1": 1, "g2": 1}


def test_a_group_whose_starts_fail_comes_last() -> None:
    fleet = groups(1, 1, prices=(1.0, 3.0))
    failing = msgspec.structs.replace(fleet.groups[0], blocked_until_s=60.0)
    fleet = msgspec.structs.replace(fleet, groups=(failing, fleet.groups[1]))
    assert wish(fleet, 4, seen={}, why="").wanted == {"g0": 1, "g1": 3}


def test_each_model_has_a_rule_of_its_own() -> None:
    config = scale_config("qps", {"target_qps_per_replica": 1.0, "upscale_delay_seconds": 0.0})
    base = config.groups[0]
    pair = tuple(msgspec.structs.replace(base, name=name, model=name) for name in ("a", "b"))
    rule = make_rule(msgspec.structs.replace(config, groups=pair))
    template = world("static").fleet().groups[0]
    fleet = FleetState(now_s=0.0, groups=tuple(msgspec.structs.replace(template, group=group) for group in pair))
    for number in range(240):
        rule.came(RequestCame(prompt_tokens=1, expected_tokens=1.0, model="b"), number / 4)
    rule.came(RequestCame(prompt_tokens=1, expected_tokens=1.0, model="elsewhere"), 60.0)
    told = rule.tick(fleet, 60.0)
    assert told is not None
    assert told.wanted == {"a": 2, "b": 4}
    assert told.seen["b requests_per_s"] == pytest.approx(4.0, rel=0.05)
