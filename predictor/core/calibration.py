"""Joins forecasts with what happened: measures their error, corrects later ones, withdraws trust in them. Pure.

Medians and 90th percentiles are for people, deadlines and service levels: they are corrected as well as experience can
(`predictor.core.correction`). Means are for comparing nodes. What slows all nodes alike, such as later arrivals, need
not be in them, and each node's own small correction would only be noise between them (measured: P99 TTFT of a cluster
near its limit up to three times as high). So means, harm and clear start change only when a node's whole clock is
wrong, by its tempo: the median of actual over forecast seconds per token, ignored below IGNORED_TEMPO, applied in full
from FULL_TEMPO on.

A forecast counts when its request was then dispatched here; it is joined with the times measured on this node, from the
dispatch on (the forecast's own assumption: the request comes at the moment of the answer). Forecasts of source `prior`
are guesses and are left out.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Sequence

import msgspec

from predictor.core.arrival_drift import ArrivalRate
from predictor.core.correction import PRIOR_SPREAD, SMALLEST_S, Correction
from simcore.types import Forecast, Quantiles

WINDOW_PAIRS = 1000
OPEN_FORECASTS = 4096
"""Forecasts kept for a dispatch that may never come; the oldest go first."""

TRUST_PAIRS = 50
"""The latest pairs by which trust is given and taken, TRUST_LEAST_PAIRS at the least."""
TRUST_LEAST_PAIRS = 20
TRUST_LOST_FACTOR = 1.5
"""Trust is lost when corrected medians are off by more than this factor in every second request (TTFT; seconds per
token), or when more than TRUST_LOST_OVER of the answers take longer than that factor times the corrected p90."""
TRUST_LOST_OVER = 0.3
TRUST_REGAINED_FACTOR = 1.3
"""Trust is regained when both are under this factor and TRUST_REGAINED_OVER. Not the end-to-end median: where lengths
are guessed it cannot be right, and says so in its p90."""
TRUST_REGAINED_OVER = 0.1
IGNORED_TEMPO, FULL_TEMPO = 1.3, 1.6
"""The bias of the pace is not applied to means below the first factor, and in full from the second (or below their
inverses); in between in part (`_ramped`)."""
COUNTS_SPREAD = 0.4
"""How far forecasts are thought to stray at first where only counts are known of the engine."""
TTFT_GRACE_S = 0.1
"""Added to both sides of a ratio of TTFTs: 20 ms for 5 ms misleads nobody."""


class ErrorSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Error of one quantity over the last `WINDOW_PAIRS` pairs. All zero without pairs."""

    samples: int = 0
    bias_s: float = 0.0
    """Mean of forecast p50 - actual."""
    bias: float = 0.0
    """Median of actual / forecast p50: 1 is right, above 1 reality takes longer."""
    spread: float = 0.0
    """Half the distance from the 10th to the 90th percentile of actual / forecast p50."""
    median_relative: float = 0.0
    """Median of |forecast p50 - actual| / actual."""
    p90_relative: float = 0.0
    coverage_p90: float = 0.0
    """Share of actuals at or under the forecast's p90."""


class _Pair(msgspec.Struct, frozen=True, gc=False):
    p50_s: float
    p90_s: float
    actual_s: float


class _Answered(msgspec.Struct, frozen=True, gc=False):
    raw: Forecast
    corrected: Forecast
    expected: float
    """Requests to come while it runs."""


class _Pending(msgspec.Struct):
    answered: _Answered
    dispatched_s: float
    first_s: float | None = None


