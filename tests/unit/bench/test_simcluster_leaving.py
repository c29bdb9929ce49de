"""A node of the simulated cluster, asked of a request that it has."""

from __future__ import annotations

import heapq

import pytest

from bench.simcluster import Delays
from bench.simcluster.heap import EventHeap
from bench.simcluster.node import ClusterNode
from gateway.core import events as ev
from gateway.core.request.resume import attempt_id
from length_model.core.belief import known
from simcore.types import Candidate
from tests.helpers.simulated import cluster_nodes

INSTANT = Delays(network_one_way_s=0.0, decision_s=0.0, forecast_s=0.0, note_interval_s=0.0)


def busy_node() -> tuple[ClusterNode, EventHeap]:
    """It has got a second attempt of `a`, and `b`."""
    (spec,) = cluster_nodes(1)
    heap = EventHeap()
    node = ClusterNode(spec, INSTANT, heap, EventHeap(heap), requests={}, scenarios=4, lengths_known=True)
    for seq, (name, attempt, tokens) in enumerate((("a", 2, 20), ("b", 1, 40)), start=1):
        shape = ev.RequestShape(
            request_id=name, prompt_tokens=100, max_output_tokens=500, model="m", belief=known(tokens)
        )
        node.take(shape, tokens, seq, 0.0, attempt=attempt)
    return node, heap


def answer(node: ClusterNode, heap: EventHeap, name: str) -> ev.ForecastArrived:
    candidate = Candidate(request_id=name, prompt_tokens=1, max_output_tokens=1, belief=known(1), leaving=True)
    node.answer(ev.AskForecast(ask_id=7, node_id="n0", candidate=candidate), 0.05)
    while True:
        _, _, _, (_, _, told) = heapq.heappop(heap.entries)
        if isinstance(told, ev.ForecastArrived):
            return told


def test_it_answers_for_the_attempt_that_it_has() -> None:
    node, heap = busy_node()
    told = answer(node, heap, attempt_id("a", 2))
    assert told.forecast is not None
    assert told.forecast.request_id == attempt_id("a", 2)
    end_s = 0.05 + told.forecast.e2e_s.mean
    node.run_until(2.0 * end_s)
    ends_s: dict[str, float] = {}
    while len(node._reports):
        at_s, _, _, (_, _, reports) = heapq.heappop(node._reports.entries)
        ends_s.update((report.request_id, at_s) for report in reports if isinstance(report, ev.StreamEnded))
    assert ends_s["a"] == pytest.approx(end_s)
    assert told.forecast.harm_s.mean > 0.0


@pytest.mark.parametrize("name", ["a", "gone"])
def test_of_another_attempt_it_has_nothing_to_say(name: str) -> None:
    told = answer(*busy_node(), name)
    assert (told.forecast, told.ask_id) == (None, 7)
    assert "is not here" in told.error


def test_its_loads_tell_how_long_the_first_in_its_queue_waits_if_they_are_to() -> None:
    """48 seats: of 50 requests two wait for the first that ends."""
    told_s = []
    for looks_ahead in (False, True):
        node, _ = busy_node()
        node.looks_ahead = looks_ahead
        for i in range(48):
            shape = ev.RequestShape(
                request_id=f"r{i}", prompt_tokens=10, max_output_tokens=500, model="m", belief=known(100)
            )
            node.take(shape, 100, 3 + i, 0.0)
        node.run_until(0.1)
        note = node.note(0.1)
        assert note is not None
        told_s.append(note.load.head_waits_s)
    node.run_until(5.0)
    ends_s = []
    while len(node._reports):
        at_s, _, _, (_, _, reports) = heapq.heappop(node._reports.entries)
        ends_s += [at_s for report in reports if isinstance(report, ev.StreamEnded)]
    assert told_s[0] == 0.0
    assert 0.1 + told_s[1] == pytest.approx(min(ends_s))
