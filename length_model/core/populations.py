"""What answers are really like, learned online, population by population, on top of a model's beliefs. Pure: no clock,
no lock; the caller says what happened.

A population is a model; of its requests those of a class (tools on offer, a label of the caller's); of these the ones
at a turn. Each corrects what the wider one makes of the model's belief, so that what is rarely asked leans on what is
often asked, and a population of which nothing is known on the model alone.

Per bucket three sums are kept: answers that reached it, those that ended in it, and the endings that the model
expected. The chance of ending there has a beta prior whose mean is the wider population's correction of the model and
whose weight is a number of answers, its strength (a beta process in discrete time: Hjort, "Nonparametric Bayes
Estimators Based on Beta Processes in Models for Life History Data", 1990, section 2). The strength is the likeliest of
a few (beta-binomial marginal likelihood: Griffiths, "Maximum likelihood estimation for the beta-binomial distribution",
1973), a larger one in doubt: answers that come as the model says leave it as it is, others replace it within a hundred.
A cut answer counts as having reached what it reached, and as nothing else.

What is learned of all answers together changes each single belief by its intensities, -log(1 - hazard), as in
regression on grouped survival data (Prentice and Gloeckler, 1978). Endings that are rarer than expected, or somewhat
more frequent, change them by a factor, so that what the model knows of the prompt stays. What is beyond that is added,
or a prompt would become certain to end where the model only thinks it less impossible than for others.

Forgetting: the last `WINDOW` answers count, and only the recent ones of them once these look different.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from length_model.core.distribution import Floats, Ints, bucket_of, pmf_from_hazards
from length_model.core.drift import RECENT, looks_different
from length_model.core.query import DEFAULT_CLASSES, LengthQuery

Population = tuple[str, ...]
"""(model), (model, class) or (model, class, turn)."""

BLOCK = 16
"""Answers that are learned from, and forgotten, together."""

WINDOW = 1024
"""Answers remembered of a population."""

MOST_POPULATIONS = 256
"""Populations kept; the least recently used goes. One takes up to 90 kB."""

STRENGTHS: Floats = np.array([2.0, 8.0, 32.0, 128.0, 512.0, 2048.0])
"""What the prior may weigh, in answers that reached a bucket."""

STEP_GAIN = 3.0
"""What a strength must explain better than the next larger one, in log-likelihood: chance should not cost what the
model knows."""

MOST_TIMES = 4.0
"""What exceeds this factor on the model's intensity is added instead."""

_LEAST_HAZARD, _MOST_HAZARD = 1e-9, 1 - 1e-6
_UNFORESEEN = 1e-6
"""Probability that is spread evenly over all buckets beside a model's belief, which would else say nothing of answers
that it takes for impossible."""

_REACHED, _ENDED, _EXPECTED = range(3)
_LATEST_TURN = 3


def populations_of(query: LengthQuery) -> tuple[Population, ...]:
    """Those that a query belongs to, the widest first. Turns are told apart as the first, the second, up to the fourth,
    and later ones, counted in answers before it (a query remembers that much)."""
    named = "" if query.request_class in DEFAULT_CLASSES else query.request_class
    answers = sum(turn.role == "assistant" for turn in query.history)
    turn = min(answers.bit_length(), _LATEST_TURN)
    return (query.model,), (query.model, named), (query.model, named, str(turn))


def hazards_of(pmf: Floats) -> Floats:
    """[n, K]: the chance that an answer which reached a bucket ends in it; above 0 and below 1."""
    spread = pmf + _UNFORESEEN / pmf.shape[1]
    reach = np.cumsum(spread[:, ::-1], axis=1)[:, ::-1]
    return np.asarray(np.clip(spread / reach, _LEAST_HAZARD, _MOST_HAZARD))


def intensities(hazards: Floats) -> Floats:
    """-log(1 - hazard): what adds up where chances to go on multiply."""
    return np.asarray(-np.log1p(-hazards))


class LengthCorrection(msgspec.Struct, frozen=True):
    """What becomes of a model's intensities: `times` them, and `plus`; both [K]."""

    times: Floats
    plus: Floats

    def intensities(self, plain: Floats) -> Floats:
        """`plain` [K] or [n, K]; the same shape."""
        return np.asarray(plain * self.times + self.plus)

    def pmf(self, hazards: Floats) -> Floats:
        """[n, K]: the corrected distributions of beliefs with these hazards [n, K]."""
        return pmf_from_hazards(-np.expm1(-self.intensities(intensities(hazards))))


