"""A higher service level is quicker and dearer, whatever comes."""

from __future__ import annotations

import heapq
import itertools
import random

import pytest

from gateway.core.scale.events import RequestCame
from tests.helpers.scaling_rules import RuleWorld, scale_config

SERVICE_S = 0.1
LEVELS = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0)


def served(rates: list[float], level: float, seed: int) -> tuple[float, float, list[int]]:
    """(Node-seconds, 90th percentile of waiting plus service, nodes wanted): requests of 100 ms, one at a time on a
    node, and whoever is free next takes the first of the queue; rates change every 60 s."""
    rng = random.Random(seed)
    options = {"service_level": level, "tokens_per_s": 257 / SERVICE_S, "hold_s": 30.0}
    world = RuleWorld(scale_config("service_level", options, max=60), nodes=3, start_s=6.0, now_s=0.0)
    free_s = [0.0] * world.count
    wanted, times, node_s, at_s = [], [], 0.0, 0.0
    heapq.heapify(free_s)
    for rate in rates:
        for _ in range(12):
            until_s = world.now_s + 5.0
            while at_s < until_s:
                world.rule.came(RequestCame(prompt_tokens=256, expected_tokens=1.0), at_s)
                began_s = max(at_s, heapq.heappop(free_s))
                heapq.heappush(free_s, began_s + SERVICE_S)
                times.append(began_s + SERVICE_S - at_s)
                at_s += rng.expovariate(rate)
            world.tick()
            wanted.append(world.count)
            node_s += 5.0 * world.count
            while len(free_s) < len(world.serving):
                heapq.heappush(free_s, world.now_s)
            while len(free_s) > len(world.serving):
                heapq.heappop(free_s)
    times.sort()
    return node_s, times[int(0.9 * len(times))], wanted


@pytest.mark.parametrize("seed", range(4))
def test_levels_are_a_front(seed: int) -> None:
    rng = random.Random(seed)
    rates = [rng.uniform(5.0, 60.0) for _ in range(6)]
    points = [served(rates, level, seed) for level in LEVELS]
    for (cost, p90_s, wanted), (dearer, quicker_s, more) in itertools.pairwise(points):
        assert all(a <= b for a, b in zip(wanted, more, strict=True)), f"seed {seed}: never fewer nodes"
        assert cost <= dearer, f"seed {seed}"
        assert quicker_s <= p90_s + 1e-9, f"seed {seed}: {p90_s} s became {quicker_s} s"
    assert points[0][0] < 0.8 * points[-1][0], "the levels span a range of costs"
    assert points[-1][1] < points[0][1], "and of latencies"


@pytest.mark.parametrize("seed", range(4))
def test_a_steady_rate_is_neither_overstated_nor_a_reason_to_move(seed: int) -> None:
    """Poisson arrivals of 30 a second: 3 nodes of work. Level 1 has 4, nearly always."""
    _, _, wanted = served([30.0] * 20, 1.0, seed)
    settled = wanted[24:]
    assert sum(nodes == 4 for nodes in settled) > 0.9 * len(settled), f"seed {seed}: {settled}"
