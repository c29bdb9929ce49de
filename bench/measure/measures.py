"""What is measured of a run: one number per name, and the names by which users of vLLM and Vidur know them.

Our own names are `<what>_<statistic>_<unit>`, in seconds: `ttft_p99_s`. Percentiles interpolate linearly.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import msgspec

from bench.measure import forecast_errors
from bench.measure.results import STATISTICS, RequestResult, Summary, spread, statistic_of
from bench.measure.scaling import SCALING_MEASURES
from gateway.core.outcomes import COMPLETE

SHORT_PROMPT_TOKENS, LONG_PROMPT_TOKENS = 128, 1024
"""Classes when all priorities are equal: prompts up to the first, between, from the second on."""

CLASS_TIMES = ("ttft", "tpot", "e2e")
"""Measured for each priority where requests have several."""
TIMES = (
    ("ttft", "s"),
    ("tpot", "s"),
    ("e2e", "s"),
    ("normalised", "s_per_token"),
    ("scheduling_delay", "s"),
    ("preemption_loss", "s"),
    ("decision", "s"),
)
"""(what, unit): each is a spread of a run's summary, `<what>_<unit>`."""


class GoodputSlo(msgspec.Struct, frozen=True, kw_only=True):
    """What a good answer keeps: goodput counts those that keep all of it."""

    ttft_s: float = 3.0
    tpot_s: float = 0.1
    e2e_s: float | None = None


def measure(results: Sequence[RequestResult], summary: Summary, slo: GoodputSlo) -> dict[str, float]:
    """Every measure that these results and their summary can give, by our own names."""
    found = {
        f"{name}_{statistic}_{unit}": value
        for name, unit in TIMES
        for statistic in STATISTICS
        if (value := statistic_of(f"{name}_{unit}", statistic)(summary)) is not None
    }
    complete = [r for r in results if r.outcome in COMPLETE]
    good = good_answers(complete, slo)
    found["throughput_requests_per_s"] = summary.throughput_requests_per_s
    found["output_tokens_per_s"] = summary.output_tokens_per_s
    found["total_tokens_per_s"] = summary.total_tokens_per_s
    found["completed_share"] = len(complete) / max(1, len(results))
    found["goodput_share"] = good / max(1, len(results))
    found["slo_missed_share"] = 1.0 - found["goodput_share"]
    found["goodput_requests_per_s"] = good / summary.duration_s if summary.duration_s > 0 else 0.0
    if summary.preemptions is not None:
        found["preemptions"] = float(summary.preemptions)
        found["preempted_share"] = sum(1 for r in results if r.preemptions) / max(1, len(results))
    if "decision_mean_s" in found and "e2e_mean_s" in found:
        found["decision_share"] = found["decision_mean_s"] / found["e2e_mean_s"]
    if summary.forecasts is not None:
        found |= forecast_errors.measures_of(summary.forecasts)
    return found | fairness(complete)


def good_answers(results: Sequence[RequestResult], slo: GoodputSlo) -> int:
    """How many are complete and kept all limits."""
    return sum(is_good(r, slo) for r in results)


def is_good(result: RequestResult, slo: GoodputSlo) -> bool:
    """Whether it is complete and kept all limits."""
    return (
        result.outcome in COMPLETE
        and result.ttft_s is not None
        and result.ttft_s <= slo.ttft_s
        and (result.tpot_s is None or result.tpot_s <= slo.tpot_s)
        and (slo.e2e_s is None or (result.e2e_s is not None and result.e2e_s <= slo.e2e_s))
    )


def fairness(complete: Sequence[RequestResult]) -> dict[str, float]:
    """P99 TTFT of each class; Jain's index of the classes' mean normalised latency (1: all alike).

    Classes are the priorities when there are several, then with mean and P99 of all times (`CLASS_TIMES`); else prompts
    by length.
    """
    classes: dict[str, list[RequestResult]] = {}
    by_priority = len({r.priority for r in complete}) > 1
    for r in complete:
        classes.setdefault(f"priority_{r.priority}" if by_priority else _length_class(r), []).append(r)
    found: dict[str, float] = {}
    means: list[float] = []
    for name, members in sorted(classes.items()):
        for what in CLASS_TIMES if by_priority else ("ttft",):
            times = spread(value for r in members if (value := getattr(r, f"{what}_s")) is not None)
            if times is None:
                continue
            found[f"{what}_p99_s_of_{name}"] = times.p99
            if by_priority:
                found[f"{what}_mean_s_of_{name}"] = times.mean
        if (normalised := spread(n for r in members if (n := r.normalised_s_per_token) is not None)) is not None:
            means.append(normalised.mean)
    if len(means) > 1:
        found["fairness_jain"] = sum(means) ** 2 / (len(means) * sum(m * m for m in means))
    return found


