"""How accurate a node's forecasts are, by what came true of them as this gateway saw it. Pure.

The node corrects itself (`predictor.core`); this is the check of someone who pays for its errors. For each answer that
a forecast placed, the time it took is compared with what the forecast says of an answer of that length, so that not
knowing the length is no error of the forecast. What all nodes share (arrivals after a forecast slow every answer down)
does not change who is best, so a node is judged against the median of the fleet: off by a steady factor, its forecasts
are corrected by it; off at random, they are not used.

Means are judged, since by them nodes are compared. Of unequal nodes some get the long prompts, and their means are off
although their medians are right: those hold what the node itself has learned of later arrivals, and would be corrected
twice by the factor of the means. So medians and 90th percentiles have a factor of their own.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection
from typing import Literal

import msgspec

Use = Literal["used", "corrected", "demoted", "silent"]

SAMPLES = 8
"""Answers before anything is concluded."""
MEMORY = 32
"""Answers over which errors are averaged, exponentially."""
BIAS = 1.3
"""Steady factors below this are left alone."""
ABSURD_BIAS = 10.0
"""A node is demoted when its forecasts are off by more than this factor: no clock is that wrong, so they are none."""
SPREAD = 2.0
"""A node is demoted when its answers scatter by this factor more than the median node's."""
ABSURD_SPREAD = 6.0
"""A node is demoted when its answers scatter by this factor, whatever those of the others do."""
FLOOR_S = 0.05
"""Added to both times of a comparison: errors below it are nobody's concern."""
FORGET_S = 60.0
"""Errors that nothing has confirmed for so long count for little: the node must be tried again."""
REMEMBERED = 2
"""Answers for which errors count that nothing has confirmed for FORGET_S."""
SILENT_AFTER = 3
"""Questions in a row without an answer in time, after which a node is no longer waited for."""
PROBE_S = 0.5
"""Time between two questions to a silent node that try whether it answers again."""


class AccuracyStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How accurate a node's forecasts are, for operators and metrics."""

    use: Use = "used"
    bias: float = 1.0
    """Actual over forecast time (geometric mean)."""
    spread: float = 1.0
    """Typical factor between that and one answer (>= 1)."""
    coverage_p90: float = 0.0
    """Share of answers that took no longer than the forecast's p90."""
    samples: int = 0
    changes_total: int = 0
    """How often the use has changed."""


class ExpectedTimes(msgspec.Struct, frozen=True, gc=False):
    """What a forecast said when it placed a request, uncorrected. Seconds from the dispatch."""

    ttft_s: float
    """Mean, as `tpot_s`."""
    tpot_s: float
    ttft_p50_s: float
    tpot_p50_s: float
    e2e_p90_s: float

    def total_s(self, output_tokens: int) -> float:
        """Seconds that its means give an answer of this length."""
        return self.ttft_s + self.tpot_s * (output_tokens - 1)

    def total_p50_s(self, output_tokens: int) -> float:
        """Seconds that its medians give an answer of this length."""
        return self.ttft_p50_s + self.tpot_p50_s * (output_tokens - 1)


