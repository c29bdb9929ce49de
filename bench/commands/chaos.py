"""`astrolabe bench chaos`: named faults, in virtual time or on real processes, and what must hold under them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from bench.commands.spec_options import spec_options

if TYPE_CHECKING:
    from bench.simcluster import NodeSpec


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Example: every fault in virtual time, 200 seeds each.
  astrolabe bench chaos --seeds 200

\b
Example: one run again, by its seed.
  astrolabe bench chaos --fault node_killed --seed 17

\b
Example: the same faults on a fleet of your own.
  astrolabe bench chaos --fleet mixed --seeds 5

\b
Example: kill, stop and start real processes (three emulated nodes and a gateway).
  astrolabe bench chaos --live --seeds 3
""",
)
@click.option("--fault", "faults", multiple=True, metavar="NAME", help="Only this one; may be given several times.")
@click.option("--seeds", type=click.IntRange(min=1), default=20, show_default=True, help="Runs of each fault.")
@click.option("--seed", type=int, help="Only this seed.")
@spec_options("fleet")
@click.option("--live", is_flag=True, help="On real processes instead of in virtual time.")
@click.option("--list", "listing", is_flag=True, help="Name the faults and end.")
def chaos(faults: tuple[str, ...], seeds: int, seed: int | None, fleet: str, live: bool, listing: bool) -> None:
    """Break things on purpose: nodes, gateway, clients, predictors, clocks.

    Whatever is broken, each request must have exactly one end, no token may be lost, doubled or come after the end,
    nothing may be sent to a node that is known to be gone, and all counters must return to zero. Ends with exit code 1
    and the seeds when that does not hold.
    """
    catalogue = _catalogue(live)
    unknown = [name for name in faults if name not in catalogue]
    if unknown:
        raise click.UsageError(f"no fault {unknown[0]!r}; there are: {', '.join(catalogue)}")
    chosen = list(faults) or list(catalogue)
    if listing:
        formatter = click.get_current_context().make_formatter()
        formatter.write_dl([(name, inspect.getdoc(catalogue[name]) or "") for name in chosen])
        click.echo(formatter.getvalue(), nl=False)
        return
    numbers = range(seeds) if seed is None else range(seed, seed + 1)
    if live and fleet:
        raise click.UsageError("--live starts nodes of its own: leave --fleet out")
    broken = _live(chosen, numbers) if live else _virtual(chosen, numbers, _nodes_of(fleet) if fleet else ())
    if broken:
        raise SystemExit(1)


def _catalogue(live: bool) -> dict[str, Any]:
    if live:
        from bench.chaos.live import LIVE_FAULTS

        return dict(LIVE_FAULTS)
    from bench.chaos.virtual.faults import FAULTS

    return dict(FAULTS)


def _virtual(faults: list[str], seeds: range, nodes: Sequence[NodeSpec]) -> bool:
    from bench.chaos.virtual.run import run

    broken = False
    for fault in faults:
        try:
            broken |= _tell(fault, [run(fault, seed, nodes) for seed in seeds])
        except ValueError as error:
            raise click.ClickException(f"{fault}: {error}") from None
    return broken


def _nodes_of(fleet: str) -> list[NodeSpec]:
    """Raises click.UsageError for a fleet that cannot be, or that the faults' requests do not suit."""
    from bench.chaos.virtual.scenario import MOST_OUTPUT_TOKENS, MOST_PROMPT_TOKENS
    from bench.run.spec import RunSpec, SpecError

    spec, longest_tokens = RunSpec(fleet=fleet), MOST_PROMPT_TOKENS + MOST_OUTPUT_TOKENS
    try:
        models = spec.node_fleet.models
        if len(models) > 1:
            raise click.UsageError(f"faults need nodes of one model; this fleet serves {', '.join(models)}")
        if spec.longest_tokens < longest_tokens:
            raise click.UsageError(
                f"requests have up to {longest_tokens:,} tokens; some node of this fleet holds {spec.longest_tokens:,}"
            )
        return spec.node_specs()
    except SpecError as error:
        raise click.UsageError(str(error)) from None


def _live(faults: list[str], seeds: range) -> bool:
    import asyncio
    import tempfile
    from pathlib import Path

    from bench.chaos.live import run, start
    from deploy.local_cluster import ClusterError

    broken = False
    with tempfile.TemporaryDirectory(prefix="astrolabe-chaos-") as folder:
        try:
            cluster = start(Path(folder))
        except ClusterError as error:
            raise click.ClickException(str(error)) from None
        try:
            for fault in faults:
                broken |= _tell(fault, [asyncio.run(run(fault, seed, cluster)) for seed in seeds])
        finally:
            cluster.stop()
    return broken


def _tell(fault: str, verdicts: list[Any]) -> bool:
    """One line per fault, and what broke below it; whether anything did."""
    from collections import Counter

    outcomes: Counter[str] = Counter()
    for verdict in verdicts:
        outcomes.update(verdict.outcomes)
    bad = [verdict for verdict in verdicts if verdict.broken]
    ends = ", ".join(f"{count:,} {name}" for name, count in outcomes.most_common())
    resumed = sum(verdict.resumed for verdict in verdicts)
    click.echo(f"{fault:30}{'BROKEN' if bad else 'holds':8}{len(verdicts):4} runs  {resumed:,} resumed  {ends}")
    for verdict in bad:
        for complaint in verdict.broken[:5]:
            click.echo(f"  seed {verdict.seed}: {complaint}")
    return bool(bad)
