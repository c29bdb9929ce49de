"""The shipped cost against the best rule there is, in worlds small enough to know it."""

from __future__ import annotations

import pytest

from bench.micro.small_worlds import Queue, mean_latency_s, own_and_harm, requests, shipped

WORLDS = {
    "fast and slow": (Queue(4, 0.01, 0.0005), Queue(4, 0.03, 0.0015)),
    "fast and small, slow and large": (Queue(3, 0.01, 0.0005), Queue(8, 0.03, 0.001)),
}


def test_one_node_with_one_seat_is_the_textbooks_queue() -> None:
    """M/M/1: 1 / (mu - lambda)."""
    node = Queue(1, 0.01, 0.0)
    assert mean_latency_s([node], 0.5, 60, requests) == pytest.approx(1.0 / (1.0 - 0.5), rel=1e-4)


@pytest.mark.parametrize("world", WORLDS)
def test_the_shipped_cost_is_near_the_best_and_what_it_adds_for_those_to_come_brings_it_there(world: str) -> None:
    nodes = WORLDS[world]
    rate_per_s = 0.8 * sum(node.ends_per_s(node.seats) for node in nodes)
    best_s, ours_s, greedy_s, least_s = (
        mean_latency_s(nodes, rate_per_s, 20, rule) for rule in (None, shipped, own_and_harm, requests)
    )
    assert best_s <= ours_s * (1 + 1e-6)
    assert ours_s < 1.1 * best_s
    assert ours_s < greedy_s
    assert ours_s < least_s