class _Errors:
    """Mean and mean absolute deviation of log(actual / forecast)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self.deviation = 0.0

    def add(self, actual_s: float, forecast_s: float) -> None:
        error = math.log((actual_s + FLOOR_S) / (max(0.0, forecast_s) + FLOOR_S))
        self.count += 1
        weight = 1 / min(self.count, MEMORY)
        if self.count > 1:
            self.deviation += weight * (abs(error - self.mean) - self.deviation)
        self.mean += weight * (error - self.mean)


class ForecastAccuracy:
    """The accuracy of one node's forecasts, learned from the requests placed by them, and what use follows."""

    def __init__(self) -> None:
        self.use: Use = "used"
        self.factor = 1.0
        """Means of its forecasts are multiplied by this."""
        self.factor_p50 = 1.0
        """Medians and 90th percentiles are multiplied by this."""
        self.changes_total = 0
        self._first = _Errors()
        self._whole = _Errors()
        self._medians = _Errors()
        """Of the medians, by the same answers as `_whole`."""
        self._coverage = 0.0
        self._unanswered = 0
        self._probe_s = -math.inf
        self._seen_s = -math.inf

    # --- what is seen -------------------------------------------------------------------------------------------------

    def first_token(self, expected: ExpectedTimes, actual_s: float, now_s: float) -> None:
        self._first.add(actual_s, expected.ttft_s)
        self._seen_s = now_s

    def part(self, expected: ExpectedTimes, actual_s: float, output_tokens: int) -> None:
        """The first `output_tokens` tokens of an answer came: enough to judge its pace before it ends."""
        self._add(expected, actual_s, output_tokens)

    def ended(self, expected: ExpectedTimes, actual_s: float, output_tokens: int) -> None:
        """A whole answer came."""
        self._add(expected, actual_s, output_tokens)
        weight = 1 / min(self._whole.count, MEMORY)
        self._coverage += weight * ((actual_s <= expected.e2e_p90_s) - self._coverage)

    def answered(self) -> None:
        """A question was answered in time."""
        self._unanswered = 0

    def unanswered(self, now_s: float) -> None:
        """A question was not answered in time."""
        self._unanswered += 1
        self._probe_s = now_s

    def start_anew(self) -> None:
        """Another process stands there: what was known of its errors need not hold."""
        self._first, self._whole, self._medians = _Errors(), _Errors(), _Errors()
        self._coverage = 0.0
        self._unanswered = 0
        self.use, self.factor, self.factor_p50 = "used", 1.0, 1.0

    def _add(self, expected: ExpectedTimes, actual_s: float, output_tokens: int) -> None:
        self._whole.add(actual_s, expected.total_s(output_tokens))
        self._medians.add(actual_s, expected.total_p50_s(output_tokens))

    # --- what follows -------------------------------------------------------------------------------------------------

    @property
    def is_silent(self) -> bool:
        return self._unanswered >= SILENT_AFTER

    def probe_due(self, now_s: float) -> bool:
        """Whether a silent node should be asked once; counts as asked."""
        if now_s - self._probe_s < PROBE_S:
            return False
        self._probe_s = now_s
        return True

    def is_untested(self, now_s: float) -> bool:
        """Too little is known of it, or nothing lately."""
        if now_s - self._seen_s > FORGET_S:
            for errors in (self._first, self._whole):
                errors.count = min(errors.count, REMEMBERED)
        return self.errors is None

    @property
    def errors(self) -> _Errors | None:
        """The best there are: of whole answers, else of first tokens, which come sooner; None: too few."""
        if self._whole.count >= SAMPLES:
            return self._whole
        return self._first if self._first.count >= SAMPLES else None

    def judge(self, fleet_mean: float, fleet_deviation: float) -> None:
        """Decides on the use of the forecasts, given the medians of the fleet's errors (natural logarithms)."""
        errors = self.errors
        if errors is None:
            return
        bias = errors.mean - fleet_mean
        scatter = errors.deviation
        use: Use = "used"
        if (
            abs(bias) > math.log(ABSURD_BIAS)
            or scatter > math.log(ABSURD_SPREAD)
            or scatter - fleet_deviation > math.log(SPREAD)
        ):
            use = "demoted"
        elif abs(bias) > math.log(BIAS):
            use = "corrected"
        self.factor = self.factor_p50 = math.exp(bias) if use == "corrected" else 1.0
        if use == "corrected" and errors is self._whole:
            off = self._medians.mean
            self.factor_p50 = math.exp(off) if abs(off) > math.log(BIAS) else 1.0
        self.changes_total += use != self.use
        self.use = use

    def status(self) -> AccuracyStatus:
        errors = self.errors or self._whole
        return AccuracyStatus(
            use="silent" if self.is_silent else self.use,
            bias=math.exp(errors.mean),
            spread=math.exp(errors.deviation),
            coverage_p90=self._coverage,
            samples=self._whole.count,
            changes_total=self.changes_total,
        )

    def alarm(self) -> str:
        """What is wrong with the forecasts, for operators; empty when all is well."""
        if self.is_silent:
            return f"its predictor does not answer ({self._unanswered} questions)"
        if self.use == "used":
            return ""
        errors = self.errors or self._whole
        said = f"answers take {math.exp(errors.mean):.2g} times what it forecasts, within a factor {_factor(errors)}"
        return f"forecasts {self.use}: {said}"


def judge_all(fleet: Collection[ForecastAccuracy]) -> None:
    """Judges each node against the median of all that can be judged."""
    known = [errors for accuracy in fleet if (errors := accuracy.errors) is not None]
    if not known:
        return
    mean = statistics.median(errors.mean for errors in known) if len(known) > 1 else 0.0
    deviation = statistics.median(errors.deviation for errors in known) if len(known) > 1 else 0.0
    for accuracy in fleet:
        accuracy.judge(mean, deviation)


def _factor(errors: _Errors) -> str:
    return f"{math.exp(errors.deviation):.2g}"
