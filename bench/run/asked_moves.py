"""Moves that a run asks for by itself, as `astrolabe move` does: `65>node-1@6` (the 65th request, after 6 s). Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from bench.workload.item import WorkloadItem
from gateway.core.events import MoveAsked

if TYPE_CHECKING:
    from bench.run.spec import RunSpec

_ONE = re.compile(r"(\d+)>(\S+)@(\d+(?:\.\d+)?)")


class AskedMove(NamedTuple):
    """One of them."""

    number: int
    """Of the request in the order of arrival, from 1."""
    node_id: str
    at_s: float


def asked_moves(spec: RunSpec) -> list[AskedMove]:
    """What `spec.moves_asked` says. Raises ValueError."""
    nodes = [node_id for group in spec.groups for node_id in group.node_ids()]
    found = []
    for text in filter(None, (part.strip() for part in spec.moves_asked.split(","))):
        match = _ONE.fullmatch(text)
        if match is None or int(match[1]) == 0:
            raise ValueError(f"moves_asked: {text!r} is no move; write REQUEST>NODE@SECONDS, for example 65>node-1@6")
        if match[2] not in nodes:
            raise ValueError(f"moves_asked: no node {match[2]!r}; there are: {', '.join(nodes)}")
        found.append(AskedMove(int(match[1]), match[2], float(match[3])))
    return found


def move_events(spec: RunSpec, items: Sequence[WorkloadItem]) -> list[tuple[float, MoveAsked]]:
    """The same for a cluster that runs these requests. Raises ValueError for a request that the run does not have."""
    asked = asked_moves(spec)
    ordered = sorted(items, key=lambda item: item.arrival_s) if asked else []
    for move in asked:
        if move.number > len(ordered):
            raise ValueError(f"moves_asked: request {move.number} shall move, but the run has only {len(ordered)}")
    return [
        (
            move.at_s,
            MoveAsked(request_id=ordered[move.number - 1].request_id, node_id=move.node_id, gently=spec.moves_gently),
        )
        for move in asked
    ]
