"""What the page shows, read off the gateway's own objects at the moment of a look. Keeps no account of its own but
counts of what has ended, from which the timeline is made."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from gateway import wire
from gateway.core.outcomes import COMPLETE
from gateway.core.scale.config import Objective
from gateway.core.scale.events import action_words
from gateway.core.scale.scaler import ScaleDecision
from gateway.intake.client_stream import ClientStream
from gateway.nodes.registry import NodeRegistry
from gateway.pump import Pump
from gateway.scale.status import ScaleStatus
from gateway.ui.part import NOTHING, NodePart, PagePart
from gateway.ui.rows import Rows, node_row, starting_row
from gateway.ui.tail import MOST_NEW, Line, LogTail
from gateway.ui.timeline import Sample, Timeline, Totals, is_kept
from simcore.types import Outcome

if TYPE_CHECKING:
    from gateway.scale.runtime import ScaleRuntime

DECISIONS = 5
"""Of the scaler, the latest that changed something."""
SAME_S = 0.02
"""Within this all who ask get the same: workers ask at the same moments, and fleets are large."""
_CLIENTS_WISH = frozenset({Outcome.CLIENT_LEFT, Outcome.CANCELLED})


class FleetView:
    """One per process. `objective`: the service level of requests that ask for none; None: they have none."""

    def __init__(
        self, *, pump: Pump, nodes: NodeRegistry, scaling: ScaleRuntime | None, objective: Objective | None
    ) -> None:
        self.timeline = Timeline(pump.now_s())
        self._pump = pump
        self._nodes = nodes
        self._scaling = scaling
        self._objective = objective
        self._totals = Totals()
        self._noted: dict[str, NodePart] = {}
        self._noted_s = -SAME_S
        self._to_unix_s = time.time() - pump.now_s()
        """By how much Unix time is ahead of the pump's clock; read once, or decisions would seem to be of another
        second at each look."""

    def finished(self, stream: ClientStream) -> None:
        """A request has ended."""
        totals, outcome = self._totals, stream.outcome
        totals.ended += 1
        if outcome in _CLIENTS_WISH:
            return
        whole = outcome in COMPLETE
        totals.failed += not whole
        ended_s = stream.finished_s if stream.finished_s is not None else stream.arrived_s
        kept = is_kept(
            stream.shape.slo,
            self._objective,
            ttft_s=None if stream.first_token_s is None else stream.first_token_s - stream.arrived_s,
            e2e_s=ended_s - stream.arrived_s,
            output_tokens=stream.output_tokens,
            whole=whole,
        )
        if kept is not None:
            totals.promised += 1
            totals.kept += kept

    def sample(self) -> Sample:
        """The next sample of the timeline."""
        router = self._pump.router
        totals = self._totals
        totals.placed, totals.moves = self._pump.placements, router.moves_status().done_total
        return self.timeline.add(
            totals,
            self._pump.now_s(),
            at_s=time.time(),
            under_way=len(self._pump.streams),
            held=router.queue_status(self._pump.now_s()).held,
            nodes_up=sum(link.status == "up" for link in self._nodes.links.values()),
            scaled=_counts(status) if (status := self._scale_status()) is not None else None,
        )

    def rows(self, parts: Mapping[str, NodePart], workers: int) -> Rows:
        """All nodes of `astrolabe nodes`, and those that a scaler starts or stops. `parts`: what so many workers have
        to do with them, by address."""
        router, now_s = self._pump.router, self._pump.now_s()
        known = {node.node_id: node for node in router.nodes()}
        status = self._scale_status()
        scaled = {n.node_id: (group, n) for group in (status.groups if status else ()) for n in group.nodes}
        nobody: tuple[None, None] = (None, None)
        rows: Rows = {}
        for address, link in self._nodes.links.items():
            name = link.name
            seen = known.get(link.node_id)
            group, of_scaler = scaled.pop(name, nobody)
            rows[address] = node_row(
                name=name,
                address=address,
                link_state=wire.node_state(seen, link.status),
                link_detail=link.detail,
                config=link.config,
                profile=link.profile,
                known=seen,
                scaled=of_scaler,
                group="" if group is None else group.name,
                now_s=now_s,
                part=parts.get(address, NOTHING),
                workers=workers,
            )
        for name, (group, node) in scaled.items():
            rows[name] = starting_row(node, group=group.name, model=group.model)
        return rows

    def part(self, *, samples: Sequence[Sample], lines: Sequence[Line], skipped_lines: int) -> PagePart:
        """What this process alone knows, with what is new of timeline and log."""
        router = self._pump.router
        holding = router.queue_status(self._pump.now_s())
        return PagePart(
            nodes=self._node_parts(),
            under_way=len(self._pump.streams),
            held=holding.held,
            wait_s=holding.predicted_wait_s,
            moves=router.moves_status().under_way,
            samples=tuple(samples),
            lines=tuple(lines),
            skipped_lines=skipped_lines,
            scaling=self._scaling_told(),
        )

    def _node_parts(self) -> dict[str, NodePart]:
        router, now_s = self._pump.router, self._pump.now_s()
        if now_s - self._noted_s < SAME_S:
            return self._noted
        known = {node.node_id: node for node in router.nodes()}
        moves = router.moves_status()
        found = {}
        for address, link in self._nodes.links.items():
            seen, name = known.get(link.node_id), link.name
            part = NodePart(
                in_flight=0 if seen is None else seen.in_flight,
                out=moves.out.get(name, 0),
                into=moves.into.get(name, 0),
                away=int(link.status != "up"),
                alarm="" if seen is None else seen.alarm,
            )
            if part != NOTHING:
                found[address] = part
        self._noted, self._noted_s = found, now_s
        return found

    @property
    def policy(self) -> str:
        """The gateway's."""
        return self._pump.router.policy_name

    def slo(self) -> dict[str, float | None] | None:
        """The configured service level."""
        return None if self._objective is None else msgspec.to_builtins(self._objective)

    def _scaling_told(self) -> dict[str, Any] | None:
        """What a scaler wants and does; None where nothing is scaled, or nothing has been decided yet."""
        status = self._scale_status()
        if status is None:
            return None
        return {
            "rule": status.rule,
            "leads": status.leads,
            "leader": status.leader,
            "executes": status.executes,
            "problem": status.problem,
            "why": "" if status.latest is None else status.latest.why,
            "shortfall": "" if status.latest is None else status.latest.shortfall,
            "groups": [
                {
                    "name": group.name,
                    "min": group.min,
                    "max": group.max,
                    "wanted": group.wanted,
                    "blocked_s": round(group.blocked_s),
                    **{state: group.count(state) for state in ("serving", "starting", "draining", "stopping")},
                }
                for group in status.groups
            ],
            "decisions": [_decision(decision, self._to_unix_s) for decision in reversed(status.decisions[-DECISIONS:])],
        }

    def _scale_status(self) -> ScaleStatus | None:
        return None if self._scaling is None else self._scaling.status


