"""Judges a length model on samples that it has not seen. Pure.

Cut answers are left out of every score (their true length is unknown); the report says how many.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from length_model.core.belief import OVERDUE_TOKENS
from length_model.core.distribution import Floats, Ints, given_produced, quantiles_tokens
from length_model.core.model import LengthModel
from length_model.core.query import LengthSample
from length_model.core.recalibration import pits
from length_model.core.scoring import Interval, bootstrap, crps, pinball

PROMPT_EDGES_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1 << 30)
PREDICTED_EDGES_TOKENS = (1, 64, 128, 192, 256, 384, 1 << 30)
TRUE_EDGES_TOKENS = (1, 16, 64, 128, 256, 512, 1 << 30)
PRODUCED_TOKENS = (50, 200, 500)
RELIABILITY_LEVELS = tuple(round(0.05 * i, 2) for i in range(1, 20))

_BATCH = 512


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """Scores of one group of answers. The point prediction is the median. Lengths in tokens, shares in 0..1."""

    name: str
    count: int
    crps: Interval
    absolute_error: Interval
    """Mean of |median - length|."""
    relative_error: Interval
    """Mean of |median - length| / length."""
    acc_50: Interval
    """Share of answers within 50 tokens of the median (Acc-50)."""
    acc_100: Interval
    pinball_50: Interval
    pinball_90: Interval
    coverage_50: Interval
    """Share of answers at or below the median."""
    coverage_90: Interval


class Remaining(msgspec.Struct, frozen=True, kw_only=True):
    """Error of the expected rest of answers that have come to `produced_tokens`, in tokens (mean absolute)."""

    produced_tokens: int
    count: int
    belief: Interval
    """Median of the belief given what was produced."""
    rule: Interval
    """The seed systems' rule with this model's own median: the prediction, else produced + 10."""
    rule_of_baseline: Interval | None = None
    """The same rule with the baseline's median."""
    gain: Interval
    """Paired difference rule - belief."""
    coverage_50: float
    """Share of answers at or below the belief's median. Where it is one half, no other number that rests on the prompt
    and the count alone has a smaller error."""
    coverage_90: float


class Paired(msgspec.Struct, frozen=True, kw_only=True):
    """Against another model on the same answers; positive means that this model is better."""

    other: str
    crps_gain: Interval
    """CRPS of the other minus ours, tokens."""
    relative_gain: float
    """The same as a share of the other's CRPS."""
    intervals_apart: bool
    """Whether the two models' own 95 % intervals of the CRPS do not overlap."""


class Reliability(msgspec.Struct, frozen=True):
    """How often the answer was at or below the quantile of each level."""

    levels: tuple[float, ...]
    observed: tuple[float, ...]


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    sha256: str = ""
    """Content hash of the artefact; empty for a model without one."""
    left_out_censored: int
    overall: Scores
    by_class: tuple[Scores, ...]
    by_prompt: tuple[Scores, ...]
    by_predicted: tuple[Scores, ...]
    """Scores of groups by the predicted median."""
    by_true_length: tuple[Scores, ...]
    remaining: tuple[Remaining, ...]
    reliability: Reliability
    against: tuple[Paired, ...] = ()


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """A model's predictions for the test samples, as arrays."""

    model: str
    sha256: str
    edges: Ints
    pmf: Floats
    loss: Floats
    """CRPS, [n]."""
    quantiles: Ints
    """[n, 2]: median and 90 %."""


def finished(samples: Sequence[LengthSample]) -> list[LengthSample]:
    """Samples whose length is known. Raises ValueError if there are none."""
    ended = [s for s in samples if not s.censored]
    if not ended:
        raise ValueError("no finished answers to judge by")
    return ended


def judge(model: LengthModel, samples: Sequence[LengthSample], *, name: str = "", sha256: str = "") -> Judged:
    """Runs the model over finished `samples`."""
    queries = [s.query for s in samples]
    parts = [model.pmf(queries[i : i + _BATCH]) for i in range(0, len(queries), _BATCH)]
    pmf = np.concatenate(parts)
    tokens = lengths(samples)
    return Judged(
        model=name or model.name,
        sha256=sha256,
        edges=model.edges,
        pmf=pmf,
        loss=crps(model.edges, pmf, tokens),
        quantiles=quantiles_tokens(model.edges, pmf, (0.5, 0.9)),
    )


def lengths(samples: Sequence[LengthSample]) -> Ints:
    return np.array([s.output_tokens for s in samples], dtype=np.int64)


