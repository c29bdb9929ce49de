"""`astrolabe bench capacity`: the largest rate at which an objective holds, or the fewest nodes for a rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.commands.spec_options import JOBS, SET, base_spec, given_values, policy_option, seeds_option, spec_options
from protos.runtime.options import json_option

if TYPE_CHECKING:
    from bench.measure.statistics import Estimate
    from bench.run.capacity_search import CapacityObjective, SearchedCapacity
    from bench.run.executor import Chain
    from bench.run.spec import RunSpec

SLO_KEYS = ("slo_ttft_s", "slo_tpot_s")
TOO_SHORT = (
    "runs of {requests:,} requests are too short for this: the last has come before the longest answers are done, so "
    "no queue shows; give more, such as --set requests={more}"
)
OBJECTIVES = ("ttft_p99_s<=3", "ttft_p99_s<=10", "scheduling_delay_p99_s<=5")


@click.command(
    epilog="""\b
Example: two policies under the limits of the reference systems, three seeds.
  astrolabe bench capacity --policy llumnix_freeness,min_total_latency

\b
Example: how many nodes does 20 requests/s want, 99 % of answers within 3 s TTFT and 0.1 s a token?
  astrolabe bench capacity --nodes-for 20 --policy round_robin,min_total_latency --slo "goodput_share>=0.99"

\b
Example: the same with an H100, its usual limits and your own rows of prompt and answer tokens.
  astrolabe bench capacity --nodes-for 60 --slo "ttft_p99_s<=1" --set profile=h100/llama-3.1-8b \\
      --set max_num_seqs=256 --set max_num_batched_tokens=2048 --set dataset=lengths --set dataset_path=mine.csv

\b
Example: a joint objective: 99 % of the answers have their first token within 3 s and then 50 ms a token at most.
  astrolabe bench capacity --slo "goodput_share>=0.99" --slo-tpot 0.05 --set dataset=conversations

\b
Example: a policy of your own on eight nodes.
  astrolabe bench capacity --policy ./my_policy.py --slo "ttft_p99_s<=3" --set nodes=8

