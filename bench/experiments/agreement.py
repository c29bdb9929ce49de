"""Live runs beside simulations of the very same requests: what the simulator has to be believed for.

Each live run is simulated several times with nothing changed but how ties fall: as far as these are from each other,
two live runs would be too. Their median is compared. The delays are those measured in the live run: what a decision
took, and what passed between client and gateway.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from bench.measure.measures import read_measure
from bench.run.executor import run_all
from bench.run.simulated import RunLine, Task
from bench.run.spec import RunSpec, with_values

FILE_NAME = "simulated.jsonl"
AGREEMENT_FILE = "agreement.md"
COMPARED = (
    ("TTFT mean, s", "ttft_mean_s", 0.05),
    ("TTFT P99, s", "ttft_p99_s", 0.10),
    ("E2E mean, s", "e2e_mean_s", 0.05),
    ("E2E P99, s", "e2e_p99_s", 0.10),
)
"""(title, measure, by how much, as a share, the two may differ)"""
REPEATS = 10
"""Simulations of one live run."""


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """One measure of one run, both ways."""

    variant: str
    rate_per_s: float | None
    seed: int
    measure: str
    live: float
    simulated: float
    """Median of the simulations."""
    lowest: float
    highest: float
    bar: float

    @property
    def difference(self) -> float:
        """Of the simulation from the live run, as a share."""
        return self.simulated / self.live - 1.0 if self.live else 0.0

    @property
    def holds(self) -> bool:
        return abs(self.difference) <= self.bar

    @property
    def is_within_spread(self) -> bool:
        """The live value is one that the simulations have too."""
        return self.lowest <= self.live <= self.highest


class MeasuredDelays(msgspec.Struct, frozen=True, kw_only=True):
    """Delays around the engines of a live run, in workload seconds."""

    decision_s: float
    """Mean time from arrival at the gateway to placement."""
    delivery_s: float
    """Mean time between client and gateway, lateness included."""


def simulate_again(lines: Sequence[RunLine], folder: Path, *, time_scale: float, console: Console) -> list[Agreement]:
    """Simulates what was run live. Raises ExecutorError, ResultFileError.

    Engines on a faster clock see slower surroundings: delays of gateway and network are stretched by `time_scale`.
    """
    tasks = [
        Task(group=line.group, variant=line.variant, spec=with_values(twin(line, time_scale), {"router.seed": repeat}))
        for line in lines
        for repeat in range(REPEATS)
    ]
    executed = run_all(tasks, folder / FILE_NAME, console=console, fresh=True, title="the same, simulated")
    found: list[Agreement] = []
    for index, live in enumerate(lines):
        repeats = executed.lines[index * REPEATS : (index + 1) * REPEATS]
        delivery_s = measured_delays(live, time_scale).delivery_s
        for _, measure, bar in COMPARED:
            measured = read_measure(live.measures, measure)
            values = [
                value + delivery_s for line in repeats if (value := read_measure(line.measures, measure)) is not None
            ]
            if measured is None or not values:
                continue
            found.append(
                Agreement(
                    variant=live.variant,
                    rate_per_s=live.spec.rate_per_s,
                    seed=live.spec.seed,
                    measure=measure,
                    live=measured,
                    simulated=statistics.median(values),
                    lowest=min(values),
                    highest=max(values),
                    bar=bar,
                )
            )
    return found


def measured_delays(line: RunLine, time_scale: float) -> MeasuredDelays:
    """Read from the live run's own measures; 0 for what it does not have."""
    delivery = line.summary.delivery_s
    return MeasuredDelays(
        # Decisions are in seconds of the clock, all else on the workload's scale.
        decision_s=line.measures.get("decision_mean_s", 0.0) * time_scale,
        delivery_s=0.0 if delivery is None else delivery.mean,
    )


def twin(line: RunLine, time_scale: float) -> RunSpec:
    """The live run as a simulated one, whose decisions take as long as they took live."""
    spec = line.spec
    names = ("network_one_way_s", "gateway_s", "forecast_s", "note_interval_s")
    delays = {name: getattr(spec, name) * time_scale for name in names}
    decision_s = measured_delays(line, time_scale).decision_s
    turns_s = 2 * delays["gateway_s"] + 2 * delays["network_one_way_s"]
    if decision_s > turns_s:
        # More than a rule needs: nodes were asked, and what is left of the way there and back is their answer.
        delays["forecast_s"] = decision_s - turns_s
    return msgspec.structs.replace(spec, **delays)


def as_markdown(found: Sequence[Agreement], lines: Sequence[RunLine], *, time_scale: float) -> str:
    """A table: live, simulated, difference, and whether it is within the bar (5 % of means, 10 % of P99s)."""
    held = sum(one.holds for one in found)
    spread = sum(one.is_within_spread and not one.holds for one in found)
    rest = f"; of the others {spread} within what ties alone change" if held < len(found) else ""
    out = [
        f"{held} of {len(found)} values agree within the bar (5 % of means, 10 % of P99s){rest}. Simulated: median, "
        f"lowest and highest of {REPEATS} simulations that differ in ties alone.",
        "",
        "| run | rate/s | measure | live | simulated: median | lowest to highest | difference | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    titles = {measure: title for title, measure, _ in COMPARED}
    for one in found:
        rate = "–" if one.rate_per_s is None else f"{one.rate_per_s:g}"
        word = "" if one.holds else "within the spread" if one.is_within_spread else "outside"
        out.append(
            f"| {one.variant} | {rate} | {titles[one.measure]} | {one.live:.3f} | {one.simulated:.3f} | "
            f"{one.lowest:.3f} to {one.highest:.3f} | {one.difference:+.1%} | {word} |"
        )
    out += ["", "Delays of the live runs, in the simulations too (ms of the clock):", ""]
    for line in lines:
        delays = measured_delays(line, time_scale)
        rate = "–" if line.spec.rate_per_s is None else f"{line.spec.rate_per_s:g}"
        decision_ms, delivery_ms = (s / time_scale * 1e3 for s in (delays.decision_s, delays.delivery_s))
        out.append(
            f"- {line.variant}, {rate}/s, seed {line.spec.seed}: a decision {decision_ms:.2f}, "
            f"between client and gateway {delivery_ms:.2f}"
        )
    return "\n".join(out) + "\n"
