"""What the router hears (events) and what it wants done (actions): two closed unions. Pure.

Both shells speak exactly this: the asyncio pump of the live gateway and the event heap of the simulated cluster. All
records encode to JSON with their type, so a recorded run can be fed to a fresh router and must give equal actions.
"""

from __future__ import annotations

import msgspec

from simcore.types import Candidate, Decision, EngineConfig, Forecast, LengthBelief, NodeLoad, Outcome


class Slo(msgspec.Struct, frozen=True, kw_only=True):
    """Service levels in seconds; None means none is asked."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    deadline_s: float | None = None
    """From arrival to the complete answer."""


class RequestShape(msgspec.Struct, frozen=True, kw_only=True):
    """What the router knows of a request: never its text."""

    request_id: str
    model: str = ""
    """Empty: the only model there is."""
    prompt_tokens: int
    max_output_tokens: int
    belief: LengthBelief
    priority: int = 0
    session: str = ""
    slo: Slo = Slo()
    policy: str = ""
    """Policy for this request only; empty: the router's."""
    place_only: bool = False
    """The decision is all that is wanted: nothing is dispatched by us."""


# --- events -----------------------------------------------------------------------------------------------------------


class Event(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Something that happened."""


class Arrived(Event, frozen=True, kw_only=True):
    """A client wants an answer (or, with `place_only`, a decision)."""

    request: RequestShape


class NodeJoined(Event, frozen=True, kw_only=True):
    """A session with a node is up. Also sent again when a node comes back or its limits have changed."""

    node_id: str
    config: EngineConfig
    profile: str = ""


class NodeLost(Event, frozen=True, kw_only=True):
    """The session with a node broke: everything that ran there is lost to us."""

    node_id: str
    detail: str = ""


class NodeRemoved(Event, frozen=True, kw_only=True):
    """A node left the configuration."""

    node_id: str


class LoadNoted(Event, frozen=True, kw_only=True):
    """A node told its load."""

    load: NodeLoad
    dispatch_seq: int
    """Highest dispatch of ours (`Dispatch.dispatch_seq`) that the note includes."""


class ForecastArrived(Event, frozen=True, kw_only=True):
    """A node's answer to an ask, or that it has none."""

    ask_id: int
    node_id: str
    forecast: Forecast | None = None
    error: str = ""


class TimerFired(Event, frozen=True, kw_only=True):
    """The moment asked for by `StartTimer` has come. Timers are never cancelled; stale ones are ignored."""

    timer_id: int


class TokensSeen(Event, frozen=True, kw_only=True):
    """Output tokens of a request passed through. `tokens` is their number in this event."""

    request_id: str
    node_id: str
    tokens: int


class StreamEnded(Event, frozen=True, kw_only=True):
    """A node has ended a request of ours, well or badly."""

    request_id: str
    node_id: str
    outcome: Outcome
    detail: str = ""


class ClientGone(Event, frozen=True, kw_only=True):
    """The client left (`cancelled` False) or asked to stop it (True)."""

    request_id: str
    cancelled: bool = False


class DrainAsked(Event, frozen=True, kw_only=True):
    """An operator takes a node out of, or back into, service."""

    node_id: str
    undo: bool = False


class PolicySet(Event, frozen=True, kw_only=True):
    """An operator chose another policy. The shell has checked the name."""

    policy: str


AnyEvent = (
    Arrived
    | NodeJoined
    | NodeLost
    | NodeRemoved
    | LoadNoted
    | ForecastArrived
    | TimerFired
    | TokensSeen
    | StreamEnded
    | ClientGone
    | DrainAsked
    | PolicySet
)


# --- actions ----------------------------------------------------------------------------------------------------------


class Action(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Something the shell must do. It reports back with events."""


class AskForecast(Action, frozen=True, kw_only=True):
    """Send one what-if to a node; answer with `ForecastArrived` (also when it cannot be sent)."""

    ask_id: int
    node_id: str
    candidate: Candidate


class StartTimer(Action, frozen=True, kw_only=True):
    """Send `TimerFired` at `at_s` (same clock as `now_s`)."""

    timer_id: int
    at_s: float


class Dispatch(Action, frozen=True, kw_only=True):
    """Send the request to the node. The `dispatch_seq` grows by one per node, in the order of the actions, and starts
    again at 1 with each `NodeJoined`."""

    request_id: str
    node_id: str
    dispatch_seq: int
    decision: Decision


class Placed(Action, frozen=True, kw_only=True):
    """Answer a `place_only` request with its decision; the node is sent a reservation by the shell."""

    request_id: str
    decision: Decision


class Abort(Action, frozen=True, kw_only=True):
    """Tell the node to stop the request; no answer is waited for."""

    request_id: str
    node_id: str


class Finish(Action, frozen=True, kw_only=True):
    """Tell the client how it ended. Exactly one per `Arrived`, or one `Placed` in its stead."""

    request_id: str
    outcome: Outcome
    detail: str = ""


AnyAction = AskForecast | StartTimer | Dispatch | Placed | Abort | Finish
