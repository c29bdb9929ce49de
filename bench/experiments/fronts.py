"""Fronts of an experiment: every setting of every system as a point of cost and latency, and what follows of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from bench.experiments.schema import Front
from bench.experiments.series import by_seed, select
from bench.measure.hypervolume import CostPoint, dominates, normalised_hypervolume, pareto_front, reference_of
from bench.run.simulated import RunLine


class FrontSystem(msgspec.Struct, frozen=True, kw_only=True):
    """The points of one system, cheapest first."""

    name: str
    points: list[CostPoint]
    ours: bool = False
    published: bool = False


def systems_of(front: Front, lines: Sequence[RunLine]) -> list[FrontSystem]:
    """Those that were run, then those that were published."""
    found = []
    for line in front.systems:
        own = [one for grid in line.grids or [""] for one in select(lines, variant=line.variant, grid=grid)]
        by_setting: dict[tuple[str, str], list[RunLine]] = {}
        for one in own:
            setting = msgspec.structs.replace(one.spec, seed=0).key
            by_setting.setdefault((one.group, setting), []).append(one)
        points = []
        for runs in by_setting.values():
            x, y = by_seed(runs, front.x), by_seed(runs, front.y)
            if x and y:
                points.append(CostPoint(sum(x.values()) / len(x), sum(y.values()) / len(y)))
        if points:
            found.append(FrontSystem(name=line.name, points=sorted(points), ours=line.ours))
    for name, published in front.published.items():
        found.append(FrontSystem(name=name, points=sorted(CostPoint(*at) for at in published), published=True))
    return found


def hypervolumes(systems: Sequence[FrontSystem], factor: float) -> tuple[CostPoint, dict[str, float]]:
    """The reference, `factor` times the worst of all points, and the hypervolume of every system."""
    reference = reference_of((point for system in systems for point in system.points), factor)
    return reference, {system.name: normalised_hypervolume(system.points, reference) for system in systems}


def cost_at(front: Sequence[CostPoint], latency_s: float) -> float | None:
    """What a front asks for a latency, in a straight line between its points; None where it never gets there."""
    points = pareto_front(front)
    if not points or points[-1].latency_s > latency_s:
        return None
    before: CostPoint | None = None
    for point in points:
        if point.latency_s <= latency_s:
            if before is None:
                return point.cost
            low, high = math.log(before.latency_s), math.log(point.latency_s)
            part = (low - math.log(latency_s)) / (low - high)
            return before.cost + part * (point.cost - before.cost)
        before = point
    raise AssertionError("the last point is quick enough")


def as_markdown(front: Front, lines: Sequence[RunLine]) -> str:
    """All points, hypervolumes, who is dominated, what the same latency costs."""
    systems = systems_of(front, lines)
    out = [f"**{front.title}**", "", f"| | {front.x_title} : {front.y_title} |", "|---|---|"]
    for system in systems:
        name = f"**{system.name}**" if system.ours else system.name
        out.append(f"| {name} | {', '.join(f'{p.cost:.2f} : {p.latency_s:.3g}' for p in system.points)} |")
    if front.reference_factor is not None:
        reference, volumes = hypervolumes(systems, front.reference_factor)
        out += ["", f"Normalised hypervolume, reference {reference.cost:.2f} : {reference.latency_s:.4g} "]
        out[-1] += f"({front.reference_factor:g} times the worst of all points):"
        out += ["", "| | hypervolume |", "|---|---|"]
        out += [f"| {name} | {value:.4f} |" for name, value in sorted(volumes.items(), key=lambda item: -item[1])]
        out.append("")
        for system in systems:
            for other in systems if not system.published else []:
                beaten = [p for p in system.points if any(dominates(o, p) for o in other.points)]
                if other.published and beaten:
                    points = ", ".join(f"{p.cost:.2f} : {p.latency_s:.3g}" for p in beaten)
                    out.append(f"- {system.name}: {points} dominated by {other.name}")
    base = next((system for system in systems if system.name == front.against), None)
    if base is not None:
        out += ["", f"{front.x_title} at the same {front.y_title}, against {base.name}:", ""]
        for system in systems:
            saved = [
                1.0 - own / p.cost
                for p in pareto_front(base.points)
                if system is not base and (own := cost_at(system.points, p.latency_s)) is not None
            ]
            if saved:
                texts = ", ".join(f"{share:+.1%}" for share in saved)
                out.append(f"- {system.name}: saves {texts} at the points of {base.name} that it reaches")
    return "\n".join(out) + "\n"
