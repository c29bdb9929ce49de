"""When requests come. Pure: every draw is from the numpy Generator that the caller seeds.

Burstiness is the shape of a gamma distribution of gaps, as in Block (and in vLLM's own load generator): gap ~
Gamma(shape = burstiness, scale = 1 / (rate * burstiness)). The mean gap is 1 / rate whatever the burstiness; the
squared coefficient of variation is 1 / burstiness. So 1 is a Poisson process, less is burstier, more is smoother.
No draw is cut off: a cut raises the offered rate unnoticed.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

ArrivalKind = Literal["poisson", "gamma", "uniform"]
"""`uniform`: one constant gap."""

ARRIVAL_KINDS: tuple[ArrivalKind, ...] = get_args(ArrivalKind)


def check_rate(rate_per_s: float) -> None:
    """Raises ValueError unless the rate is a finite number above 0."""
    if not math.isfinite(rate_per_s) or rate_per_s <= 0:
        raise ValueError(f"the rate must be above 0 requests per second, got {rate_per_s:g}")


def gamma_gaps_s(
    rng: np.random.Generator, *, count: int, rate_per_s: float, burstiness: float = 1.0
) -> NDArray[np.float64]:
    """`count` gaps in seconds with mean 1 / rate and squared coefficient of variation 1 / burstiness."""
    check_rate(rate_per_s)
    if not math.isfinite(burstiness) or burstiness <= 0:
        raise ValueError(f"the burstiness must be above 0 (1 is Poisson, less is burstier), got {burstiness:g}")
    return rng.gamma(shape=burstiness, scale=1.0 / (rate_per_s * burstiness), size=count)


def poisson_gaps_s(rng: np.random.Generator, *, count: int, rate_per_s: float) -> NDArray[np.float64]:
    """`count` exponential gaps in seconds with mean 1 / rate."""
    check_rate(rate_per_s)
    return rng.exponential(scale=1.0 / rate_per_s, size=count)


def gaps_s(
    rng: np.random.Generator, *, kind: ArrivalKind, count: int, rate_per_s: float, burstiness: float = 1.0
) -> NDArray[np.float64]:
    """`count` gaps in seconds of the named process; `burstiness` matters to `gamma` only."""
    if count < 0:
        raise ValueError(f"the number of requests must not be negative, got {count}")
    if kind == "poisson":
        return poisson_gaps_s(rng, count=count, rate_per_s=rate_per_s)
    if kind == "gamma":
        return gamma_gaps_s(rng, count=count, rate_per_s=rate_per_s, burstiness=burstiness)
    check_rate(rate_per_s)
    return np.full(count, 1.0 / rate_per_s)


def arrivals_s(
    rng: np.random.Generator, *, kind: ArrivalKind, count: int, rate_per_s: float, burstiness: float = 1.0
) -> NDArray[np.float64]:
    """`count` ascending arrival times in seconds; the first comes one gap after 0."""
    return np.cumsum(gaps_s(rng, kind=kind, count=count, rate_per_s=rate_per_s, burstiness=burstiness))


def arrivals_until_s(
    rng: np.random.Generator, *, kind: ArrivalKind, duration_s: float, rate_per_s: float, burstiness: float = 1.0
) -> NDArray[np.float64]:
    """All arrivals in [0, duration), ascending, in seconds. Their number is random except for `uniform`."""
    check_rate(rate_per_s)
    if not math.isfinite(duration_s) or duration_s <= 0:
        raise ValueError(f"the duration must be above 0 seconds, got {duration_s:g}")
    batch = max(16, math.ceil(rate_per_s * duration_s * 1.1))
    parts: list[NDArray[np.float64]] = []
    end_s = 0.0
    while end_s < duration_s:
        times = end_s + arrivals_s(rng, kind=kind, count=batch, rate_per_s=rate_per_s, burstiness=burstiness)
        parts.append(times)
        end_s = float(times[-1])
    times = np.concatenate(parts)
    return times[times < duration_s]


def scaled_s(recorded_s: NDArray[np.float64], *, rate_scale: float) -> NDArray[np.float64]:
    """Recorded times as a run's arrivals: the first at 0, `rate_scale` times as dense (2 = twice the rate)."""
    if not math.isfinite(rate_scale) or rate_scale <= 0:
        raise ValueError(f"the rate scale must be above 0 (2 doubles the rate), got {rate_scale:g}")
    if recorded_s.size == 0:
        return recorded_s
    return (recorded_s - recorded_s[0]) / rate_scale
