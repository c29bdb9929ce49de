"""One request of a simulated run as its client sees it, from arrival to result. Pure."""

from __future__ import annotations

import msgspec

from bench.measure.forecast_errors import Placed, placed_by
from bench.measure.results import RequestResult, tpot_s
from bench.simcluster.account import RequestAccount
from bench.workload.item import WorkloadItem
from gateway.core import events as ev
from gateway.core.outcomes import COMPLETE


class Course(msgspec.Struct, gc=False):
    """Mutable; times are those of the simulation, in seconds."""

    item: WorkloadItem
    shape: ev.RequestShape | None = None
    """As the router got it; None before it has come."""
    node_id: str = ""
    decision_s: float | None = None
    forecast: Placed | None = None
    ttft_s: float | None = None
    output_tokens: int = 0
    attempt: int = 0
    resumed_tokens: int = 0
    """Of `output_tokens`, those that came from nodes before the present one."""
    result: RequestResult | None = None

    def dispatched(self, action: ev.Dispatch, at_s: float) -> None:
        self.node_id, self.attempt = action.node_id, action.attempt
        self.resumed_tokens = self.output_tokens
        self.decision_s = at_s - self.item.arrival_s
        self.forecast = placed_by(action.decision.scores[0].forecast) if action.attempt == 1 else None

    def tokens_came(self, event: ev.TokensSeen, at_s: float) -> None:
        """Those of earlier attempts, and after the end, do not reach the client."""
        if self.result is None and self.node_id == event.node_id and self.attempt == event.attempt:
            if self.ttft_s is None:
                self.ttft_s = at_s - self.item.arrival_s
            self.output_tokens += event.tokens

    def attempt_ended(self, event: ev.StreamEnded) -> None:
        """What this node still says of it is of the past."""
        if self.attempt == event.attempt:
            self.attempt = 0

    def finish(self, action: ev.Finish, at_s: float, account: RequestAccount) -> None:
        """`account`: what became of it in the engines."""
        item, ttft_s = self.item, self.ttft_s
        complete = action.outcome in COMPLETE and ttft_s is not None
        started_s = account.started_s.get(item.request_id)
        e2e_s = at_s - item.arrival_s if complete else None
        self.result = RequestResult(
            request_id=item.request_id,
            arrival_s=item.arrival_s,
            node_id=self.node_id,
            outcome=action.outcome,
            prompt_tokens=item.prompt_tokens,
            output_tokens=self.output_tokens,
            forecast=self.forecast,
            ttft_s=ttft_s,
            tpot_s=None
            if e2e_s is None or ttft_s is None
            else tpot_s(ttft_s=ttft_s, e2e_s=e2e_s, output_tokens=self.output_tokens),
            e2e_s=e2e_s,
            decision_s=self.decision_s,
            preemptions=account.preemptions.get(item.request_id, 0),
            scheduling_delay_s=None if started_s is None else started_s - item.arrival_s,
            preemption_loss_s=account.lost_s.get(item.request_id, 0.0),
            priority=item.priority,
            detail=action.detail,
        )