class LearnedPopulation:
    """The answers of one population."""

    def __init__(self, buckets: int) -> None:
        self._blocks: deque[NDArray[np.float32]] = deque(maxlen=WINDOW // BLOCK)
        self._filling = np.zeros((3, buckets), np.float32)
        self._filled = 0
        self._pits: deque[float] = deque(maxlen=WINDOW)
        self._cut: deque[bool] = deque(maxlen=WINDOW)
        self._correction: LengthCorrection | None = None
        self._wider: LengthCorrection | None = None
        self.drifts = 0
        """Times that all but the recent answers were forgotten because answers had changed."""

    def __len__(self) -> int:
        """Answers that count."""
        return len(self._blocks) * BLOCK

    def add(self, sums: Floats, pit: float, censored: bool) -> None:
        """One answer: what it adds to the three sums [3, K], and the cumulated probability of its length."""
        self._filling += sums
        self._filled += 1
        self._pits.append(pit)
        self._cut.append(censored)
        if self._filled == BLOCK:
            self._close_block()

    def _close_block(self) -> None:
        self._blocks.append(self._filling)
        self._filling = np.zeros_like(self._filling)
        self._filled = 0
        self._correction = None
        pits = np.fromiter(self._pits, np.float64, len(self._pits))
        cut = np.fromiter(self._cut, np.bool_, len(self._cut))
        if looks_different(pits[-RECENT:], cut[-RECENT:], pits[:-RECENT], cut[:-RECENT]):
            self.drifts += 1
            while len(self) > RECENT:
                self._blocks.popleft()
            self._pits = deque(pits[-RECENT:].tolist(), WINDOW)
            self._cut = deque(cut[-RECENT:].tolist(), WINDOW)

    def correction(self, wider: LengthCorrection) -> LengthCorrection:
        """What corrects this population's beliefs, given what corrects those of the wider one: that itself until the
        first block is full. The order in which the answers of whole blocks came makes no difference."""
        if not self._blocks:
            return wider
        if self._correction is None or self._wider is not wider:
            self._wider = wider
            self._correction = fitted(np.sum(self._blocks, axis=0, dtype=np.float64), wider)
        return self._correction


def fitted(sums: Floats, wider: LengthCorrection) -> LengthCorrection:
    """The correction that follows from the sums [3, K] of a population's answers; where none came to a bucket, the
    wider population's."""
    reached, ended, expected = sums
    seen = reached > 0
    plain = intensities(np.clip(expected / np.where(seen, reached, 1.0), _LEAST_HAZARD, _MOST_HAZARD))
    prior = np.clip(-np.expm1(-wider.intensities(plain)), _LEAST_HAZARD, _MOST_HAZARD)
    strength = likeliest_strength(reached[seen], ended[seen], prior[seen])
    found = intensities(np.minimum((ended + strength * prior) / (reached + strength), _MOST_HAZARD))
    return LengthCorrection(
        np.where(seen, np.minimum(found / plain, MOST_TIMES), wider.times),
        np.where(seen, np.maximum(found - MOST_TIMES * plain, 0.0), wider.plus),
    )


def likeliest_strength(reached: Floats, ended: Floats, prior: Floats) -> float:
    """Which of `STRENGTHS` explains best, a weaker one only by `STEP_GAIN` more a step, that of `reached` [m] answers
    `ended` [m] did where the prior has the chance `prior` [m]. `reached` need not be whole."""
    ends, goes_on = STRENGTHS[:, None] * prior, STRENGTHS[:, None] * (1 - prior)
    both = np.broadcast_to(STRENGTHS[:, None], ends.shape)
    without = _log_gamma(np.stack([both, ends, goes_on]))
    counted = _log_gamma(np.stack([both + reached, ends + ended, goes_on + np.maximum(reached - ended, 0.0)]))
    gained = counted - without
    log_likelihood = (gained[1] + gained[2] - gained[0]).sum(axis=1)
    return float(STRENGTHS[np.argmax(log_likelihood + STEP_GAIN * np.arange(len(STRENGTHS)))])


def _log_gamma(x: Floats) -> Floats:
    """log of the gamma function for x > 0, to 1e-9: eight steps up, where Stirling's series is that good."""
    rising = np.ones_like(x)
    for step in range(8):
        rising = rising * (x + step)
    y = x + 8.0
    series = 1 / (12 * y) - 1 / (360 * y**3) + 1 / (1260 * y**5)
    return np.asarray((y - 0.5) * np.log(y) - y + 0.5 * math.log(2 * math.pi) + series - np.log(rising))


class Populations:
    """All that is learned on top of one model."""

    def __init__(self, edges: Ints, most: int = MOST_POPULATIONS) -> None:
        self._edges = edges
        self._widths = np.diff(edges)
        self._unchanged = LengthCorrection(np.ones(len(edges) - 1), np.zeros(len(edges) - 1))
        self._learned: OrderedDict[Population, LearnedPopulation] = OrderedDict()
        self._most = most

    def correction(self, populations: Sequence[Population]) -> LengthCorrection | None:
        """What corrects a belief of these, the widest first; None when nothing is known of any of them."""
        found = self._unchanged
        for name in populations:
            learned = self._learned.get(name)
            if learned is not None:
                found = learned.correction(found)
        return None if found is self._unchanged else found

    def observe(
        self, populations: Sequence[Population], hazards: NDArray[np.float32] | Floats, tokens: int, censored: bool
    ) -> None:
        """One answer of `tokens` (>= 1), of which the model alone believed `hazards` [K]."""
        bucket = int(bucket_of(self._edges, tokens))
        passed = min(1.0, max(0.0, float(tokens - self._edges[bucket])) / float(self._widths[bucket]))
        sums = np.zeros((3, len(hazards)))
        sums[_REACHED, :bucket] = 1.0
        # A cut answer was seen in the part of its bucket before the cut only; half a token in, a finished one has no
        # bias from whole tokens.
        sums[_REACHED, bucket] = passed if censored else 1.0
        sums[_ENDED, bucket] = not censored
        sums[_EXPECTED] = sums[_REACHED] * hazards
        goes_on = float(np.prod(1.0 - hazards[:bucket], dtype=np.float64))
        inside = passed if censored else min(1.0, passed + 0.5 / float(self._widths[bucket]))
        pit = 1.0 - goes_on * (1.0 - float(hazards[bucket]) * inside)
        # The narrowest first: what is used most goes last.
        for name in reversed(populations):
            learned = self._learned.get(name)
            if learned is None:
                learned = self._learned[name] = LearnedPopulation(len(hazards))
            self._learned.move_to_end(name)
            learned.add(sums, pit, censored)
        while len(self._learned) > self._most:
            self._learned.popitem(last=False)

    def drifts(self) -> int:
        """Times that answers of some population were found to have changed."""
        return sum(learned.drifts for learned in self._learned.values())

    def __len__(self) -> int:
        return len(self._learned)
