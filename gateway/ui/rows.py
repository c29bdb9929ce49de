"""One row of the page's table for each node, and what has changed between two looks. Pure.

Rows are plain dicts, ready to be JSON. Numbers are rounded to what a person can read, so that what looks the same is
the same, and is not sent again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.core.nodes.node import NodeStatus
from gateway.scale.status import ScaledNode
from gateway.ui.part import NOTHING, NodePart
from simcore.types import EngineConfig

Row = dict[str, Any]
Rows = dict[str, Row]
"""By the key of the node: its address, or its name while it has none."""

OLD_S = 3.0
"""An engine's state that is younger than this is not said to be old."""
_OF_SCALER = {"starting": "starting", "draining": "leaving", "stopping": "leaving"}
"""A scaler's words for nodes that cannot be reached, and should not be."""


def node_row(
    *,
    name: str,
    address: str,
    link_state: str,
    link_detail: str,
    config: EngineConfig | None,
    profile: str,
    known: NodeStatus | None,
    scaled: ScaledNode | None,
    group: str,
    now_s: float,
    part: NodePart = NOTHING,
    workers: int = 1,
) -> Row:
    """A node that there is a link to. `link_state` is the one of `astrolabe nodes`; `scaled` what a scaler says of it;
    `part`: what so many `workers` have to do with it; `now_s` on the router's clock."""
    load = known.load if known is not None else None
    state, why = _state(link_state, link_detail, known, scaled, part.in_flight)
    # Where none reaches it, the state says so.
    away = f"{part.away} of {workers} workers do not reach it" if 0 < part.away < workers else ""
    row: Row = {
        "name": name,
        "address": address,
        "state": state,
        "why": why,
        "ready_in_s": None if scaled is None or scaled.ready_in_s is None else round(scaled.ready_in_s),
        "group": group or profile,
        "profile": profile,
        "model": "" if config is None else config.model,
        "seats": 0 if config is None else config.max_num_seqs,
        "running": None,
        "waiting": None,
        "kv": None,
        "tokens": None,
        "preemptions": None,
        "old_s": None,
        "in_flight": part.in_flight,
        "out": part.out,
        "into": part.into,
        "alarm": "; ".join(filter(None, (part.alarm, away))),
        "use": "",
        "bias": None,
        "spread": None,
        "cached": None,
    }
    if known is None:
        return row
    trust = known.forecasts
    row["use"] = trust.use
    if trust.samples:
        row["bias"], row["spread"] = round(trust.bias, 2), round(trust.spread, 2)
    if load is not None:
        blocks = max(1, load.total_blocks)
        age_s = known.state_age_s(now_s) or 0.0
        row["running"], row["waiting"] = load.running, load.waiting
        row["kv"] = round(1.0 - load.free_blocks / blocks, 3)
        row["tokens"], row["preemptions"] = load.unprocessed_tokens, load.preemptions_total
        row["old_s"] = round(age_s) if age_s >= OLD_S else 0
        if known.cached_blocks is not None:
            row["cached"] = round(known.cached_blocks / blocks, 2)
    return row


def starting_row(node: ScaledNode, *, group: str, model: str) -> Row:
    """A node of a scaler that there is no link to yet, or no more."""
    row = node_row(
        name=node.node_id,
        address="",
        link_state="connecting",
        link_detail="",
        config=None,
        profile="",
        known=None,
        scaled=node,
        group=group,
        now_s=0.0,
    )
    row["model"] = model
    return row


def _state(
    link_state: str, link_detail: str, known: NodeStatus | None, scaled: ScaledNode | None, in_flight: int
) -> tuple[str, str]:
    """The word for the state, and why."""
    if link_state == "draining":
        load = known.load if known is not None else None
        busy = load is None or load.running or load.waiting or in_flight
        return ("draining" if busy else "drained"), "taken out of service by an operator"
    if link_state == "retiring":
        why = scaled.detail if scaled is not None and scaled.detail else "it is to leave"
        return "leaving", why
    if scaled is not None and link_state != "up" and scaled.state in _OF_SCALER:
        return _OF_SCALER[scaled.state], scaled.detail or link_detail
    return link_state, link_detail


def changes(before: Rows, after: Rows) -> tuple[Rows, list[str]]:
    """What of each row is new (a new row whole), and the keys of the rows that have gone."""
    changed: Rows = {}
    for key, row in after.items():
        old = before.get(key)
        if old is None:
            changed[key] = row
        elif old != row:
            changed[key] = changed_fields(old, row)
    return changed, [key for key in before if key not in after]


def changed_fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> Row:
    """The fields of `after` that are not as they were."""
    return {name: value for name, value in after.items() if name not in before or before[name] != value}
