"""Arrival rates that change over time: steps, a day curve, or a table. Pure.

Arrivals of a changing rate are arrivals of rate 1 in another time, the integral of the rate (time rescaling; Cinlar,
Introduction to Stochastic Processes, 4.7). With gamma gaps burstiness stays what it is at every rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.workload.arrivals import ArrivalKind, arrivals_until_s

_DAY_STEPS = 288


class RateStep(NamedTuple):
    """A constant rate for a while."""

    duration_s: float
    rate_per_s: float


def parse_steps(text: str) -> list[RateStep]:
    """`20x1200,30x600` as steps of 20 requests/s for 1200 s, then 30 for 600 s. Raises ValueError."""
    steps: list[RateStep] = []
    for part in text.split(","):
        rate, _, duration = part.strip().partition("x")
        try:
            step = RateStep(duration_s=float(duration), rate_per_s=float(rate))
        except ValueError:
            raise ValueError(f"write steps as RATExSECONDS, for example 20x1200,30x600; got {part.strip()!r}") from None
        steps.append(step)
    check_steps(steps)
    return steps


def day_curve(*, mean_rate_per_s: float, peak_to_valley: float, day_s: float = 86_400.0) -> list[RateStep]:
    """One day as a sine whose highest rate is `peak_to_valley` times its lowest, which it has at the beginning.

    BurstGPT's hours of the day differ by 11.7 (mean requests of the busiest over the idlest hour).
    """
    if not (math.isfinite(peak_to_valley) and peak_to_valley >= 1):
        raise ValueError(f"peak_to_valley must be >= 1, got {peak_to_valley:g}")
    swing = (peak_to_valley - 1.0) / (peak_to_valley + 1.0)
    middle = (np.arange(_DAY_STEPS) + 0.5) / _DAY_STEPS
    rates = mean_rate_per_s * (1.0 - swing * np.cos(2.0 * np.pi * middle))
    steps = [RateStep(day_s / _DAY_STEPS, float(rate)) for rate in rates]
    check_steps(steps)
    return steps


def check_steps(steps: Sequence[RateStep]) -> None:
    """Raises ValueError unless durations are above 0, rates not below, and some rate is above."""
    for step in steps:
        if not (math.isfinite(step.duration_s) and step.duration_s > 0):
            raise ValueError(f"a rate step lasts {step.duration_s:g} s: it must last longer than 0 s")
        if not (math.isfinite(step.rate_per_s) and step.rate_per_s >= 0):
            raise ValueError(f"a rate step has {step.rate_per_s:g} requests/s: it must be a number >= 0")
    if not any(step.rate_per_s > 0 for step in steps):
        raise ValueError("no rate step has a rate above 0: nothing would ever arrive")


def profile_arrivals_s(
    rng: np.random.Generator, steps: Sequence[RateStep], *, kind: ArrivalKind = "poisson", burstiness: float = 1.0
) -> NDArray[np.float64]:
    """All arrivals of the profile, ascending, in seconds from its beginning. Raises ValueError for bad steps."""
    check_steps(steps)
    ends_s = np.concatenate(([0.0], np.cumsum([step.duration_s for step in steps])))
    expected = np.concatenate(([0.0], np.cumsum([step.duration_s * step.rate_per_s for step in steps])))
    unit = arrivals_until_s(rng, kind=kind, duration_s=float(expected[-1]), rate_per_s=1.0, burstiness=burstiness)
    # Steps of rate 0 take no part of the integral: the inverse skips them.
    at = np.searchsorted(expected, unit, side="right") - 1
    rates = np.array([step.rate_per_s for step in steps])
    times: NDArray[np.float64] = ends_s[at] + (unit - expected[at]) / rates[at]
    return times


def total_s(steps: Sequence[RateStep]) -> float:
    """Length of the profile in seconds."""
    return sum(step.duration_s for step in steps)
