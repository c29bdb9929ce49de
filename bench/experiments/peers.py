"""Ours against the best of the others, setting by setting: what it costs at no more misses, what it misses at no more
cost, and how restless it is."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from bench.experiments.schema import Experiment, PeersSpec
from bench.experiments.series import by_seed, select
from bench.measure.hypervolume import CostPoint, pareto_front
from bench.run.simulated import RunLine

EQUAL_MISSES = 0.001
"""Misses that differ by no more of the requests are the same."""
EQUAL_COST = 0.01
"""The same of costs, as a share."""
LEAST_SAVED, LEAST_FEWER = 0.15, 3.0
"""What we want of ourselves."""


class ScalerStanding(msgspec.Struct, frozen=True, kw_only=True):
    """One variant in one setting, means over the seeds."""

    variant: str
    cost: float
    misses: float
    flaps: float


class AgainstPeers(msgspec.Struct, frozen=True, kw_only=True):
    """One setting."""

    setting: str
    ours: ScalerStanding
    cheapest: ScalerStanding | None
    """Of those that miss no more."""
    at_equal: float | None
    """What the front of the peers costs at as many misses: in a straight line between two of them."""
    surest: ScalerStanding | None
    """Of those that cost no more."""
    misses_at_equal: float | None
    """What the front of the peers misses at the same cost."""
    calmest: float
    """Fewest flaps of a peer that misses no more, or of all where none does."""

    @property
    def saved(self) -> float | None:
        """Of what the peers' front costs; None: nobody misses as little."""
        return None if self.at_equal is None else 1.0 - self.ours.cost / self.at_equal

    @property
    def fewer(self) -> float | None:
        """How many times as many the peers' front misses; None: nobody is as cheap."""
        if self.misses_at_equal is None:
            return None
        return (self.misses_at_equal + EQUAL_MISSES) / (self.ours.misses + EQUAL_MISSES)

    @property
    def is_met(self) -> bool:
        """15 % cheaper, or 3 times fewer misses, than the front of the peers."""
        saved, fewer = self.saved, self.fewer
        return (saved is not None and saved >= LEAST_SAVED) or (fewer is not None and fewer >= LEAST_FEWER)


def against_peers(experiment: Experiment, spec: PeersSpec, lines: Sequence[RunLine]) -> list[AgainstPeers]:
    """In every setting in which ours and a peer were run."""
    found = []
    peers = [v.name for v in experiment.variants if v.name != spec.ours and v.name not in spec.bounds]
    for setting in experiment.settings:
        standings = {}
        for name in [spec.ours, *peers]:
            own = select(lines, variant=name, grid=setting.grid, at=setting.at)
            values = [list(by_seed(own, measure).values()) for measure in (spec.cost, spec.misses, spec.unrest)]
            if all(values):
                cost, misses, flaps = (sum(each) / len(each) for each in values)
                standings[name] = ScalerStanding(variant=name, cost=cost, misses=misses, flaps=flaps)
        ours = standings.pop(spec.ours, None)
        if ours is None or not standings:
            continue
        as_sure = [one for one in standings.values() if one.misses <= ours.misses + EQUAL_MISSES]
        as_cheap = [one for one in standings.values() if one.cost <= ours.cost * (1.0 + EQUAL_COST)]
        found.append(
            AgainstPeers(
                setting=setting.title,
                ours=ours,
                cheapest=min(as_sure, key=lambda one: one.cost, default=None),
                at_equal=_at_equal([(one.cost, one.misses) for one in standings.values()], ours.misses + EQUAL_MISSES),
                misses_at_equal=_at_equal(
                    [(one.misses, one.cost) for one in standings.values()], ours.cost * (1.0 + EQUAL_COST)
                ),
                surest=min(as_cheap, key=lambda one: one.misses, default=None),
                calmest=min(one.flaps for one in as_sure or standings.values()),
            )
        )
    return found


def _at_equal(points: Sequence[tuple[float, float]], second: float) -> float | None:
    """The first number of a front where its second is so much, in a straight line between two points; None where the
    front never gets there."""
    before: CostPoint | None = None
    for point in pareto_front(CostPoint(*one) for one in points):
        if point.latency_s <= second:
            if before is None:
                return point.cost
            part = (before.latency_s - second) / (before.latency_s - point.latency_s)
            return before.cost + part * (point.cost - before.cost)
        before = point
    return None


def as_markdown(spec: PeersSpec, rows: Sequence[AgainstPeers]) -> str:
    """One row per setting."""
    out = [f"**{spec.title}**", ""]
    out.append(
        f"| | {spec.ours}: cost, missed, flaps/h | cheapest that misses no more | peers' front at as many misses "
        "| saved | "
        "surest that costs no more | times fewer missed than the front at that cost | "
        "flaps no more than peers | met |"
    )
    out.append("|" + "---|" * 9)
    for row in rows:
        ours, cheap, sure = row.ours, row.cheapest, row.surest
        cells = [
            row.setting,
            f"{ours.cost:.2f}, {ours.misses:.2%}, {ours.flaps:.1f}",
            "nobody" if cheap is None else f"{cheap.variant}: {cheap.cost:.2f}, {cheap.misses:.2%}",
            "–" if row.at_equal is None else f"{row.at_equal:.2f}",
            "–" if row.saved is None else f"{row.saved:.1%}",
            "nobody" if sure is None else f"{sure.variant}: {sure.cost:.2f}, {sure.misses:.2%}",
            "–" if row.fewer is None else f"{row.fewer:.1f}",
            "yes" if ours.flaps <= row.calmest else f"no, {row.calmest:.1f}",
            "yes" if row.is_met else "no",
        ]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out) + "\n"
