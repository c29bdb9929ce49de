"""What beliefs are worth for answers that the models were not made of, as shipped and learned online: how well each
tells the length, before an answer begins and while it grows. Decides what to judge; `length_populations_report` shows
it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from bench.workload.item import DataRow
from length_model.core.conversation import Turn
from length_model.core.distribution import Floats, Ints, bucket_of, given_produced, quantiles_tokens
from length_model.core.model import LengthModel
from length_model.core.query import LengthQuery, LengthSample, make_query
from length_model.core.scoring import crps
from length_model.online import OnlineLengths

LEARNED = (100, 500, 2000)
"""Answers learned from before the beliefs are judged."""

PRODUCED_TOKENS = (0, 50, 200)
"""Tokens that have come when what remains is asked for; answers that are no longer than that are left out."""

_EXCHANGE = (Turn("user", ""), Turn("assistant", ""))
_BATCH = 256


class AnswerPopulation(msgspec.Struct, frozen=True, kw_only=True):
    """Answers that came from one source, in the order of the file."""

    name: str
    answers: int
    query: Callable[[int], LengthQuery]
    tokens: Callable[[int], int]


class BeliefWorth(msgspec.Struct, frozen=True, kw_only=True):
    """How good one belief was, in the mean over seeds."""

    population: str
    model: str
    belief: str
    """`shipped`, `100 answers` and so on, `own distribution`: of the very answers that are judged."""
    crps_tokens: tuple[float, ...]
    """Of what remains, after each of `PRODUCED_TOKENS`."""
    closed: tuple[float | None, ...]
    """Of the way from the shipped belief to the population's own distribution, after each of `PRODUCED_TOKENS`; None
    where the shipped belief, which has read the prompts, is the better one."""
    under_p90: float
    """Share of the answers that are no longer than the p90 before they begin."""


def population_of_rows(name: str, rows: Sequence[DataRow], *, in_conversations: bool) -> AnswerPopulation:
    """Lengths without texts; `in_conversations`: rows of one session are the turns of one conversation, in order."""
    turns = [0] * len(rows)
    if in_conversations:
        seen: dict[str, int] = {}
        for i, row in enumerate(rows):
            turns[i] = seen[row.session] = seen.get(row.session, -1) + 1
    return AnswerPopulation(
        name=name,
        answers=len(rows),
        query=lambda i: make_query("", _EXCHANGE * turns[i], model=name),
        tokens=lambda i: rows[i].output_tokens,
    )


def population_of_samples(name: str, samples: Sequence[LengthSample]) -> AnswerPopulation:
    """Finished answers with their prompts."""
    finished = [s for s in samples if not s.censored]
    return AnswerPopulation(
        name=name,
        answers=len(finished),
        query=lambda i: finished[i].query,
        tokens=lambda i: finished[i].output_tokens,
    )


def study(
    populations: Sequence[AnswerPopulation],
    models: Mapping[str, LengthModel],
    *,
    seeds: Sequence[int],
    judged: int,
    learned: Sequence[int] = LEARNED,
    on_done: Callable[[str], None] = lambda what: None,
) -> list[BeliefWorth]:
    """Of each population, in an order drawn by seed, the first answers are learned and up to `judged` later ones
    judged. Raises ValueError for a population that has no more than the former."""
    found = []
    for population in populations:
        if population.answers <= learned[-1]:
            raise ValueError(
                f"{population.name}: {population.answers:,} answers, of which {learned[-1]:,} are learned: none is "
                "left to judge"
            )
        for name, model in models.items():
            runs = []
            for seed in seeds:
                runs.append(_judged(population, model, seed, judged, learned))
                on_done(f"{population.name}, {name}, seed {seed}")
            found += _means(population.name, name, runs)
    return found


Scored = tuple[tuple[float, ...], float]
"""CRPS after each of `PRODUCED_TOKENS`, share under the p90."""


def _judged(
    population: AnswerPopulation, model: LengthModel, seed: int, judged: int, learned: Sequence[int]
) -> dict[str, Scored]:
    order = np.random.default_rng(seed).permutation(population.answers)[: learned[-1] + judged].tolist()
    queries, tokens = [population.query(i) for i in order], [population.tokens(i) for i in order]
    later, truth = queries[learned[-1] :], np.array(tokens[learned[-1] :], dtype=np.int64)
    lengths = OnlineLengths(model)
    scores = {"shipped": _scored(model.edges, _pmf(lengths, later), truth)}
    for before, upto in zip((0, *learned), learned, strict=False):
        for query, seen in zip(queries[before:upto], tokens[before:upto], strict=True):
            lengths.observe(lengths.forecast_batch([query])[0], seen, censored=False)
        scores[f"{upto:,} answers"] = _scored(model.edges, _pmf(lengths, later), truth)
    own = np.bincount(bucket_of(model.edges, truth), minlength=len(model.edges) - 1) / len(truth)
    scores["own distribution"] = _scored(model.edges, np.tile(own, (len(truth), 1)), truth)
    return scores


def _pmf(lengths: OnlineLengths, queries: Sequence[LengthQuery]) -> Floats:
    return np.concatenate([lengths.pmf(queries[i : i + _BATCH]) for i in range(0, len(queries), _BATCH)])


def _scored(edges: Ints, pmf: Floats, tokens: Ints) -> Scored:
    losses = []
    for produced in PRODUCED_TOKENS:
        longer = tokens > produced
        losses.append(float(crps(*given_produced(edges, pmf[longer], produced), tokens[longer]).mean()))
    return tuple(losses), float(np.mean(tokens <= quantiles_tokens(edges, pmf, (0.9,))[:, 0]))


def _means(population: str, model: str, runs: Sequence[dict[str, Scored]]) -> list[BeliefWorth]:
    means = {
        belief: (np.mean([run[belief][0] for run in runs], axis=0), float(np.mean([run[belief][1] for run in runs])))
        for belief in runs[0]
    }
    shipped, own = means["shipped"][0], means["own distribution"][0]
    return [
        BeliefWorth(
            population=population,
            model=model,
            belief=belief,
            crps_tokens=tuple(losses.tolist()),
            closed=tuple(
                float((a - b) / (a - c)) if a > c else None for a, b, c in zip(shipped, losses, own, strict=True)
            ),
            under_p90=under,
        )
        for belief, (losses, under) in means.items()
    ]
