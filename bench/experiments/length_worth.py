"""What a better belief about answer lengths is worth: the same requests, differently well known, through the simulated
cluster at shares of its capacity. Decides what to run and what to keep; `length_worth_report` shows it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from bench.measure.measures import GoodputSlo
from bench.run.simulated import MAX_OUTPUT_TOKENS, Task, run_task
from bench.run.spec import RunSpec, with_values
from bench.simcluster.noise import LARGEST_FACTOR, LEAST_FACTOR
from bench.workload.item import LengthKnowledge, WorkloadItem
from length_model.core.model import LengthModel
from length_model.core.query import LengthSample
from length_model.models import predict

CHARS_PER_TOKEN = 4.2
"""Of ShareGPT's earlier turns, whose tokens samples do not hold."""

Scheme = Literal["min_new_request_latency", "min_total_latency", "shortest_first"]
SCHEMES: Mapping[Scheme, dict[str, Any]] = {
    "min_new_request_latency": {"policy": "min_new_request_latency"},
    "min_total_latency": {"policy": "min_total_latency"},
    "shortest_first": {
        "policy": "min_total_latency",
        "router": {"hold": {"when": "forecast", "order": "shortest_forecast"}},
    },
}
"""Ways to place that use lengths; the last holds requests in the gateway and binds the shortest first."""

ERRORS = (0.25, 0.5, 1.0)
"""Standard deviations of the errors put on known lengths."""

MEASURES = ("ttft_p99_s", "e2e_mean_s", "preemptions", "goodput_share")
_BATCH = 256


class Knowledge(msgspec.Struct, frozen=True, kw_only=True):
    """Who knows what of the answers."""

    name: str
    lengths: LengthKnowledge = "predicted"
    model: LengthModel | None = None
    error: float | None = None
    """Factor 1 + N(0, error) on the true length, cut to [0.1, 5], as Block's sensitivity study has it."""


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    scheme: Scheme
    knowledge: str
    load: float
    """Share of the capacity."""
    rate_per_s: float
    seed: int
    measures: dict[str, float]


class Study(msgspec.Struct, frozen=True, kw_only=True):
    """All runs, and the capacity that their load is a share of."""

    capacity_per_s: float
    slo: GoodputSlo
    nodes: int
    requests: int
    cells: list[Cell]


def knowledges(models: Mapping[str, LengthModel]) -> list[Knowledge]:
    """Best informed first: the truth, the truth with errors, the models as given, nothing."""
    return [
        Knowledge(name="oracle", lengths="known"),
        *(Knowledge(name=f"oracle, {error:.0%} error", error=error) for error in ERRORS),
        *(Knowledge(name=name, model=model) for name, model in models.items()),
        Knowledge(name="none", lengths="none"),
    ]