\b
Measures are named <what>_<statistic>_<unit>: ttft, tpot, e2e, scheduling_delay, preemption_loss; mean, p50, p90, p95,
p99, max; s. And goodput_share (limits: --slo-ttft 3 --slo-tpot 0.1), completed_share, preemptions, ...
Runs are finite: a long queue needs time to grow, so take --set requests=N for minutes of arrivals, not seconds.
"""
)
@policy_option()
@click.option("--slo", multiple=True, default=OBJECTIVES, show_default=True, metavar="M<=X", help="May be repeated.")
@click.option(
    "--nodes-for",
    "fleet_rate",
    type=float,
    metavar="R",
    help="Find the fewest nodes for R requests/s instead of the largest rate of --set nodes=N.",
)
@click.option("--low", type=float, default=4.0, show_default=True, metavar="R", help="Rate from which to search.")
@click.option("--step", type=float, default=0.25, show_default=True, metavar="R", help="Rates are multiples of this.")
@spec_options("fleet", "models", "as_published", *SLO_KEYS)
@SET
@seeds_option(3)
@JOBS
@click.option("--output", default="results/capacity", show_default=True, metavar="DIR", help="Where runs are kept.")
@json_option
def capacity(
    policy: tuple[str, ...],
    slo: tuple[str, ...],
    fleet_rate: float | None,
    low: float,
    step: float,
    fleet: str,
    models: str,
    as_published: bool,
    settings: tuple[str, ...],
    seeds: int,
    jobs: int,
    output: str,
    as_json: bool,
    **slo_limits: float,
) -> None:
    """Find, by bisection for each policy and seed, the largest rate that keeps an objective (mean and 95 % interval).

    With --nodes-for: the fewest nodes that keep it at that rate. The router is the one that ships unless you say
    --as-published.
    """
    from rich.console import Console

    from bench.commands.run_errors import run_errors
    from bench.commands.workload_options import check_positive, policy_variants
    from bench.data.named import note_on
    from bench.run.capacity_search import MOST_NODES, combine, combine_nodes, parse_objective, search, search_nodes
    from bench.run.executor import run_chains
    from bench.run.files import FILE_NAME
    from bench.run.spec import check_spec, profile_text, with_values
    from bench.workload.rows import plural

    check_positive("--low", low, "requests per second")
    check_positive("--step", step, "requests per second")
    if fleet_rate is not None:
        check_positive("--nodes-for", fleet_rate, "requests per second")
    with run_errors():
        rate = low if fleet_rate is None else fleet_rate
        given = {"fleet": fleet, "models": models, "as_published": as_published}
        base = with_values(base_spec(settings, **given), {"rate_per_s": rate})
        base = with_values(base, given_values(slo_limits, *SLO_KEYS))
        if fleet_rate is not None and base.fleet:
            raise click.UsageError("--nodes-for counts equal nodes: leave fleet out")
        check_spec(base)
        variants = policy_variants(policy)
        objectives = [parse_objective(text) for text in slo]

        def chain(name: str, objective: CapacityObjective, seed: int) -> Chain[Any]:
            own: dict[str, Any] = {"variant": name, "values": variants[name], "seed": seed, "objective": objective}
            return search(base, low=low, step=step, **own) if fleet_rate is None else search_nodes(base, **own)

        chains = {
            _name(name, objective, seed): chain(name, objective, seed)
            for name in variants
            for objective in objectives
            for seed in range(seeds)
        }
        found, lines = run_chains(chains, Path(output) / FILE_NAME, console=Console(stderr=True), jobs=jobs)
    per_seed = {
        (name, objective): [found[_name(name, objective, seed)] for seed in range(seeds)]
        for name in variants
        for objective in objectives
    }
    cells: dict[tuple[str, CapacityObjective], str]
    rows: Sequence[Any]
    if fleet_rate is None:
        key, nodes, title = "capacities", base.fleet_text, f"requests/s of {base.size} nodes, in steps of {step:g}/s"
        capacities = {place: combine(*place, values) for place, values in per_seed.items()}
        rows = list(capacities.values())
        cells = {place: _rate_text(base, row, low) for place, row in capacities.items()}
        short = any(row.too_short_from is not None for row in rows)
    else:
        key, nodes = "fleets", f"nodes {profile_text(base.profile)}, {base.limits_text}"
        title = f"fewest nodes for {fleet_rate:g} requests/s, {(base.requests or 0) / fleet_rate:.0f} s of them"
        fleets = {place: combine_nodes(*place, values) for place, values in per_seed.items()}
        rows = list(fleets.values())
        cells = {
            place: f"more than {MOST_NODES}"
            if row.nodes is None
            else f"{_span(row.nodes)}, or more"
            if row.too_short
            else _span(row.nodes)
            for place, row in fleets.items()
        }
        short = any(row.too_short for row in rows)
    data = note_on(base.dataset, base.dataset_path)
    if as_json:
        import msgspec

        document = {key: rows, "runs": len(lines), "seeds": seeds, "dataset": data, "router": base.router_text}
        click.echo(msgspec.json.encode(document))
        return
    runs = f"{plural(seeds, 'seed')}, {plural(len(lines), 'run')} of {base.requests:,} requests"
    setting = f"{nodes}; lengths {base.lengths}; {base.router_text}"
    _show(cells, [f"{title}; {runs}", setting, data])
    if short:
        click.echo(TOO_SHORT.format(requests=base.requests, more=10 * (base.requests or 0)), err=True)


def _rate_text(base: RunSpec, row: SearchedCapacity, low: float) -> str:
    from bench.measure.statistics import text_of

    if row.too_short_from is not None:
        return f"not found up to {row.too_short_from:g}"
    return f"below {low:g}" if row.rate_per_s is None else text_of(row.rate_per_s) + _price(base, row.rate_per_s)


def _price(base: RunSpec, rate_per_s: Estimate) -> str:
    """What 1,000 answers cost at this rate, where the fleet has a price."""
    fleet = base.node_fleet
    if fleet.price_per_hour is None:
        return ""
    return f"\n{1e3 * fleet.price_per_hour / 3600.0 / rate_per_s.mean:.3f} {fleet.currency} a 1,000"


def _name(policy: str, objective: CapacityObjective, seed: int) -> str:
    return f"{policy}, {objective}, seed {seed}"


def _span(counts: Sequence[int]) -> str:
    """`7`, or `7 to 9` where seeds differ."""
    return str(counts[0]) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _show(cells: Mapping[tuple[str, CapacityObjective], str], heads: Sequence[str]) -> None:
    """A row per policy, a column per objective."""
    from rich import box
    from rich.table import Table

    from bench.show.tables import out_console, print_table

    table = Table(box=box.SIMPLE)
    table.add_column("policy", no_wrap=True)
    for objective in dict.fromkeys(objective for _, objective in cells):
        table.add_column(str(objective), justify="right", overflow="fold")
    for name in dict.fromkeys(name for name, _ in cells):
        table.add_row(name, *(cell for (own, _), cell in cells.items() if own == name))
    out = out_console()
    for head in heads:
        out.print(head, highlight=False)
    print_table(out, table)
