"""How many requests will come: level, trend and day curve, and how wrong that has been. Pure.

Several simple forecasters run side by side. What each said is compared with what came, and the one that has been least
wrong of late over the same stretch of time speaks; the spread around it is that of its own errors, less what of them
was chance (how many come at a constant rate varies too), and what chance makes of the level as it is measured now. So
the spread is not a matter of belief in a distribution, and a course that jumps widens it by itself.
"""

from __future__ import annotations

import math
from collections import deque

import msgspec
import numpy as np
import numpy.typing as npt

BIN_S = 2.5
WINDOWS_S = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
"""Over which the level is measured: the longest whose older part still looks like its newer."""
APART = 3.0
SHORT_S = 20.0
APART_SHORT = 4.0
"""Standard deviations at which it does not; below `SHORT_S`, where few are counted, it takes more."""
MOST_GROWTH = 1.2
"""A trend adds no more to the level: most are steps."""
DAY_S = 86_400.0
DAY_BIN_S = 300.0
ERRORS_KEPT = 240
LATELY = 120
"""Errors by which forecasters are compared."""
FEWEST = 5.0
"""Where fewer were expected nothing is learned: from next to nothing to a few says nothing of the next hour."""
MOST_WRONG = 3.0
"""A forecast is taken to be wrong by no larger factor."""
AS_GOOD = 1.02
PRIOR_SD = 0.15
PRIOR_COUNT = 60
"""Errors that are taken for granted before there are any: a normal spread of logarithms."""


class RateAhead(msgspec.Struct, frozen=True):
    """Requests per second over a stretch of time ahead."""

    median: float
    draws: tuple[float, ...]
    """Equally likely ones, ascending: the middles of as many equal parts of what is possible."""
    forecaster: str


class _Said(msgspec.Struct, frozen=True):
    from_s: float
    to_s: float
    rates: tuple[float, ...]
    noise: float
    """Variance of the logarithm of the level, of chance."""


