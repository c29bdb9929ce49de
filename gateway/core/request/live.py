"""A request while the router has it: what the client asked, its attempts, how it ended. Pure data.

`router` moves it along the table of `lifecycle`.
"""

from __future__ import annotations

import math

import msgspec

from gateway.core.events import RequestShape
from gateway.core.request.attempt import Attempt, ForecastRound
from gateway.core.request.explanation import MOVES_KEPT, Explanation, MoveTold
from gateway.core.request.lifecycle import State
from simcore.types import Decision, Outcome


class LiveRequest(msgspec.Struct, kw_only=True, eq=False):
    """One request between `Arrived` and its end."""

    request_id: str
    request: RequestShape
    """As it arrived."""
    arrival_s: float
    policy: str
    """By its name; `needs_forecasts` of it."""
    needs_forecasts: bool
    shape: RequestShape
    """What the next node will be asked for: after a resume the prompt holds the tokens so far."""
    state: State = State.PLACING
    attempts: list[Attempt] = []
    """All that were dispatched, in order."""
    streaming: Attempt | None = None
    """The one of them whose tokens go to the client."""
    moves: int = 0
    """Attempts begun for a move, or because a node took nothing new, not because anything failed."""
    moved_s: float = -math.inf
    """When it last went from one node to another by a move."""
    told_moves: list[MoveTold] = []
    """The latest of them, as people are told of them."""
    is_inquiry: bool = False
    """It stands for the rest of a request that runs: the question where that might go on (`migration`)."""
    tried: dict[str, int] = {}
    """Nodes that failed it, each with the session (`Node.session`) in which it did."""
    failure: tuple[Outcome, str] | None = None
    """How the last of them failed it."""
    decisions: list[Decision] = []
    """One per placement."""
    round: ForecastRound | None = None
    """The forecasts that are being waited for."""
    deadline_timer_id: int = 0
    infeasible: bool = False
    """Queued although every node is forecast to miss what it asks for."""
    queued_s: float | None = None
    """When it first joined the queue; None: it never has."""
    again_s: float = 0.0
    """When a queued request is tried again at the latest."""
    output_tokens: int = 0
    """That went to the client, of all attempts together."""
    has_begun: bool = False
    """Whether its client has seen anything of an engine's own answer."""
    found_tokens: int = 0
    """Of its prompt, found in the prefix cache of the node that answered, as far as that tells."""
    ttft_s: float | None = None

    @classmethod
    def arrived(cls, request: RequestShape, policy: str, now_s: float, *, needs_forecasts: bool) -> LiveRequest:
        """A request of which nothing has been decided."""
        return cls(
            request_id=request.request_id,
            request=request,
            shape=request,
            arrival_s=now_s,
            policy=policy,
            needs_forecasts=needs_forecasts,
        )

    @property
    def next_attempt(self) -> int:
        """The number of the attempt that the next dispatch begins."""
        return len(self.attempts) + 1

    @property
    def resumed_tokens(self) -> int:
        """Output tokens that the next node gets as part of its prompt."""
        return self.shape.prompt_tokens - self.request.prompt_tokens

    @property
    def at_nodes(self) -> list[Attempt]:
        """The attempts that a node has now."""
        return [attempt for attempt in self.attempts if attempt.is_at_node]

    def tell_move(self, told: MoveTold) -> None:
        """A move begins. One that ends as the last one did takes its place: a rule may try every second."""
        if self.told_moves and self.told_moves[-1].outcome == "does_not_pay":
            self.told_moves.pop()
        self.told_moves = [*self.told_moves[1 - MOVES_KEPT :], told]

    def move_to(self, node_id: str) -> MoveTold | None:
        """The latest move that was carried out, if it was to this node."""
        told = next((told for told in reversed(self.told_moves) if told.outcome == "moved"), None)
        return told if told is not None and told.destination == node_id else None

    def explain(self, *, outcome: Outcome | None = None, detail: str = "", e2e_s: float | None = None) -> Explanation:
        return Explanation(
            request_id=self.request_id,
            decisions=tuple(self.decisions),
            prompt_tokens=self.request.prompt_tokens,
            belief=self.shape.belief,
            belief_source=self.request.belief_source,
            lane=self.request.lane,
            prompt_counted_by=self.request.prompt_counted_by,
            found_tokens=self.found_tokens,
            output_tokens=self.output_tokens,
            outcome=outcome,
            detail=detail,
            ttft_s=self.ttft_s,
            e2e_s=e2e_s,
            queued_after_s=None if self.queued_s is None else self.queued_s - self.arrival_s,
            moves=tuple(msgspec.structs.replace(told) for told in self.told_moves),
        )
