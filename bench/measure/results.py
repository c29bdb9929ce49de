"""One result row per request and one summary, the same for live and simulated runs. No I/O: `bench.run.files` writes.

Times are in seconds since the request's *scheduled* arrival, so a client that falls behind cannot make the system look
better than it is (`lateness` tells how far behind it was). Percentiles interpolate linearly between order statistics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec
import numpy as np

from bench.measure.forecast_errors import DispatchForecast, ForecastErrors, ForecastOutcome, errors_of
from gateway.core.outcomes import COMPLETE
from simcore.types import Outcome

SCHEMA_VERSION = 2
"""Of everything that is written of runs. Grows when a field changes its meaning or goes."""


class RequestResult(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What became of one request."""

    request_id: str
    arrival_s: float
    """When it was due, since the start of the run."""
    sent_s: float | None = None
    """When it was really sent; None in a simulation, where the two are the same."""
    node_id: str
    """Empty when it reached none."""
    outcome: Outcome
    prompt_tokens: int
    output_tokens: int
    """Tokens that came."""
    ttft_s: float | None = None
    """None when no token came."""
    delivery_s: float | None = None
    """The part of `ttft_s` outside the gateway: on its way there, and from there back. None when not asked for."""
    tpot_s: float | None = None
    """(e2e - ttft) / (output tokens - 1); None for answers of less than two tokens or incomplete ones."""
    e2e_s: float | None = None
    """None unless the answer is complete."""
    itl_s: tuple[float, ...] = ()
    """Gaps between the messages that brought tokens; empty when not measured (simulations)."""
    decision_s: float | None = None
    """From arrival at the gateway to the placement."""
    forecast: DispatchForecast | None = None
    """Of the dispatch; None when no forecast placed it, or more than one node worked on it."""
    preemptions: int | None = None
    """Of this request; None when unknown."""
    scheduling_delay_s: float | None = None
    """From arrival to the engine step that first worked on it; None when unknown (live)."""
    preemption_loss_s: float | None = None
    """What preemptions cost this request: from each to the token that it held up. None when unknown (live)."""
    moves: int | None = None
    """How often it went on at another node by a move; None: never, or unknown (live)."""
    downtime_s: float | None = None
    """The longest gap between the last token of one node and the first of that to which it moved; None: it did not."""
    priority: int = 0
    detail: str = ""
    """Why it failed, for people."""

    @property
    def normalised_s_per_token(self) -> float | None:
        """E2E over output tokens; None unless the answer is complete and has any."""
        return None if self.e2e_s is None or not self.output_tokens else self.e2e_s / self.output_tokens


STATISTICS = ("mean", "p50", "p90", "p95", "p99", "max")
"""What is kept of a distribution, beside its count: fields of `Spread`."""


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """A distribution in a few numbers."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float | None = None
    """None only in a summary read from a file that does not have it."""
    p99: float
    max: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A run in numbers. Rates are per second; a `Spread` is None when nothing was measured."""

    requests: int
    completed: int
    outcomes: dict[str, int]
    """Requests per outcome."""
    nodes: dict[str, int]
    """Requests per node."""
    duration_s: float
    """From the first arrival due to the last end known."""
    offered_rate_per_s: float | None
    """Of the schedule: (requests - 1) / (last - first arrival). None below two requests."""
    achieved_rate_per_s: float | None
    """The same of the times at which requests were really sent."""
    throughput_requests_per_s: float
    """Completed answers over the duration."""
    output_tokens_per_s: float
    total_tokens_per_s: float
    """Prompt and output tokens of completed answers over the duration."""
    ttft_s: Spread | None
    tpot_s: Spread | None
    inter_token_s: Spread | None
    e2e_s: Spread | None
    decision_s: Spread | None
    lateness_s: Spread | None
    """How late requests were sent."""
    delivery_s: Spread | None
    """The part of TTFT between client and gateway, lateness included."""
    preemptions: int | None
    """Of all engines during the run."""
    scheduling_delay_s: Spread | None = None
    preemption_loss_s: Spread | None = None
    """Over all requests, 0 for those that were not preempted, as Llumnix reports it."""
    normalised_s_per_token: Spread | None = None
    """E2E over output tokens: the normalised latency of the vLLM paper."""
    forecasts: ForecastErrors | None = None
    """How far forecasts were from what happened; None when none was made."""


def forecast_pairs(results: Sequence[RequestResult]) -> tuple[list[ForecastOutcome], list[ForecastOutcome]]:
    """(TTFT, E2E) of the requests that a forecast placed and one node answered to the end, from the dispatch on."""
    pairs = [pair for r in results if (pair := forecast_pair(r)) is not None]
    return [ttft for ttft, _ in pairs], [e2e for _, e2e in pairs]


def forecast_pair(result: RequestResult) -> tuple[ForecastOutcome, ForecastOutcome] | None:
    """(TTFT, E2E) of one request; None if no forecast placed it or no node answered it to the end."""
    placed, began_s = result.forecast, result.decision_s
    if placed is None or began_s is None or result.ttft_s is None or result.e2e_s is None:
        return None
    ttft = ForecastOutcome(placed.ttft_p50_s, placed.ttft_p90_s, result.ttft_s - began_s)
    return ttft, ForecastOutcome(placed.e2e_p50_s, placed.e2e_p90_s, result.e2e_s - began_s)


class GroupSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One group of a fleet in a run."""

    name: str
    profile: str
    model: str
    nodes: int
    requests: int
    """Those that ended at its nodes."""
    share: float
    """Of all requests of the run."""
    completed: int
    output_tokens: int
    ttft_s: Spread | None
    e2e_s: Spread | None
    kv_share: float | None = None
    """Of its KV blocks, those in use: mean over the arrivals of the run. None when unknown (live)."""
    price_per_hour: float | None = None
    """Of the whole group."""
    labels: dict[str, str] = {}


class FleetPrice(msgspec.Struct, frozen=True, kw_only=True):
    """What a fleet costs, and what of that a run's answers cost."""

    currency: str
    note: str = ""
    per_hour: float
    per_1000_good_answers: float | None
    """Those that kept the run's limits on TTFT and TPOT. None when there were none."""
    per_million_output_tokens: float | None
    """Of complete answers. None when there were none."""


class Run(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One policy at one rate: what a comparison lines up."""

    policy: str
    rate_per_s: float | None
    """As asked for; None when the data set's own arrivals were used."""
    seed: int
    summary: Summary
    router: str
    """Which router decided, for people."""
    groups: tuple[GroupSummary, ...] = ()
    """Of a fleet; empty for equal nodes."""
    price: FleetPrice | None = None
    """Of a fleet whose groups all have one."""


def spread(values: Iterable[float]) -> Spread | None:
    """Count, mean, percentiles and maximum; None of nothing."""
    array = np.fromiter(values, dtype=np.float64)
    if array.size == 0:
        return None
    p50, p90, p95, p99 = np.percentile(array, [50, 90, 95, 99]).tolist()
    return Spread(
        count=array.size, mean=float(array.mean()), p50=p50, p90=p90, p95=p95, p99=p99, max=float(array.max())
    )


def statistic_of(field: str, statistic: str) -> Callable[[Summary], float | None]:
    """Reads one number of one spread of a summary: `statistic_of("ttft_s", "p99")`."""

    def value(summary: Summary) -> float | None:
        found: Spread | None = getattr(summary, field)
        return None if found is None else getattr(found, statistic)

    return value


def tpot_s(*, ttft_s: float, e2e_s: float, output_tokens: int) -> float | None:
    """Mean seconds per output token after the first; None for answers of one token."""
    return (e2e_s - ttft_s) / (output_tokens - 1) if output_tokens > 1 else None


def rate_per_s(times_s: Sequence[float]) -> float | None:
    """Requests per second of a series of sending times; None below two or when all fall together."""
    if len(times_s) < 2:
        return None
    span_s = max(times_s) - min(times_s)
    return (len(times_s) - 1) / span_s if span_s > 0 else None


def summarise(results: Sequence[RequestResult], *, preemptions: int | None = None) -> Summary:
    """The summary of a run.

    `preemptions` counts those of the engines when the caller has read it there; otherwise the rows' own are summed,
    if all of them know theirs.
    """
    complete = [r for r in results if r.outcome in COMPLETE]
    if preemptions is None and results and all(r.preemptions is not None for r in results):
        preemptions = sum(r.preemptions or 0 for r in results)
    first_s = min((r.arrival_s for r in results), default=0.0)
    ends = [r.arrival_s + r.e2e_s for r in results if r.e2e_s is not None]
    duration_s = max([*ends, *(r.arrival_s for r in results)], default=0.0) - first_s
    per_s = 1.0 / duration_s if duration_s > 0 else 0.0
    output_tokens = sum(r.output_tokens for r in complete)
    ttft, e2e = forecast_pairs(results)
    return Summary(
        requests=len(results),
        completed=len(complete),
        outcomes=dict(sorted(Counter(r.outcome.value for r in results).items())),
        nodes=dict(sorted(Counter(r.node_id for r in results if r.node_id).items())),
        duration_s=duration_s,
        offered_rate_per_s=rate_per_s([r.arrival_s for r in results]),
        achieved_rate_per_s=rate_per_s([r.arrival_s if r.sent_s is None else r.sent_s for r in results]),
        throughput_requests_per_s=len(complete) * per_s,
        output_tokens_per_s=output_tokens * per_s,
        total_tokens_per_s=(output_tokens + sum(r.prompt_tokens for r in complete)) * per_s,
        ttft_s=spread([r.ttft_s for r in results if r.ttft_s is not None]),
        tpot_s=spread([r.tpot_s for r in results if r.tpot_s is not None]),
        inter_token_s=spread([gap for r in results for gap in r.itl_s]),
        e2e_s=spread([r.e2e_s for r in results if r.e2e_s is not None]),
        decision_s=spread([r.decision_s for r in results if r.decision_s is not None]),
        lateness_s=spread([r.sent_s - r.arrival_s for r in results if r.sent_s is not None]),
        delivery_s=spread([r.delivery_s for r in results if r.delivery_s is not None]),
        preemptions=preemptions,
        scheduling_delay_s=spread([r.scheduling_delay_s for r in results if r.scheduling_delay_s is not None]),
        preemption_loss_s=spread([r.preemption_loss_s for r in results if r.preemption_loss_s is not None]),
        normalised_s_per_token=spread([n for r in results if (n := r.normalised_s_per_token) is not None]),
        forecasts=None if not e2e else ForecastErrors(ttft=errors_of(ttft), e2e=errors_of(e2e)),
    )
