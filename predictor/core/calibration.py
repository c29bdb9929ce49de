"""Joins forecasts with what happened: measures their error, corrects later ones, withdraws trust in them. Pure.

Medians and 90th percentiles are for people, deadlines and service levels: they are corrected as well as experience can
(`predictor.core.correction`). Means are for comparing nodes. What slows all nodes alike, such as later arrivals, need
not be in them, and each node's own small correction would only be noise between them (measured: P99 TTFT of a cluster
near its limit up to three times as high). So means, harm and clear start change only when a node's whole clock is
wrong, by its tempo: the median of actual over forecast seconds per token, ignored below IGNORED_TEMPO, applied in full
from FULL_TEMPO on.

Trust and tempo are judged in hindsight: what later arrivals cost (`predictor.core.later_work`) is taken off what is
over the forecast, of the tempo only their prompts, and an answer between what was simulated and what was told is right.
Else long prompts alone, which make answers vary by a factor of two on any node, have a right simulation distrusted: on
a conversation trace with prompts of 12,000 tokens 24 to 38 % of the requests went to nodes that were not trusted.

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
from predictor.core.correction import LARGEST_RATIO, NO_GUESS, PRIOR_SPREAD, PSEUDO_PAIRS, SMALLEST_S, Correction, Guess
from predictor.core.later_work import NO_COST, DelayCost, LaterWork, WorkSoFar
from simcore.types import Forecast, Quantiles

WINDOW_PAIRS = 1000
WINDOW_PACES = 256
"""Pairs from which the tempo is taken."""
OPEN_FORECASTS = 4096
OPEN_S = 10.0
"""How long a forecast waits for its dispatch: of a few nodes asked one gets the request, at once, and a request that is
held is asked for again."""
"""Forecasts kept for a dispatch that may never come; the oldest go first."""

TRUST_PAIRS = 50
"""The latest pairs by which trust is given and taken, TRUST_LEAST_PAIRS at the least."""
TRUST_LEAST_PAIRS = 20
TRUST_LOST_FACTOR = 1.5
"""Trust is lost when corrected medians are off by more than this factor in every second request (TTFT; seconds per
token in hindsight), or when more than TRUST_LOST_OVER of the answers take, in hindsight, longer than that factor times
the corrected p90."""
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
    guess: Guess
    at_s: float


class _Pending(msgspec.Struct):
    answered: _Answered
    dispatched_s: float
    work: WorkSoFar
    """Of all up to itself."""
    first_s: float | None = None


class _Median:
    """The median of the latest values. Kept in order: it is asked for after each answer."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._latest: deque[float] = deque()
        self._ascending: list[float] = []

    def __len__(self) -> int:
        return len(self._latest)

    def add(self, value: float) -> None:
        if len(self._latest) == self._window:
            del self._ascending[bisect_left(self._ascending, self._latest.popleft())]
        self._latest.append(value)
        insort(self._ascending, value)

    def value(self) -> float:
        """Nearest rank; of at least one value."""
        return _nearest_rank(self._ascending, 0.5)


class Joined:
    """One quantity: its pairs, raw and corrected, and its correction."""

    def __init__(
        self,
        window_pairs: int,
        *,
        prior_spread: float = PRIOR_SPREAD,
        grace_s: float = 0.0,
        grows: bool = True,
        arrivals: bool = False,
    ) -> None:
        self.correction = Correction(prior_spread=prior_spread, grows=grows, arrivals=arrivals)
        self._grace_s = grace_s + SMALLEST_S
        self._raw: deque[_Pair] = deque(maxlen=window_pairs)
        self._corrected: deque[_Pair] = deque(maxlen=window_pairs)
        self._off = _Median(TRUST_PAIRS)
        """Logarithm of the factor between actual and told, in hindsight."""
        self._far_over: deque[bool] = deque(maxlen=TRUST_PAIRS)
        """Whether the actual is far over the p90, in hindsight."""

    def add(
        self,
        raw: Quantiles,
        corrected: Quantiles,
        actual_s: float,
        *,
        later_s: float = 0.0,
        least_s: float = math.inf,
    ) -> None:
        """`later_s` is the part of the actual that later arrivals may have made. What lies between `least_s` and the
        corrected median is right."""
        self._raw.append(_Pair(raw.p50, raw.p90, actual_s))
        self._corrected.append(_Pair(corrected.p50, corrected.p90, actual_s))
        without_s = actual_s - later_s
        right_s = max(min(actual_s, corrected.p50), min(least_s, corrected.p50))
        seen_s = max(right_s, without_s) if actual_s > right_s else actual_s
        self._off.add(abs(math.log((seen_s + self._grace_s) / (right_s + self._grace_s))))
        self._far_over.append(without_s > TRUST_LOST_FACTOR * corrected.p90)

    def raw(self) -> ErrorSummary:
        """Error of the simulation's own forecasts."""
        return _summary(self._raw)

    def corrected(self) -> ErrorSummary:
        """Error of the corrected forecasts, as they were answered."""
        return _summary(self._corrected)

    def typical_factor(self) -> float:
        """Median factor in hindsight between actual and told of the latest pairs, whichever is larger on top."""
        return 1.0 if len(self._off) < TRUST_LEAST_PAIRS else math.exp(self._off.value())

    def far_over_p90(self) -> float:
        """Share of the latest actuals, in hindsight, over TRUST_LOST_FACTOR times the corrected p90."""
        n = len(self._far_over)
        return 0.0 if n < TRUST_LEAST_PAIRS else sum(self._far_over) / n


