"""How far forecasts were from what happened. Pure.

A forecast counts when its request was then dispatched here; it is joined with the times measured on this node, from the
dispatch on (the forecast's own assumption: the request comes at the moment of the answer). Forecasts of source `prior`
are guesses and are left out.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Sequence

import msgspec

from simcore.types import Forecast, Quantiles

WINDOW_PAIRS = 1000
OPEN_FORECASTS = 4096
"""Forecasts kept for a dispatch that may never come; the oldest go first."""


class ErrorSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Error of one quantity over the last `WINDOW_PAIRS` pairs. All zero without pairs."""

    samples: int = 0
    bias_s: float = 0.0
    """Mean of forecast p50 - actual."""
    median_relative: float = 0.0
    """Median of |forecast p50 - actual| / actual."""
    p90_relative: float = 0.0
    coverage_p90: float = 0.0
    """Share of actuals at or under the forecast's p90."""


class _Pair(msgspec.Struct, frozen=True):
    p50_s: float
    p90_s: float
    actual_s: float


class _Pending(msgspec.Struct):
    forecast: Forecast
    dispatched_s: float
    started: bool = False


class Calibration:
    """Joins forecasts with outcomes. Not thread-safe; one owner."""

    def __init__(self, *, window_pairs: int = WINDOW_PAIRS) -> None:
        self._open: OrderedDict[str, Forecast] = OrderedDict()
        self._pending: dict[str, _Pending] = {}
        self._ttft: deque[_Pair] = deque(maxlen=window_pairs)
        self._e2e: deque[_Pair] = deque(maxlen=window_pairs)

    def forecast(self, forecast: Forecast) -> None:
        """An answer was given. The last one before the dispatch counts."""
        if forecast.source == "prior":
            return
        self._open[forecast.request_id] = forecast
        self._open.move_to_end(forecast.request_id)
        if len(self._open) > OPEN_FORECASTS:
            self._open.popitem(last=False)

    def dispatched(self, request_id: str, now_s: float) -> None:
        """The request came. Without a forecast of it there is nothing to join."""
        forecast = self._open.pop(request_id, None)
        self._pending.pop(request_id, None)
        if forecast is not None:
            self._pending[request_id] = _Pending(forecast, now_s)

    def first_token(self, request_id: str, now_s: float) -> None:
        """Its first token is out; later calls for the same request change nothing."""
        pending = self._pending.get(request_id)
        if pending is not None and not pending.started:
            pending.started = True
            self._ttft.append(_pair(pending.forecast.ttft_s, now_s - pending.dispatched_s))

    def ended(self, request_id: str, now_s: float, *, complete: bool) -> None:
        """It ended. Only a complete answer says anything of the forecast end."""
        pending = self._pending.pop(request_id, None)
        if pending is not None and complete:
            self._e2e.append(_pair(pending.forecast.e2e_s, now_s - pending.dispatched_s))

    def ttft(self) -> ErrorSummary:
        return _summary(self._ttft)

    def e2e(self) -> ErrorSummary:
        return _summary(self._e2e)


def _pair(forecast: Quantiles, actual_s: float) -> _Pair:
    return _Pair(forecast.p50, forecast.p90, actual_s)


def _summary(pairs: Sequence[_Pair]) -> ErrorSummary:
    n = len(pairs)
    if not n:
        return ErrorSummary()
    relative = sorted(abs(p.p50_s - p.actual_s) / p.actual_s if p.actual_s > 0 else math.inf for p in pairs)
    return ErrorSummary(
        samples=n,
        bias_s=sum(p.p50_s - p.actual_s for p in pairs) / n,
        median_relative=_nearest_rank(relative, 0.5),
        p90_relative=_nearest_rank(relative, 0.9),
        coverage_p90=sum(p.actual_s <= p.p90_s for p in pairs) / n,
    )


def _nearest_rank(ascending: Sequence[float], q: float) -> float:
    return ascending[max(0, math.ceil(q * len(ascending)) - 1)]
