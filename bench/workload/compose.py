"""From rows and times to a workload. Pure. One seed gives the same requests at every rate.

The random streams for arrivals and for the choice of rows are separate, and gaps at two rates are the same draws on
another scale: comparisons across policies *and* rates see the same requests.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bench.workload.arrivals import ArrivalKind, arrivals_s, arrivals_until_s, scaled_s
from bench.workload.item import DataRow, WorkloadItem
from bench.workload.rate_profile import RateStep, profile_arrivals_s

_ARRIVALS, _ROWS = 1, 2


def fitting(rows: Sequence[DataRow], max_total_tokens: int) -> list[DataRow]:
    """The rows whose prompt and answer fit a model's context together."""
    return [row for row in rows if row.prompt_tokens + row.output_tokens <= max_total_tokens]


def generated(
    rows: Sequence[DataRow],
    *,
    seed: int,
    kind: ArrivalKind,
    rate_per_s: float,
    burstiness: float = 1.0,
    count: int | None = None,
    duration_s: float | None = None,
    shuffle: bool = False,
) -> list[WorkloadItem]:
    """Rows at generated arrival times; times a data set may have are not looked at.

    Exactly one of `count` and `duration_s` (seconds) is given. Rows come in file order, or in a seeded random order
    without repetition; when they run out they start again.
    """
    if (count is None) == (duration_s is None):
        raise ValueError("give either a number of requests or a duration")
    if not rows:
        raise ValueError("a workload needs at least one row")
    rng = np.random.default_rng((seed, _ARRIVALS))
    if count is not None:
        times = arrivals_s(rng, kind=kind, count=count, rate_per_s=rate_per_s, burstiness=burstiness)
    elif duration_s is not None:
        times = arrivals_until_s(rng, kind=kind, duration_s=duration_s, rate_per_s=rate_per_s, burstiness=burstiness)
    return _items(_chosen(rows, len(times), seed=seed, shuffle=shuffle), times)


def shaped(
    rows: Sequence[DataRow],
    steps: Sequence[RateStep],
    *,
    seed: int,
    kind: ArrivalKind,
    burstiness: float = 1.0,
    shuffle: bool = False,
) -> list[WorkloadItem]:
    """Rows at the arrivals of a changing rate; chosen as in `generated`."""
    if not rows:
        raise ValueError("a workload needs at least one row")
    times = profile_arrivals_s(np.random.default_rng((seed, _ARRIVALS)), steps, kind=kind, burstiness=burstiness)
    return _items(_chosen(rows, len(times), seed=seed, shuffle=shuffle), times)


def recorded(rows: Sequence[DataRow], *, rate_scale: float = 1.0, count: int | None = None) -> list[WorkloadItem]:
    """Rows at their own arrival times, the first at 0, `rate_scale` times as dense; at most `count` of them.

    Raises:
        ValueError: a row has no arrival time.
    """
    chosen = rows if count is None else rows[:count]
    missing = next((number for number, row in enumerate(chosen, start=1) if row.arrival_s is None), None)
    if missing is not None:
        raise ValueError(f"request {missing} of the data set has no arrival time: give a rate instead")
    times = np.array([row.arrival_s for row in chosen], dtype=np.float64)
    order = np.argsort(times, kind="stable")
    return _items([chosen[i] for i in order], scaled_s(times[order], rate_scale=rate_scale))


def _chosen(rows: Sequence[DataRow], count: int, *, seed: int, shuffle: bool) -> list[DataRow]:
    order = np.random.default_rng((seed, _ROWS)).permutation(len(rows)) if shuffle else np.arange(len(rows))
    return [rows[order[i % len(rows)]] for i in range(count)]


def _items(rows: Sequence[DataRow], times_s: NDArray[np.float64]) -> list[WorkloadItem]:
    return [
        WorkloadItem(
            request_id=f"r{index:06d}",
            arrival_s=float(at_s),
            prompt_tokens=row.prompt_tokens,
            output_tokens=row.output_tokens,
            prompt=row.prompt,
            predicted_output_tokens=row.predicted_output_tokens,
            predicted_atoms_tokens=row.predicted_atoms_tokens,
            session=row.session,
            prefix_ids=row.prefix_ids,
            prefix_block_tokens=row.prefix_block_tokens,
        )
        for index, (row, at_s) in enumerate(zip(rows, times_s, strict=True))
    ]
