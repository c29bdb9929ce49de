"""Measures, by our names and by those of vLLM and Vidur."""

from __future__ import annotations

import pytest

from bench.measure.measures import ALIASES, KNOWN, GoodputSlo, check_measure, measure, read_measure
from bench.measure.results import RequestResult, summarise
from simcore.types import Outcome


def result(
    index: int, *, ttft_s: float, e2e_s: float, tokens: int = 11, priority: int = 0, prompt: int = 9
) -> RequestResult:
    return RequestResult(
        request_id=f"r{index}",
        arrival_s=float(index),
        node_id="n",
        outcome=Outcome.STOP,
        prompt_tokens=prompt,
        output_tokens=tokens,
        ttft_s=ttft_s,
        tpot_s=(e2e_s - ttft_s) / (tokens - 1),
        e2e_s=e2e_s,
        decision_s=0.001,
        preemptions=index % 2,
        scheduling_delay_s=ttft_s / 2,
        preemption_loss_s=0.5 * (index % 2),
        priority=priority,
    )


ROWS = [result(i, ttft_s=1.0 + i, e2e_s=3.0 + i) for i in range(4)]


def test_every_measure_of_a_small_run() -> None:
    found = measure(ROWS, summarise(ROWS), GoodputSlo(ttft_s=3.0, tpot_s=0.2))
    assert found["ttft_mean_s"] == 2.5
    assert found["ttft_p50_s"] == 2.5
    assert found["e2e_max_s"] == 6.0
    assert found["normalised_mean_s_per_token"] == pytest.approx(4.5 / 11)
    assert found["scheduling_delay_mean_s"] == 1.25
    assert found["preemption_loss_mean_s"] == 0.25
    assert found["preemptions"] == 2
    assert found["preempted_share"] == 0.5
    # TTFT of 1, 2 and 3 s keep the limit, 4 s does not; the last answer ends 9 s after the first arrival.
    assert found["goodput_share"] == 0.75
    assert found["goodput_requests_per_s"] == pytest.approx(3 / 9)
    assert set(found) <= KNOWN | {name for name in found if name.startswith("ttft_p99_s_of_")}


def test_an_answer_whose_tokens_come_too_slowly_is_no_good_one() -> None:
    assert measure(ROWS, summarise(ROWS), GoodputSlo(ttft_s=10.0, tpot_s=0.1))["goodput_share"] == 0.0


def test_names_of_vllm_are_in_milliseconds_and_those_of_vidur_in_seconds() -> None:
    found = measure(ROWS, summarise(ROWS), GoodputSlo())
    assert read_measure(found, "mean_ttft_ms") == 2500.0
    assert read_measure(found, "median_e2el_ms") == 4500.0
    assert read_measure(found, "p99_tpot_ms") == pytest.approx(200.0)
    assert read_measure(found, "request_goodput") == found["goodput_requests_per_s"]
    assert read_measure(found, "prefill_e2e_time_mean") == 2.5
    assert read_measure(found, "request_scheduling_delay_max") == 2.0
    assert read_measure(found, "no_such") is None


def test_every_alias_means_a_measure_that_there_is() -> None:
    assert {ours for ours, _ in ALIASES.values()} <= KNOWN


def test_classes_are_priorities_or_else_prompt_lengths() -> None:
    by_length = [result(0, ttft_s=1, e2e_s=2, prompt=5), result(1, ttft_s=3, e2e_s=4, prompt=5000)]
    found = measure(by_length, summarise(by_length), GoodputSlo())
    assert (found["ttft_p99_s_of_short"], found["ttft_p99_s_of_long"]) == (1.0, 3.0)
    # Normalised latencies of 2/11 and 4/11: Jain's index is (2 + 4)^2 / (2 (4 + 16)).
    assert found["fairness_jain"] == pytest.approx(36 / 40)
    by_priority = [result(0, ttft_s=1, e2e_s=2, priority=0), result(1, ttft_s=3, e2e_s=4, priority=5)]
    assert "ttft_p99_s_of_priority_5" in measure(by_priority, summarise(by_priority), GoodputSlo())


def test_an_unknown_name_says_what_was_meant() -> None:
    check_measure("ttft_p99_s")
    check_measure("mean_tpot_ms")
    with pytest.raises(ValueError, match="did you mean 'ttft_p99_s'"):
        check_measure("ttft_p9_s")
