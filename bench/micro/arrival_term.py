"""What the arrival rate is worth as a term of the correction: forecasts and outcomes of a simulated cluster with and
without it, on the same requests. `python -m bench.micro.arrival_term sharegpt_val_10k_llama2.csv.gz`."""

from __future__ import annotations

import math
import sys
from typing import Any

from bench.measure.results import Summary
from bench.measure.statistics import compare_paired
from bench.run.simulated import Task, run_task
from bench.run.spec import RunSpec
from bench.workload.item import LengthKnowledge

SEEDS = (3, 4, 5)
"""Others than those on which time constant and doubt were chosen (0 to 2)."""
REQUESTS = 5000
"""At a steady rate."""
CHANGING = "14x45,31x45,20x90,33x45,16x60,29x90"
"""Requests per second x seconds: about 8,900 requests."""
RATES = ("24", "30", "33", CHANGING)
POLICIES = ("min_total_latency", "min_new_request_latency")


def run(policy: str, rate: str, seed: int, lengths: LengthKnowledge, path: str, *, term: bool) -> Summary:
    """One simulation. `rate`: requests per second, or steps of them."""
    changing = "x" in rate
    spec = RunSpec(
        policy=policy,
        correcting=True if term else "by size",
        lengths=lengths,
        dataset="lengths",
        dataset_path=path,
        rate_per_s=None if changing else float(rate),
        rate_steps=rate if changing else "",
        requests=None if changing else REQUESTS,
        seed=seed,
    )
    return run_task(Task(group="arrival term", variant=policy, spec=spec)).line.summary


def numbers(summary: Summary) -> dict[str, float]:
    """What is compared: shares of the actual in per cent, outcomes in seconds."""
    found: dict[str, Any] = {}
    assert summary.forecasts is not None
    assert summary.e2e_s is not None
    assert summary.ttft_s is not None
    for name, errors in (("E2E", summary.forecasts.e2e), ("TTFT", summary.forecasts.ttft)):
        assert errors is not None
        found |= {
            f"{name} error P50 %": 100 * errors.error_p50,
            f"{name} error P90 %": 100 * errors.error_p90,
            f"{name} bias %": 100 * errors.bias,
            f"{name} under p90 %": 100 * errors.under_p90,
        }
    return found | {"mean E2E s": summary.e2e_s.mean, "P99 TTFT s": summary.ttft_s.p99}


def main() -> None:
    """Prints one line per quantity: without, with, and the paired difference with its 95 % interval."""
    path = sys.argv[1]
    for lengths in ("known", "none"):
        for policy in POLICIES:
            for rate in RATES:
                pairs = [
                    [numbers(run(policy, rate, seed, lengths, path, term=term)) for seed in SEEDS]
                    for term in (False, True)
                ]
                print(f"{policy}, lengths {lengths}, {rate} requests/s, seeds {SEEDS}", flush=True)
                for name in pairs[0][0]:
                    a, b = ([found[name] for found in series] for series in pairs)
                    change = compare_paired([0.0] * len(a), [y - x for x, y in zip(a, b, strict=True)])
                    low, high = change.relative.low or 0.0, change.relative.high or 0.0
                    half = 0.5 * (high - low) if math.isfinite(high - low) else math.nan
                    print(
                        f"  {name:18} {sum(a) / 3:9.3f} {sum(b) / 3:9.3f}  {change.mean_b:+8.3f} ± {half:.3f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
