"""One request of a simulated run: as its client sees it, and what the engines did to it. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from bench.measure.forecast_errors import DispatchForecast, dispatch_forecast
from bench.measure.results import RequestResult, tpot_s
from bench.workload.item import WorkloadItem
from gateway.core import events as ev
from gateway.core.outcomes import COMPLETE
from simcore.compiled import layout as at
from simcore.node import SimNode
from simcore.tracing import EVERYBODY, NOBODY

if TYPE_CHECKING:
    from bench.simcluster.node import ClusterNode


class EngineWatch:
    """Notes what one engine does to requests: run it with `watched`, and call `after` when it has run."""

    def __init__(self, engine: SimNode, requests: Mapping[str, SimulatedRequest]) -> None:
        """`requests` by the names that they have in the engine; what it has beside them is nobody's."""
        self._engine = engine
        self._requests = requests
        self._fresh: deque[str] = deque()
        self._evicted: dict[str, tuple[float, int]] = {}
        self.found_tokens: dict[str, int] = {}
        """Of those who have started and not left, tokens found in the prefix cache."""
        self._in_order = engine.config.scheduling_policy == "fcfs"

    @property
    def is_waiting(self) -> bool:
        """For somebody's start or return: else `after` need not be called."""
        return bool(self._fresh or self._evicted)

    @property
    def watched(self) -> int:
        """The slot of the one whose start is waited for (`TracingNode.run`)."""
        if self._evicted:
            return EVERYBODY
        if not self._fresh:
            return NOBODY
        known = self._engine.requests.get(self._fresh[0])
        return known.slot if known is not None and self._in_order else EVERYBODY

    def came(self, request_id: str) -> None:
        self._fresh.append(request_id)

    def preempted(self, request_id: str, at_s: float) -> None:
        if (request := self._requests.get(request_id)) is not None:
            request.preemptions += 1
        tokens = self._engine.output_tokens(request_id)
        if tokens is None:
            return
        self._returned(request_id, at_s)
        self._evicted[request_id] = (at_s, tokens)

    def left(self, request_id: str, at_s: float) -> None:
        """It has ended, here or at all."""
        self.found_tokens.pop(request_id, None)
        if self._evicted:
            self._returned(request_id, at_s)

    def after(self, began_s: float) -> None:
        """The engine has run the step, or the steps, from `began_s` to its `free_at_s`."""
        if self._fresh:
            self._note_starts(began_s)
        if self._evicted:
            tokens_of = self._engine.output_tokens
            evicted = self._evicted.items()
            for back in [i for i, (_, before) in evicted if (now := tokens_of(i)) is None or now > before]:
                self._returned(back, self._engine.free_at_s)

    def _note_starts(self, began_s: float) -> None:
        engine, fresh = self._engine, self._fresh
        waiting: list[str] = []
        shares = engine.shares_blocks
        while fresh:
            request_id = fresh[0]
            if engine.computed_tokens(request_id) == 0:
                if self._in_order:
                    break
                waiting.append(request_id)
            else:
                if (request := self._requests.get(request_id)) is not None and request.started_s is None:
                    request.started_s = began_s
                if shares and (known := engine.requests.get(request_id)) is not None:
                    self.found_tokens[request_id] = engine.req.item(known.slot, at.CACHED)
            fresh.popleft()
        fresh.extend(waiting)

    def _returned(self, request_id: str, at_s: float) -> None:
        evicted = self._evicted.pop(request_id, None)
        if evicted is not None and (request := self._requests.get(request_id)) is not None:
            request.lost_s = request.lost_s + at_s - evicted[0]


class SimulatedRequest(msgspec.Struct, gc=False):
    """A request as its client sees it, from arrival to result. Mutable; times in seconds of the simulation."""

    item: WorkloadItem
    number: int
    """Its place in the workload."""
    shape: ev.RequestShape | None = None
    """As the router got it; None before it has come."""
    node_id: str = ""
    there_s: float = -math.inf
    """When the last dispatch reaches its node."""
    decision_s: float | None = None
    forecast: DispatchForecast | None = None
    ttft_s: float | None = None
    output_tokens: int = 0
    attempt: int = 0
    resumed_tokens: int = 0
    """Of `output_tokens`, those that came from nodes before the present one."""
    is_staged: bool = False
    """Some of it has been made ready at another node than its own: its blocks have names."""
    moves: int = 0
    last_token_s: float = 0.0
    """When the router last heard of a token."""
    source: ClusterNode | None = None
    """From which it moves, or moved last."""
    cut_s: float | None = None
    """When the last token of the node came from which it has moved; None when the next one has spoken."""
    downtime_s: float | None = None
    """The longest gap between the last token of one node and the first of the one to which it moved."""
    preemptions: int = 0
    """By all engines."""
    started_s: float | None = None
    """Begin of the first step that worked on it."""
    lost_s: float = 0.0
    """From the end of each step that preempted it to the end of the one that brought its next token."""

    def comes_at(self, at_s: float) -> None:
        """It comes at another time than its workload said."""
        self.item = msgspec.structs.replace(self.item, arrival_s=at_s)

    def moved(self, source: ClusterNode | None) -> None:
        """The dispatch that follows is the end of a move."""
        self.moves += 1
        self.source = source
        self.cut_s = self.last_token_s if self.output_tokens else None

    def dispatched(self, action: ev.Dispatch, at_s: float) -> None:
        self.node_id, self.attempt = action.node_id, action.attempt
        self.resumed_tokens = self.output_tokens
        self.decision_s = at_s - self.item.arrival_s
        self.forecast = dispatch_forecast(action.decision.scores[0].forecast) if action.attempt == 1 else None

    def tokens_came(self, event: ev.TokensSeen, at_s: float) -> None:
        """Those of earlier attempts do not reach the client."""
        if self.node_id == event.node_id and self.attempt == event.attempt:
            if self.ttft_s is None:
                self.ttft_s = at_s - self.item.arrival_s
            if self.cut_s is not None:
                self.downtime_s = max(self.downtime_s or 0.0, at_s - self.cut_s)
                self.cut_s = None
            self.output_tokens += event.tokens
            self.last_token_s = at_s

    def attempt_ended(self, event: ev.StreamEnded) -> None:
        """What this node still says of it is of the past."""
        if self.attempt == event.attempt:
            self.attempt = 0

    def finish(self, action: ev.Finish, at_s: float) -> RequestResult:
        """What became of it."""
        item, ttft_s = self.item, self.ttft_s
        complete = action.outcome in COMPLETE and ttft_s is not None
        e2e_s = at_s - item.arrival_s if complete else None
        return RequestResult(
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
            preemptions=self.preemptions,
            scheduling_delay_s=None if self.started_s is None else self.started_s - item.arrival_s,
            preemption_loss_s=self.lost_s,
            moves=self.moves or None,
            downtime_s=self.downtime_s,
            priority=item.priority,
            detail=action.detail,
        )
