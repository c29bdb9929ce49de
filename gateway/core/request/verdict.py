"""What a decision can come to: one closed union. Pure data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gateway.core.nodes.accuracy import ExpectedTimes
from gateway.core.nodes.node import Node
from gateway.core.nodes.view import NodeView
from simcore.types import Decision, Outcome


class Chosen(NamedTuple):
    """A node takes the request."""

    node: Node
    view: NodeView
    """The node as the decision saw it."""
    decision: Decision
    expected: ExpectedTimes | None = None
    """What the node forecast, to be compared with what happens; None if it did not."""
    delay_s: float | None = None
    """By how much the request delays each other one of the node, by the node's own forecast; None without one."""


class Ask(NamedTuple):
    """These nodes must be asked for forecasts first."""

    nodes: Sequence[Node]


class Wait(NamedTuple):
    """No node can start it now: it waits in the gateway's queue."""

    again_in_s: float = 0.0
    """Until the first node is forecast to take it."""
    behind_all: bool = False
    """It will miss what it asks for wherever it goes: all others go first."""


class Refusal(NamedTuple):
    """The request ends here."""

    outcome: Outcome
    detail: str
    retry_after_s: float | None = None
    """When the same request may be taken, if there is no room for it now."""


Verdict = Chosen | Ask | Wait | Refusal
