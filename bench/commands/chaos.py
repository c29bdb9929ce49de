"""`astrolabe bench chaos`: named faults, in virtual time or on real processes, and what must hold under them."""

from __future__ import annotations

from typing import Any

import click


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Example: every fault in virtual time, 200 seeds each.
  astrolabe bench chaos --seeds 200

\b
Example: one run again, by its seed.
  astrolabe bench chaos --fault node_killed --seed 17

\b
Example: kill, stop and start real processes (three emulated nodes and a gateway).
  astrolabe bench chaos --live --seeds 3
""",
)
@click.option("--fault", "faults", multiple=True, metavar="NAME", help="Only this one; may be given several times.")
@click.option("--seeds", type=click.IntRange(min=1), default=20, show_default=True, help="Runs of each fault.")
@click.option("--seed", type=int, help="Only this seed.")
@click.option("--live", is_flag=True, help="On real processes instead of in virtual time.")
@click.option("--list", "listing", is_flag=True, help="Name the faults and end.")
def chaos(faults: tuple[str, ...], seeds: int, seed: int | None, live: bool, listing: bool) -> None:
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
        for name in chosen:
            click.echo(f"{name:24}{(catalogue[name].__doc__ or '').splitlines()[0]}")
        return
    numbers = range(seeds) if seed is None else range(seed, seed + 1)
    broken = _live(chosen, numbers) if live else _virtual(chosen, numbers)
    if broken:
        raise SystemExit(1)


def _catalogue(live: bool) -> dict[str, Any]:
    if live:
        from bench.chaos.live import LIVE_FAULTS

        return dict(LIVE_FAULTS)
    from bench.chaos.virtual.faults import FAULTS

    return dict(FAULTS)


def _virtual(faults: list[str], seeds: range) -> bool:
    from bench.chaos.virtual.run import run

    broken = False
    for fault in faults:
        broken |= _tell(fault, [run(fault, seed) for seed in seeds])
    return broken


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
    click.echo(f"{fault:24}{'BROKEN' if bad else 'holds':8}{len(verdicts):4} runs  {resumed:,} resumed  {ends}")
    for verdict in bad:
        for complaint in verdict.broken[:5]:
            click.echo(f"  seed {verdict.seed}: {complaint}")
    return bool(bad)