class Arrivals:
    """Counts requests; times never go back."""

    FORECASTERS = ("level", "trend", "day")

    def __init__(self) -> None:
        self._bins: deque[int] = deque(maxlen=int(DAY_S / BIN_S))
        """Complete ones, oldest first."""
        self._bin = 0
        """Number of the bin in progress."""
        self._count = 0
        self._closed = 0
        """Bins that are complete, those included that are kept no longer."""
        self._began_s: float | None = None
        self._last_s: float | None = None
        """When the last request came."""
        self._day_counts = np.zeros(int(DAY_S / DAY_BIN_S))
        self._day_seconds = np.zeros(int(DAY_S / DAY_BIN_S))
        self._said: deque[_Said] = deque()
        prior = PRIOR_SD * np.array([_normal((i + 0.5) / PRIOR_COUNT) for i in range(PRIOR_COUNT)])
        self._errors: list[deque[float]] = [deque(prior, maxlen=ERRORS_KEPT) for _ in self.FORECASTERS]
        self._lately: list[deque[float]] = [deque(prior, maxlen=LATELY) for _ in self.FORECASTERS]
        """Errors with what chance does to them."""
        self.dispersion = 1.0
        """Variance over mean of the counts of bins around their level: 1 for a Poisson process."""

    @property
    def seen_s(self) -> float:
        """How long has been looked at."""
        return self._closed * BIN_S

    def idle_s(self, now_s: float) -> float:
        """For how long nothing has come."""
        since_s = self._last_s if self._last_s is not None else self._began_s
        return 0.0 if since_s is None else now_s - since_s

    def came(self, now_s: float) -> None:
        """A request."""
        self.look(now_s)
        self._last_s = now_s
        self._count += 1

    def look(self, now_s: float) -> None:
        """Time has passed, with or without requests."""
        number = int(now_s // BIN_S)
        if self._began_s is None:
            self._began_s, self._bin = now_s, number
        while self._bin < number:
            self._bins.append(self._count)
            self._closed += 1
            place = int((self._bin * BIN_S) % DAY_S / DAY_BIN_S)
            self._day_counts[place] += self._count
            self._day_seconds[place] += BIN_S
            self._count = 0
            self._bin += 1

    def level(self) -> tuple[float, float]:
        """(Requests per second now, seconds over which they were counted)."""
        rate, window_s, count = 0.0, 0.0, 0
        for wider_s in WINDOWS_S:
            bins = int(wider_s / BIN_S)
            if len(self._bins) < bins and window_s:
                break
            total = self._sum(0, bins)
            seconds = min(len(self._bins), bins) * BIN_S
            if window_s:
                # Of so many in all, with a constant rate, the older part has its share (binomial).
                older = 1.0 - window_s / seconds
                sd = math.sqrt(self.dispersion * total * older * (1.0 - older) + 0.5)
                apart = APART if seconds > SHORT_S else APART_SHORT
                if older <= 0 or abs(total - count - total * older) > apart * sd:
                    break
            count, window_s = total, seconds
            rate = count / window_s if window_s else 0.0
        return rate, window_s

    def ahead(self, now_s: float, from_s: float, to_s: float, draws: int, *, answer_s: float) -> RateAhead:
        """What will come between two moments, in so many draws.

        How wrong that may be is what the next `answer_s` seconds have brought so far that was not expected: what
        changes later can be answered later. To be asked at every tick, with one and the same time.
        """
        self.look(now_s)
        self._learn(now_s)
        self._disperse()
        level, window_s = self.level()
        noise = self.dispersion / max(1.0, level * window_s)
        if self.seen_s >= SHORT_S:
            until_s = now_s + answer_s
            self._said.append(_Said(now_s, until_s, self._rates(level, window_s, now_s, now_s, until_s), noise))
        losses = [float(np.mean(np.abs(list(errors)))) for errors in self._lately]
        if self.seen_s < DAY_S + DAY_BIN_S:
            losses[2] = math.inf
        # What a day knows of the next hour shows seldom: where it has been no worse, it speaks.
        best = 2 if losses[2] <= AS_GOOD * min(losses) + 1e-3 else int(np.argmin(losses))
        rate = self._rates(level, window_s, now_s, from_s, to_s)[best]
        shares = [(i + 0.5) / draws for i in range(draws)]
        middle, *wrong = np.quantile(np.fromiter(self._errors[best], float), [0.5, *shares])
        chance = math.sqrt(noise)
        logs = [_both(float(by), chance * _normal(share)) for by, share in zip(wrong, shares, strict=True)]
        drawn = [rate * math.exp(by) for by in logs]
        # Where nothing has come for a while one request more is what cannot be excluded.
        drawn[-1] = max(drawn[-1], 1.0 / max(self.seen_s, to_s - from_s))
        return RateAhead(rate * math.exp(float(middle)), tuple(drawn), self.FORECASTERS[best])

    # --- inside -------------------------------------------------------------------------------------------------------

    def _rates(self, level: float, window_s: float, now_s: float, from_s: float, to_s: float) -> tuple[float, ...]:
        return (
            level,
            self._with_trend(level, window_s, 0.5 * (from_s + to_s) - now_s),
            self._by_day(level, window_s, now_s, from_s, to_s),
        )

    def _with_trend(self, level: float, window_s: float, ahead_s: float) -> float:
        """The growth from one window to the next goes on, but dies away over a window's time. That it falls on is
        believed of nothing: what has been sent off is missed for as long as a start takes."""
        bins = int(window_s / BIN_S)
        if not bins or len(self._bins) < 2 * bins:
            return level
        before = self._sum(bins, 2 * bins) / window_s
        sd = math.sqrt(self.dispersion * max(level + before, 1.0 / window_s) / window_s)
        if level - before < 2.0 * sd:
            return level
        grown = level + (level - before) * (1.0 - math.exp(-ahead_s / window_s))
        return min(grown, level * MOST_GROWTH)

    def _by_day(self, level: float, window_s: float, now_s: float, from_s: float, to_s: float) -> float:
        """As much more or less than now as on former days at that time."""
        now = self._of_day(now_s - max(window_s, DAY_BIN_S), now_s)
        then = self._of_day(from_s, to_s)
        return level * then / now if now > 0 and then > 0 else level

    def _of_day(self, from_s: float, to_s: float) -> float:
        first, last = int(from_s // DAY_BIN_S), int(to_s // DAY_BIN_S)
        places = np.arange(first, last + 1) % len(self._day_counts)
        seconds = self._day_seconds[places].sum()
        return float(self._day_counts[places].sum() / seconds) if seconds else 0.0

    def _learn(self, now_s: float) -> None:
        while self._said and self._said[0].to_s <= self._bin * BIN_S:
            said = self._said.popleft()
            back_from, back_to = (round(self._bin - s / BIN_S) for s in (said.to_s, said.from_s))
            if back_to > len(self._bins):
                continue
            seconds = (back_to - back_from) * BIN_S
            if seconds <= 0:
                continue
            came = self._sum(back_from, back_to) / seconds
            for errors, lately, rate in zip(self._errors, self._lately, said.rates, strict=True):
                if rate * seconds >= FEWEST:
                    error = math.log((came + 0.5 / seconds) / (rate + 0.5 / seconds))
                    error = min(max(error, -math.log(MOST_WRONG)), math.log(MOST_WRONG))
                    lately.append(error)
                    noise = said.noise + self.dispersion / (rate * seconds)
                    errors.append(math.copysign(math.sqrt(max(0.0, error * error - noise)), error))

    def _disperse(self) -> None:
        """Over the last ten minutes, around the mean of each half minute, so that a change of level is none."""
        bins = np.fromiter(_last(self._bins, 240), float)
        rows = len(bins) // 12
        if rows < 2:
            return
        minutes: npt.NDArray[np.float64] = bins[-rows * 12 :].reshape(rows, 12)
        means = minutes.mean(axis=1)
        busy = means > 0
        if busy.any():
            ratios = minutes[busy].var(axis=1, ddof=1) / means[busy]
            self.dispersion = float(np.clip(np.median(ratios), 1.0, 50.0))

    def _sum(self, skip: int, to: int) -> int:
        """Requests of the last `to` bins without the last `skip`."""
        length = len(self._bins)
        return sum(self._bins[i] for i in range(max(0, length - to), max(0, length - skip)))


def _last(bins: deque[int], count: int) -> list[int]:
    return [bins[i] for i in range(max(0, len(bins) - count), len(bins))]


def _both(one: float, other: float) -> float:
    """Two independent deviations, at the same quantile of each."""
    if one * other <= 0:
        return one + other
    return math.copysign(math.hypot(one, other), one)


def _normal(share: float) -> float:
    """Quantile of the normal distribution (Acklam would be exact; Tukey's lambda is near enough for a prior)."""
    return float((share**0.135 - (1.0 - share) ** 0.135) / 0.1975)
