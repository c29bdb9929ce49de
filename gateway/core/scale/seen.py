"""The fleet as a router knows it, for a tick of the scaler: the same in both worlds. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgspec

from gateway.core.router import Router
from gateway.core.scale.events import FleetSeen
from gateway.core.scale.fleet import SeenNode
from gateway.core.scale.news import HeldRequests


def fleet_seen(
    router: Router, now_s: float, *, retiring: Collection[str], is_empty: Callable[[str], bool]
) -> FleetSeen:
    """What `Scaler` is to hear at a tick.

    `retiring`: the nodes that say themselves that they are to leave. `is_empty`: whether nothing runs at such a node,
    of any gateway; of nodes that are not to leave it is not asked, and neither while this router has something there.
    """
    nodes = []
    for status, view in zip(router.nodes(), router.views(now_s), strict=True):
        node_id = status.node_id
        leaves = node_id in retiring
        empty = leaves and not status.in_flight and is_empty(node_id)
        nodes.append(SeenNode(node_id=node_id, state=status.status, view=view, empty=empty, retiring=leaves))
    return FleetSeen(nodes=tuple(nodes), **msgspec.structs.asdict(held_requests(router, now_s)))


def held_requests(router: Router, now_s: float) -> HeldRequests:
    """What waits at that router."""
    queue = router.queue_status(now_s)
    oldest_s = queue.oldest_arrival_s
    return HeldRequests(
        held=queue.held,
        waiting_models=router.waiting_models(),
        held_prompt_tokens=queue.held_prompt_tokens,
        held_expected_tokens=float(queue.held_tokens - queue.held_prompt_tokens),
        oldest_held_s=0.0 if oldest_s is None else now_s - oldest_s,
    )
