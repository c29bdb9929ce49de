"""The summary against values worked out by hand."""

from __future__ import annotations

import msgspec
import pytest

from bench.measure.results import RequestResult, Summary, spread, summarise, tpot_s
from simcore.types import Outcome


def row(
    index: int,
    *,
    arrival_s: float,
    e2e_s: float | None,
    outcome: Outcome = Outcome.LENGTH,
    ttft_s: float | None = 0.5,
    sent_s: float | None = None,
    node_id: str = "n0",
    itl_s: tuple[float, ...] = (),
    preemptions: int | None = 0,
) -> RequestResult:
    return RequestResult(
        request_id=f"r{index}",
        arrival_s=arrival_s,
        sent_s=sent_s,
        node_id=node_id,
        outcome=outcome,
        prompt_tokens=10,
        output_tokens=5,
        ttft_s=ttft_s,
        tpot_s=0.25 if e2e_s is not None else None,
        e2e_s=e2e_s,
        itl_s=itl_s,
        preemptions=preemptions,
    )


def test_spread_interpolates_between_order_statistics() -> None:
    found = spread([4.0, 1.0, 3.0, 2.0, 5.0])
    assert found is not None
    assert (found.count, found.mean, found.p50, found.max) == (5, 3.0, 3.0, 5.0)
    # Position 0.9 * 4 = 3.6 between 4 and 5; 0.95 * 4 = 3.8; 0.99 * 4 = 3.96.
    assert found.p90 == pytest.approx(4.6)
    assert found.p95 == pytest.approx(4.8)
    assert found.p99 == pytest.approx(4.96)


def test_spread_of_nothing_is_none() -> None:
    assert spread([]) is None


def test_tpot_is_the_time_after_the_first_token_over_the_tokens_after_it() -> None:
    assert tpot_s(ttft_s=1.0, e2e_s=3.0, output_tokens=5) == pytest.approx(0.5)
    assert tpot_s(ttft_s=1.0, e2e_s=1.0, output_tokens=1) is None


def test_rate_counts_gaps_not_requests() -> None:
    def rate_per_s(*arrivals_s: float) -> float | None:
        return summarise([row(i, arrival_s=at_s, e2e_s=None) for i, at_s in enumerate(arrivals_s)]).offered_rate_per_s

    assert rate_per_s(0.0, 1.0, 2.0) == pytest.approx(1.0)
    assert rate_per_s(3.0) is None
    assert rate_per_s(3.0, 3.0) is None


def test_summary_of_three_complete_requests_and_a_lost_one() -> None:
    results = [
        row(0, arrival_s=0.0, sent_s=0.0, e2e_s=2.0, itl_s=(0.1, 0.3)),
        row(1, arrival_s=1.0, sent_s=1.5, e2e_s=4.0, node_id="n1", itl_s=(0.2,)),
        row(2, arrival_s=2.0, sent_s=2.0, e2e_s=6.0, preemptions=2),
        row(3, arrival_s=3.0, sent_s=4.5, e2e_s=None, outcome=Outcome.NODE_LOST, ttft_s=None, node_id=""),
    ]
    found = summarise(results)
    assert found.requests == 4
    assert found.completed == 3
    assert found.outcomes == {"length": 3, "node_lost": 1}
    assert found.nodes == {"n0": 2, "n1": 1}
    # The last known end is 2 + 6 = 8 s after the first arrival at 0.
    assert found.duration_s == pytest.approx(8.0)
    assert found.offered_rate_per_s == pytest.approx(1.0)
    assert found.achieved_rate_per_s == pytest.approx(3 / 4.5)
    assert found.throughput_requests_per_s == pytest.approx(3 / 8)
    assert found.output_tokens_per_s == pytest.approx(15 / 8)
    assert found.total_tokens_per_s == pytest.approx(45 / 8)
    assert found.e2e_s is not None
    assert found.e2e_s.mean == pytest.approx(4.0)
    assert found.ttft_s is not None
    assert found.ttft_s.count == 3
    assert found.inter_token_s is not None
    assert found.inter_token_s.mean == pytest.approx(0.2)
    assert found.lateness_s is not None
    assert found.lateness_s.max == pytest.approx(1.5)
    assert found.preemptions == 2


def test_preemptions_counted_at_the_engines_win_over_the_rows() -> None:
    assert summarise([row(0, arrival_s=0.0, e2e_s=1.0)], preemptions=7).preemptions == 7
    unknown = [row(0, arrival_s=0.0, e2e_s=1.0, preemptions=None)]
    assert summarise(unknown).preemptions is None


def test_a_simulated_run_has_no_lateness_and_keeps_its_offered_rate() -> None:
    found = summarise([row(i, arrival_s=float(i), e2e_s=1.0) for i in range(5)])
    assert found.lateness_s is None
    assert found.inter_token_s is None
    assert found.achieved_rate_per_s == found.offered_rate_per_s == pytest.approx(1.0)


def test_an_empty_run_has_a_summary() -> None:
    found = summarise([])
    assert (found.requests, found.completed, found.duration_s) == (0, 0, 0.0)
    assert found.offered_rate_per_s is None


def test_rows_and_summaries_survive_json() -> None:
    results = [row(0, arrival_s=0.0, e2e_s=2.0, itl_s=(0.1,)), row(1, arrival_s=1.0, e2e_s=None, ttft_s=None)]
    again = msgspec.json.decode(msgspec.json.encode(results), type=list[RequestResult])
    assert again == results
    summary = summarise(results)
    assert msgspec.json.decode(msgspec.json.encode(summary), type=Summary) == summary
