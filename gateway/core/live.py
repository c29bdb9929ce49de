"""A request while the router has it. Pure data; `router` moves it along the table of `lifecycle`."""

from __future__ import annotations

import msgspec

from gateway.core.events import RequestShape
from gateway.core.explanation import Explanation
from gateway.core.lifecycle import State
from gateway.core.node_account import Node
from gateway.core.policies.base import Policy
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


class LiveRequest(msgspec.Struct, kw_only=True):
    """One request between `Arrived` and its end."""

    shape: RequestShape
    arrival_s: float
    policy: Policy
    state: State = State.PLACING
    node: Node | None = None
    """Who has it, in the states that hold an account."""
    attempt: int = 1
    tried: list[str] = []
    """Nodes that failed it."""
    decisions: list[Decision] = []
    asking: Asking | None = None
    deadline_timer_id: int = 0
    output_tokens: int = 0
    ttft_s: float | None = None

    def explain(self, *, outcome: Outcome | None = None, detail: str = "", e2e_s: float | None = None) -> Explanation:
        return Explanation(
            request_id=self.shape.request_id,
            decisions=tuple(self.decisions),
            prompt_tokens=self.shape.prompt_tokens,
            output_tokens=self.output_tokens,
            outcome=outcome,
            detail=detail,
            ttft_s=self.ttft_s,
            e2e_s=e2e_s,
        )
