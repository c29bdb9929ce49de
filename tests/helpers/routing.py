"""Builders for router tests, and a router that checks its own promises while it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from gateway.core import events as ev
from gateway.core.decision.policies.base import NodeView
from gateway.core.router import Router, RouterConfig
from simcore.types import EngineConfig, Forecast, LengthBelief, NodeLoad, NodePace, Outcome, Quantiles

A = TypeVar("A", bound=ev.Action)

TOTAL_BLOCKS = 1052
PACE = NodePace(batches=(1, 48), step_s=(0.02, 0.04), kv_s_per_token=1e-7, prefill_s_per_token=1e-4)


def engine_config(model: str = "m", **changes: Any) -> EngineConfig:
    return EngineConfig(model=model, **{"max_num_seqs": 48, "num_blocks": TOTAL_BLOCKS, **changes})


def node_load(node_id: str, **changes: Any) -> NodeLoad:
    """An idle node, but for the changes."""
    fields: dict[str, Any] = {
        "trace_seq": 1,
        "state_age_s": 0.0,
        "running": 0,
        "waiting": 0,
        "free_blocks": TOTAL_BLOCKS,
        "total_blocks": TOTAL_BLOCKS,
        "waiting_prompt_blocks": 0,
        "unprocessed_tokens": 0,
        "preemptions_total": 0,
    }
    return NodeLoad(node_id=node_id, **{**fields, **changes})


def node_view(node_id: str, load: NodeLoad | None = None, **changes: Any) -> NodeView:
    fields: dict[str, Any] = {"in_flight": 0, "dispatches_60s": 0}
    return NodeView(
        node_id=node_id,
        config=engine_config(),
        load=node_load(node_id) if load is None else load,
        **{**fields, **changes},
    )


def shape(request_id: str = "r", **changes: Any) -> ev.RequestShape:
    """32 prompt tokens (two blocks) and an answer known to have 100."""
    fields: dict[str, Any] = {"prompt_tokens": 32, "max_output_tokens": 200, "belief": LengthBelief((100,))}
    return ev.RequestShape(request_id=request_id, **{**fields, **changes})


def forecast(node_id: str, e2e_s: float = 1.0, harm_s: float = 0.0, **changes: Any) -> Forecast:
    fields: dict[str, Any] = {
        "request_id": "r",
        "ttft_s": _all(0.1),
        "tpot_s": _all(0.02),
        "e2e_s": _all(e2e_s),
        "preemptions": 0.0,
        "kv_headroom_blocks": 100,
        "harm_s": _all(harm_s),
        "trace_seq": 1,
        "state_age_s": 0.0,
    }
    return Forecast(node_id=node_id, **{**fields, **changes})


class CheckedRouter:
    """A router and the least shell that can stand around one.

    Every action is held against what a shell relies on: nothing is sent to a node that is down or draining, dispatches
    are numbered without gaps from 1 in each session, nobody is told twice how a request ended, and only requests that
    have arrived are talked of.
    """

    def __init__(self, policy: str = "least_requests", **config: Any) -> None:
        self.router = Router(RouterConfig(policy=policy, **config))
        self.now_s = 0.0
        self.up: set[str] = set()
        self.draining: set[str] = set()
        self.retiring: set[str] = set()
        self.seq: dict[str, int] = {}
        self.arrived: set[str] = set()
        self.finished: dict[str, ev.Finish] = {}
        self.placed: dict[str, ev.Placed] = {}
        self.at: dict[str, str] = {}
        """Node that has each dispatched request."""
        self.attempt: dict[str, int] = {}
        """And in which attempt."""
        self.last_attempt: dict[str, int] = {}
        """The number of the last one of each request, stages of moves included."""
        self.stages: dict[str, ev.Dispatch] = {}
        """Of each request that moves, the stage that a node has."""
        self.asks: dict[int, ev.AskForecast] = {}
        self.timers: dict[int, float] = {}

    def tell(self, event: ev.AnyEvent) -> list[ev.AnyAction]:
        self._before(event)
        actions = self.router.handle(event, self.now_s)
        for action in actions:
            self._check(action)
        return actions

    def join(self, *node_ids: str, load: bool = True, pace: bool = True, config: EngineConfig | None = None) -> None:
        for node_id in node_ids:
            self.tell(ev.NodeJoined(node_id=node_id, config=config or engine_config()))
            if pace:
                self.tell(ev.PaceTold(node_id=node_id, pace=PACE))
            if load:
                self.note(node_id)

    def note(self, node_id: str, *, dispatch_seq: int | None = None, **load: Any) -> None:
        """The node tells its load, counting all dispatches unless told otherwise."""
        seq = self.seq.get(node_id, 0) if dispatch_seq is None else dispatch_seq
        self.tell(ev.LoadNoted(load=node_load(node_id, **load), dispatch_seq=seq))

    def arrive(self, request_id: str = "r", **changes: Any) -> list[ev.AnyAction]:
        return self.tell(ev.Arrived(request=shape(request_id, **changes)))

    def answer(self, asks: Sequence[ev.AskForecast], costs_s: dict[str, float]) -> list[ev.AnyAction]:
        """Answers those asks whose node has a number here; returns all actions that follow."""
        actions: list[ev.AnyAction] = []
        for ask in asks:
            if ask.node_id in costs_s:
                said = forecast(ask.node_id, costs_s[ask.node_id])
                actions += self.tell(ev.ForecastArrived(ask_id=ask.ask_id, node_id=ask.node_id, forecast=said))
        return actions

    def fire_due(self) -> list[ev.AnyAction]:
        """Fires every timer whose moment has come."""
        actions: list[ev.AnyAction] = []
        for timer_id in [t for t, at_s in sorted(self.timers.items()) if at_s <= self.now_s]:
            del self.timers[timer_id]
            actions += self.tell(ev.TimerFired(timer_id=timer_id))
        return actions

    def end(self, request_id: str, outcome: Outcome = Outcome.STOP, detail: str = "") -> list[ev.AnyAction]:
        return self.tell(
            ev.StreamEnded(
                request_id=request_id,
                node_id=self.at[request_id],
                outcome=outcome,
                detail=detail,
                attempt=self.attempt[request_id],
            )
        )

    def stage_done(self, request_id: str, outcome: Outcome = Outcome.LENGTH) -> list[ev.AnyAction]:
        """The stage that a node has ends."""
        stage = self.stages.pop(request_id)
        return self.tell(
            ev.StreamEnded(request_id=request_id, node_id=stage.node_id, outcome=outcome, attempt=stage.attempt)
        )

    def tokens(self, request_id: str, tokens: int = 1) -> list[ev.AnyAction]:
        node_id, attempt = self.at[request_id], self.attempt[request_id]
        return self.tell(ev.TokensSeen(request_id=request_id, node_id=node_id, tokens=tokens, attempt=attempt))

    def _before(self, event: ev.AnyEvent) -> None:
        match event:
            case ev.Arrived():
                assert event.request.request_id not in self.arrived, "a test must give unique ids"
                self.arrived.add(event.request.request_id)
            case ev.NodeJoined():
                self.up.add(event.node_id)
                self.retiring.discard(event.node_id)
                self.seq[event.node_id] = 0
            case ev.NodeLost():
                self.up.discard(event.node_id)
                self._forget_stages(event.node_id)
            case ev.NodeRemoved():
                self._forget_stages(event.node_id)
                self.up.discard(event.node_id)
                self.draining.discard(event.node_id)
            case ev.DrainAsked(undo=True):
                self.draining.discard(event.node_id)
            case ev.DrainAsked():
                self.draining.add(event.node_id)
            case ev.RetirementTold(retiring=True):
                self.retiring.add(event.node_id)
            case ev.RetirementTold():
                self.retiring.discard(event.node_id)

    def _forget_stages(self, node_id: str) -> None:
        self.stages = {r: stage for r, stage in self.stages.items() if stage.node_id != node_id}

    def _check(self, action: ev.AnyAction) -> None:
        match action:
            case ev.AskForecast():
                closed = set() if action.candidate.leaving else self.draining | self.retiring
                assert action.node_id in self.up - closed
                assert action.ask_id not in self.asks
                self.asks[action.ask_id] = action
            case ev.StartTimer():
                assert action.timer_id not in self.timers
                assert action.at_s >= self.now_s
                self.timers[action.timer_id] = action.at_s
            case ev.Dispatch():
                self._check_live(action.request_id)
                assert action.node_id in self.up - self.draining - self.retiring
                self.seq[action.node_id] += 1
                assert action.dispatch_seq == self.seq[action.node_id]
                assert action.decision.node_id == action.node_id == action.decision.scores[0].node_id
                assert action.decision.reason
                assert action.attempt == self.last_attempt.get(action.request_id, 0) + 1
                self.last_attempt[action.request_id] = action.attempt
                if action.stage:
                    assert action.node_id != self.at[action.request_id]
                    assert action.request_id not in self.stages, "one stage at a time"
                    assert action.resumed is not None
                    assert action.resumed.max_output_tokens == 1
                    self.stages[action.request_id] = action
                    return
                self.at[action.request_id] = action.node_id
                self.attempt[action.request_id] = action.attempt
            case ev.Placed():
                self._check_live(action.request_id)
                assert action.decision.node_id in self.up - self.draining - self.retiring
                self.placed[action.request_id] = action
            case ev.Abort():
                stage = self.stages.get(action.request_id)
                if stage is not None and stage.attempt == action.attempt:
                    assert action.node_id == stage.node_id
                    del self.stages[action.request_id]
                    return
                assert action.node_id == self.at[action.request_id]
                assert action.attempt == self.attempt[action.request_id]
            case ev.Finish():
                self._check_live(action.request_id)
                assert action.request_id not in self.stages, "its stage is told to stop before"
                self.finished[action.request_id] = action

    def _check_live(self, request_id: str) -> None:
        assert request_id in self.arrived
        assert request_id not in self.finished
        assert request_id not in self.placed


def only(actions: Sequence[ev.AnyAction], kind: type[A]) -> A:
    """The one action of a kind."""
    found = [action for action in actions if isinstance(action, kind)]
    assert len(found) == 1, f"expected one {kind.__name__} in {[type(a).__name__ for a in actions]}"
    return found[0]


def every(actions: Sequence[ev.AnyAction], kind: type[A]) -> list[A]:
    return [action for action in actions if isinstance(action, kind)]


def _all(value: float) -> Quantiles:
    return Quantiles(value, value, value)
