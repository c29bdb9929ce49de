"""From rows and times to a workload. Pure. One seed gives the same requests at every rate.

The random streams for arrivals and for the choice of rows are separate, and gaps at two rates are the same draws on
another scale: comparisons across policies *and* rates see the same requests.

Rows with a time to think follow the row before them: such a conversation is chosen and begins as a whole. Beginnings
are so much rarer than requests that the rate is that of requests.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

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
    return list(
        coming(
            rows,
            seed=seed,
            kind=kind,
            rate_per_s=rate_per_s,
            burstiness=burstiness,
            count=count,
            duration_s=duration_s,
            shuffle=shuffle,
        )
    )


def coming(
    rows: Sequence[DataRow],
    *,
    seed: int,
    kind: ArrivalKind,
    rate_per_s: float,
    burstiness: float = 1.0,
    count: int | None = None,
    duration_s: float | None = None,
    shuffle: bool = False,
) -> Iterator[WorkloadItem]:
    """The same one by one: of those to come only row and time are kept."""
    if (count is None) == (duration_s is None):
        raise ValueError("give either a number of requests or a duration")
    if not rows:
        raise ValueError("a workload needs at least one row")
    rng = np.random.default_rng((seed, _ARRIVALS))
    talks = _conversations(rows)
    rate_per_s *= len(talks) / len(rows)
    if count is not None:
        # The last one may have more rows than are wanted.
        chosen = _chosen(talks, math.ceil(count * len(talks) / len(rows)), seed=seed, shuffle=shuffle)
        while sum(map(len, chosen)) < count:
            chosen = _chosen(talks, 2 * len(chosen), seed=seed, shuffle=shuffle)
        times = arrivals_s(rng, kind=kind, count=len(chosen), rate_per_s=rate_per_s, burstiness=burstiness)
    elif duration_s is not None:
        times = arrivals_until_s(rng, kind=kind, duration_s=duration_s, rate_per_s=rate_per_s, burstiness=burstiness)
        chosen = _chosen(talks, len(times), seed=seed, shuffle=shuffle)
    return itertools.islice(_items(chosen, times), count)


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
    talks = _conversations(rows)
    rarer = [RateStep(step.duration_s, step.rate_per_s * len(talks) / len(rows)) for step in steps]
    times = profile_arrivals_s(np.random.default_rng((seed, _ARRIVALS)), rarer, kind=kind, burstiness=burstiness)
    return list(_items(_chosen(talks, len(times), seed=seed, shuffle=shuffle), times))


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
    return list(_items([[chosen[i]] for i in order], scaled_s(times[order], rate_scale=rate_scale)))


def _conversations(rows: Sequence[DataRow]) -> list[list[DataRow]]:
    """Each row with those that follow it; a row that follows nobody's of its session begins by itself."""
    found: list[list[DataRow]] = []
    for row in rows:
        if row.think_s is not None and found and found[-1][0].session == row.session:
            found[-1].append(row)
        else:
            found.append([row])
    return found


def _chosen(talks: Sequence[list[DataRow]], count: int, *, seed: int, shuffle: bool) -> list[list[DataRow]]:
    order = np.random.default_rng((seed, _ROWS)).permutation(len(talks)) if shuffle else np.arange(len(talks))
    return [talks[order[i % len(talks)]] for i in range(count)]


def _items(talks: Sequence[Sequence[DataRow]], times_s: NDArray[np.float64]) -> Iterator[WorkloadItem]:
    numbers = itertools.count()
    for talk, at_s in zip(talks, times_s, strict=True):
        before = ""
        for row in talk:
            request_id = f"r{next(numbers):06d}"
            yield WorkloadItem(
                request_id=request_id,
                arrival_s=float(at_s),
                prompt_tokens=row.prompt_tokens,
                output_tokens=row.output_tokens,
                prompt=row.prompt,
                predicted_output_tokens=row.predicted_output_tokens,
                predicted_atoms_tokens=row.predicted_atoms_tokens,
                session=row.session,
                prefix_ids=row.prefix_ids,
                prefix_block_tokens=row.prefix_block_tokens,
                after=before,
                think_s=(row.think_s or 0.0) if before else 0.0,
            )
            before = request_id
