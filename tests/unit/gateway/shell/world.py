"""A pump between a scripted router and recorded node ports, on a clock that the test moves."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from typing import cast

from gateway.core.events import AnyAction, AnyEvent, RequestShape
from gateway.core.router import Router
from gateway.intake.client_stream import ClientStream
from gateway.pump import Pump
from simcore.types import Candidate, Decision, EngineConfig, ExpectedWork, LengthBelief

CONFIG = EngineConfig(model="m")


def shape(request_id: str = "r", *, place_only: bool = False) -> RequestShape:
    return RequestShape(
        request_id=request_id,
        prompt_tokens=3,
        max_output_tokens=10,
        belief=LengthBelief((5,)),
        place_only=place_only,
    )


def decision(request_id: str = "r", node_id: str = "n") -> Decision:
    return Decision(
        request_id=request_id, node_id=node_id, policy="p", cost_unit="s", scores=(), reason="", decision_s=0.001
    )


class ScriptedRouter:
    """Answers each event with what the test has set for its type; remembers what it heard."""

    def __init__(self) -> None:
        self.heard: list[AnyEvent] = []
        self.replies: dict[type, Callable[[AnyEvent], Sequence[AnyAction]]] = {}

    def on(self, kind: type, *actions: AnyAction) -> None:
        self.replies[kind] = lambda event: actions

    def handle(self, event: AnyEvent, now_s: float) -> list[AnyAction]:
        self.heard.append(event)
        reply = self.replies.get(type(event))
        return list(reply(event)) if reply is not None else []

    def wants(self, timer_id: int) -> bool:
        return True


class RecordingPort:
    """A node session that only remembers what it was told to send."""

    def __init__(self) -> None:
        self.sent: list[tuple[object, ...]] = []

    def dispatch(self, dispatch_seq: int, stream: ClientStream) -> None:
        self.sent.append(("dispatch", dispatch_seq, stream.shape.request_id))

    def stage(self, dispatch_seq: int, stream: ClientStream, wire_id: str, tokens: int, kv_source: str) -> None:
        self.sent.append(("stage", dispatch_seq, wire_id, tokens))

    def ask(self, ask_id: int, candidate: Candidate, expected: ExpectedWork | None) -> None:
        self.sent.append(("ask", ask_id, candidate.request_id))

    def abort(self, request_id: str) -> None:
        self.sent.append(("abort", request_id))

    def ask_cache(self) -> None:
        self.sent.append(("ask_cache",))

    def consumed(self, wire_id: str, data_bytes: int) -> None:
        self.sent.append(("consumed", wire_id, data_bytes))

    def forget(self, wire_id: str) -> None:
        self.sent.append(("forget", wire_id))

    def reserve(self, candidate: Candidate) -> None:
        self.sent.append(("reserve", candidate.request_id))


class World:
    """Everything around one pump."""

    def __init__(
        self,
        *,
        router: Router | ScriptedRouter | None = None,
        max_buffered_tokens: int = 100,
        max_unread_bytes: int = 1_000_000,
    ) -> None:
        self.now_s = 100.0
        self.router = router if router is not None else ScriptedRouter()
        self.port = RecordingPort()
        self.finished: list[ClientStream] = []
        self.defects: list[Exception] = []
        self.recorded: list[tuple[float, AnyEvent, list[AnyAction]]] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self.pump = Pump(
            cast(Router, self.router),
            clock=lambda: self.now_s,
            call_at=self._call_at,
            on_finish=self.finished.append,
            on_defect=lambda event, defect: self.defects.append(defect),
            recorder=self,
            max_buffered_tokens=max_buffered_tokens,
            max_unread_bytes=max_unread_bytes,
        )

    @property
    def script(self) -> ScriptedRouter:
        assert isinstance(self.router, ScriptedRouter)
        return self.router

    def heard(self, kind: type) -> list[AnyEvent]:
        return [e for e in self.script.heard if isinstance(e, kind)]

    def record(self, now_s: float, event: AnyEvent, actions: Sequence[AnyAction]) -> None:
        self.recorded.append((now_s, event, list(actions)))

    def node_up(self, node_id: str = "n", port: RecordingPort | None = None) -> None:
        self.pump.node_up(node_id, port or self.port, CONFIG, "gpu/model")

    def submit(self, request_id: str = "r", *, place_only: bool = False) -> ClientStream:
        stream = ClientStream(shape(request_id, place_only=place_only), prompt_token_ids=(1, 2, 3))
        self.pump.submit(stream)
        return stream

    def run_timers(self, until_s: float, *, early_s: float = 0.0) -> None:
        """Moves the clock to `until_s` and runs what is due, each `early_s` before its time at first."""
        while self._timers and self._timers[0][0] <= until_s:
            at_s, _, callback = heapq.heappop(self._timers)
            self.now_s = max(self.now_s, at_s - early_s)
            early_s = 0.0
            callback()
        self.now_s = max(self.now_s, until_s)

    @property
    def timers(self) -> int:
        """How many the loop has to keep."""
        return len(self._timers)

    def _call_at(self, when_s: float, callback: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (when_s, next(self._count), callback))
