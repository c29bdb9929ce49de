"""Runs simulations from a command: a progress bar, tables, files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.data.source import WorkloadSource
from bench.measure.capacity import Capacity, capacities
from bench.measure.differences import Compared
from bench.run.files import Header, header, result_path, write_results
from bench.run.simulate import Settings, Simulated, grid, simulate_points
from bench.show.tables import capacity_table, comparison_table, forecast_table
from bench.show.timeline import placed_on, steps_of, timeline
from bench.workload.item import belief_of

CAPACITY_LIMITS_S = (3.0, 10.0)
"""P99-TTFT limits under which the reference systems report capacity."""


def header_of(settings: Settings, source: WorkloadSource, options: Mapping[str, Any]) -> Header:
    """Provenance of a simulation that begins now."""
    config = {**options, **msgspec.to_builtins(settings), "dataset_notes": source.notes}
    return header(config, seed=0)


def simulate_source(
    console: Console,
    source: WorkloadSource,
    settings: Settings,
    *,
    policies: Sequence[str],
    rates: Sequence[float | None],
    seeds: Sequence[int],
    jobs: int = 0,
) -> list[Simulated]:
    """Every policy at every rate and seed. Raises click.ClickException when the workload cannot be made."""
    try:
        points = list(
            grid(
                lambda rate, seed: source.workload(rate_per_s=rate, seed=seed),
                policies=policies,
                rates=rates,
                seeds=seeds,
            )
        )
        belief_of(points[0].items[0], settings.lengths)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("simulating", total=len(points), detail="")

        def told(simulated: Simulated) -> None:
            run = simulated.run
            at = "" if run.rate_per_s is None else f" at {run.rate_per_s:g}/s"
            detail = f"{run.policy}{at}: {simulated.wall_s:.1f} s"
            bar.update(task, advance=1, detail=detail)
            if not console.is_terminal:
                console.print(f"simulated {detail}", highlight=False)

        return simulate_points(settings, points, jobs=jobs, on_done=told)


def show(console: Console, source: WorkloadSource, settings: Settings, done: Sequence[Simulated]) -> None:
    """Tables for people."""
    runs = [simulated.run for simulated in done]
    for note in source.notes:
        console.print(f"[dim]{note}[/]", highlight=False)
    console.print(comparison_table(runs, title=title_of(settings)))
    if any(run.summary.forecasts is not None for run in runs):
        console.print(forecast_table(runs))
    found = capacity_rows(done)
    if found:
        console.print(capacity_table(found))
    wall_s = sum(simulated.wall_s for simulated in done)
    requests = sum(run.summary.requests for run in runs)
    console.print(
        f"[dim]{requests:,} requests and {sum(s.forecasts for s in done):,} what-ifs simulated in {wall_s:.1f} s of "
        f"processor time[/]",
        highlight=False,
    )


def capacity_rows(done: Sequence[Simulated]) -> list[Capacity]:
    """Capacities, if there are rates to interpolate between."""
    runs = [simulated.run for simulated in done]
    several = len({run.rate_per_s for run in runs}) > 1
    return capacities(runs, CAPACITY_LIMITS_S) if several else []


def title_of(settings: Settings) -> str:
    """The cluster in a line."""
    shape = settings.shape
    return (
        f"{shape.nodes} simulated nodes {shape.profile}, {shape.max_num_seqs} sequences, "
        f"{shape.max_num_batched_tokens} tokens a step, {shape.num_blocks:,} KV blocks; lengths {settings.lengths}"
    )


def as_document(head: Header, done: Sequence[Simulated], *, differences: Sequence[Compared] = ()) -> bytes:
    """JSON for machines."""
    return msgspec.json.encode(
        {
            "header": head,
            "runs": [simulated.run for simulated in done],
            "capacities": capacity_rows(done),
            "differences": differences,
            "wall_s": [round(simulated.wall_s, 3) for simulated in done],
        }
    )


def write_folder(folder: Path, head: Header, done: Sequence[Simulated]) -> None:
    """One result file per run. Raises OSError."""
    for simulated in done:
        run = simulated.run
        config = {**head.config, "policy": run.policy, "rate": run.rate_per_s}
        own = msgspec.structs.replace(head, seed=run.seed, config=config)
        write_results(result_path(folder, run), own, simulated.results)


def write_timeline(path: Path, settings: Settings, simulated: Simulated, node_index: int) -> None:
    """One node of a run as a Chrome trace. Raises OSError."""
    spec = settings.shape.specs()[node_index]
    placed = placed_on(simulated.results, spec.node_id, network_one_way_s=settings.delays.network_one_way_s)
    document = timeline(spec.node_id, steps_of(spec, placed))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(document))
