"""A fleet whose every turn the test decides, and a scaler over it that wants what it is told to want."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import msgspec

from gateway.core.nodes.view import NodeView
from gateway.core.scale import events as ev
from gateway.core.scale.config import ScaleConfig, ScaleGroup
from gateway.core.scale.fleet import FleetState, SeenNode
from gateway.core.scale.rule import Deaf, Wish
from gateway.core.scale.scaler import Scaler
from simcore.types import EngineConfig

ENGINE = EngineConfig(model="m", max_model_len_tokens=4096, num_blocks=1000)
TICK_S = 5.0
COLD_S = 60.0


def group(name: str = "g", **changes: Any) -> ScaleGroup:
    return msgspec.structs.replace(ScaleGroup(name=name, min=0, max=4, cold_start_s=COLD_S), **changes)


def seen(node_id: str, **changes: Any) -> SeenNode:
    """A node that serves, with `in_flight` requests (default 1)."""
    view = NodeView(
        node_id=node_id,
        config=ENGINE,
        load=None,
        in_flight=changes.pop("in_flight", 1),
        dispatches_60s=0,
    )
    return msgspec.structs.replace(SeenNode(node_id=node_id, state="up", view=view, empty=False), **changes)


class AsTold(Deaf):
    """Wants what the test has put into `wanted` and `leave`."""

    name: ClassVar[str] = "as_told"
    source: ClassVar[str] = "a test"
    options_type: ClassVar[type[msgspec.Struct]] = msgspec.Struct

    def __init__(
        self, config: ScaleConfig | None = None, options: Any = None, rng: random.Random | None = None
    ) -> None:
        self.wanted: Mapping[str, int] | None = None
        self.leave: tuple[str, ...] = ()
        self.fleet: FleetState | None = None
        """As it was told at the last tick."""

    def tick(self, fleet: FleetState, now_s: float) -> Wish | None:
        self.fleet = fleet
        return None if self.wanted is None else Wish(wanted=self.wanted, leave=self.leave)


class Stage:
    """One scaler, its clock, and what it last wanted."""

    def __init__(self, *groups: ScaleGroup, leads: bool = True, **config: Any) -> None:
        self.rule = AsTold()
        self.config = ScaleConfig(rule="static", groups=groups or (group(),), tick_s=TICK_S, **config)
        self.scaler = Scaler(self.config, leads=leads, rule=self.rule)
        self.now_s = 1000.0
        self.elsewhere: tuple[str, ...] = ()
        """Nodes that other gateways have."""

    def hear(self, event: ev.AnyScaleEvent) -> list[ev.AnyScaleAction]:
        return self.scaler.handle(event, self.now_s)

    def hears_list(self, *node_ids: str, details: Mapping[str, str] | None = None) -> None:
        listed = [
            ev.ListedNode(node_id=i, group=i.rpartition("-")[0], detail=(details or {}).get(i, "")) for i in node_ids
        ]
        self.hear(ev.NodesListed(nodes=tuple(listed)))

    def tick(self, *nodes: SeenNode, after_s: float = TICK_S, **wanted: int) -> list[str]:
        """What is wanted, as words: `start g-0`, `retire g-1`, `undo g-1`, `stop g-2 left`."""
        self.now_s += after_s
        if wanted:
            self.rule.wanted = wanted
        return [word(action) for action in self.hear(ev.FleetSeen(nodes=nodes, elsewhere=self.elsewhere))]

    def round(self, *nodes: SeenNode, listed: Iterable[str] | None = None, **wanted: int) -> list[str]:
        """A list of these nodes (those that are seen, unless `listed`), then a tick."""
        self.hears_list(*([node.node_id for node in nodes] if listed is None else listed))
        return self.tick(*nodes, **wanted)


def word(action: ev.AnyScaleAction) -> str:
    match action:
        case ev.StartNode():
            return f"start {action.node_id}"
        case ev.StopNode():
            return f"stop {action.node_id} {action.why}"
        case ev.RetireNode():
            return f"{'undo' if action.undo else 'retire'} {action.node_id}"
