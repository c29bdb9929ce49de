"""`astrolabe bench experiment`: figures and tables of published systems, made anew, with their numbers beside ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.commands.spec_options import CLUSTER
from protos.runtime.options import json_option

if TYPE_CHECKING:
    from rich.console import Console

    from bench.experiments.run import Report, Size
    from bench.experiments.schema import Experiment


@click.command(
    epilog="""\b
Example: what there is.
  astrolabe bench experiment list

\b
Example: the main comparison, small, then whole.
  astrolabe bench experiment main --requests 1000
  astrolabe bench experiment main

\b
Example: all of published systems that can be simulated; after Ctrl-C the same command goes on.
  astrolabe bench experiment all

\b
Example: the tables of the README, three seeds.
  astrolabe bench experiment headline

\b
Example: an experiment on real processes with emulated engines.
  astrolabe bench experiment overhead --live
"""
)
@click.argument("name")
@click.option("--seeds", type=click.IntRange(min=0), default=0, metavar="N", help="Runs per point. [default: its own]")
@click.option(
    "--requests", type=click.IntRange(min=0), default=0, metavar="N", help="Requests per run. [default: its own]"
)
@click.option(
    "--jobs", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Side by side; 0: all cores."
)
@CLUSTER
@click.option("--fleet", default="", metavar="NAME|FILE|N*PROFILE,...", help="Other nodes, where its grids say none.")
@click.option("--output", default="results/experiments", show_default=True, metavar="DIR", help="Where results go.")
@click.option("--fresh", is_flag=True, help="Run all again, also what is there.")
@click.option("--live", is_flag=True, help="Real processes: a gateway and emulated engines on this machine.")
@click.option("--records", type=click.Choice(["jsonl", "parquet"]), help="Keep every request of every run too.")
@json_option
def experiment(
    name: str,
    seeds: int,
    requests: int,
    jobs: int,
    cluster: str,
    fleet: str,
    output: str,
    fresh: bool,
    live: bool,
    records: str | None,
    as_json: bool,
) -> None:
    """Run the experiment NAME: figures as PNG and PDF, tables, and a .claim file with published numbers beside ours.

    NAME is one of `list`, a TOML file of your own, or `all`.
    """
    from rich.console import Console

    from bench.commands.run_errors import run_errors
    from bench.experiments.catalogue import all_experiments, find, on_fleet
    from bench.experiments.run import Size

    console = Console(stderr=True)
    with run_errors():
        if name == "list":
            _list(list(all_experiments().values()), as_json=as_json)
            return
        published = [e for e in all_experiments().values() if e.status == "ready" and e.system != "own"]
        chosen = published if name == "all" else [find(name)]
        if fleet:
            chosen = [on_fleet(one, fleet) for one in chosen]
        size = Size(seeds=seeds, requests=requests, jobs=jobs, cluster=cluster, fresh=fresh, records=records or "")
        reports = [_run(one, Path(output) / one.name, size, console, live=live) for one in chosen]
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(reports))
    elif len(reports) > 1:
        from bench.show.tables import out_console

        total_s = sum(report.wall_s for report in reports)
        out_console().print(f"{len(reports)} experiments in {total_s / 60:.1f} minutes: {output}/", highlight=False)


def _run(one: Experiment, folder: Path, size: Size, console: Console, *, live: bool) -> Report:
    from bench.experiments.run import run_experiment, show_tables
    from protos.runtime.terminal import out_console

    runner = None
    if live:
        from bench.experiments.live import run_live

        runner = run_live
        folder = folder.with_name(f"{folder.name}-live")
    report, lines = run_experiment(one, folder, size, console=console, live=runner)
    if not _wants_json():
        out = out_console()
        out.print(f"[bold]{one.title}[/] ({one.source})", highlight=False)
        show_tables(one, lines, out)
        out.print(f"{report.runs} runs ({report.reused} of them were there) in {report.wall_s:.0f} s", highlight=False)
        for file in report.files:
            out.print(f"  {file}", highlight=False)
    return report


def _wants_json() -> bool:
    return bool(click.get_current_context().params.get("as_json"))


def _list(found: list[Experiment], *, as_json: bool) -> None:
    if as_json:
        import msgspec

        click.echo(
            msgspec.json.encode(
                [
                    {"name": e.name, "title": e.title, "system": e.system, "source": e.source, "status": e.status}
                    for e in found
                ]
            )
        )
        return
    from rich import box
    from rich.table import Table

    from protos.runtime.terminal import out_console, print_table

    table = Table(box=box.SIMPLE, header_style="bold", padding=(0, 1, 0, 0))
    for title in ("name", "system", "what", "state"):
        table.add_column(title, no_wrap=title != "what")
    for e in found:
        state = {"ready": "", "live": "with --live"}[e.status]
        table.add_row(e.name, e.system, e.title, state)
    print_table(out_console(), table, prose=True)
