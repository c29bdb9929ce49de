"""What a rule of moving is: shown the nodes and what this gateway has there, asked at every tick who should go. Pure.

A rule reads no clock and never waits. It names requests, and nodes if it knows better than the placement policy; how
many move at once, that nobody goes to and fro, what a move may cost, and carrying it out are the mover's
(`mover.Mover`), the same for all rules.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol, overload

import msgspec

from gateway.core.nodes.view import NodeView


class MovesError(ValueError):
    """An unknown rule, or options that it does not have. The message says what to write instead."""


class RequestSeen(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request of this gateway at a node."""

    request_id: str
    prompt_tokens: int
    output_tokens: int
    """So far; of all attempts together."""
    expected_left_tokens: float
    """Of its answer, by the belief of its length."""
    priority: int
    dispatched_s: float
    """When it was sent to the node."""
    movable: bool
    """Whether it may go elsewhere now."""


class RequestsThere(Sequence[RequestSeen]):
    """The requests of a node, which are looked at only if a rule does: most nodes give it no reason to."""

    def __init__(self, look: Callable[[], Sequence[RequestSeen]]) -> None:
        self._look = look

    @functools.cached_property
    def _seen(self) -> Sequence[RequestSeen]:
        return self._look()

    @overload
    def __getitem__(self, index: int) -> RequestSeen: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[RequestSeen]: ...
    def __getitem__(self, index: int | slice) -> RequestSeen | Sequence[RequestSeen]:
        return self._seen[index]

    def __len__(self) -> int:
        return len(self._seen)


class NodeSeen(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One node that is up, and what this gateway has there."""

    view: NodeView
    leaving: bool
    """It gets nothing new: whatever has room elsewhere leaves it, rule or not."""
    slow: bool
    """Its health is in doubt, or answers come much slower than it forecasts."""
    requests: Sequence[RequestSeen]
    """In the order of dispatch. Looking at them costs; only during the tick."""


class MoveWish(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request that should go."""

    request_id: str
    why: str
    """For people: what it is to cure."""
    node_id: str = ""
    """Where to; empty: where the placement policy finds it best off."""
    priced: bool = True
    """Whether it stays unless the forecasts of both nodes say that leaving pays."""


class MoveRule(Protocol):
    """One instance serves one router; state is its own.

    The constructor takes its own options, as `options_type` has checked them, and a seeded generator.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    """Whose rule it is: paper, section, or product with its release."""
    options_type: ClassVar[type[msgspec.Struct]]
    """A record with defaults; `forbid_unknown_fields`."""

    def __init__(self, options: Any, rng: random.Random) -> None: ...

    def tick(self, nodes: Sequence[NodeSeen], now_s: float) -> Sequence[MoveWish]:
        """Who should go, the most urgent first."""
