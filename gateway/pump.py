"""The pump: the only place that turns actions of the router into I/O and I/O into events. It decides nothing.

One pump per gateway process, on one event loop, never re-entered: an event that comes up while actions are carried out
waits until those are done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.core.events import (
    Abort,
    AnswerBegan,
    AnswerTied,
    AnyAction,
    AnyEvent,
    Arrived,
    AskCache,
    AskForecast,
    ClientGone,
    Dispatch,
    Finish,
    ForecastArrived,
    NodeJoined,
    NodeLost,
    NodeRemoved,
    NodeServes,
    Placed,
    StartTimer,
    StreamEnded,
    TimerFired,
    TokensSeen,
    WatchToken,
)
from gateway.core.outcomes import CODES, COMPLETE
from gateway.core.request.resume import attempt_id
from gateway.core.router import Router
from gateway.intake.client_call import REPORT_BYTES, AnswerHead
from gateway.intake.client_stream import ClientStream
from protos import codec
from protos.v1.astrolabe_predict_pb2 import StreamPart
from simcore.types import Candidate, EngineConfig, ExpectedWork, Outcome, TokenLogprobs

LONGEST_TIMER_S = 10.0
"""Timers are not cancelled, so a later one is asked about this often: a client's deadline of a day must not be kept for
a day after its request has ended."""


class NodePort(Protocol):
    """The sending side of one live session with a node. Calls return at once; failures come back as events."""

    def dispatch(self, dispatch_seq: int, stream: ClientStream) -> None: ...

    def stage(self, dispatch_seq: int, stream: ClientStream, wire_id: str, tokens: int, kv_source: str) -> None:
        """The node is to compute the first `tokens` of prompt and answer so far, under this name."""

    def ask(self, ask_id: int, candidate: Candidate, expected: ExpectedWork | None) -> None:
        """`expected`: what the node is told of the work to come, if anything."""

    def ask_cache(self) -> None:
        """The node is to tell what its prefix cache holds, from the whole on."""

    def abort(self, wire_id: str) -> None: ...

    def consumed(self, wire_id: str, data_bytes: int) -> None:
        """So many bytes more of a call's answer have gone to its client."""

    def forget(self, wire_id: str) -> None:
        """The node has ended the call: what it lacks of the body is not sent."""

    def reserve(self, candidate: Candidate) -> None:
        """Announces a request that somebody else will send."""


class Recorder(Protocol):
    def record(self, now_s: float, event: AnyEvent, actions: Sequence[AnyAction]) -> None: ...


class Tracing(Protocol):
    """Hears where requests go (`gateway.observe.spans.Spans`)."""

    def sent(self, stream: ClientStream) -> None: ...

    def staged(self, stream: ClientStream, node_id: str) -> str: ...


