"""What a client's own number for an answer's length is worth, learned online. Pure: no clock, no lock; the caller says
what happened.

A client that has a tagger of its own sends one number with each request, its hint. Answers whose hints were near this
one say how far off it may be: their Kaplan-Meier distribution of answer over hint, times the hint. So a tagger's bias,
which differs with the length that it says, goes, and its spread is believed; who has always been right is believed to
the token. A cut answer was at least as long as what came.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import msgspec
import numpy as np

from length_model.core.belief import known
from length_model.core.distribution import MIDPOINTS, Floats
from simcore.types import LengthBelief

HintSource = tuple[str, str]
"""(client, model): whose hints they are, and of whose answers."""

NEAR = math.log(1.5)
"""Hints that differ by no more than this factor are taken for alike."""

AS_SAID_ANSWERS = 2
"""A hint is believed as if so many answers like it had come out just as they were said to."""

WINDOW = 512
"""Answers remembered of a source."""

MOST_SOURCES = 256
"""Sources kept; the least recently used goes. One takes up to 12 kB."""

_HINT, _RATIO, _CUT = range(3)


class Hint(msgspec.Struct, frozen=True):
    """One number that a client said; >= 1."""

    source: HintSource
    tokens: int


class LearnedHints:
    """What the hints of all sources have been worth."""

    def __init__(self, most: int = MOST_SOURCES) -> None:
        self._answers: OrderedDict[HintSource, Floats] = OrderedDict()
        """[3, n]: log of the hint, answer over hint, whether it was cut; the oldest first."""
        self._most = most

    def belief(self, hint: Hint) -> LengthBelief:
        """What to believe of the answer: one atom, the hint itself, while none like it has come out otherwise."""
        answers = self._answers.get(hint.source)
        if answers is None:
            return known(hint.tokens)
        near = answers[:, np.abs(answers[_HINT] - math.log(hint.tokens)) <= NEAR]
        atoms = np.maximum(1, np.rint(hint.tokens * _quantiles(near[_RATIO], near[_CUT]))).astype(np.int64)
        return known(int(atoms[0])) if atoms[0] == atoms[-1] else LengthBelief(tuple(atoms.tolist()))

    def observe(self, hint: Hint, tokens: int, *, censored: bool) -> None:
        """An answer of `tokens` came of it; none at all teaches nothing."""
        if tokens < 1:
            return
        answer = np.array([[math.log(hint.tokens)], [tokens / hint.tokens], [censored]])
        before = self._answers.get(hint.source)
        self._answers[hint.source] = answer if before is None else np.hstack([before[:, 1 - WINDOW :], answer])
        self._answers.move_to_end(hint.source)
        if len(self._answers) > self._most:
            self._answers.popitem(last=False)


def _quantiles(ratios: Floats, cut: Floats) -> Floats:
    """[ATOMS]: quantiles of the answers over their hints [n], `AS_SAID_ANSWERS` of 1 mixed in. What outlives all that
    ended is taken to end where the longest was cut (Efron, "The two sample problem with censored data", 1967)."""
    ratios = np.concatenate([ratios, np.ones(AS_SAID_ANSWERS)])
    cut = np.concatenate([cut, np.zeros(AS_SAID_ANSWERS)])
    # At a tie those that ended go first: who was cut there had come as far.
    order = np.lexsort((cut, ratios))
    at_risk = np.arange(len(order), 0, -1)
    ended = 1.0 - np.cumprod(1.0 - (1.0 - cut[order]) / at_risk)
    ended[-1] = 1.0
    return np.asarray(ratios[order][np.searchsorted(ended, MIDPOINTS - 1e-9)])