class Joined:
    """One quantity: its pairs, raw and corrected, and what they teach."""

    def __init__(
        self,
        window_pairs: int,
        *,
        prior_spread: float = PRIOR_SPREAD,
        grace_s: float = 0.0,
        arrivals: bool = False,
    ) -> None:
        self.correction = Correction(prior_spread=prior_spread, arrivals=arrivals)
        self._grace_s = grace_s + SMALLEST_S
        self._raw: deque[_Pair] = deque(maxlen=window_pairs)
        self._corrected: deque[_Pair] = deque(maxlen=window_pairs)
        self._latest: deque[tuple[float, bool]] = deque()
        """Logarithm of the factor between actual and corrected p50; whether the actual is far over the p90."""
        self._ascending: list[float] = []
        """The logarithms of `_latest`, kept in order: they are asked for after each answer."""
        self._far_over = 0

    def add(
        self, raw: Quantiles, corrected: Quantiles, actual_s: float, *, size_s: float, expected: float = 0.0
    ) -> None:
        """`size_s` is that of the raw forecast, `expected` the requests that were to come meanwhile."""
        self._raw.append(_Pair(raw.p50, raw.p90, actual_s))
        self._corrected.append(_Pair(corrected.p50, corrected.p90, actual_s))
        off = math.log((actual_s + self._grace_s) / (corrected.p50 + self._grace_s))
        self._note_latest(abs(off), actual_s > TRUST_LOST_FACTOR * corrected.p90)
        self.correction.add(raw, actual_s, size_s=size_s, expected=expected)

    def raw(self) -> ErrorSummary:
        """Error of the simulation's own forecasts."""
        return _summary(self._raw)

    def corrected(self) -> ErrorSummary:
        """Error of the corrected forecasts, as they were answered."""
        return _summary(self._corrected)

    def typical_factor(self) -> float:
        """Median factor between actual and corrected p50 of the latest pairs, whichever is larger on top."""
        if len(self._latest) < TRUST_LEAST_PAIRS:
            return 1.0
        return math.exp(_nearest_rank(self._ascending, 0.5))

    def far_over_p90(self) -> float:
        """Share of the latest actuals over TRUST_LOST_FACTOR times the corrected p90."""
        if len(self._latest) < TRUST_LEAST_PAIRS:
            return 0.0
        return self._far_over / len(self._latest)

    def _note_latest(self, off: float, over: bool) -> None:
        if len(self._latest) == TRUST_PAIRS:
            oldest, was_over = self._latest.popleft()
            del self._ascending[bisect_left(self._ascending, oldest)]
            self._far_over -= was_over
        self._latest.append((off, over))
        insort(self._ascending, off)
        self._far_over += over


