"""What rules remember, what one node can do, and how fast a wish may be followed."""

from __future__ import annotations

import random

import numpy as np
import pytest

from gateway.core.nodes.pace import Pace
from gateway.core.scale.config import Objective
from gateway.core.scale.events import RequestDone
from gateway.core.scale.rules.behaviour import Behaviour, BoundedByBehaviour
from gateway.core.scale.rules.delayed import Delayed
from gateway.core.scale.throughput import MeasuredThroughput, profiled_requests_per_s
from gateway.core.scale.windows import SlidingHistogram, WindowMax, WindowMean, WindowMin
from simcore.types import NodePace
from tests.helpers.routing import engine_config


def test_means_and_extremes_forget_what_is_older_than_their_window() -> None:
    mean, most, least = WindowMean(20.0), WindowMax(20.0), WindowMin(20.0)
    readings = [(0.0, 8.0), (10.0, 2.0), (20.0, 4.0), (31.0, 6.0)]
    said = [(mean.read(v, t), most.read(v, t), least.read(v, t)) for t, v in readings]
    assert [s[1] for s in said] == [8.0, 8.0, 8.0, 6.0]
    assert [s[2] for s in said] == [8.0, 2.0, 2.0, 4.0]
    assert [s[0] for s in said] == pytest.approx([8.0, 5.0, 3.0, 5.0])


@pytest.mark.parametrize("seed", range(5))
def test_quantiles_of_a_sliding_histogram_are_those_of_what_is_in_it(seed: int) -> None:
    rng = random.Random(seed)
    histogram = SlidingHistogram(window_s=60.0)
    values = []
    for number in range(2000):
        now_s = number * 0.05
        value = rng.lognormvariate(0.0, 1.0)
        values.append((now_s, value))
        histogram.add(value, now_s)
    kept = [value for time_s, value in values if int(time_s // 5) > int(now_s // 5) - 12]
    assert histogram.count(now_s) == len(kept)
    for share in (0.1, 0.5, 0.9, 0.99):
        told = histogram.quantile(share, now_s)
        assert told == pytest.approx(float(np.quantile(kept, share)), rel=0.12), f"seed {seed}"
    assert histogram.quantile(0.5, now_s + 61.0) is None


def test_a_histogram_takes_times_beyond_its_bounds() -> None:
    histogram = SlidingHistogram(window_s=60.0)
    histogram.add(0.0, 0.0)
    assert histogram.quantile(0.5, 0.0) == pytest.approx(0.0005)
    histogram.add(1e9, 1.0)
    assert histogram.quantile(1.0, 1.0) == pytest.approx(1e4)


def done(node_id: str, took_s: float, tokens: int = 257) -> RequestDone:
    return RequestDone(
        node_id=node_id, prompt_tokens=tokens - 1, output_tokens=1, waited_s=2.0, ttft_s=None, e2e_s=2.0 + took_s
    )


def test_what_ends_at_one_moment_is_one_batch_and_queueing_is_no_part_of_it() -> None:
    """The lab's example: batches of 0.1 s per request, the second queued behind the first."""
    measured = MeasuredThroughput(alpha=0.5, initial=1.0)
    measured.done(done("a", 0.1), 10.1)
    # None of those was there when the first ended: that is a batch.
    for _ in range(4):
        measured.done(done("a", 0.4), 10.6)
    assert measured.samples == 1
    assert measured.tokens_per_s == pytest.approx(0.5 * 2570 + 0.5)
    # Two came while the four ran; from their end on the node worked on them for 0.2 s.
    for _ in range(2):
        measured.done(done("a", 0.3), 10.8)
    measured.done(done("a", 0.25), 10.9)
    measured.done(done("a", 0.15), 11.0)
    assert measured.samples == 2
    assert measured.tokens_per_s == pytest.approx(0.75 * 2570 + 0.25)


def test_overlapping_answers_are_measured_over_as_long_as_one_takes() -> None:
    """Four at a time, one ends each second after 4 s: 1 answer of 300 tokens a second, not one in 4 s."""
    measured = MeasuredThroughput(alpha=0.5, initial=0.0)
    for second in range(40):
        measured.done(done("a", min(4.0, 1.0 + second), 300), 100.0 + second)
    assert measured.samples >= 8
    assert measured.tokens_per_s == pytest.approx(300.0, rel=0.02)


PACE = Pace(NodePace(batches=(1, 100), step_s=(0.010, 0.109), kv_s_per_token=0.0, prefill_s_per_token=1e-4), 100)
"""9 ms and 1 ms a sequence."""


@pytest.mark.parametrize(
    ("prompt", "output", "limit_s", "expected"),
    [
        # n = 21 sequences make a step of 9 + 21 (1 + 1) = 51 ms, 20 one of 49.
        (1000, 100, 0.05, 20 / (100 * 0.049)),
        # Not even one keeps the objective: one.
        (1000, 100, 0.001, 1 / (100 * 0.011)),
        # No answers to speak of: as many as the budget of a step takes in.
        (256, 1, 0.05, 7 / (0.009 + 7 * (0.001 + 0.0256))),
    ],
)
def test_what_a_full_node_ends_in_a_second(prompt: int, output: int, limit_s: float, expected: float) -> None:
    engine = engine_config(max_num_seqs=100, max_num_batched_tokens=2048, num_blocks=100_000)
    told = profiled_requests_per_s(
        PACE, engine, prompt_tokens=prompt, output_tokens=output, objective=Objective(tpot_s=limit_s)
    )
    assert told == pytest.approx(expected)


def test_kv_bounds_what_a_node_can_do() -> None:
    engine = engine_config(max_num_seqs=100, num_blocks=275, max_num_batched_tokens=2048)
    told = profiled_requests_per_s(
        PACE, engine, prompt_tokens=1000, output_tokens=100, objective=Objective(tpot_s=None, ttft_s=1.0)
    )
    assert told == pytest.approx(4 / (100 * 0.017))


def test_kubernetes_goes_up_by_the_larger_step_and_down_to_the_most_of_the_window() -> None:
    bounded = BoundedByBehaviour(Behaviour())
    assert bounded.settle(1, 100, 0.0) == 5, "4 pods are more than 100 %"
    assert bounded.settle(5, 100, 5.0) == 5, "within one period"
    assert bounded.settle(5, 100, 15.0) == 10, "100 % are more than 4 pods"
    assert bounded.settle(10, 3, 30.0) == 10, "100 was asked for not 300 s ago"
    assert bounded.settle(10, 3, 316.0) == 3


def test_a_window_upwards_waits_for_the_least_asked_for() -> None:
    bounded = BoundedByBehaviour(Behaviour(up_stabilization_s=30.0, down_percent=0.0, down_pods=1, down_period_s=120.0))
    assert bounded.settle(3, 3, 0.0) == 3
    assert bounded.settle(3, 6, 15.0) == 3
    assert bounded.settle(3, 5, 31.0) == 5
    assert bounded.settle(5, 1, 400.0) == 4
    assert bounded.settle(4, 1, 460.0) == 4, "one in 120 s"
    assert bounded.settle(4, 1, 521.0) == 3


def test_a_delayed_change_must_be_asked_for_without_a_break() -> None:
    delayed = Delayed(up_s=30.0, down_s=60.0)
    assert [delayed.settle(2, asked, t) for t, asked in ((0, 4), (20, 2), (25, 4), (50, 5), (55, 6))] == [2, 2, 2, 2, 6]
    assert [delayed.settle(6, asked, t) for t, asked in ((60, 1), (110, 3), (120, 2))] == [6, 6, 2]
