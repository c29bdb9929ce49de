"""Result lines for tests, made by hand."""

from __future__ import annotations

from bench.measure.results import SCHEMA_VERSION, summarise
from bench.run.simulated import RunLine
from bench.run.spec import RunSpec


def line(variant: str, rate: float, seed: int = 0, group: str = "g", **measures: float) -> RunLine:
    spec = RunSpec(policy="random", rate_per_s=rate, seed=seed)
    return RunLine(
        schema_version=SCHEMA_VERSION,
        key=f"{variant}-{rate}-{seed}",
        group=group,
        variant=variant,
        mode="simulated",
        spec=spec,
        measures=measures,
        summary=summarise([]),
        commit="c",
        machine={"cpu": "x"},
        started_at="",
        wall_s=1.0,
        cpu_s=1.0,
    )