def _length_class(r: RequestResult) -> str:
    tokens = r.prompt_tokens
    return "short" if tokens <= SHORT_PROMPT_TOKENS else "long" if tokens >= LONG_PROMPT_TOKENS else "medium"


# --- names of others --------------------------------------------------------------------------------------------------


def _aliases() -> dict[str, tuple[str, float]]:
    """Alias -> (our name, factor)."""
    found: dict[str, tuple[str, float]] = {
        "request_throughput": ("throughput_requests_per_s", 1.0),
        "output_throughput": ("output_tokens_per_s", 1.0),
        "total_token_throughput": ("total_tokens_per_s", 1.0),
        "request_goodput": ("goodput_requests_per_s", 1.0),
        "request_num_restarts": ("preemptions", 1.0),
    }
    vllm = {"ttft": "ttft", "tpot": "tpot", "e2el": "e2e"}
    vidur = {
        "prefill_e2e_time": ("ttft", "s"),
        "request_e2e_time": ("e2e", "s"),
        "request_e2e_time_normalized": ("normalised", "s_per_token"),
        "request_scheduling_delay": ("scheduling_delay", "s"),
        "request_preemption_time": ("preemption_loss", "s"),
        "decode_time_execution_plus_preemption_normalized": ("tpot", "s"),
    }
    for statistic in STATISTICS:
        own = "median" if statistic == "p50" else statistic
        for alias, name in vllm.items():
            found[f"{own}_{alias}_ms"] = (f"{name}_{statistic}_s", 1e3)
        for alias, (name, unit) in vidur.items():
            found[f"{alias}_{statistic}"] = (f"{name}_{statistic}_{unit}", 1.0)
    return found


ALIASES = _aliases()
"""Names of vLLM's `bench serve` (milliseconds) and of Vidur's metrics (seconds)."""


def read_measure(measures: Mapping[str, float], name: str) -> float | None:
    """A measure by our name or another's; None when the run has no such value."""
    ours, factor = ALIASES.get(name, (name, 1.0))
    value = measures.get(ours)
    return None if value is None else value * factor


def check_measure(name: str) -> None:
    """Raises ValueError for a name that no run can have."""
    known = {*ALIASES, *KNOWN}
    of_class = {f"{what}_{statistic}_s" for what in CLASS_TIMES for statistic in ("mean", "p99")}
    if name not in known and name.partition("_of_")[0] not in of_class:
        near = difflib.get_close_matches(name, sorted(known), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {_listed()}"
        raise ValueError(f"unknown measure {name!r}; {hint}")


def _listed() -> str:
    timed = {f"{name}_{statistic}_{unit}" for name, unit in TIMES for statistic in STATISTICS}
    times = [f"{name}_X_{unit}" for name, unit in TIMES]
    return f"{', '.join(times)} (X: {', '.join(STATISTICS)}), {', '.join(sorted(KNOWN - timed))}"


KNOWN = frozenset(
    {f"{name}_{statistic}_{unit}" for name, unit in TIMES for statistic in STATISTICS}
    | {f"{quantity}_forecast_{name}" for quantity in forecast_errors.QUANTITIES for name in forecast_errors.MEASURES}
    | {
        "throughput_requests_per_s",
        "output_tokens_per_s",
        "total_tokens_per_s",
        "completed_share",
        "goodput_share",
        "slo_missed_share",
        "goodput_requests_per_s",
        "preemptions",
        "preempted_share",
        "decision_share",
        "fairness_jain",
        *SCALING_MEASURES,
        "price_per_hour",
        "price_per_1000_good_answers",
        "price_per_million_output_tokens",
        "forecasts",
        "cpu_s",
        "wall_s",
        "free_blocks_mean",
        "free_blocks_variance",
        "predictor_cpu_share",
        "predictor_rss_mib",
        "predictor_rss_max_mib",
        "gateway_cpu_share",
        "moves_done",
        "moves_given_up",
        "moves_stages",
        "moves_stage_share",
        "moves_downtime_mean_s",
        "moves_downtime_p99_s",
        "gateway_rss_mib",
    }
)
