"""A mild preference for nodes that have the request's LoRA adapter in use already. Pure.

An engine that must load an adapter first (from the host's memory, or from disk) keeps the request waiting for it. How
long that takes nobody tells, so it is a small fixed price: it decides between nodes of about the same cost and gives
way to any real difference. Where no node tells that it uses an adapter of the name, there is no preference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gateway.core.nodes.node import Node
from gateway.core.nodes.view import NodeView

ADAPTER_LOAD_S = 0.05
"""What loading is taken to cost where costs are seconds. Assumed, not measured."""


class Preference(NamedTuple):
    """What the adapter does to one decision."""

    costs: Sequence[float | None]
    behind: frozenset[str]
    """Nodes that go behind others of equal cost."""
    notes: Mapping[str, str]


def prefer_loaded(
    costs: Sequence[float | None],
    views: Sequence[NodeView],
    nodes: Mapping[str, Node],
    *,
    model: str,
    cost_unit: str,
    notes: Mapping[str, str],
) -> Preference:
    """Costs and `notes` of `views` with the price of loading `model` where it is not in use."""
    without = []
    is_used = False
    for i, view in enumerate(views):
        adapters = nodes[view.node_id].adapters
        if adapters is not None:
            is_used = is_used or model in adapters
            if model not in adapters and costs[i] is not None:
                without.append(i)
    # Policies that do not look at what a node has to do would send everything to the one that has it.
    if not is_used or not without or cost_unit == "none":
        return Preference(costs, frozenset(), notes)
    in_seconds = cost_unit == "s"
    priced, told = list(costs), dict(notes)
    for i in without:
        cost, node_id = costs[i], views[i].node_id
        assert cost is not None, "only what has a price gets dearer"
        priced[i] = cost + ADAPTER_LOAD_S if in_seconds else cost
        how = f"costs {ADAPTER_LOAD_S:g} s for loading it" if in_seconds else "goes behind its equals"
        why = f"adapter {model!r} is in use elsewhere, not here: {how}"
        told[node_id] = f"{told[node_id]}; {why}" if told.get(node_id) else why
    return Preference(priced, frozenset(views[i].node_id for i in without), told)