class Calibration:
    """Joins forecasts with outcomes. Not thread-safe; one owner."""

    def __init__(
        self, *, window_pairs: int = WINDOW_PAIRS, prior_spread: float = PRIOR_SPREAD, arrivals: bool = True
    ) -> None:
        """`prior_spread`: how far forecasts are thought to stray while nothing is known of them yet; `arrivals`: the
        present arrival rate is a term of the correction."""
        self.ttft = Joined(window_pairs, prior_spread=prior_spread, grace_s=TTFT_GRACE_S, grows=False)
        self.e2e = Joined(window_pairs, prior_spread=prior_spread, arrivals=arrivals)
        """Its correction is that of the time after the first token."""
        self.tpot = Joined(window_pairs, prior_spread=prior_spread, arrivals=arrivals)
        self.trusted = True
        """False while even corrected forecasts are too far off to place by: see TRUST_LOST_FACTOR."""
        self._tempo = 1.0
        self._paces = _Median(WINDOW_PACES)
        """Logarithm of actual over forecast seconds per token, in hindsight."""
        for _ in range(PSEUDO_PAIRS):
            self._paces.add(0.0)
        self._work = WorkSoFar()
        self._arrivals = ArrivalRate()
        self._prefill = ArrivalRate()
        """Of seconds that prompts take."""
        self._open: OrderedDict[str, _Answered] = OrderedDict()
        self._pending: dict[str, _Pending] = {}

    @classmethod
    def of_counts(cls) -> Calibration:
        """The calibration for an engine that tells how many requests it has, and not which."""
        return cls(prior_spread=COUNTS_SPREAD)

    def forecast(self, raw: Forecast, now_s: float = -math.inf, later: LaterWork | None = None) -> Forecast:
        """Takes the simulation's answer and gives the one to tell. The last one before the dispatch counts. `now_s`:
        for the arrival rate; left out, the moment of the latest dispatch. `later`: what gateways are going to send;
        None where they do not say, then it is what has come lately."""
        if raw.source == "prior":
            return raw
        corrected, expected, guess = self._corrected(raw, now_s, later)
        open_ = self._open
        open_[raw.request_id] = _Answered(raw, corrected, expected, guess, now_s)
        open_.move_to_end(raw.request_id)
        while len(open_) > OPEN_FORECASTS or next(iter(open_.values())).at_s < now_s - OPEN_S:
            open_.popitem(last=False)
        return corrected

    def staying(self, raw: Forecast, now_s: float, later: LaterWork | None = None) -> Forecast:
        """As `forecast` for a request that is here already: no dispatch will be joined with it."""
        return self._corrected(raw, now_s, later)[0]

    def _corrected(self, raw: Forecast, now_s: float, later: LaterWork | None) -> tuple[Forecast, float, Guess]:
        """The answer to tell, how many requests are to come while it runs, and what is guessed of them."""
        after_s = _after_first(raw)
        size_s, tempo = after_s.p50, self._tempo
        rate_per_s, guess = self._arrivals.per_s(now_s), NO_GUESS
        if later is not None:
            rate_per_s = later.requests_per_s
            guess = later.growths(size_s, raw.tpot_s.p50)
        expected = rate_per_s * raw.e2e_s.p50
        ttft_s = self.ttft.correction.corrected(raw.ttft_s, size_s=raw.ttft_s.p50, tempo=tempo)
        after_s = self.e2e.correction.corrected(after_s, size_s=size_s, expected=expected, guess=guess)
        p50_s = ttft_s.p50 + after_s.p50
        corrected = msgspec.structs.replace(
            raw,
            ttft_s=ttft_s,
            tpot_s=self.tpot.correction.corrected(
                raw.tpot_s, size_s=size_s, expected=expected, tempo=tempo, guess=guess
            ),
            e2e_s=Quantiles(
                raw.e2e_s.mean * tempo, p50_s, p50_s + math.hypot(ttft_s.p90 - ttft_s.p50, after_s.p90 - after_s.p50)
            ),
            prefill_share=min(1.0, self._prefill.per_s(now_s)),
        )
        if tempo != 1.0:
            harm_s, clear_start_s = raw.harm_s.scaled(tempo), raw.clear_start_s.scaled(tempo)
            corrected = msgspec.structs.replace(corrected, harm_s=harm_s, clear_start_s=clear_start_s)
        return corrected, expected, guess

    def awaits(self, request_id: str) -> bool:
        """Whether a forecast of it stands that a dispatch could be joined with."""
        return request_id in self._open

    def dispatched(self, request_id: str, now_s: float, cost: DelayCost = NO_COST) -> None:
        """The request came, at this cost to those that are there. Without a forecast of it there is nothing to join."""
        self._arrivals.came(now_s)
        self._prefill.came(now_s, cost.prefill_s)
        self._work = self._work.and_of(cost, now_s)
        answered = self._open.pop(request_id, None)
        self._pending.pop(request_id, None)
        if answered is not None:
            self._pending[request_id] = _Pending(answered, now_s, self._work)

    def first_token(self, request_id: str, now_s: float) -> None:
        """Its first token is out; later calls for the same request change nothing."""
        pending = self._pending.get(request_id)
        if pending is None or pending.first_s is not None:
            return
        pending.first_s = now_s
        raw, corrected = pending.answered.raw, pending.answered.corrected
        ttft_s = now_s - pending.dispatched_s
        self.ttft.add(raw.ttft_s, corrected.ttft_s, ttft_s)
        self.ttft.correction.add(raw.ttft_s, ttft_s, size_s=raw.ttft_s.p50)

    def ended(self, request_id: str, now_s: float, *, complete: bool, output_tokens: int) -> bool:
        """It ended. Only a complete answer says anything of the forecast end. True: `trusted` has changed."""
        pending = self._pending.pop(request_id, None)
        if pending is None or not complete:
            return False
        answered = pending.answered
        raw, corrected, expected, guess = answered.raw, answered.corrected, answered.expected, answered.guess
        e2e_s, after_s = now_s - pending.dispatched_s, _after_first(raw)
        size_s = after_s.p50
        # Without a first token seen (an answer that came whole) it is taken to have come as foretold.
        decode_s = e2e_s - corrected.ttft_s.p50 if pending.first_s is None else now_s - pending.first_s
        self.e2e.correction.add(after_s, decode_s, size_s=size_s, expected=expected, guess=guess)
        later_s = prefill_s = self._work.prefill_since_s(pending.work)
        if output_tokens > 1 and pending.first_s is not None and raw.tpot_s.p50 > 0.0:
            gaps = output_tokens - 1
            tpot_s = decode_s / gaps
            self.tpot.correction.add(raw.tpot_s, tpot_s, size_s=size_s, expected=expected, guess=guess)
            later_s += self._work.decode_since_s(pending.work, now_s, max(tpot_s, SMALLEST_S))
            least_s = max(raw.tpot_s.p50, corrected.tpot_s.mean)
            self.tpot.add(raw.tpot_s, corrected.tpot_s, tpot_s, later_s=later_s / gaps, least_s=least_s)
            pace = tpot_s / raw.tpot_s.p50
            if pace > 1.0:
                pace = max(1.0, pace - prefill_s / gaps / raw.tpot_s.p50)
            self._paces.add(math.log(min(max(pace, 1.0 / LARGEST_RATIO), LARGEST_RATIO)))
            self._tempo = _ramped(math.exp(self._paces.value()))
        self.e2e.add(raw.e2e_s, corrected.e2e_s, e2e_s, later_s=later_s)
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


def _after_first(raw: Forecast) -> Quantiles:
    """Seconds from the first token to the last: only these grow with what comes later, since under FCFS it waits behind
    the request's own prompt."""
    ttft_s, e2e_s = raw.ttft_s, raw.e2e_s
    return Quantiles(
        max(0.0, e2e_s.mean - ttft_s.mean), max(0.0, e2e_s.p50 - ttft_s.p50), max(0.0, e2e_s.p90 - ttft_s.p50)
    )


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