class PartReader:
    """Reads this process's own parts for one that gets them all, one after the other."""

    def __init__(self, view: FleetView, tail: LogTail) -> None:
        self._view = view
        self._tail = tail
        self._line = self._sample = 0

    def read(self) -> PagePart:
        """The next one."""
        is_first = not self._line
        self._line, lines = self._tail.since(self._line)
        self._sample, samples = self._view.timeline.since(self._sample)
        shown = lines if is_first else lines[-MOST_NEW:]
        return self._view.part(samples=samples, lines=shown, skipped_lines=len(lines) - len(shown))


def _counts(status: ScaleStatus) -> dict[str, int]:
    """By the names of a sample."""
    groups = status.groups
    return {
        "wanted": sum(group.wanted for group in groups),
        "serving": sum(group.count("serving") for group in groups),
        "starting": sum(group.count("starting") for group in groups),
        "draining": sum(group.count("draining") + group.count("stopping") for group in groups),
    }


def _decision(decision: ScaleDecision, to_unix_s: float) -> dict[str, Any]:
    return {
        "at_s": round(decision.now_s + to_unix_s),
        "changes": [[group, had, decision.wanted.get(group, had)] for group, had in decision.had.items()],
        "actions": [action_words(action) for action in decision.actions],
        "why": decision.why,
        "held_back": decision.held_back,
    }
