"""What commands show and write of simulated runs: tables, JSON, a node's timeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from bench.measure.capacity import InterpolatedCapacity, capacities
from bench.measure.differences import Compared
from bench.run.provenance import Provenance
from bench.run.simulated import Done, RunLine
from bench.run.spec import RunSpec, delays_of
from bench.show.groups import show_groups
from bench.show.priorities import priorities_table
from bench.show.scaling import scaling_record, scaling_table
from bench.show.tables import capacity_table, comparison_table, forecast_table, print_table
from bench.show.timeline import placed_on, steps_of, timeline

CAPACITY_LIMITS_S = (3.0, 10.0)
"""P99-TTFT limits under which the reference systems report capacity."""


def moves_text(line: RunLine) -> str | None:
    """What moves did in a run, in a line; None where none was wanted."""
    of, spec = line.measures, line.spec
    rate = "" if spec.rate_per_s is None else f" at {spec.rate_per_s:g}/s"
    run = f"{line.variant}{rate}, seed {spec.seed}"
    if "moves_done" not in of:
        wanted = spec.moves_asked or spec.router.get("moves", {}).get("rule", "off") != "off"
        return f"{run}: no request moved" if wanted else None
    gap = ""
    if "moves_downtime_p99_s" in of:
        gap = (
            f", between tokens {1e3 * of['moves_downtime_mean_s']:.0f} ms (P99 {1e3 * of['moves_downtime_p99_s']:.0f})"
        )
    return (
        f"{run}: {of['moves_done']:,.0f} moves, "
        f"{of['moves_given_up']:,.0f} given up, stages {of['moves_stage_share']:.1%} of the nodes' time{gap}"
    )


def show(console: Console, notes: Sequence[str], base: RunSpec, done: Sequence[Done]) -> None:
    """Tables for people."""
    runs = [one.line.run for one in done]
    for note in notes:
        console.print(f"[dim]{note}[/]", highlight=False)
    print_table(console, comparison_table(runs, title=title_of(base)))
    if (by_priority := priorities_table([one.line for one in done])) is not None:
        print_table(console, by_priority)
    show_groups(console, runs)
    if any(one.line.spec.scaler for one in done):
        print_table(console, scaling_table([one.line for one in done]))
    for one in done:
        if (text := moves_text(one.line)) is not None:
            console.print(text, highlight=False)
    if any(run.summary.forecasts is not None for run in runs):
        print_table(console, forecast_table(runs))
    found = capacity_rows(done)
    if found:
        print_table(console, capacity_table(found))
    cpu_s = sum(one.line.cpu_s for one in done)
    requests = sum(run.summary.requests for run in runs)
    forecasts = sum(int(one.line.measures["forecasts"]) for one in done)
    console.print(
        f"[dim]{requests:,} requests and {forecasts:,} what-ifs simulated in {cpu_s:.1f} s of processor time[/]",
        highlight=False,
    )


def capacity_rows(done: Sequence[Done]) -> list[InterpolatedCapacity]:
    """Capacities, if there are rates to interpolate between."""
    runs = [one.line.run for one in done]
    several = len({run.rate_per_s for run in runs}) > 1
    return capacities(runs, CAPACITY_LIMITS_S) if several else []


def title_of(base: RunSpec) -> str:
    """The cluster in a line."""
    return f"simulated nodes: {base.fleet_text}; lengths {base.lengths}; {base.router_text}"


def as_document(head: Provenance, done: Sequence[Done], *, differences: Sequence[Compared] = ()) -> bytes:
    """JSON for machines."""
    return msgspec.json.encode(
        {
            "header": head,
            "runs": [one.line.run for one in done],
            "capacities": capacity_rows(done),
            "scaling": [scaling_record(one.line) for one in done if one.line.scaling is not None],
            "differences": differences,
            "wall_s": [round(one.line.wall_s, 3) for one in done],
        }
    )


def plot_scaling(path: Path, done: Sequence[Done], *, title: str, caption: str) -> None:
    """The first runs with a scaler as a picture. Raises OSError."""
    from bench.show.plots_scaling import plot_courses

    plot_courses(path, [one.line for one in done], title=title, caption=caption)


def write_timeline(path: Path, done: Done, node_index: int) -> None:
    """One node of a run as a Chrome trace. Raises OSError."""
    spec = done.line.spec
    node = spec.node_specs()[node_index]
    placed = placed_on(done.results, node.node_id, network_one_way_s=delays_of(spec).network_one_way_s)
    document = timeline(node.node_id, steps_of(node, placed))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(document))
