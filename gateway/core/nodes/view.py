"""One node as a policy sees it at the moment of a decision. Pure data."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from gateway.core.nodes.pace import Pace
from simcore.types import EngineConfig, NodeLoad


class NodeView(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One node at the moment of a decision.

    `load` is the node's last note with our own dispatches that it does not yet include added to it (they count as
    waiting). `load is None` means nothing is known: such a node is unknown, never idle.
    """

    node_id: str
    config: EngineConfig
    load: NodeLoad | None
    state_age_s: float
    """Age of the node's state now: its age when noted plus the time since."""
    in_flight: int
    """Requests that this gateway has there, exact."""
    dispatches_60s: int
    """Dispatches of this gateway to it in the last 60 s."""
    classes: Mapping[int, int] = {}
    """How many requests there are of each class other than 0 (`simcore.types.class_of`), as far as is known."""
    present_s: float = math.inf
    """Since it joined, or came back."""
    pace: Pace | None = None
    """How fast it works; None: nobody has said."""
    cached_tokens: int = 0
    """Tokens at the beginning of the request's prompt that its prefix cache holds, as far as is known (`PrefixIndex`);
    0 where the prompt's blocks have no names."""
    weight: float = 1.0
    """What the node can do, compared with others, as the router's configuration says (`RouterConfig.weights`)."""
