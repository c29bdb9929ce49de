"""What a client's single number is worth, believed as it was said and as its earlier ones came out: judged as beliefs
of populations are (`length_populations`), and shown beside them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.experiments.length_populations import LEARNED, PRODUCED_TOKENS, BeliefWorth, Scored
from bench.workload.item import DataRow
from length_model.core.belief import given_produced
from length_model.core.hints import Hint, LearnedHints
from simcore.types import LengthBelief


def study_hints(
    name: str, rows: Sequence[DataRow], *, seeds: Sequence[int], judged: int, learned: Sequence[int] = LEARNED
) -> list[BeliefWorth]:
    """Of rows with predicted lengths, in an order drawn by seed, the first answers are learned and up to `judged` later
    ones judged. Raises ValueError where there are no more than the former."""
    said = [
        (Hint((name, ""), row.predicted_output_tokens), row.output_tokens)
        for row in rows
        if row.predicted_output_tokens is not None
    ]
    if len(said) <= learned[-1]:
        raise ValueError(f"{name}: {len(said):,} rows with a prediction, of which {learned[-1]:,} are learned")
    runs = []
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(len(said))[: learned[-1] + judged].tolist()
        first, later = [said[i] for i in order[: learned[-1]]], [said[i] for i in order[learned[-1] :]]
        hints = LearnedHints()
        scores = {"as said": _scored(hints, later)}
        for before, upto in zip((0, *learned), learned, strict=False):
            for hint, tokens in first[before:upto]:
                hints.observe(hint, tokens, censored=False)
            scores[f"{upto:,} answers"] = _scored(hints, later)
        runs.append(scores)
    return [
        BeliefWorth(
            population=name,
            model="client",
            belief=belief,
            crps_tokens=tuple(np.mean([run[belief][0] for run in runs], axis=0).tolist()),
            closed=(None,) * len(PRODUCED_TOKENS),
            under_p90=float(np.mean([run[belief][1] for run in runs])),
        )
        for belief in runs[0]
    ]


def _scored(hints: LearnedHints, later: Sequence[tuple[Hint, int]]) -> Scored:
    believed = [(hints.belief(hint), tokens) for hint, tokens in later]
    losses = [
        np.mean([_crps(given_produced(belief, produced), tokens) for belief, tokens in believed if tokens > produced])
        for produced in PRODUCED_TOKENS
    ]
    under = np.mean([tokens <= belief.quantile_tokens(0.9) for belief, tokens in believed])
    return tuple(map(float, losses)), float(under)


def _crps(belief: LengthBelief, tokens: int) -> float:
    """Of equally likely atoms: mean distance from the truth less half that from each other (Gneiting and Raftery)."""
    atoms = np.array(belief.atoms_tokens, dtype=np.float64)
    return float(np.abs(atoms - tokens).mean() - np.abs(atoms[:, None] - atoms).mean() / 2)
