"""What a forecast says of the service levels that a request asks for. Pure."""

from __future__ import annotations

from gateway.core.events import RequestShape, Slo
from simcore.types import Forecast


def asks_any(slo: Slo) -> bool:
    """Whether a service level is asked at all."""
    return slo.ttft_s is not None or slo.tpot_s is not None or slo.deadline_s is not None


def shortfall_s(request: RequestShape, forecast: Forecast) -> float:
    """Seconds by which the 90th percentiles of the forecast miss what is asked, summed over the levels; 0: all are met.

    TTFT and deadline count in full; a token that comes too late counts for each expected token after the first.
    """
    slo = request.slo
    missed_s = 0.0
    if slo.ttft_s is not None:
        missed_s += max(0.0, forecast.ttft_s.p90 - slo.ttft_s)
    if slo.deadline_s is not None:
        missed_s += max(0.0, forecast.e2e_s.p90 - slo.deadline_s)
    if slo.tpot_s is not None:
        missed_s += max(0.0, forecast.tpot_s.p90 - slo.tpot_s) * max(0.0, request.expected_tokens - 1)
    return missed_s


def is_infeasible(slo: Slo, forecast: Forecast, *, waited_s: float) -> bool:
    """More likely than not (the medians), a level will be missed there, after what has been waited already."""
    return (
        (slo.ttft_s is not None and waited_s + forecast.ttft_s.p50 > slo.ttft_s)
        or (slo.deadline_s is not None and waited_s + forecast.e2e_s.p50 > slo.deadline_s)
        or (slo.tpot_s is not None and forecast.tpot_s.p50 > slo.tpot_s)
    )
