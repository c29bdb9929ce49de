"""A request while the router has it. Pure data; `router` moves it along the table of `lifecycle`."""

from __future__ import annotations

import msgspec

from gateway.core.decision.policies.base import Policy
from gateway.core.events import RequestShape
from gateway.core.nodes.accuracy import Expected
from gateway.core.nodes.node import Node
from gateway.core.request.explanation import Explanation
from gateway.core.request.lifecycle import State
from simcore.types import Decision, Forecast, Outcome


class Asking(msgspec.Struct, kw_only=True):
    """One round of forecasts for one placement."""

    timer_id: int
    shortlist: list[Node]
    pending: dict[int, str]
    """Node per ask that has not been answered."""
    asked_seq: dict[str, int]
    """Per node, our last dispatch to it when it was asked: its answer counts those up to there."""
    forecasts: dict[str, Forecast] = {}
    failures: dict[str, str] = {}
    """Why a node gave none."""
    delays_s: dict[str, float] = {}
    """By how much the request would delay each other one of a node: by the node's own forecast alone, or what earlier
    dispatches add to it would be added once more by the next."""
    expected: dict[str, Expected] = {}
    """What was forecast, with what was known better by then but uncorrected: to be compared with what happens."""


class LiveRequest(msgspec.Struct, kw_only=True):
    """One request between `Arrived` and its end."""

    shape: RequestShape
    """What the present or next node is asked for: after a resume the prompt holds the tokens so far."""
    prompt_tokens: int
    """Of the request as it arrived."""
    arrival_s: float
    policy: Policy
    state: State = State.PLACING
    node: Node | None = None
    """Who has it, in the states that hold an account."""
    attempt: int = 1
    moves: int = 0
    """How many attempts were begun because an operator emptied a node, not because anything failed."""
    tried: dict[str, int] = {}
    """Nodes that failed it, each with the session (`Node.session`) in which it did."""
    failure: tuple[Outcome, str] | None = None
    """How the last of them failed it."""
    decisions: list[Decision] = []
    asking: Asking | None = None
    expected: Expected | None = None
    """What its node forecast when it was chosen; None when it did not."""
    paced: bool = False
    """Whether the pace of its present node has been compared with that."""
    dispatched_s: float = 0.0
    """When its present node got it."""
    deadline_timer_id: int = 0
    infeasible: bool = False
    """Held although every node is forecast to miss what it asks for."""
    again_s: float = 0.0
    """When a held request is tried again at the latest."""
    output_tokens: int = 0
    """Of all attempts together."""
    ttft_s: float | None = None

    @property
    def resumed_tokens(self) -> int:
        """Output tokens that the present or next node gets as part of its prompt."""
        return self.shape.prompt_tokens - self.prompt_tokens

    def explain(self, *, outcome: Outcome | None = None, detail: str = "", e2e_s: float | None = None) -> Explanation:
        return Explanation(
            request_id=self.shape.request_id,
            decisions=tuple(self.decisions),
            prompt_tokens=self.prompt_tokens,
            belief=self.shape.belief,
            belief_source=self.shape.belief_source,
            output_tokens=self.output_tokens,
            outcome=outcome,
            detail=detail,
            ttft_s=self.ttft_s,
            e2e_s=e2e_s,
        )
