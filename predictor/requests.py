"""The requests that run through this daemon: from dispatch to the engine's last token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence

import msgspec
import structlog

from engine_adapters.base import EngineClient, EngineError, EngineOutput, EngineRequest, RequestRefused
from length_model.core.belief import DEFAULT_PRIOR, truncated
from predictor.asking import Asking
from predictor.core.node_predictor import NodePredictor
from predictor.notices import log_trust
from simcore.types import Candidate, LengthBelief, Outcome

log = structlog.get_logger("predictor")


class End(msgspec.Struct, frozen=True, kw_only=True):
    """How a request ended here."""

    outcome: Outcome
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    detail: str = ""


Sink = Callable[[str, Sequence[int], End | None], None]
"""Takes (request id, new token ids, how it ended or None). Called on the event loop; must not raise."""


class _Running:
    """One request between the engine and its sink."""

    __slots__ = ("_owner", "_sink", "arrived_s", "first_s", "output_tokens", "request")

    def __init__(self, owner: Requests, request: EngineRequest, sink: Sink) -> None:
        self._owner = owner
        self._sink = sink
        self.request = request
        self.arrived_s = time.monotonic()
        self.first_s: float | None = None
        self.output_tokens = 0

    def __call__(self, request_id: str, output: EngineOutput | EngineError) -> None:
        if isinstance(output, EngineError):
            refused = isinstance(output, RequestRefused)
            self._end(Outcome.INVALID if refused else Outcome.ENGINE_FAILED, detail=str(output))
            return
        tokens = output.token_ids
        if tokens:
            if self.first_s is None:
                self.first_s = time.monotonic()
                self._owner.predictor.first_token(request_id, self.first_s)
            self.output_tokens += len(tokens)
        if output.finish is None:
            self._sink(request_id, tokens, None)
        elif output.finish != "aborted":
            self._end(Outcome(output.finish), tokens, output.cached_tokens)
        elif self._owner.closing:
            self._end(Outcome.NODE_LOST, detail=f"node {self._owner.node_id} is shutting down")
        else:
            self._end(Outcome.CANCELLED, tokens)

    def _end(self, outcome: Outcome, tokens: Sequence[int] = (), cached_tokens: int = 0, detail: str = "") -> None:
        end = End(
            outcome=outcome,
            prompt_tokens=len(self.request.prompt_token_ids),
            output_tokens=self.output_tokens,
            cached_tokens=cached_tokens,
            detail=detail,
        )
        self._owner.ended(self, end)
        self._sink(self.request.request_id, tokens, end)


class Requests:
    """All methods run on the event loop."""

    def __init__(
        self,
        node_id: str,
        client: EngineClient,
        predictor: NodePredictor,
        asking: Asking,
        on_change: Callable[[], None],
    ) -> None:
        """`on_change` is called when what is known of the node has changed."""
        self.node_id = node_id
        self.predictor = predictor
        self.closing = False
        """From then on none is taken, and those that the engine aborts are lost with the node."""
        self._client = client
        self._asking = asking
        self._on_change = on_change
        self._running: dict[str, _Running] = {}
        self._aborts: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def dispatch(self, request: EngineRequest, belief: LengthBelief | None, sink: Sink) -> None:
        """Hands it to the engine. Raises RequestRefused or EngineError; then the sink is never called."""
        request_id = request.request_id
        if not request_id:
            raise RequestRefused("request_id is empty; give each request a name of its own")
        if request_id in self._running:
            raise RequestRefused(f"request {request_id!r} runs here already; give each request a name of its own")
        if request.emulated_output_tokens and not self._client.capabilities.settable_length:
            raise RequestRefused("emulated_output_tokens is for emulated engines; leave it out, or use ignore_eos")
        if self.closing:
            raise EngineError(f"node {self.node_id} is shutting down")
        running = _Running(self, request, sink)
        self._client.submit(request, running)
        self._running[request_id] = running
        candidate = Candidate(
            request_id=request_id,
            prompt_tokens=len(request.prompt_token_ids),
            max_output_tokens=request.max_tokens,
            belief=truncated(belief or DEFAULT_PRIOR, request.max_tokens),
            priority=request.priority,
        )
        self.predictor.dispatched(candidate, running.arrived_s, busy=self._asking.is_simulating)
        self._on_change()

    async def abort(self, request_id: str) -> bool:
        """False: the engine has no such request."""
        return await self._client.abort(request_id)

    def abandon(self, request_ids: Iterable[str]) -> None:
        """Aborts requests whose owner has gone, without waiting for the engine."""
        for request_id in request_ids:
            task = asyncio.create_task(self._abandon(request_id))
            self._aborts.add(task)
            task.add_done_callback(self._aborts.discard)

    def ended(self, running: _Running, end: End) -> None:
        """The engine has ended it, well or badly."""
        now_s = time.monotonic()
        request_id = running.request.request_id
        del self._running[request_id]
        complete = end.outcome in (Outcome.STOP, Outcome.LENGTH)
        if self.predictor.ended(request_id, now_s, complete=complete, output_tokens=end.output_tokens):
            log_trust(self.predictor.calibration)
        self._on_change()
        log.info(
            "request finished",
            request_id=request_id,
            outcome=end.outcome.value,
            prompt_tokens=end.prompt_tokens,
            output_tokens=end.output_tokens,
            ttft_s=None if running.first_s is None else round(running.first_s - running.arrived_s, 6),
            e2e_s=round(now_s - running.arrived_s, 6),
            **({"detail": end.detail} if end.detail else {}),
        )

    async def close(self) -> None:
        """Lets go of aborts that are on their way. The engine is closed by then and has ended everything."""
        for task in self._aborts:
            task.cancel()
        await asyncio.gather(*self._aborts, return_exceptions=True)

    async def _abandon(self, request_id: str) -> None:
        try:
            await self._client.abort(request_id)
        except EngineError as error:
            log.warning("abort failed", request_id=request_id, detail=str(error))
