"""Who is worth asking: of many nodes, the few that look best by what they have streamed of themselves. Pure.

A question costs the gateway a message each way and the node a simulation; a look at the last note costs a microsecond.
So the cost of a decision with forecasts stays that of `ask` questions however many nodes there are.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from gateway.core.decision.policies.base import NodeView, Policy
from gateway.core.events import RequestShape


def worth_asking(
    by: Policy, request: RequestShape, views: Sequence[NodeView], ask: int, rng: random.Random
) -> Sequence[NodeView]:
    """The `ask` nodes that cost least by the policy `by`, which must need no forecasts; equals in random order.

    Nodes that it cannot price, because nothing is known of them, come after all others, fewest requests of ours first.
    0 or more than there are nodes: all of them.
    """
    if not 0 < ask < len(views):
        return views
    costs = by.costs(request, views, {})
    keys = [
        (cost is None, view.in_flight if cost is None else cost, rng.random(), i)
        for i, (view, cost) in enumerate(zip(views, costs, strict=True))
    ]
    keys.sort()
    return [views[key[3]] for key in keys[:ask]]
