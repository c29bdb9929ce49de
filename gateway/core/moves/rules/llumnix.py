"""Llumnix' moves: from the nodes with the least freeness to those with the most. Pure."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Annotated, ClassVar

import msgspec

from gateway.core.moves.rule import MoveWish, NodeSeen, RequestSeen
from gateway.core.nodes.freeness import freeness, has_high


class LlumnixOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `llumnix`."""

    out_below: float = 3.0
    """Freeness below which a node is a source (their artifact: 3; 10 for traces of short answers)."""
    in_above: float | None = None
    """Freeness above which one is a destination. Default: the same."""
    pairs: Annotated[int, msgspec.Meta(ge=1)] = 64
    """Most pairs at a time; each moves one request."""

    def __post_init__(self) -> None:
        if self.in_above is not None and self.in_above < self.out_below:
            raise ValueError("in_above is below out_below: a node would be source and destination at once")


class LlumnixMoves:
    """Nodes with a freeness below `out_below` are sources, those above `in_above` destinations; the lowest is paired
    with the highest, the second lowest with the second highest, and so on. Of each source that request moves that has
    lower priority, and among equals the one with the fewest tokens, which costs least. It goes on at every tick until
    no pair is left (paper, section 4.4.2; artifact: threshold 3, or 10 for 256-256 and 128-512, looked at every 4
    steps).

    Only requests that run move: one that waits has no place in its source's batch, and is not what fills it.
    """

    name: ClassVar[str] = "llumnix"
    source: ClassVar[str] = "Llumnix (OSDI '24) sections 4.4.2, 4.4.4; artifact AlibabaPAI/llumnix osdi24ae"
    options_type: ClassVar[type[msgspec.Struct]] = LlumnixOptions

    def __init__(self, options: LlumnixOptions, rng: random.Random) -> None:
        self._out_below = options.out_below
        self._in_above = options.out_below if options.in_above is None else options.in_above
        self._pairs = options.pairs

    def tick(self, nodes: Sequence[NodeSeen], now_s: float) -> Sequence[MoveWish]:
        known = [
            (freeness(load, node.view.config, keeps_headroom=has_high(node.view.classes)), node)
            for node in nodes
            if not node.leaving and (load := node.view.load) is not None
        ]
        sources = sorted([(free, node) for free, node in known if free < self._out_below], key=_freeness)
        destinations = sorted([(free, node) for free, node in known if free > self._in_above], key=_freeness)
        pairs = zip(sources, reversed(destinations), strict=False)
        wishes = []
        for (low, source), (high, destination) in itertools.islice(pairs, self._pairs):
            leaving = cheapest(source.requests)
            if leaving is not None:
                why = f"freeness there was {low:.3g} blocks a request, and {high:.3g} here"
                node_id = destination.view.node_id
                wishes.append(MoveWish(request_id=leaving.request_id, node_id=node_id, why=why, priced=False))
        return wishes


def cheapest(requests: Sequence[RequestSeen]) -> RequestSeen | None:
    """Of those that run and may move, the one of least priority, then with the fewest tokens; None without any."""
    running = [request for request in requests if request.movable and request.output_tokens]
    return min(running, key=lambda r: (-r.priority, r.prompt_tokens + r.output_tokens), default=None)


def _freeness(entry: tuple[float, NodeSeen]) -> float:
    return entry[0]