def drawn(samples: Sequence[LengthSample], count: int, seed: int) -> list[LengthSample]:
    """`count` of the finished samples, without repetition as far as they go. Raises ValueError if there are none."""
    finished = [s for s in samples if not s.censored]
    if not finished:
        raise ValueError("no finished answers among the samples")
    rng = np.random.default_rng(seed)
    order = [rng.permutation(len(finished)) for _ in range(-(-count // len(finished)))]
    return [finished[i] for i in np.concatenate(order)[:count]]


def items(chosen: Sequence[LengthSample], *, rate_per_s: float, seed: int, base: RunSpec) -> list[WorkloadItem]:
    """The samples as Poisson arrivals; prompts are the turn and what came before it, as much as leaves room for the
    longest answer."""
    gaps = np.random.default_rng([seed, 1]).exponential(1 / rate_per_s, len(chosen))
    room = max(1, base.longest_tokens - MAX_OUTPUT_TOKENS)
    return [
        WorkloadItem(
            request_id=f"r{i}",
            arrival_s=float(at),
            prompt_tokens=min(room, max(1, s.prompt_tokens + history_tokens(s))),
            output_tokens=min(s.output_tokens, MAX_OUTPUT_TOKENS),
        )
        for i, (s, at) in enumerate(zip(chosen, np.cumsum(gaps), strict=True))
    ]


def history_tokens(sample: LengthSample) -> int:
    return round(sum(turn.chars for turn in sample.query.history) / CHARS_PER_TOKEN)


def predictions(chosen: Sequence[LengthSample], knowledge: Knowledge, seed: int) -> list[tuple[int, ...]]:
    """What is believed of each answer, as equally likely lengths; empty where the workload says it or nobody knows."""
    if knowledge.error is not None:
        factor = 1 + np.random.default_rng([seed, 2]).normal(0, knowledge.error, len(chosen))
        factor = np.clip(factor, LEAST_FACTOR, LARGEST_FACTOR)
        return [(max(1, round(s.output_tokens * float(f))),) for s, f in zip(chosen, factor, strict=True)]
    if knowledge.model is None:
        return [()] * len(chosen)
    queries = [s.query for s in chosen]
    return [
        belief.atoms_tokens
        for start in range(0, len(queries), _BATCH)
        for belief in predict(knowledge.model, queries[start : start + _BATCH])
    ]


def run_once(
    workload: Sequence[WorkloadItem],
    *,
    scheme: Scheme,
    lengths: LengthKnowledge,
    seed: int,
    base: RunSpec,
    slo: GoodputSlo,
) -> dict[str, float]:
    """The `MEASURES` of one simulated run."""
    slos = {"slo_ttft_s": slo.ttft_s, "slo_tpot_s": slo.tpot_s}
    spec = with_values(base, {**SCHEMES[scheme], **slos, "lengths": lengths, "seed": seed})
    found = run_task(Task(group="length worth", variant=scheme, spec=spec, items=workload)).line.measures
    return {name: found[name] for name in MEASURES}


def capacity(samples: Sequence[LengthSample], *, requests: int, seed: int, base: RunSpec, slo: GoodputSlo) -> float:
    """The highest rate, to about 2 %, at which min_total_latency with known lengths keeps the P99 of TTFT.

    Raises ValueError when there is none, because the run is too short to fill the nodes.
    """
    chosen = drawn(samples, requests, seed)

    def keeps(rate_per_s: float) -> bool:
        workload = items(chosen, rate_per_s=rate_per_s, seed=seed, base=base)
        found = run_once(workload, scheme="min_total_latency", lengths="known", seed=seed, base=base, slo=slo)
        return found["ttft_p99_s"] <= slo.ttft_s

    low, high = 0.0, float(base.nodes)
    while keeps(high):
        low, high = high, 2 * high
        if high > 100 * requests:
            raise ValueError(
                f"{requests} requests are too few to fill {base.nodes} nodes: P99 TTFT stays within {slo.ttft_s:g} s "
                "at any rate; give more with --requests"
            )
    while high - low > 0.02 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return low


def study(
    samples: Sequence[LengthSample],
    models: Mapping[str, LengthModel],
    *,
    loads: Sequence[float],
    seeds: Sequence[int],
    requests: int,
    base: RunSpec,
    slo: GoodputSlo,
    schemes: Sequence[Scheme] = tuple(SCHEMES),
    on_cell: Callable[[Cell], None] = lambda cell: None,
) -> Study:
    """Every scheme with every knowledge at every load and seed; all of one load and seed get the same requests."""
    top = capacity(samples, requests=requests, seed=seeds[0], base=base, slo=slo)
    known = knowledges(models)
    cells = []
    for seed in seeds:
        chosen = drawn(samples, requests, seed)
        believed = {k.name: predictions(chosen, k, seed) for k in known}
        for load in loads:
            workload = items(chosen, rate_per_s=top * load, seed=seed, base=base)
            for knowledge, scheme in itertools.product(known, schemes):
                tagged = [
                    msgspec.structs.replace(item, predicted_atoms_tokens=atoms)
                    for item, atoms in zip(workload, believed[knowledge.name], strict=True)
                ]
                found = run_once(tagged, scheme=scheme, lengths=knowledge.lengths, seed=seed, base=base, slo=slo)
                cell = Cell(
                    scheme=scheme, knowledge=knowledge.name, load=load, rate_per_s=top * load, seed=seed, measures=found
                )
                cells.append(cell)
                on_cell(cell)
    return Study(capacity_per_s=top, slo=slo, nodes=base.nodes, requests=requests, cells=cells)
