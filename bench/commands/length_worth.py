"""`astrolabe length worth`: what a better length model is worth to a cluster."""

from __future__ import annotations

from pathlib import Path

import click

from length_model.sample_options import DEFAULT_SAMPLES, can_plot, one_line_errors, read_split
from protos.runtime.options import json_option

_file = click.Path(path_type=Path, dir_okay=False)
_PLAIN_EVERY = 24
"""Runs between two lines of progress where there is no terminal."""


@click.command(
    short_help="What better beliefs are worth to a cluster, simulated.",
    epilog="""\b
Example: the shipped models and an encoder of one's own, four nodes, three seeds.
  astrolabe length worth histogram hashed results/length/minilm.alm --output results/length/worth.json
""",
)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--samples", type=_file, default=DEFAULT_SAMPLES, show_default=True,
              help="Sample file; its held-out side becomes the workload.")  # fmt: skip
@click.option("--nodes", type=click.IntRange(min=1), default=4, show_default=True, help="Simulated nodes.")
@click.option("--requests", type=click.IntRange(min=10), default=1200, show_default=True, help="Requests a run.")
@click.option("--load", "loads", type=click.FloatRange(min=0.01), multiple=True, default=(0.8, 0.9, 1.0, 1.1),
              show_default=True, help="Share of the capacity; repeat for more.")  # fmt: skip
@click.option("--seed", "seeds", type=int, multiple=True, default=(0, 1, 2), show_default=True)
@click.option("--slo-ttft", type=click.FloatRange(min=0, min_open=True), default=3.0, show_default=True, metavar="S",
              help="P99 of TTFT that the capacity keeps; also what a good answer keeps.")  # fmt: skip
@click.option("--output", type=_file, help="Write all runs (.json).")
@click.option("--markdown", type=_file, help="Write the tables (.md).")
@click.option("--plot", type=_file, callback=can_plot, help="Write the plot (.png).")
@json_option
def worth(
    models: tuple[str, ...],
    samples: Path,
    nodes: int,
    requests: int,
    loads: tuple[float, ...],
    seeds: tuple[int, ...],
    slo_ttft: float,
    output: Path | None,
    markdown: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Simulate a cluster that knows answer lengths exactly, with errors, by MODELs (default: hashed and histogram), or
    not at all, at shares of its capacity, and tell what each is worth."""
    import msgspec
    from rich.console import Console

    from bench.experiments import length_worth_report as report
    from bench.experiments.length_worth import ERRORS, SCHEMES, Cell, study
    from bench.measure.measures import GoodputSlo
    from bench.run.spec import RunSpec
    from bench.show.tables import out_console, print_table
    from length_model.core.split import samples_of
    from length_model.models import load_model
    from length_model.report import short_name

    console = Console(stderr=True)
    with one_line_errors():
        data, manifest = read_split(samples)
        loaded = {short_name(name): load_model(name) for name in models or ("hashed", "histogram")}
        total = len(SCHEMES) * (len(loaded) + len(ERRORS) + 2) * len(loads) * len(seeds)
        done: list[Cell] = []
        with console.status("looking for the capacity") as status:

            def tell(cell: Cell) -> None:
                done.append(cell)
                line = f"{len(done)} of {total} runs, load {cell.load:.0%}, {cell.knowledge}"
                status.update(line)
                if not console.is_terminal and len(done) % _PLAIN_EVERY == 0:
                    console.print(line, highlight=False)

            found = study(
                samples_of(data, manifest, "test"),
                loaded,
                loads=loads,
                seeds=seeds,
                requests=requests,
                base=RunSpec(nodes=nodes),
                slo=GoodputSlo(ttft_s=slo_ttft),
                on_cell=tell,
            )
        if output is not None:
            output.write_bytes(msgspec.json.encode(found) + b"\n")
        if markdown is not None:
            markdown.write_text(report.markdown(found))
        if plot is not None:
            report.write_plot(plot, found)
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    out = out_console()
    for table in report.tables(found):
        print_table(out, table)
    out.print(report.caption(found), highlight=False)
