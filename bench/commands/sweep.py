"""`astrolabe bench sweep`: any grid of simulated runs, on all cores, to go on where it was interrupted."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.commands.spec_options import (
    CLUSTER,
    JOBS,
    SET,
    base_spec,
    read_axis,
    scaler_variants,
    scaling_options,
    scaling_values,
    seeds_option,
    spec_options,
)
from protos.runtime.options import json_option

if TYPE_CHECKING:
    from bench.run.simulated import RunLine

SHOWN = ("ttft_p99_s", "ttft_mean_s", "tpot_mean_s", "e2e_mean_s", "goodput_share", "preemptions")


@click.command(
    epilog="""\b
Example: two policies, five rates, two batch limits, three seeds: 60 runs.
  astrolabe bench sweep --axis policy=llumnix_freeness,min_total_latency --axis rate=20:36:4 \\
      --axis max_num_seqs=24,48 --set requests=2000 --output results/sweep

\b
Example: three scalers over three cold starts, by what they cost and miss.
  astrolabe bench sweep --axis scaler=static,forecast,perfect --axis cold_start=10,60,300 --max 8 \\
      --set policy=least_requests --set rate_steps=2x600,8x600,3x600 \\
      --measure node_hours --measure slo_missed_share --measure flaps_per_hour --output results/scaling

\b
Example: on the workers of a Dask cluster.
  astrolabe bench sweep --axis rate=20:36:4 --cluster tcp://10.0.0.5:8786

\b
Example: the same command again after Ctrl-C goes on. What was found, as one page:
  astrolabe bench report results/sweep

\b
Keys: those of the result lines' `spec`, for example policy, rate, lengths, dataset, burstiness, requests, nodes,
profile, max_num_seqs, max_num_batched_tokens, num_blocks, sample, length_error, latency_error, router.ask.
"""
)
@click.option(
    "--axis", "axes", multiple=True, required=True, metavar="KEY=A,B", help="Values, or FROM:TO:STEP; repeat for more."
)
@spec_options("fleet", "models", "as_published")
@scaling_options
@SET
@seeds_option(3)
@JOBS
@CLUSTER
@click.option(
    "--measure",
    multiple=True,
    default=SHOWN,
    show_default=True,
    metavar="NAME",
    help="Columns of the table; names of vLLM's and Vidur's benchmarks are known.",
)
@click.option("--records", type=click.Choice(["jsonl", "parquet"]), help="Keep every request of every run too.")
@click.option("--fresh", is_flag=True, help="Run all again, also what is there.")
@click.option("--output", default="results/sweep", show_default=True, metavar="DIR", help="Where results go.")
@json_option
def sweep(
    axes: tuple[str, ...],
    fleet: str,
    models: str,
    as_published: bool,
    settings: tuple[str, ...],
    seeds: int,
    jobs: int,
    cluster: str,
    measure: tuple[str, ...],
    records: str | None,
    fresh: bool,
    output: str,
    as_json: bool,
    **scaling: Any,
) -> None:
    """Simulate every combination of the axes for every seed; one result line per run in DIR/runs.jsonl."""
    from rich.console import Console

    from bench.commands.run_errors import run_errors
    from bench.measure.measures import check_measure
    from bench.run.executor import run_all
    from bench.run.files import FILE_NAME, records_writer
    from bench.run.grid import make_tasks
    from bench.run.spec import check_field

    pairs = [read_axis(text) for text in axes]
    with run_errors():
        named = {check_field(key): values for key, values in pairs}
        if len(named) < len(pairs):
            raise click.BadParameter("one key is there twice", param_hint="--axis")
        if "seed" in named:
            raise click.BadParameter("seeds are counted with --seeds", param_hint="--axis")
        for name in measure:
            check_measure(name)
        rates = {key: values for key, values in named.items() if key == "rate_per_s"}
        others = {key: values for key, values in named.items() if key != "rate_per_s"}
        tasks = make_tasks(
            base_spec(settings, fleet=fleet, models=models, as_published=as_published, **_scaling(scaling, named)),
            group="sweep",
            variants=_variants(others),
            axes=rates,
            seeds=list(range(seeds)),
        )
        executed = run_all(
            tasks,
            Path(output) / FILE_NAME,
            console=Console(stderr=True),
            jobs=jobs,
            fresh=fresh,
            on_results=records_writer(Path(output), records or ""),
            title="sweep",
            cluster=cluster,
        )
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode({"runs": executed.lines, "reused": executed.reused}))
        return
    _show(executed.lines, measure, Path(output) / FILE_NAME)


def _scaling(given: Mapping[str, Any], axes: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Values of the run by the options of a scaled fleet; the scaler itself may be an axis."""
    found = scaler_variants({**given, "scaler": given["scaler"] or ",".join(map(str, axes.get("scaler", ())))})
    if given["scaler"] and len(found) > 1:
        raise click.BadParameter("several are an axis: --axis scaler=A,B", param_hint="--scaler")
    own = {**given, "scaler": "an axis" if "scaler" in axes else given["scaler"]}
    return scaling_values(own) | next(iter(found.values()))


def _variants(axes: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    """One per combination of everything but the rate; a policy's name needs no key before it."""
    if not axes:
        return {"run": {}}
    found = {}
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        parts = [str(value) if key == "policy" else f"{key} {value}" for key, value in point.items()]
        found[", ".join(parts)] = point
    return found


def _two_lines(name: str) -> str:
    what, _, rest = name.rpartition("_") if name.count("_") < 2 else name.partition("_")
    return f"{what}_\n{rest}" if what else rest


def _show(lines: Sequence[RunLine], measures: Sequence[str], path: Path) -> None:
    from rich import box
    from rich.table import Table

    from bench.data.named import note_on
    from bench.experiments.series import by_variant_and_rate, mean_text
    from bench.show.tables import out_console, print_table
    from bench.workload.rows import plural

    table = Table(box=box.SIMPLE, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("rate/s", justify="right")
    for name in measures:
        # A name of two lines, so that none is cut off where six numbers with their intervals want the room.
        table.add_column(_two_lines(name), justify="right", overflow="fold")
    for (variant, rate), own in by_variant_and_rate(lines).items():
        cells = (mean_text(own, name) for name in measures)
        table.add_row(variant, "–" if rate is None else f"{rate:g}", *cells)
    out = out_console()
    print_table(out, table)
    routers = ", ".join(dict.fromkeys(line.spec.router_text for line in lines))
    data = "; ".join(dict.fromkeys(note_on(line.spec.dataset, line.spec.dataset_path) for line in lines))
    out.print(data, highlight=False)
    out.print(f"{plural(len(lines), 'run')}, {routers}: {path}", highlight=False)
