"""`astrolabe bench capacity`: the largest rate at which an objective holds."""

from __future__ import annotations

from pathlib import Path

import click

from bench.commands.spec_options import JOBS, SEEDS, SET, base_spec, policy_variants
from bench.gateway_client import json_option

OBJECTIVES = ("ttft_p99_s<=3", "ttft_p99_s<=10", "scheduling_delay_p99_s<=5")


@click.command(
    epilog="""\b
Example: two policies under the limits of the reference systems, three seeds.
  astrolabe bench capacity --policy llumnix_freeness,min_total_latency

\b
Example: a policy of your own, 99 % of answers within 3 s TTFT and 0.1 s a token, on eight nodes.
  astrolabe bench capacity --policy ./my_policy.py --slo "goodput_share>=0.99" --set nodes=8
"""
)
@click.option(
    "--policy",
    multiple=True,
    default=("round_robin", "llumnix_freeness", "min_total_latency"),
    show_default=True,
    metavar="NAME",
    help="A name or a file; may be repeated, or several with commas.",
)
@click.option("--slo", multiple=True, default=OBJECTIVES, show_default=True, metavar="M<=X", help="May be repeated.")
@click.option("--low", type=float, default=4.0, show_default=True, metavar="R", help="Rate from which to search.")
@click.option("--step", type=float, default=0.25, show_default=True, metavar="R", help="Rates are multiples of this.")
@SET
@SEEDS
@JOBS
@click.option("--output", default="results/capacity", show_default=True, metavar="DIR", help="Where runs are kept.")
@json_option
def capacity(
    policy: tuple[str, ...],
    slo: tuple[str, ...],
    low: float,
    step: float,
    settings: tuple[str, ...],
    seeds: int,
    jobs: int,
    output: str,
    as_json: bool,
) -> None:
    """Find, by bisection for each policy and seed, the largest rate that keeps an objective; mean and 95 % interval."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from bench.capacity_search import combine, parse_objective, search
    from bench.commands.run_errors import run_errors
    from bench.commands.workload_options import check_positive
    from bench.run_chains import run_chains
    from bench.run_log import FILE_NAME
    from bench.run_spec import check_spec, with_values
    from bench.statistics_of_seeds import text_of
    from bench.tables import out_console

    check_positive("--low", low, "requests per second")
    check_positive("--step", step, "requests per second")
    with run_errors():
        base = with_values(base_spec(settings), {"rate_per_s": low})
        check_spec(base)
        variants = policy_variants(policy)
        objectives = [parse_objective(text) for text in slo]
        chains = {
            f"{name}, {objective}, seed {seed}": search(
                base, variant=name, values=values, seed=seed, objective=objective, low=low, step=step
            )
            for name, values in variants.items()
            for objective in objectives
            for seed in range(seeds)
        }
        found, lines = run_chains(chains, Path(output) / FILE_NAME, console=Console(stderr=True), jobs=jobs)
    rows = [
        combine(name, objective, [found[f"{name}, {objective}, seed {seed}"] for seed in range(seeds)])
        for name in variants
        for objective in objectives
    ]
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode({"capacities": rows, "runs": len(lines), "seeds": seeds}))
        return
    table = Table(
        title=f"requests/s, {seeds} seed{'s' if seeds > 1 else ''}, steps of {step:g}/s, {len(lines)} runs",
        title_justify="left",
        box=box.SIMPLE,
    )
    table.add_column("policy", no_wrap=True)
    for objective in objectives:
        table.add_column(str(objective), justify="right")
    for name in variants:
        own = [row.rate_per_s for row in rows if row.variant == name]
        table.add_row(name, *(f"below {low:g}" if rate is None else text_of(rate) for rate in own))
    out_console().print(table)
