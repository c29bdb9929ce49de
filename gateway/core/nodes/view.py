"""One node as a policy sees it at the moment of a decision. Pure data."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from gateway.core.nodes.pace import Pace
from simcore.types import EngineConfig, NodeLoad


class Moment(msgspec.Struct, gc=False):
    """The moment of which the views that share it are. What time alone changes in them is reckoned from it when it is
    read, so that a view can be kept until something happens to its node."""

    now_s: float = 0.0


class NodeView(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One node at the moment of a decision.

    `load` is the node's last note with our own dispatches that it does not yet include added to it (they count as
    waiting). `load is None` means nothing is known: such a node is unknown, never idle.
    """

    node_id: str
    config: EngineConfig
    load: NodeLoad | None
    in_flight: int
    """Requests that this gateway has there, exact."""
    dispatches_60s: int
    """Dispatches of this gateway to it in the last 60 s."""
    classes: Mapping[int, int] = {}
    """How many requests there are of each class other than 0 (`simcore.types.class_of`), as far as is known."""
    moment: Moment = msgspec.field(default_factory=Moment)
    """When this is how it looks."""
    note_age_s: float = 0.0
    """Age of the node's state when it was noted, at `noted_s`."""
    noted_s: float = 0.0
    joined_s: float = -math.inf
    """When it joined, or came back."""
    pace: Pace | None = None
    """How fast it works; None: nobody has said."""
    cached_tokens: int = 0
    """Tokens at the beginning of the request's prompt that its prefix cache holds, as far as is known (`PrefixIndex`);
    0 where the prompt's blocks have no names."""
    weight: float = 1.0
    """What the node can do, compared with others, as the router's configuration says (`RouterConfig.weights`)."""

    @property
    def state_age_s(self) -> float:
        """Age of the node's state now: its age when noted plus the time since."""
        return self.note_age_s + (self.moment.now_s - self.noted_s)

    @property
    def present_s(self) -> float:
        """Since it joined, or came back."""
        return self.moment.now_s - self.joined_s
