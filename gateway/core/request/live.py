"""A request while the router has it: what the client asked, its attempts, how it ended. Pure data.

`router` moves it along the table of `lifecycle`.
"""

from __future__ import annotations

import msgspec

from gateway.core.events import RequestShape
from gateway.core.request.attempt import Attempt, ForecastRound
from gateway.core.request.explanation import Explanation
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
    """Attempts begun because an operator emptied a node, not because anything failed."""
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
    again_s: float = 0.0
    """When a queued request is tried again at the latest."""
    output_tokens: int = 0
    """That went to the client, of all attempts together."""
    has_begun: bool = False
    """Whether its client has seen anything of an engine's own answer."""
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

    def attempt_at(self, node_id: str, number: int) -> Attempt | None:
        """The attempt of that number, if that node has it now."""
        if not 0 < number <= len(self.attempts):
            return None
        attempt = self.attempts[number - 1]
        return attempt if attempt.is_at_node and attempt.node.node_id == node_id else None

    def explain(self, *, outcome: Outcome | None = None, detail: str = "", e2e_s: float | None = None) -> Explanation:
        return Explanation(
            request_id=self.request_id,
            decisions=tuple(self.decisions),
            prompt_tokens=self.request.prompt_tokens,
            belief=self.shape.belief,
            belief_source=self.request.belief_source,
            lane=self.request.lane,
            prompt_counted_by=self.request.prompt_counted_by,
            output_tokens=self.output_tokens,
            outcome=outcome,
            detail=detail,
            ttft_s=self.ttft_s,
            e2e_s=e2e_s,
        )
