"""How far forecasts were from what happened, request by request: the one definition for simulated and live runs. Pure.

Which forecast: that of the chosen node at the dispatch, its median (p50), which is what correction is for; policies
compare means, which are left as simulated. From which moment: the dispatch, so that waiting at the gateway counts on
neither side. Of whom: requests that one node answered to the end. Errors are shares of what happened.
"""

from __future__ import annotations

import statistics
from array import array
from collections.abc import Iterable

import msgspec
import numpy as np

from simcore.types import Forecast


class DispatchForecast(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What was forecast for a request when it was dispatched, in seconds from then."""

    ttft_p50_s: float
    ttft_p90_s: float
    e2e_p50_s: float
    e2e_p90_s: float


def dispatch_forecast(forecast: Forecast | None) -> DispatchForecast | None:
    """None when no forecast placed it."""
    if forecast is None:
        return None
    ttft, e2e = forecast.ttft_s, forecast.e2e_s
    return DispatchForecast(ttft_p50_s=ttft.p50, ttft_p90_s=ttft.p90, e2e_p50_s=e2e.p50, e2e_p90_s=e2e.p90)


class ForecastOutcome(msgspec.Struct, frozen=True):
    """One request: what was forecast at its dispatch (median, 90th percentile), and what happened, in seconds."""

    p50_s: float
    p90_s: float
    actual_s: float

    @property
    def error(self) -> float:
        """Relative to what happened."""
        return abs(self.p50_s - self.actual_s) / self.actual_s


class ForecastOutcomes:
    """The same of many requests, in columns."""

    def __init__(self, outcomes: Iterable[ForecastOutcome] = ()) -> None:
        self._p50_s, self._p90_s, self._actual_s = array("d"), array("d"), array("d")
        for outcome in outcomes:
            self.add(outcome.p50_s, outcome.p90_s, outcome.actual_s)

    def __len__(self) -> int:
        return len(self._actual_s)

    def add(self, p50_s: float, p90_s: float, actual_s: float) -> None:
        self._p50_s.append(p50_s)
        self._p90_s.append(p90_s)
        self._actual_s.append(actual_s)

    def errors(self) -> QuantityErrors | None:
        """None of nothing."""
        n = len(self)
        if not n:
            return None
        p50_s, p90_s, actual_s = (np.array(column) for column in (self._p50_s, self._p90_s, self._actual_s))
        over_s = p50_s - actual_s
        errors = np.sort(abs(over_s) / actual_s)
        return QuantityErrors(
            samples=n,
            error_mean=statistics.fmean(errors),
            error_p50=float(np.median(errors)),
            error_p90=float(errors[min(n - 1, int(0.9 * n))]),
            bias=float(np.median(over_s / actual_s)),
            gap_s=float(np.median(-over_s)),
            under_p90=int((actual_s <= p90_s).sum()) / n,
        )


class QuantityErrors(msgspec.Struct, frozen=True, kw_only=True):
    """Errors of one quantity; shares of what happened."""

    samples: int
    error_mean: float
    """Mean of |forecast - actual| / actual; few short answers of unknown length can make most of it."""
    error_p50: float
    error_p90: float
    bias: float
    """Median of (forecast - actual) / actual: below 0 reality takes longer."""
    gap_s: float
    """Median of actual - forecast."""
    under_p90: float
    """Share of actuals at or under the p90 forecast."""


class ForecastErrors(msgspec.Struct, frozen=True, kw_only=True):
    """Of one run; None where nothing was forecast."""

    ttft: QuantityErrors | None = None
    e2e: QuantityErrors | None = None


def errors_of(pairs: Iterable[ForecastOutcome]) -> QuantityErrors | None:
    """None of nothing."""
    return ForecastOutcomes(pairs).errors()


MEASURES = ("error_mean", "error_p50", "error_p90", "bias", "under_p90")
QUANTITIES = ("ttft", "e2e")


def measures_of(errors: ForecastErrors) -> dict[str, float]:
    """As measures of a run: `e2e_forecast_error_mean`, `ttft_forecast_under_p90`, ..."""
    return {
        f"{quantity}_forecast_{name}": float(getattr(own, name))
        for quantity in QUANTITIES
        if (own := getattr(errors, quantity)) is not None
        for name in MEASURES
    }
