"""What the router hears (events) and what it wants done (actions): two closed unions. Pure.

Both shells speak exactly this: the asyncio pump of the live gateway and the event heap of the simulated cluster. All
records encode to JSON with their type, so a recorded run can be fed to a fresh router and must give equal actions.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from simcore.cache_summary import CacheSummary
from simcore.types import (
    Candidate,
    Decision,
    EngineConfig,
    ExpectedWork,
    Forecast,
    LengthBelief,
    NodeLoad,
    NodePace,
    Outcome,
)


class Slo(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Service levels in seconds; None means none is asked."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    deadline_s: float | None = None
    """From arrival to the complete answer."""


Resume = Literal["exact", "best_effort", "off"]
"""`exact`: go on elsewhere only when the client cannot tell; `best_effort`: also when the rest may differ from what the
lost node would have said; `off`: end at once."""

Continuation = Literal["exact", "approximate", "impossible"]
"""`exact`: greedy, or drawn without a seed (any draw is as good as another); `approximate`: seeded draws, log
probabilities; `impossible`: guided output and several answers at once, whose state is lost with the node."""

Lane = Literal["tokens", "pass_through", "by_proxy"]
"""How a request reaches its engine; the decision is the same in all."""


class RequestShape(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What the router knows of a request: never its text."""

    request_id: str
    model: str = ""
    """Empty: the only model there is."""
    prompt_tokens: int
    max_output_tokens: int
    belief: LengthBelief
    belief_source: str = ""
    """Who believes it, for people: `client`, a length model's name, or `prior` and why."""
    priority: int = 0
    session: str = ""
    slo: Slo = Slo()
    policy: str = ""
    """Policy for this request only; empty: the router's."""
    place_only: bool = False
    """The decision is all that is wanted: nothing is dispatched by us."""
    resume: Resume = "exact"
    """What the client wants when its node goes in the middle of the answer."""
    continuation: Continuation = "exact"
    """How well another node could go on with the answer."""
    block_hashes: tuple[int, ...] = ()
    """Hashes of the prompt's full KV blocks (`simcore.prefix`), for nodes that know their prefix cache."""
    lane: Lane = "tokens"
    """`tokens`: the node generates token ids; `pass_through`: the client's own call is handed on to its engine;
    `by_proxy`: a proxy that asked for the decision takes it there, so that it stays where it was placed."""
    prompt_counted_by: str = ""
    """Who counted the prompt, for people: `tokenizer`, `engine`, or `length` (an estimate); empty: tokenizer."""
    answers: int = 1
    """How many answers it asks for at once; their tokens, and those of several prompts, are counted together."""
    node: str = ""
    """The only node that may have it: what it asks for is there. Empty: any."""
    endpoints: tuple[str, ...] | None = None
    """Addresses of the only engines that may have it, host:port; None: any."""
    logprobs: bool = False
    """Whether its node must tell how likely the tokens were."""

    @property
    def expected_tokens(self) -> float:
        """Output tokens expected: the mean of the belief, at most what may come."""
        return min(self.belief.mean_tokens, self.max_output_tokens)


# --- events -----------------------------------------------------------------------------------------------------------


class Event(msgspec.Struct, frozen=True, kw_only=True, tag=True, gc=False):
    """Something that happened."""


class Arrived(Event, frozen=True, kw_only=True):
    """A client wants an answer (or, with `place_only`, a decision)."""

    request: RequestShape


class NodeJoined(Event, frozen=True, kw_only=True):
    """A session with a node is up. Also sent again when a node comes back or its limits have changed."""

    node_id: str
    config: EngineConfig
    profile: str = ""


class NodeServes(Event, frozen=True, kw_only=True):
    """A node that is up is asked by other names from now on."""

    node_id: str
    names: tuple[str, ...]
    """All of them, its engine's own first."""


class AdaptersUsed(Event, frozen=True, kw_only=True):
    """A node that is up tells which LoRA adapters requests in its engine use."""

    node_id: str
    names: tuple[str, ...] | None
    """None: it does not tell any more."""


class PaceTold(Event, frozen=True, kw_only=True):
    """A node that is up tells how fast it works, as far as it has learned."""

    node_id: str
    pace: NodePace


class NodeLost(Event, frozen=True, kw_only=True):
    """The session with a node broke: everything that ran there is lost to us."""

    node_id: str
    detail: str = ""


class NodeRemoved(Event, frozen=True, kw_only=True):
    """A node left the configuration."""

    node_id: str


