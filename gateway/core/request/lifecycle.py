"""The life of a request in the router: states, what can happen to it, and which state follows. Pure.

The table is the whole truth: a pair that is not in it cannot happen, and the router drops late events (of an earlier
attempt, of a request that has ended) before they get here. A request holds a place in its node's account exactly in the
states of `HOLDS_ACCOUNT`; the router takes and releases the place where a transition crosses that border, so no exit
path can forget it.
"""

from __future__ import annotations

import enum


class State(enum.Enum):
    # Members are looked up in tables with each token: Enum's own hash is a call into Python.
    __hash__ = object.__hash__

    PLACING = "placing"
    """Forecasts are asked; no node has it."""
    HELD = "held"
    """No node can take it now; it waits in the gateway's own queue."""
    SENT = "sent"
    """Dispatched; no token has come."""
    STREAMING = "streaming"
    """Tokens come."""
    ENDED = "ended"
    """The client has been told how it ended."""


class Trigger(enum.Enum):
    __hash__ = object.__hash__

    DISPATCHED = "dispatched"
    """A node was chosen and the request goes there."""
    PLACED = "placed"
    """A node was chosen for somebody else to send it to."""
    HELD = "held"
    """Every node would make it wait."""
    RECHECKED = "rechecked"
    """Its turn has come to be tried again."""
    REFUSED = "refused"
    """No node can or may take it."""
    TOKENS = "tokens"
    """Output has passed through."""
    RETRIED = "retried"
    """Its node failed before the first token; another try is left."""
    RESUMED = "resumed"
    """Its node failed in the middle of the answer; another one goes on."""
    NODE_ENDED = "node_ended"
    """Its node ended it, well or badly, or failed with no try left."""
    CLIENT_ENDED = "client_ended"
    """The client left or cancelled."""
    DEADLINE = "deadline"
    """Its time is over."""


TRANSITIONS: dict[tuple[State, Trigger], State] = {
    (State.PLACING, Trigger.DISPATCHED): State.SENT,
    (State.PLACING, Trigger.PLACED): State.ENDED,
    (State.PLACING, Trigger.REFUSED): State.ENDED,
    (State.PLACING, Trigger.CLIENT_ENDED): State.ENDED,
    (State.PLACING, Trigger.DEADLINE): State.ENDED,
    (State.PLACING, Trigger.HELD): State.HELD,
    (State.HELD, Trigger.RECHECKED): State.PLACING,
    (State.HELD, Trigger.REFUSED): State.ENDED,
    (State.HELD, Trigger.CLIENT_ENDED): State.ENDED,
    (State.HELD, Trigger.DEADLINE): State.ENDED,
    (State.SENT, Trigger.TOKENS): State.STREAMING,
    (State.SENT, Trigger.RETRIED): State.PLACING,
    (State.SENT, Trigger.NODE_ENDED): State.ENDED,
    (State.SENT, Trigger.CLIENT_ENDED): State.ENDED,
    (State.SENT, Trigger.DEADLINE): State.ENDED,
    (State.STREAMING, Trigger.TOKENS): State.STREAMING,
    (State.STREAMING, Trigger.RESUMED): State.PLACING,
    (State.STREAMING, Trigger.NODE_ENDED): State.ENDED,
    (State.STREAMING, Trigger.CLIENT_ENDED): State.ENDED,
    (State.STREAMING, Trigger.DEADLINE): State.ENDED,
}

HOLDS_ACCOUNT = frozenset({State.SENT, State.STREAMING})
IN_LINE = frozenset({State.PLACING, State.HELD})
"""States in which a held request keeps its place in the queue."""


class IllegalTransition(AssertionError):
    """The router tried something that the table does not allow: a bug in the router."""


def follow(state: State, trigger: Trigger) -> State:
    """The state after `trigger`. Raises IllegalTransition when the table has no such pair."""
    try:
        return TRANSITIONS[state, trigger]
    except KeyError:
        raise IllegalTransition(f"a request that is {state.value} cannot be {trigger.value}") from None