def evaluate(
    judged: Judged,
    samples: Sequence[LengthSample],
    *,
    others: Sequence[Judged] = (),
    left_out_censored: int = 0,
    seed: int = 0,
) -> Evaluation:
    """All scores of one model; `others` (the first is the baseline) were judged on the same `samples`."""
    tokens = lengths(samples)
    groups = np.unique([s.group for s in samples], return_inverse=True)[1].astype(np.int64)
    everyone = np.ones(len(samples), dtype=bool)
    classes = np.array([s.query.request_class for s in samples])
    prompts = np.array([s.prompt_tokens for s in samples])

    def scores(name: str, chosen: NDArray[np.bool_]) -> Scores:
        return _scores(name, judged, tokens, groups, chosen, seed)

    def by(values: Ints, edges: Sequence[int], what: str) -> tuple[Scores, ...]:
        cells = [(a, b, (values >= a) & (values < b)) for a, b in itertools.pairwise(edges)]
        return tuple(scores(_cell(what, a, b), chosen) for a, b, chosen in cells if chosen.any())

    overall = scores("all", everyone)
    return Evaluation(
        model=judged.model,
        sha256=judged.sha256,
        left_out_censored=left_out_censored,
        overall=overall,
        by_class=tuple(scores(str(c) or "(no class)", classes == c) for c in np.unique(classes)),
        by_prompt=by(prompts, PROMPT_EDGES_TOKENS, "prompt"),
        by_predicted=by(judged.quantiles[:, 0], PREDICTED_EDGES_TOKENS, "predicted"),
        by_true_length=by(tokens, TRUE_EDGES_TOKENS, "answer"),
        remaining=tuple(
            _remaining(judged, others[0] if others else None, tokens, groups, k, seed)
            for k in PRODUCED_TOKENS
            if (tokens > k).any()
        ),
        reliability=_reliability(judged, tokens),
        against=tuple(_paired(judged, other, groups, overall.crps, seed) for other in others),
    )


def _cell(what: str, low: int, high: int) -> str:
    return f"{what} {low}+ tokens" if high >= 1 << 30 else f"{what} {low}-{high - 1} tokens"


def _scores(name: str, judged: Judged, tokens: Ints, groups: Ints, chosen: NDArray[np.bool_], seed: int) -> Scores:
    y, g = tokens[chosen], groups[chosen]
    median, p90 = judged.quantiles[chosen, 0], judged.quantiles[chosen, 1]
    error = np.abs(median - y).astype(np.float64)

    def mean(values: Floats) -> Interval:
        return bootstrap(np.asarray(values, dtype=np.float64), g, seed=seed)

    return Scores(
        name=name,
        count=int(chosen.sum()),
        crps=mean(judged.loss[chosen]),
        absolute_error=mean(error),
        relative_error=mean(error / y),
        acc_50=mean(error <= 50),
        acc_100=mean(error <= 100),
        pinball_50=mean(pinball(median, y, 0.5)),
        pinball_90=mean(pinball(p90, y, 0.9)),
        coverage_50=mean(y <= median),
        coverage_90=mean(y <= p90),
    )


def seed_rule(predicted_tokens: Ints, produced_tokens: int) -> Ints:
    """Expected total length as Block has it: the prediction while it lies ahead, else `OVERDUE_TOKENS` more."""
    return np.where(predicted_tokens > produced_tokens, predicted_tokens, produced_tokens + OVERDUE_TOKENS)


def _remaining(
    judged: Judged, baseline: Judged | None, tokens: Ints, groups: Ints, produced: int, seed: int
) -> Remaining:
    alive = tokens > produced
    y, g = tokens[alive], groups[alive]
    edges, pmf = given_produced(judged.edges, judged.pmf[alive], produced)
    median, p90 = quantiles_tokens(edges, pmf, (0.5, 0.9)).T
    ours = np.abs(median - y).astype(np.float64)
    rule = np.abs(seed_rule(judged.quantiles[alive, 0], produced) - y).astype(np.float64)
    of_baseline = None
    if baseline is not None:
        error = np.abs(seed_rule(baseline.quantiles[alive, 0], produced) - y).astype(np.float64)
        of_baseline = bootstrap(error, g, seed=seed)
    return Remaining(
        produced_tokens=produced,
        count=int(alive.sum()),
        belief=bootstrap(ours, g, seed=seed),
        rule=bootstrap(rule, g, seed=seed),
        rule_of_baseline=of_baseline,
        gain=bootstrap(rule - ours, g, seed=seed),
        coverage_50=float(np.mean(y <= median)),
        coverage_90=float(np.mean(y <= p90)),
    )


def _paired(judged: Judged, other: Judged, groups: Ints, own: Interval, seed: int) -> Paired:
    gain = bootstrap(other.loss - judged.loss, groups, seed=seed)
    theirs = bootstrap(other.loss, groups, seed=seed)
    return Paired(
        other=other.model,
        crps_gain=gain,
        relative_gain=gain.mean / theirs.mean,
        intervals_apart=own.high < theirs.low or theirs.high < own.low,
    )


def _reliability(judged: Judged, tokens: Ints) -> Reliability:
    values = pits(judged.edges, judged.pmf, tokens, np.zeros(len(tokens), dtype=np.bool_))
    return Reliability(RELIABILITY_LEVELS, tuple(float(np.mean(values <= level)) for level in RELIABILITY_LEVELS))
