"""What beliefs are worth for populations of answers, as a table. Renders, computes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from bench.experiments.length_populations import PRODUCED_TOKENS, BeliefWorth

_HEADER = (
    "answers",
    "model",
    "belief",
    *(f"CRPS at {k}" for k in PRODUCED_TOKENS),
    *(f"closed % at {k}" for k in PRODUCED_TOKENS),
    "under p90 %",
)


def row(worth: BeliefWorth) -> list[str]:
    closed = ["-" if share is None else f"{100 * share:.0f}" for share in worth.closed]
    losses = [f"{loss:.1f}" for loss in worth.crps_tokens]
    return [worth.population, worth.model, worth.belief, *losses, *closed, f"{100 * worth.under_p90:.1f}"]


def tables(found: Sequence[BeliefWorth]) -> list[Table]:
    """One for each population and model."""
    made: list[Table] = []
    shown = ("", "")
    for worth in found:
        if (worth.population, worth.model) != shown:
            shown = worth.population, worth.model
            title = f"{worth.population}, {worth.model}: what remains after k tokens; CRPS in tokens"
            made.append(Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)))
            for i, name in enumerate(_HEADER[2:]):
                made[-1].add_column(name.replace(" at ", "\nat "), justify="right" if i else "left", no_wrap=True)
        made[-1].add_row(*row(worth)[2:])
    return made


def markdown(found: Sequence[BeliefWorth]) -> str:
    """The same as one table, for a document."""
    lines = [f"| {' | '.join(_HEADER)} |", "|" + "---|" * len(_HEADER)]
    lines += [f"| {' | '.join(row(worth))} |" for worth in found]
    return "\n".join(lines) + "\n"