class Pump:
    """Holds the router and the table of client streams.

    `clock` gives monotonic seconds and stamps every event; `call_at(when_s, callback)` runs a callback at a time of
    that clock; `on_finish` gets each request that has ended, `on_defect` exceptions that no event should cause.
    """

    def __init__(
        self,
        router: Router,
        *,
        clock: Callable[[], float],
        call_at: Callable[[float, Callable[[], None]], object],
        on_finish: Callable[[ClientStream], None],
        on_defect: Callable[[AnyEvent, Exception], None],
        recorder: Recorder | None = None,
        tracing: Tracing | None = None,
        max_buffered_tokens: int = 16384,
        max_unread_bytes: int = 4 * 1024 * 1024,
    ) -> None:
        self.router = router
        self.streams: dict[str, ClientStream] = {}
        """Live requests by id."""
        self._sent: dict[str, ClientStream] = {}
        """Those that a node has, by the name of the attempt."""
        self._stages: dict[str, Dispatch] = {}
        """Stages of moves that a node has, by the name of the attempt."""
        self.ports: dict[str, NodePort] = {}
        """Live sessions by node id."""
        self._clock = clock
        self._call_at = call_at
        self._on_finish = on_finish
        self._on_defect = on_defect
        self._recorder = recorder
        self._tracing = tracing
        self.watch: Callable[[AnyEvent, Sequence[AnyAction], float], object] | None = None
        """Hears what the recorder hears, and raises nothing."""
        self.placements = 0
        """Carried out so far."""
        self._max_buffered_tokens = max_buffered_tokens
        self._max_unread_bytes = max_unread_bytes
        self._events: deque[AnyEvent] = deque()
        self._busy = False

    def now_s(self) -> float:
        """The time that events are stamped with."""
        return self._clock()

    def awaited_in_s(self, stream: ClientStream) -> float | None:
        """How long until a node comes for this request, if it waits for one that is not there yet; else None."""
        if stream.node_id or stream.outcome is not None:
            return None
        return self.router.awaited_in_s(stream.shape.model, self._clock())

    def post(self, event: AnyEvent) -> None:
        """Feeds one event to the router and carries out what it wants."""
        if self._busy:
            self._events.append(event)
            return
        self._busy = True
        try:
            self._take_in(event)
            while self._events:
                self._take_in(self._events.popleft())
        finally:
            self._busy = False

    def _take_in(self, event: AnyEvent) -> None:
        now_s = self._clock()
        try:
            self._handle(event, now_s)
        except Exception as defect:
            # One request's defect must not take the others' session or call down with it.
            self._on_defect(event, defect)
            self._end_after_defect(event, now_s)

    def _handle(self, event: AnyEvent, now_s: float) -> None:
        actions = self.router.handle(event, now_s)
        if self._recorder is not None:
            self._recorder.record(now_s, event, actions)
        if self.watch is not None:
            self.watch(event, actions, now_s)
        for action in actions:
            self._perform(action, now_s)

    def _end_after_defect(self, event: AnyEvent, now_s: float) -> None:
        request_id = event.request.request_id if isinstance(event, Arrived) else getattr(event, "request_id", "")
        detail = CODES[Outcome.INTERNAL].text
        try:
            # Its node and its books must hear of it too.
            self._handle(ClientGone(request_id=request_id, outcome=Outcome.INTERNAL, detail=detail), now_s)
        except Exception as another:
            self._on_defect(event, another)
        self._end(self.streams.pop(request_id, None), Outcome.INTERNAL, detail, now_s)

    # --- what clients do ----------------------------------------------------------------------------------------------

    def submit(self, stream: ClientStream) -> None:
        """A new request; its id must not be live (`streams`)."""
        request_id = stream.shape.request_id
        assert request_id not in self.streams, f"request id {request_id} is live"
        stream.arrived_s = self._clock()
        self.streams[request_id] = stream
        self.post(Arrived(request=stream.shape))

    def client_left(self, request_id: str) -> None:
        """The client's call is over before the answer was."""
        if request_id in self.streams:
            self.post(ClientGone(request_id=request_id))

    def cancel(self, request_id: str) -> bool:
        """Stops a request on somebody's demand; False if it is not live."""
        if request_id not in self.streams:
            return False
        self.post(ClientGone(request_id=request_id, outcome=Outcome.CANCELLED))
        return True

    def expel(self, stream: ClientStream, outcome: Outcome, detail: str) -> None:
        """Ends a request for a reason of the gateway's own, which its client is told."""
        if stream.outcome is None:
            self.post(ClientGone(request_id=stream.shape.request_id, outcome=outcome, detail=detail))

    # --- what nodes do ------------------------------------------------------------------------------------------------

    def node_up(self, node_id: str, port: NodePort, config: EngineConfig, profile: str) -> None:
        self.ports[node_id] = port
        self.post(NodeJoined(node_id=node_id, config=config, profile=profile))

    def node_serves(self, node_id: str, config: EngineConfig) -> None:
        """The names in `config` are the node's from now on."""
        self.post(NodeServes(node_id=node_id, names=config.names))

    def node_down(self, node_id: str, detail: str) -> None:
        self.ports.pop(node_id, None)
        self._forget_stages(node_id)
        self.post(NodeLost(node_id=node_id, detail=detail))

    def node_removed(self, node_id: str) -> None:
        """The node has left the configuration; its session has ended before."""
        self._forget_stages(node_id)
        self.post(NodeRemoved(node_id=node_id))

    def part(
        self,
        node_id: str,
        wire_id: str,
        token_ids: Sequence[int],
        *,
        outcome: Outcome | None = None,
        cached_tokens: int = 0,
        detail: str = "",
        stop_token_id: int | None = None,
        told: StreamPart | None = None,
        found_tokens: int | None = None,
    ) -> None:
        """New tokens or the end of one attempt, by its name on the wire, as a node tells them; `cached_tokens` are the
        prompt tokens that its prefix cache gave, `stop_token_id` the one that ended the answer, known at the end.
        `found_tokens` are those that its trace tells (None: it does not), known at the end too.
        `told`: the message itself, in which logprobs are looked for where they were asked for. Words of attempts that
        are over go no further."""
        stream = self._sent.get(wire_id)
        if stream is None or stream.node_id != node_id:
            if outcome is not None and wire_id in self._stages:
                self._stage_ended(node_id, wire_id, outcome, detail)
            return
        request_id, attempt = stream.shape.request_id, stream.attempt
        if token_ids:
            logprobs: Sequence[TokenLogprobs] = ()
            if stream.pending_logprobs is not None:
                logprobs = () if told is None else codec.logprobs_from_wire(told.logprobs)
                if len(logprobs) != len(token_ids):
                    self.expel(stream, Outcome.ENGINE_FAILED, f"node {node_id} tells no logprobs with its tokens")
                    return
            kept = stream.put(token_ids, self._clock(), logprobs)
            last = outcome is not None
            self.post(TokensSeen(request_id=request_id, node_id=node_id, tokens=kept, attempt=attempt, last=last))
            if stream.stopped:
                self.expel(stream, Outcome.STOP, "")
            elif len(stream.pending) > self._max_buffered_tokens:
                self.expel(
                    stream,
                    Outcome.CLIENT_SLOW,
                    f"the client reads too slowly: {len(stream.pending)} tokens wait for it, the limit is "
                    f"{self._max_buffered_tokens}; read faster or raise max_buffered_tokens",
                )
        if outcome is not None:
            self._sent.pop(wire_id, None)
            if self._tracing is not None:
                stream.attempt_ended_s = self._clock()
            stream.cached_tokens = cached_tokens
            stream.stop_token_id = stop_token_id
            if stream.answer is not None:
                self._answer_ended(stream, outcome)
            self.post(
                StreamEnded(
                    request_id=request_id,
                    node_id=node_id,
                    outcome=outcome,
                    detail=detail,
                    attempt=attempt,
                    found_tokens=found_tokens,
                )
            )

    def _forget_stages(self, node_id: str) -> None:
        """What a session had is lost with it, and the router hears of that at once."""
        for wire_id in [wire_id for wire_id, stage in self._stages.items() if stage.node_id == node_id]:
            del self._stages[wire_id]

    def _stage_ended(self, node_id: str, wire_id: str, outcome: Outcome, detail: str) -> None:
        stage = self._stages[wire_id]
        if stage.node_id == node_id:
            del self._stages[wire_id]
            self.post(
                StreamEnded(
                    request_id=stage.request_id,
                    node_id=node_id,
                    outcome=outcome,
                    detail=detail,
                    attempt=stage.attempt,
                )
            )

    def answered(self, node_id: str, wire_id: str, head: AnswerHead | None, data: bytes, output_tokens: int) -> None:
        """The head or the next bytes of an engine's own answer to a call that was handed on, with the output tokens in
        them as far as they can be told. Words of attempts that are over go no further."""
        stream = self._sent.get(wire_id)
        if stream is None or stream.node_id != node_id or (answer := stream.answer) is None:
            return
        if head is not None:
            answer.put_head(head)
        if not data:
            return
        had_begun = answer.has_begun
        answer.put(data)
        if not answer.has_begun:
            return
        if not had_begun:
            self._answer_began(stream)
        if answer.newly_tied():
            self.post(AnswerTied(request_id=stream.shape.request_id, node_id=node_id, attempt=stream.attempt))
        if output_tokens:
            self._count(stream, output_tokens, whole=not answer.is_streamed)
        stream.wake()
        if answer.unread_bytes > self._max_unread_bytes:
            # The node holds an answer long before this, as long as it keeps to what it was told.
            detail = f"{answer.unread_bytes} bytes of the answer wait for the client, which is more than may"
            self.expel(stream, Outcome.CLIENT_SLOW, detail)

    def seen(self, stream: ClientStream, output_tokens: int, *, is_streamed: bool) -> None:
        """A proxy has seen so many more output tokens (at least one) of the answer to a call that it took to its node;
        `is_streamed`: as they were produced."""
        if stream.outcome is not None:
            return
        if is_streamed and stream.first_token_s is None:
            stream.first_token_s = self._clock()
        self._count(stream, output_tokens, whole=not is_streamed)

    def seen_end(self, stream: ClientStream, outcome: Outcome, *, cached_tokens: int = 0, detail: str = "") -> None:
        """A proxy has seen how the answer to such a call ended."""
        if stream.outcome is not None:
            return
        self._sent.pop(stream.wire_id, None)
        stream.cached_tokens = cached_tokens
        if (port := self.ports.get(stream.node_id)) is not None:
            # Its node hears of the end from nobody else.
            port.abort(stream.wire_id)
        self.post(
            StreamEnded(
                request_id=stream.shape.request_id,
                node_id=stream.node_id,
                outcome=outcome,
                detail=detail,
                attempt=stream.attempt,
            )
        )

    def consumed(self, stream: ClientStream) -> None:
        """The reader has taken some of a call's answer: its node is told, now and then."""
        answer = stream.answer
        assert answer is not None, "only bytes of a call's answer are counted"
        if answer.unreported_bytes < REPORT_BYTES or self._sent.get(stream.wire_id) is not stream:
            return
        port = self.ports.get(stream.node_id)
        if port is not None:
            port.consumed(stream.wire_id, answer.unreported_bytes)
        answer.unreported_bytes = 0

    def _answer_began(self, stream: ClientStream) -> None:
        assert stream.answer is not None, "it was handed on"
        assert stream.call is not None, "it was handed on"
        if stream.answer.is_streamed and stream.first_token_s is None:
            stream.first_token_s = self._clock()
        # No other node can be asked any more for all of it.
        stream.call.body = b""
        self.post(
            AnswerBegan(request_id=stream.shape.request_id, node_id=stream.node_id, attempt=stream.attempt),
        )

    def _answer_ended(self, stream: ClientStream, outcome: Outcome) -> None:
        answer = stream.answer
        assert answer is not None, "it was handed on"
        port = self.ports.get(stream.node_id)
        if port is not None:
            port.forget(stream.wire_id)
        had_begun = answer.has_begun
        answer.end(outcome)
        if answer.has_begun and not had_begun:
            self._answer_began(stream)
        assert stream.call is not None, "it was handed on"
        is_step = stream.shape.max_output_tokens == 1 and not stream.call.is_light
        if outcome in COMPLETE and is_step and not stream.output_tokens:
            # An embedding or a score: a step's work, which no usage counts as output.
            self._count(stream, 1, whole=not answer.is_streamed)

    def _count(self, stream: ClientStream, output_tokens: int, *, whole: bool) -> None:
        stream.output_tokens += output_tokens
        self.post(
            TokensSeen(
                request_id=stream.shape.request_id,
                node_id=stream.node_id,
                tokens=output_tokens,
                attempt=stream.attempt,
                whole=whole,
            )
        )

    # --- what the router wants ----------------------------------------------------------------------------------------

    def _perform(self, action: AnyAction, now_s: float) -> None:
        match action:
            case AskForecast():
                port = self.ports.get(action.node_id)
                if port is not None:
                    port.ask(action.ask_id, action.candidate, action.expected)
                else:
                    self.post(ForecastArrived(ask_id=action.ask_id, node_id=action.node_id, error="not connected"))
            case AskCache():
                port = self.ports.get(action.node_id)
                if port is not None:
                    port.ask_cache()
            case StartTimer():
                self._start_timer(action.timer_id, action.at_s)
            case Dispatch(stage=True):
                self._stage(action)
            case Dispatch():
                self._dispatch(action)
            case WatchToken():
                # All tokens are told of as they come.
                pass
            case Placed():
                self._placed(action, now_s)
            case Abort():
                wire_id = attempt_id(action.request_id, action.attempt)
                # What it still says before it hears of this is not part of the answer: another node may go on with it.
                self._sent.pop(wire_id, None)
                self._stages.pop(wire_id, None)
                port = self.ports.get(action.node_id)
                if port is not None:
                    port.abort(wire_id)
            case Finish():
                stream = self.streams.pop(action.request_id, None)
                if stream is not None:
                    stream.retry_after_s = action.retry_after_s
                self._end(stream, action.outcome, action.detail, now_s)

    def _end(self, stream: ClientStream | None, outcome: Outcome, detail: str, now_s: float) -> None:
        if stream is not None:
            self._sent.pop(stream.wire_id, None)
            stream.end(outcome, detail, now_s)
            self._on_finish(stream)

    def _dispatch(self, action: Dispatch) -> None:
        stream = self.streams[action.request_id]
        self._sent.pop(stream.wire_id, None)
        self.placements += 1
        stream.placed(action.decision, self._clock())
        stream.sent(action.attempt, action.resumed)
        if self._tracing is not None:
            self._tracing.sent(stream)
        self._sent[stream.wire_id] = stream
        if stream.shape.lane == "by_proxy":
            stream.wake()
        port = self.ports.get(action.node_id)
        if port is not None:
            port.dispatch(action.dispatch_seq, stream)
            return
        self.post(
            StreamEnded(
                request_id=action.request_id,
                node_id=action.node_id,
                outcome=Outcome.NODE_LOST,
                detail=f"the session with {action.node_id} was gone at dispatch",
                attempt=action.attempt,
            )
        )

    def _stage(self, action: Dispatch) -> None:
        stream, port = self.streams[action.request_id], self.ports.get(action.node_id)
        wire_id = attempt_id(action.request_id, action.attempt)
        assert action.resumed is not None, "a stage says how much of the request it is"
        self._stages[wire_id] = action
        if self._tracing is not None:
            stream.stage_traceparent = self._tracing.staged(stream, action.node_id)
        if port is not None:
            port.stage(action.dispatch_seq, stream, wire_id, action.resumed.prompt_tokens, action.kv_source)
        else:
            self._stage_ended(action.node_id, wire_id, Outcome.NODE_LOST, "its session was gone at dispatch")

    def _placed(self, action: Placed, now_s: float) -> None:
        stream = self.streams.pop(action.request_id)
        self.placements += 1
        stream.placed(action.decision, self._clock())
        port = self.ports.get(action.decision.node_id)
        if port is not None:
            shape = stream.shape
            port.reserve(
                Candidate(
                    request_id=shape.request_id,
                    prompt_tokens=shape.prompt_tokens,
                    max_output_tokens=shape.max_output_tokens,
                    belief=shape.belief,
                    priority=shape.priority,
                    model=shape.model,
                )
            )
        self._end(stream, Outcome.STOP, "", now_s)

    def _start_timer(self, timer_id: int, at_s: float) -> None:
        def fire() -> None:
            now_s = self._clock()
            if now_s >= at_s:
                self.post(TimerFired(timer_id=timer_id))
            elif self.router.wants(timer_id):
                # A loop's timers are coarser than the clock (uvloop: 1 ms) and may run early.
                self._call_at(min(at_s, now_s + LONGEST_TIMER_S), fire)

        self._call_at(min(at_s, self._clock() + LONGEST_TIMER_S), fire)
