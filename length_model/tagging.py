"""Writes predicted lengths into workload files, as the seed systems do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from length_model.core.distribution import beliefs, mean_tokens, quantiles_tokens
from length_model.core.model import LengthModel
from length_model.core.query import LengthQuery, LengthSample, make_query
from length_model.sample_files import SampleError

Statistic = Literal["median", "mean", "p90"]
_BATCH = 256


Tag = dict[str, Any]
"""`predicted_output_tokens`, and `predicted_atoms_tokens` when the whole belief is wanted."""


def tags(model: LengthModel, queries: Sequence[LengthQuery], statistic: Statistic, *, belief: bool) -> list[Tag]:
    """One tag per query; lengths are at least 1."""
    collected: list[Tag] = []
    for start in range(0, len(queries), _BATCH):
        pmf = model.pmf(queries[start : start + _BATCH])
        if statistic == "mean":
            values = mean_tokens(model.edges, pmf).round().astype(int)
        else:
            values = quantiles_tokens(model.edges, pmf, (0.5 if statistic == "median" else 0.9,))[:, 0]
        new: list[Tag] = [{"predicted_output_tokens": max(1, int(v))} for v in values]
        if belief:
            for tag, atoms in zip(new, beliefs(model.edges, pmf), strict=True):
                tag["predicted_atoms_tokens"] = atoms.atoms_tokens
        collected += new
    return collected


def tag_samples(
    model: LengthModel, samples: Sequence[LengthSample], output: Path, statistic: Statistic, *, belief: bool
) -> int:
    """A workload out of samples: text, true and predicted length. Returns how many."""
    finished = [s for s in samples if not s.censored and s.query.prompt]
    made = tags(model, [s.query for s in finished], statistic, belief=belief)
    _write(
        output,
        (
            {
                "workload": s.query.prompt,
                "output_tokens": s.output_tokens,
                "session": s.group,
                **tag,
            }
            for s, tag in zip(finished, made, strict=True)
        ),
    )
    return len(finished)


def tag_workload(model: LengthModel, workload: Path, output: Path, statistic: Statistic, *, belief: bool) -> int:
    """Every line of a bench workload with its tag added; lines without text get the model's answer
    to an empty prompt. Returns how many. Raises SampleError naming the line that is no JSON object."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(workload.read_bytes().splitlines(), start=1):
        if line.strip():
            try:
                rows.append(msgspec.json.decode(line, type=dict[str, Any]))
            except (msgspec.DecodeError, UnicodeDecodeError) as bad:
                raise SampleError(f"{workload}: line {number}: {bad}") from None
    if not rows:
        raise SampleError(f"{workload}: no rows")
    queries = [make_query(str(row.get("workload") or row.get("prompt") or "")) for row in rows]
    for row, tag in zip(rows, tags(model, queries, statistic, belief=belief), strict=True):
        row.update(tag)
    _write(output, iter(rows))
    return len(rows)


def _write(output: Path, rows: Iterator[dict[str, Any]]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = output.with_name(output.name + ".part")
    with beside.open("wb") as out:
        for row in rows:
            out.write(msgspec.json.encode(row) + b"\n")
    beside.replace(output)