class ExpectedNode(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A node that can be had although it is not there yet."""

    config: EngineConfig
    ready_in_s: float
    """When it is expected to take requests, from the moment of the event."""


class NodesExpected(Event, frozen=True, kw_only=True):
    """What a scaler can start or has begun to start, whole: requests for a model that nobody serves wait for those."""

    nodes: tuple[ExpectedNode, ...]


class NodeSuspected(Event, frozen=True, kw_only=True):
    """A node that is up has said nothing for a while (`detail` says so), or has spoken again (`detail` empty)."""

    node_id: str
    detail: str


class LoadNoted(Event, frozen=True, kw_only=True):
    """A node told its load."""

    load: NodeLoad
    dispatch_seq: int
    """Highest dispatch of ours (`Dispatch.dispatch_seq`) that the note includes."""


class CacheTold(Event, frozen=True, kw_only=True):
    """A node told what its prefix cache holds, or what has changed of it."""

    node_id: str
    summary: CacheSummary | None
    """None: what came cannot be one."""


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
    attempt: int = 1
    """`Dispatch.attempt` that they belong to."""
    whole: bool = False
    """They came with all others of the answer: when the first was produced is not known."""
    last: bool = False
    """The word that the answer has ended came with them, and follows."""


class AnswerBegan(Event, frozen=True, kw_only=True):
    """The first bytes of an engine's own answer went to the client: no other node can answer it now."""

    request_id: str
    node_id: str
    attempt: int = 1
    """`Dispatch.attempt` that it belongs to."""


class AnswerTied(Event, frozen=True, kw_only=True):
    """What has come of an engine's own answer is such that no other node can go on with it."""

    request_id: str
    node_id: str
    attempt: int = 1
    """`Dispatch.attempt` that it belongs to."""


class StreamEnded(Event, frozen=True, kw_only=True):
    """A node has ended a request of ours, well or badly."""

    request_id: str
    node_id: str
    outcome: Outcome
    detail: str = ""
    attempt: int = 1
    """`Dispatch.attempt` that it belongs to."""
    found_tokens: int | None = None
    """Of the prompt, those that the engine found cached, as its trace tells; None where it does not."""


class ClientGone(Event, frozen=True, kw_only=True):
    """Nobody wants more of the answer: the client left, or the shell ends it for a reason that it names."""

    request_id: str
    outcome: Outcome = Outcome.CLIENT_LEFT
    """How the request ends: `stop` for a stop string, `cancelled` for `Cancel`, `client_slow` for a slow reader."""
    detail: str = ""


class DrainAsked(Event, frozen=True, kw_only=True):
    """An operator takes a node out of, or back into, service."""

    node_id: str
    undo: bool = False
    stay: bool = False
    """What runs there runs on to its end; otherwise it goes on elsewhere, if it may and somebody can take it."""


class MoveAsked(Event, frozen=True, kw_only=True):
    """An operator wants a request to go on at another node. `Router.why_not_moved` has said nothing against it."""

    request_id: str
    node_id: str
    gently: bool = False
    """Its stages are spread over time, so that those at the node hardly notice."""


class RetirementTold(Event, frozen=True, kw_only=True):
    """A node says whether it is to leave: then it takes nothing new from any gateway. What an operator has drained
    stays so."""

    node_id: str
    retiring: bool


class PolicySet(Event, frozen=True, kw_only=True):
    """An operator chose another policy. The shell has checked the name."""

    policy: str


AnyEvent = (
    Arrived
    | NodeJoined
    | NodeServes
    | AdaptersUsed
    | PaceTold
    | NodeLost
    | NodeRemoved
    | NodesExpected
    | NodeSuspected
    | LoadNoted
    | CacheTold
    | ForecastArrived
    | TimerFired
    | TokensSeen
    | AnswerBegan
    | AnswerTied
    | StreamEnded
    | ClientGone
    | DrainAsked
    | MoveAsked
    | RetirementTold
    | PolicySet
)


# --- actions ----------------------------------------------------------------------------------------------------------


class Action(msgspec.Struct, frozen=True, kw_only=True, tag=True, gc=False):
    """Something the shell must do. It reports back with events."""


class AskForecast(Action, frozen=True, kw_only=True):
    """Send one what-if to a node; answer with `ForecastArrived` (also when it cannot be sent)."""

    ask_id: int
    node_id: str
    candidate: Candidate
    expected: ExpectedWork | None = None
    """What the node is told of the work that this gateway is going to send it; None: what it was told last."""


class AskCache(Action, frozen=True, kw_only=True):
    """Ask a node to tell what its prefix cache holds, from the whole on; it goes on with what changes (`CacheTold`)."""

    node_id: str


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
    attempt: int = 1
    """1 for the first node of the request, 2 for the second, ..."""
    resumed: RequestShape | None = None
    """What is asked of the node when it goes on with a begun answer: the prompt has grown by the tokens so far and the
    limit shrunk by them. None: the request as it arrived."""
    stage: bool = False
    """It is only to leave its KV in the node's prefix cache: `resumed` asks for the first `prompt_tokens` of prompt and
    answer so far, which may be fewer than the prompt has, and the one token that comes of it goes to nobody. Only its
    end is told."""
    kv_source: str = ""
    """Of a stage: where the node's engine fetches that KV (`EngineConfig.kv_source`); empty: it computes it."""


class Placed(Action, frozen=True, kw_only=True):
    """Answer a `place_only` request with its decision; the node is sent a reservation by the shell."""

    request_id: str
    decision: Decision


class Abort(Action, frozen=True, kw_only=True):
    """Tell the node to stop the request; no answer is waited for."""

    request_id: str
    node_id: str
    attempt: int = 1


class WatchToken(Action, frozen=True, kw_only=True):
    """Tell of the next token of this attempt as soon as it comes, which a live shell does anyway."""

    request_id: str
    node_id: str
    attempt: int = 1


class Finish(Action, frozen=True, kw_only=True):
    """Tell the client how it ended. Exactly one per `Arrived`, or one `Placed` in its stead."""

    request_id: str
    outcome: Outcome
    detail: str = ""
    retry_after_s: float | None = None
    """When the same request may be taken, if it was turned away for lack of room."""


AnyAction = AskForecast | AskCache | StartTimer | Dispatch | Placed | Abort | WatchToken | Finish
