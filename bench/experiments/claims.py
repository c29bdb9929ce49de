"""Published numbers beside ours: evaluates an experiment's claims and writes them as text.

A claim about two systems is a ratio; ours is taken seed by seed, so that the interval is that of the ratio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from bench.experiments.schema import Claim, Experiment, PublishedFile
from bench.experiments.series import by_seed, capacity_by_seed, select, value_of
from bench.measure.statistics import Estimate, estimate, text_of
from bench.run.simulated import RunLine


class Evaluated(msgspec.Struct, frozen=True, kw_only=True):
    """A claim with both sides. A side that was not measured or not published is None."""

    what: str
    ours: Estimate | None
    ours_against: Estimate | None
    ours_ratio: Estimate | None
    published: float | None
    published_against: float | None
    published_ratio: float | None
    source: str
    is_bound: bool = False
    """No rate that was run reaches the limit: a capacity of ours is at least this."""


def evaluate(claim: Claim, lines: Sequence[RunLine]) -> Evaluated:
    """Both sides of one claim."""
    own = _values(claim, claim.variant, claim.at, lines)
    has_other = bool(claim.against or claim.against_at)
    other = (claim.against or claim.variant, claim.against_at or claim.at)
    against = _values(claim, *other, lines) if has_other else {}
    common = [seed for seed in own if seed in against and against[seed] != 0]
    ratio = estimate([own[seed] / against[seed] for seed in common]) if common else None
    published_ratio = None
    if claim.published is not None and claim.published_against:
        published_ratio = claim.published / claim.published_against
    return Evaluated(
        what=claim.what,
        ours=_estimate(own),
        ours_against=_estimate(against),
        ours_ratio=ratio,
        published=claim.published,
        published_against=claim.published_against,
        published_ratio=published_ratio,
        source=claim.source,
        is_bound=claim.limit is not None and _is_bound(claim, lines),
    )


def evaluate_points(experiment: Experiment, published: PublishedFile, lines: Sequence[RunLine]) -> list[Evaluated]:
    """Every published point of a variant that was run, with its ratio to the baseline variant at the same place."""
    assert experiment.published is not None, "there are points to evaluate"
    baseline = experiment.published.baseline
    figures = {figure.grid: figure.x for figure in experiment.figures}
    theirs = {(p.grid, p.variant, p.x, p.measure): p.value for p in published.points}
    found = []
    for (grid, variant, x, measure), value in theirs.items():
        axis = figures.get(grid, "rate_per_s")
        own = _at(lines, variant, grid, axis, x, measure)
        if not own:
            continue
        base_value = theirs.get((grid, baseline, x, measure))
        base = _at(lines, baseline, grid, axis, x, measure)
        common = [seed for seed in own if base.get(seed)] if variant != baseline else []
        found.append(
            Evaluated(
                what=f"{f'{grid}, ' if grid else ''}{variant}, {x:g}: {measure}",
                ours=_estimate(own),
                ours_against=None,
                ours_ratio=estimate([own[s] / base[s] for s in common]) if common else None,
                published=value,
                published_against=None,
                published_ratio=value / base_value if base_value and variant != baseline else None,
                source=published.source,
            )
        )
    return found


def claim_text(experiment: Experiment, evaluated: Sequence[Evaluated], *, seeds: int, header: str) -> str:
    """The `.claim` file."""
    out = [f"{experiment.title}", f"{experiment.source}", header, ""]
    out.append(f"ours: mean over {seeds} seed{'' if seeds == 1 else 's'}, ± half its 95 % interval")
    out.append("")
    for title, notes in (
        ("reproduced exactly", experiment.exact),
        ("modelled", experiment.modelled),
        ("different", experiment.different),
    ):
        if notes:
            out += [f"{title}:", *(f"  - {note}" for note in notes)]
    out.append("")
    said = ""
    for claim in evaluated:
        out.append(claim.what)
        if claim.published is not None:
            out.append(f"  published: {_pair(claim.published, claim.published_against, claim.published_ratio)}")
        out.append(f"  ours:      {_our_pair(claim)}")
        if claim.is_bound:
            out.append("  (no rate that was run reaches the limit: at least this)")
        if claim.published_ratio is not None and claim.ours_ratio is not None:
            out.append(f"  ratio of the ratios, ours to theirs: {claim.ours_ratio.mean / claim.published_ratio:.3f}")
        elif claim.published and claim.ours is not None:
            out.append(f"  ours to theirs: {claim.ours.mean / claim.published:.3f}")
        if claim.source and claim.source != said:
            said = claim.source
            out.append(f"  source: {said}")
    return "\n".join(out) + "\n"


def _values(claim: Claim, variant: str, at: Mapping[str, Any], lines: Sequence[RunLine]) -> Mapping[int, float]:
    own = select(lines, variant=variant, grid=claim.grid, at=at)
    if claim.limit is None:
        return by_seed(own, claim.measure)
    return {seed: rate for seed, (rate, _) in capacity_by_seed(own, claim.measure, claim.limit).items()}


def _is_bound(claim: Claim, lines: Sequence[RunLine]) -> bool:
    assert claim.limit is not None, "only what has a limit can fail to reach it"
    for variant in filter(None, (claim.variant, claim.against)):
        own = select(lines, variant=variant, grid=claim.grid, at=claim.at)
        if any(bound for _, bound in capacity_by_seed(own, claim.measure, claim.limit).values()):
            return True
    return False


def _at(lines: Sequence[RunLine], variant: str, grid: str, axis: str, x: float, measure: str) -> dict[int, float]:
    own = [line for line in select(lines, variant=variant, grid=grid) if value_of(line, axis) == x]
    return by_seed(own, measure)


def _estimate(values: Mapping[int, float]) -> Estimate | None:
    return estimate(list(values.values())) if values else None


def _pair(value: float, against: float | None, ratio: float | None) -> str:
    text = f"{value:.4g}"
    if against is not None:
        text += f" against {against:.4g}"
    return text if ratio is None else f"{text}, ratio {ratio:.3f}"


def _our_pair(claim: Evaluated) -> str:
    if claim.ours is None:
        return "not measured (the limit is reached below the lowest rate, or there are no such runs)"
    text = text_of(claim.ours, digits=_digits(claim.ours.mean))
    if claim.ours_against is not None:
        text += f" against {text_of(claim.ours_against, digits=_digits(claim.ours_against.mean))}"
    if claim.ours_ratio is not None:
        text += f", ratio {text_of(claim.ours_ratio, digits=3)}"
    return text


def _digits(value: float) -> int:
    return 1 if abs(value) >= 100 else 2 if abs(value) >= 1 else 3