class Calibration:
    """Joins forecasts with outcomes. Not thread-safe; one owner."""

    def __init__(
        self, *, window_pairs: int = WINDOW_PAIRS, prior_spread: float = PRIOR_SPREAD, arrivals: bool = True
    ) -> None:
        """`prior_spread`: how far forecasts are thought to stray while nothing is known of them yet; `arrivals`: the
        present arrival rate is a term of the correction."""
        self.ttft = Joined(window_pairs, prior_spread=prior_spread, grace_s=TTFT_GRACE_S)
        self.e2e = Joined(window_pairs, prior_spread=prior_spread, arrivals=arrivals)
        self.tpot = Joined(window_pairs, prior_spread=prior_spread, arrivals=arrivals)
        self.trusted = True
        """False while even corrected forecasts are too far off to place by: see TRUST_LOST_FACTOR."""
        self._tempo = 1.0
        self._arrivals = ArrivalRate()
        self._open: OrderedDict[str, _Answered] = OrderedDict()
        self._pending: dict[str, _Pending] = {}

    @classmethod
    def of_counts(cls) -> Calibration:
        """The calibration for an engine that tells how many requests it has, and not which."""
        return cls(prior_spread=COUNTS_SPREAD)

    def forecast(self, raw: Forecast, now_s: float = -math.inf) -> Forecast:
        """Takes the simulation's answer and gives the one to tell. The last one before the dispatch counts. `now_s`:
        for the arrival rate; left out, the moment of the latest dispatch."""
        if raw.source == "prior":
            return raw
        size_s = raw.e2e_s.p50
        expected = self._arrivals.per_s(now_s) * size_s
        tempo = self._tempo
        ttft_s = self.ttft.correction.corrected(raw.ttft_s, size_s=raw.ttft_s.p50, tempo=tempo)
        e2e_s = self.e2e.correction.corrected(raw.e2e_s, size_s=size_s, expected=expected, tempo=tempo)
        corrected = msgspec.structs.replace(
            raw,
            ttft_s=ttft_s,
            tpot_s=self.tpot.correction.corrected(raw.tpot_s, size_s=size_s, expected=expected, tempo=tempo),
            e2e_s=Quantiles(e2e_s.mean, max(e2e_s.p50, ttft_s.p50), max(e2e_s.p90, ttft_s.p90)),
        )
        if tempo != 1.0:
            harm_s, clear_start_s = raw.harm_s.scaled(tempo), raw.clear_start_s.scaled(tempo)
            corrected = msgspec.structs.replace(corrected, harm_s=harm_s, clear_start_s=clear_start_s)
        self._open[raw.request_id] = _Answered(raw, corrected, expected)
        self._open.move_to_end(raw.request_id)
        if len(self._open) > OPEN_FORECASTS:
            self._open.popitem(last=False)
        return corrected

    def awaits(self, request_id: str) -> bool:
        """Whether a forecast of it stands that a dispatch could be joined with."""
        return request_id in self._open

    def dispatched(self, request_id: str, now_s: float) -> None:
        """The request came. Without a forecast of it there is nothing to join."""
        self._arrivals.came(now_s)
        answered = self._open.pop(request_id, None)
        self._pending.pop(request_id, None)
        if answered is not None:
            self._pending[request_id] = _Pending(answered, now_s)

    def first_token(self, request_id: str, now_s: float) -> None:
        """Its first token is out; later calls for the same request change nothing."""
        pending = self._pending.get(request_id)
        if pending is None or pending.first_s is not None:
            return
        pending.first_s = now_s
        raw, corrected = pending.answered.raw, pending.answered.corrected
        self.ttft.add(raw.ttft_s, corrected.ttft_s, now_s - pending.dispatched_s, size_s=raw.ttft_s.p50)

    def ended(self, request_id: str, now_s: float, *, complete: bool, output_tokens: int) -> bool:
        """It ended. Only a complete answer says anything of the forecast end. True: `trusted` has changed."""
        pending = self._pending.pop(request_id, None)
        if pending is None or not complete:
            return False
        raw, corrected, expected = pending.answered.raw, pending.answered.corrected, pending.answered.expected
        size_s = raw.e2e_s.p50
        self.e2e.add(raw.e2e_s, corrected.e2e_s, now_s - pending.dispatched_s, size_s=size_s, expected=expected)
        if output_tokens > 1 and pending.first_s is not None and raw.tpot_s.p50 > 0.0:
            tpot_s = (now_s - pending.first_s) / (output_tokens - 1)
            self.tpot.add(raw.tpot_s, corrected.tpot_s, tpot_s, size_s=size_s, expected=expected)
            self._tempo = _ramped(self.tpot.correction.bias)
        return self._judge()

    def _judge(self) -> bool:
        before = self.trusted
        over = self.e2e.far_over_p90()
        off = max(self.ttft.typical_factor(), self.tpot.typical_factor())
        if off > TRUST_LOST_FACTOR or over > TRUST_LOST_OVER:
            self.trusted = False
        elif off < TRUST_REGAINED_FACTOR and over < TRUST_REGAINED_OVER:
            self.trusted = True
        return self.trusted != before


def _ramped(bias: float) -> float:
    """The bias as far as it is applied to means: straight lines on a logarithmic scale."""
    size = abs(math.log(bias))
    low, high = math.log(IGNORED_TEMPO), math.log(FULL_TEMPO)
    share = min(1.0, max(0.0, (size - low) / (high - low)))
    return math.pow(bias, share)


def _summary(pairs: Sequence[_Pair]) -> ErrorSummary:
    n = len(pairs)
    if not n:
        return ErrorSummary()
    relative = sorted(abs(p.p50_s - p.actual_s) / p.actual_s if p.actual_s > 0 else math.inf for p in pairs)
    ratios = sorted(p.actual_s / p.p50_s if p.p50_s > 0 else math.inf for p in pairs)
    low, high = _nearest_rank(ratios, 0.1), _nearest_rank(ratios, 0.9)
    return ErrorSummary(
        samples=n,
        bias_s=sum(p.p50_s - p.actual_s for p in pairs) / n,
        bias=_nearest_rank(ratios, 0.5),
        spread=0.5 * (high - low) if math.isfinite(high) else math.inf,
        median_relative=_nearest_rank(relative, 0.5),
        p90_relative=_nearest_rank(relative, 0.9),
        coverage_p90=sum(p.actual_s <= p.p90_s for p in pairs) / n,
    )


def _nearest_rank(ascending: Sequence[float], q: float) -> float:
    return ascending[max(0, math.ceil(q * len(ascending)) - 1)]
