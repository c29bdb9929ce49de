"""Live runs beside simulations of the very same requests: what the simulator has to be believed for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from bench.measures import read_measure
from bench.run_one import RunLine, Task
from bench.run_pool import run_all
from bench.run_spec import RunSpec

FILE_NAME = "simulated.jsonl"
COMPARED = (
    ("TTFT mean, s", "ttft_mean_s", 0.05),
    ("TTFT P99, s", "ttft_p99_s", 0.10),
    ("E2E mean, s", "e2e_mean_s", 0.05),
    ("E2E P99, s", "e2e_p99_s", 0.10),
)
"""(title, measure, by how much, as a share, the two may differ)"""


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """One measure of one run, both ways."""

    variant: str
    rate_per_s: float | None
    seed: int
    measure: str
    live: float
    simulated: float
    bar: float

    @property
    def difference(self) -> float:
        """Of the simulation from the live run, as a share."""
        return self.simulated / self.live - 1.0 if self.live else 0.0

    @property
    def holds(self) -> bool:
        return abs(self.difference) <= self.bar


def simulate_again(lines: Sequence[RunLine], folder: Path, *, time_scale: float, console: Console) -> list[Agreement]:
    """Simulates what was run live. Raises PoolError, RunLogError.

    Engines on a faster clock see slower surroundings: delays of gateway and network are stretched by `time_scale`.
    """
    tasks = [Task(group=line.group, variant=line.variant, spec=_stretched(line, time_scale)) for line in lines]
    outcome = run_all(tasks, folder / FILE_NAME, console=console, fresh=True, title="the same, simulated")
    found: list[Agreement] = []
    for live, simulated in zip(lines, outcome.lines, strict=True):
        for _, measure, bar in COMPARED:
            a, b = read_measure(live.measures, measure), read_measure(simulated.measures, measure)
            if a is not None and b is not None:
                found.append(
                    Agreement(
                        variant=live.variant,
                        rate_per_s=live.spec.rate_per_s,
                        seed=live.spec.seed,
                        measure=measure,
                        live=a,
                        simulated=b,
                        bar=bar,
                    )
                )
    return found


def as_markdown(found: Sequence[Agreement]) -> str:
    """A table: live, simulated, difference, and whether it is within the bar (5 % of means, 10 % of P99s)."""
    held = sum(one.holds for one in found)
    out = [
        f"{held} of {len(found)} values agree within the bar (5 % of means, 10 % of P99s)",
        "",
        "| run | rate/s | measure | live | simulated | difference | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    titles = {measure: title for title, measure, _ in COMPARED}
    for one in found:
        rate = "–" if one.rate_per_s is None else f"{one.rate_per_s:g}"
        out.append(
            f"| {one.variant} | {rate} | {titles[one.measure]} | {one.live:.3f} | {one.simulated:.3f} | "
            f"{one.difference:+.1%} | {'' if one.holds else 'outside'} |"
        )
    return "\n".join(out) + "\n"


def _stretched(line: RunLine, time_scale: float) -> RunSpec:
    delays = ("network_one_way_s", "gateway_s", "forecast_s")
    return msgspec.structs.replace(line.spec, **{name: getattr(line.spec, name) * time_scale for name in delays})
