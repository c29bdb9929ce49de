"""`astrolabe bench demo`: the whole thing in under three minutes, on this machine, with numbers of this very run."""

from __future__ import annotations

from pathlib import Path

import click

REQUESTS = 400
FLEET_REQUESTS = 2000
TIME_SCALE = 1.1


@click.command(
    epilog="""\b
Example: everything, results under ./results.
  astrolabe bench demo

\b
Example: shorter, somewhere else.
  astrolabe bench demo --requests 150 --folder /tmp/demo
"""
)
@click.option(
    "--requests",
    type=click.IntRange(min=20),
    default=REQUESTS,
    show_default=True,
    metavar="N",
    help="Conversations per live run.",
)
@click.option(
    "--time-scale",
    type=click.FloatRange(min=0, min_open=True),
    default=TIME_SCALE,
    show_default=True,
    metavar="X",
    help="How much faster than real GPUs the emulated nodes run.",
)
@click.option(
    "--fleet-requests",
    type=click.IntRange(min=20),
    default=FLEET_REQUESTS,
    show_default=True,
    metavar="N",
    help="Requests per simulated run.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of arrivals and choice of conversations.")
@click.option(
    "--folder", default="results", show_default=True, metavar="DIR", help="Where the picture and the result files go."
)
def demo(requests: int, time_scale: float, fleet_requests: int, seed: int, folder: str) -> None:
    """Start a mixed local cluster, send it real conversations under three policies, compare; simulate twelve nodes.

    An emulated A30, an L40S and an A100, all with Llama-2-7B, each a process of its own, and a gateway, all talking
    gRPC. The load is found by simulation: a tenth above what least_requests carries, where round robin has long
    filled the slowest GPU.
    """
    import time

    from rich.console import Console

    from bench.commands.workload_options import one_line_errors
    from bench.demo import DemoSpec, run_demo
    from bench.show.tables import out_console
    from deploy.local_cluster import ClusterError

    out = out_console()
    spec = DemoSpec(
        requests=requests, time_scale=time_scale, fleet_requests=fleet_requests, seed=seed, folder=Path(folder)
    )
    started_s = time.monotonic()
    with one_line_errors():
        try:
            run_demo(out, Console(stderr=True), spec)
        except ClusterError as error:
            if error.log:
                click.echo(error.log, err=True)
            raise click.ClickException(error.summary) from None
    out.print(f"[dim]all in {time.monotonic() - started_s:.0f} s[/]", highlight=False)
