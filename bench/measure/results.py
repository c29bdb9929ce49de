"""One result row per request and one summary, the same for live and simulated runs. No I/O: `bench.run.files` writes.

Times are in seconds since the request's *scheduled* arrival, so a client that falls behind cannot make the system look
better than it is (`lateness` tells how far behind it was). Percentiles interpolate linearly between order statistics.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable

import msgspec
import numpy as np

from bench.measure.forecast_errors import DispatchForecast, ForecastErrors, ForecastOutcome, ForecastOutcomes
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


def summarise(results: Iterable[RequestResult], *, preemptions: int | None = None) -> Summary:
    """The summary of a run.

    `preemptions` counts those of the engines when the caller has read it there; otherwise the rows' own are summed,
    if all of them know theirs.
    """
    so_far = RunningSummary()
    for result in results:
        so_far.add(result)
    return so_far.summary(preemptions=preemptions)


class _Times:
    """When things began to happen and when they last did."""

    def __init__(self) -> None:
        self.count = 0
        self.first_s, self.last_s = math.inf, -math.inf

    def add(self, at_s: float) -> None:
        self.count += 1
        if at_s < self.first_s:
            self.first_s = at_s
        if at_s > self.last_s:
            self.last_s = at_s

    @property
    def rate_per_s(self) -> float | None:
        """None below two, or when all fall together."""
        span_s = self.last_s - self.first_s
        return (self.count - 1) / span_s if self.count > 1 and span_s > 0 else None


class RunningSummary:
    """What a run comes to, result by result: of each its numbers are kept, in columns."""

    def __init__(self) -> None:
        self._outcomes: Counter[str] = Counter()
        self._nodes: Counter[str] = Counter()
        self._due, self._sent = _Times(), _Times()
        self._last_s = -math.inf
        self._completed = self._output_tokens = self._total_tokens = 0
        self._preemptions: int | None = 0
        self._ttft_s, self._tpot_s, self._inter_token_s, self._e2e_s = array("d"), array("d"), array("d"), array("d")
        self._e2e_tokens = array("I")
        """Output tokens of those in `_e2e_s`."""
        self._decision_s, self._lateness_s, self._delivery_s = array("d"), array("d"), array("d")
        self._scheduling_delay_s, self._preemption_loss_s = array("d"), array("d")
        self._ttft_forecasts, self._e2e_forecasts = ForecastOutcomes(), ForecastOutcomes()

    def __len__(self) -> int:
        return self._due.count

    def add(self, result: RequestResult) -> None:
        r = result
        self._outcomes[r.outcome.value] += 1
        if r.node_id:
            self._nodes[r.node_id] += 1
        self._due.add(r.arrival_s)
        self._sent.add(r.arrival_s if r.sent_s is None else r.sent_s)
        if r.outcome in COMPLETE:
            self._completed += 1
            self._output_tokens += r.output_tokens
            self._total_tokens += r.output_tokens + r.prompt_tokens
        if self._preemptions is not None:
            self._preemptions = None if r.preemptions is None else self._preemptions + r.preemptions
        if r.e2e_s is not None:
            self._last_s = max(self._last_s, r.arrival_s + r.e2e_s)
            self._e2e_s.append(r.e2e_s)
            self._e2e_tokens.append(r.output_tokens)
        if r.itl_s:
            self._inter_token_s.extend(r.itl_s)
        if r.sent_s is not None:
            self._lateness_s.append(r.sent_s - r.arrival_s)
        if r.ttft_s is not None:
            self._ttft_s.append(r.ttft_s)
        if r.tpot_s is not None:
            self._tpot_s.append(r.tpot_s)
        if r.decision_s is not None:
            self._decision_s.append(r.decision_s)
        if r.delivery_s is not None:
            self._delivery_s.append(r.delivery_s)
        if r.scheduling_delay_s is not None:
            self._scheduling_delay_s.append(r.scheduling_delay_s)
        if r.preemption_loss_s is not None:
            self._preemption_loss_s.append(r.preemption_loss_s)
        if r.forecast is not None and (pair := forecast_pair(r)) is not None:
            ttft, e2e = pair
            self._ttft_forecasts.add(ttft.p50_s, ttft.p90_s, ttft.actual_s)
            self._e2e_forecasts.add(e2e.p50_s, e2e.p90_s, e2e.actual_s)

    def summary(self, *, preemptions: int | None = None) -> Summary:
        """Of all results so far; `preemptions` as in `summarise`."""
        due = self._due
        if preemptions is None and due.count:
            preemptions = self._preemptions
        duration_s = max(self._last_s, due.last_s) - due.first_s if due.count else 0.0
        per_s = 1.0 / duration_s if duration_s > 0 else 0.0
        e2e_s, tokens = np.array(self._e2e_s), np.array(self._e2e_tokens)
        forecasts = self._e2e_forecasts
        return Summary(
            requests=due.count,
            completed=self._completed,
            outcomes=dict(sorted(self._outcomes.items())),
            nodes=dict(sorted(self._nodes.items())),
            duration_s=duration_s,
            offered_rate_per_s=due.rate_per_s,
            achieved_rate_per_s=self._sent.rate_per_s,
            throughput_requests_per_s=self._completed * per_s,
            output_tokens_per_s=self._output_tokens * per_s,
            total_tokens_per_s=self._total_tokens * per_s,
            ttft_s=spread(self._ttft_s),
            tpot_s=spread(self._tpot_s),
            inter_token_s=spread(self._inter_token_s),
            e2e_s=spread(self._e2e_s),
            decision_s=spread(self._decision_s),
            lateness_s=spread(self._lateness_s),
            delivery_s=spread(self._delivery_s),
            preemptions=preemptions,
            scheduling_delay_s=spread(self._scheduling_delay_s),
            preemption_loss_s=spread(self._preemption_loss_s),
            normalised_s_per_token=spread(e2e_s[tokens > 0] / tokens[tokens > 0]),
            forecasts=None
            if not len(forecasts)
            else ForecastErrors(ttft=self._ttft_forecasts.errors(), e2e=forecasts.errors()),
        )
