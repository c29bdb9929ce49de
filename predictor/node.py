"""One node at run time: the engine adapter, what is known of it, and the requests that run through this daemon.

Shell: reads the clock, follows the trace, forwards requests. What follows from that is `predictor.core`'s to say. All
methods run on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, cast

import msgspec
import structlog

from engine_adapters.base import EngineClient, EngineError, EngineOutput, EngineProbe, EngineRequest, RequestRefused
from length_model.core.belief import DEFAULT_PRIOR, truncated
from predictor.core.calibration import Calibration
from predictor.core.estimator import Estimator, Refused
from predictor.core.step_learning import Learned
from predictor.notices import tell_learned, tell_rules, tell_trust
from simcore.cost.step_time import StepTimeModel
from simcore.trace import CacheDelta, TraceSnapshot
from simcore.types import Candidate, EngineConfig, Forecast, LengthBelief, NodeLoad, Outcome

log = structlog.get_logger("predictor")

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
HOUSEKEEPING_S = 1.0
SNAPSHOT_TIMEOUT_S = 30.0
INLINE_S = 0.001
"""What-ifs that take longer than this run on a thread, so that tokens and dispatches do not wait for them."""
SMOOTHING = 0.2
COUNTS_SPREAD = 0.4
"""How far forecasts are thought to stray at first where only counts are known of the engine."""


class End(msgspec.Struct, frozen=True, kw_only=True):
    """How a request ended here."""

    outcome: Outcome
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    detail: str = ""


Sink = Callable[[str, Sequence[int], End | None], None]
"""Takes (request id, new token ids, how it ended or None). Called on the event loop; must not raise."""
Answers = list[Forecast | Refused]


class _Flight:
    """One request between the engine and its sink."""

    __slots__ = ("arrived_s", "first_s", "node", "output_tokens", "request", "sink")

    def __init__(self, node: Node, request: EngineRequest, sink: Sink) -> None:
        self.node = node
        self.request = request
        self.sink = sink
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
                self.node.calibration.first_token(request_id, self.first_s)
            self.output_tokens += len(tokens)
        if output.finish is None:
            self.sink(request_id, tokens, None)
        elif output.finish != "aborted":
            self._end(Outcome(output.finish), tokens, output.cached_tokens)
        elif self.node.closing:
            self._end(Outcome.NODE_LOST, detail=f"node {self.node.node_id} is shutting down")
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
        self.node._ended(self, end)
        self.sink(self.request.request_id, tokens, end)


class Node:
    """`start`, then use, then `close`."""

    def __init__(
        self,
        node_id: str,
        client: EngineClient,
        probe: EngineProbe,
        *,
        profile: StepTimeModel,
        reservation_ttl_s: float,
        scenarios: int,
        ask_engine: bool = True,
        calibrate: bool = True,
    ) -> None:
        """`profile` holds while the engine does not know its own step times, or is not asked (`ask_engine`); with
        `calibrate` it is only where learning begins."""
        self.node_id = node_id
        self.closing = False
        self.calibration = Calibration()
        self.resyncs = 0
        """Gaps in the trace so far (a count)."""
        self.forecasts_total = 0
        self._client = client
        self._probe = probe
        self._profile = profile
        self._ttl_s = reservation_ttl_s
        self._scenarios = scenarios
        self._ask_engine = ask_engine
        self._calibrate = calibrate
        self._learned_version = 0
        self._estimator: Estimator | None = None
        self._flights: dict[str, _Flight] = {}
        self._listeners: list[Callable[[], None]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._asked: list[tuple[Sequence[Candidate], Callable[[Answers], None]]] = []
        self._simulating: asyncio.Task[None] | None = None
        self._simulation_s = 0.0
        """Smoothed time of one what-if."""
        # One thread: the simulation is one state with one owner, and lets go of the interpreter while it runs.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="simulation")

    async def start(self) -> None:
        """Until the engine runs and its first snapshot is here. Raises EngineError."""
        await self._client.start()
        step_time = (self._client.step_time() if self._ask_engine else None) or self._profile
        can = self._client.capabilities
        if not can.per_request_trace:
            self.calibration = Calibration(prior_spread=COUNTS_SPREAD)
        tell_rules(self._client.config())
        self._estimator = Estimator(
            self.node_id,
            self._client.config(),
            step_time,
            scenarios=self._scenarios,
            source="simulated" if can.per_request_trace and can.exact_rules else "approximate",
            calibrate=self._calibrate,
        )
        first = asyncio.Event()
        self._tasks = [
            asyncio.create_task(self._follow(first), name="trace"),
            asyncio.create_task(self._housekeep(), name="housekeeping"),
        ]
        try:
            await asyncio.wait_for(first.wait(), SNAPSHOT_TIMEOUT_S)
        except TimeoutError:
            raise EngineError(f"the engine sent no snapshot of its state within {SNAPSHOT_TIMEOUT_S:g} s") from None

    async def close(self) -> None:
        """Aborts what runs and lets go of the engine. Idempotent."""
        self.closing = True
        await self._client.close()
        tasks = [*self._tasks, *([self._simulating] if self._simulating is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._thread.shutdown(wait=False, cancel_futures=True)

    # --- what is known ------------------------------------------------------------------------------------------------

    @property
    def estimator(self) -> Estimator:
        assert self._estimator is not None, "the node is not started"
        return self._estimator

    @property
    def config(self) -> EngineConfig:
        return self._client.config()

    @property
    def profile(self) -> str:
        """Name of the step-time profile in use, as gpu/model."""
        return self.estimator.step_time.name

    @property
    def learned(self) -> Learned | None:
        """What the trace has taught of the step times; None when that is switched off."""
        learner = self.estimator.learner
        return None if learner is None else learner.learned()

    def ask(self, candidates: Sequence[Candidate], deliver: Callable[[Answers], None]) -> None:
        """What-ifs from the state as it is now or a little later. `deliver` gets one answer per candidate: before this
        returns if the simulation is short, else when a thread has run it, together with what was asked meanwhile."""
        if self._simulating is None and self._simulation_s * len(candidates) < INLINE_S:
            began_s = time.thread_time()
            answers = self.estimator.forecast(candidates, time.monotonic())
            deliver(self._answered(answers, time.thread_time() - began_s))
            return
        self._asked.append((candidates, deliver))
        if self._simulating is None:
            self._simulating = asyncio.create_task(self._simulate(), name="simulation")

    async def forecast(self, candidates: Sequence[Candidate]) -> Answers:
        answered: asyncio.Future[Answers] = asyncio.get_running_loop().create_future()

        def deliver(answers: Answers) -> None:
            if not answered.done():
                answered.set_result(answers)

        self.ask(candidates, deliver)
        return await answered

    async def _simulate(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._asked:
                asked, self._asked = self._asked, []
                simulation = self.estimator.begin([c for candidates, _ in asked for c in candidates], time.monotonic())
                answers = self._answered(*await loop.run_in_executor(self._thread, _timed, simulation))
                at = 0
                for candidates, deliver in asked:
                    deliver(answers[at : at + len(candidates)])
                    at += len(candidates)
        finally:
            self._simulating = None

    def _answered(self, answers: Answers, took_s: float) -> Answers:
        """The answers to give, corrected by experience. `took_s` is processor time: on a busy machine waiting for a
        core must not look like a long simulation."""
        self.forecasts_total += len(answers)
        if answers:
            self._simulation_s += SMOOTHING * (took_s / len(answers) - self._simulation_s)
        now_s = time.monotonic()
        return [self.calibration.forecast(a, now_s) if isinstance(a, Forecast) else a for a in answers]

    def load(self) -> NodeLoad | None:
        load = self.estimator.load(time.monotonic())
        return load if load is None or self.calibration.trusted else msgspec.structs.replace(load, trusted=False)

    def age_s(self) -> float:
        return self.estimator.age_s(time.monotonic())

    def listen(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Calls `changed` whenever state or reservations have changed, until the returned function is called."""
        self._listeners.append(changed)
        return lambda: self._listeners.remove(changed)

    # --- requests -----------------------------------------------------------------------------------------------------

    def reserve(self, candidate: Candidate, ttl_s: float | None = None) -> float:
        """Counts a request that will come by other means; the seconds for which it is held."""
        held_s = ttl_s or self._ttl_s
        self.estimator.reserve(candidate, now_s=time.monotonic(), ttl_s=held_s)
        self._changed()
        return held_s

    def release(self, request_id: str) -> bool:
        found = self.estimator.release(request_id)
        if found:
            self._changed()
        return found

    def dispatch(self, request: EngineRequest, belief: LengthBelief | None, sink: Sink) -> None:
        """Reserves and generates. Raises RequestRefused or EngineError; then the sink is never called."""
        request_id = request.request_id
        if not request_id:
            raise RequestRefused("request_id is empty; give each request a name of its own")
        if request_id in self._flights:
            raise RequestRefused(f"request {request_id!r} runs here already; give each request a name of its own")
        if request.emulated_output_tokens and not self._client.capabilities.settable_length:
            raise RequestRefused("emulated_output_tokens is for emulated engines; leave it out, or use ignore_eos")
        if self.closing:
            raise EngineError(f"node {self.node_id} is shutting down")
        flight = _Flight(self, request, sink)
        candidate = Candidate(
            request_id=request_id,
            prompt_tokens=len(request.prompt_token_ids),
            max_output_tokens=request.max_tokens,
            belief=truncated(belief or DEFAULT_PRIOR, request.max_tokens),
            priority=request.priority,
        )
        if not (self.calibration.trusted or self.calibration.awaits(request_id) or self._simulating):
            # Nobody asks a node that is not trusted: it asks itself, or it could never win trust back.
            self._answered(self.estimator.forecast([candidate], flight.arrived_s), self._simulation_s)
        self._client.submit(request, flight)
        self._flights[request_id] = flight
        self.estimator.reserve(candidate, now_s=flight.arrived_s, ttl_s=self._ttl_s, sent=True)
        self.calibration.dispatched(request_id, flight.arrived_s)
        self._changed()

    async def abort(self, request_id: str) -> bool:
        return await self._client.abort(request_id)

    def abandon(self, request_ids: Iterable[str]) -> None:
        """Aborts requests whose owner has gone, without waiting for the engine."""
        for request_id in request_ids:
            task = asyncio.create_task(self._abandon(request_id))
            self._tasks.append(task)
            task.add_done_callback(self._tasks.remove)

    async def _abandon(self, request_id: str) -> None:
        try:
            await self._client.abort(request_id)
        except EngineError as error:
            log.warning("abort failed", request_id=request_id, detail=str(error))

    def _ended(self, flight: _Flight, end: End) -> None:
        now_s = time.monotonic()
        request_id = flight.request.request_id
        del self._flights[request_id]
        complete = end.outcome in (Outcome.STOP, Outcome.LENGTH)
        if self.calibration.ended(request_id, now_s, complete=complete, output_tokens=end.output_tokens):
            tell_trust(self.calibration)
            self._changed()
        if self.estimator.release(request_id):
            self._changed()
        log.info(
            "request finished",
            request_id=request_id,
            outcome=end.outcome.value,
            prompt_tokens=end.prompt_tokens,
            output_tokens=end.output_tokens,
            ttft_s=None if flight.first_s is None else round(flight.first_s - flight.arrived_s, 6),
            e2e_s=round(now_s - flight.arrived_s, 6),
            **({"detail": end.detail} if end.detail else {}),
        )

    # --- the trace ----------------------------------------------------------------------------------------------------

    async def _follow(self, first: asyncio.Event) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                await self._read_trace(first)
                pause_s = FIRST_PAUSE_S
                continue
            except EngineError as error:
                self.estimator.on_disconnect()
                self._changed()
                if self.closing:
                    return
                log.warning("trace is broken", detail=str(error), again_in_s=pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)

    async def _read_trace(self, first: asyncio.Event) -> None:
        """One trace, until a delta is lost. Raises EngineError."""
        estimator = self.estimator
        # Protocols promise an iterator; adapters write generators, which want to be closed.
        async with aclosing(cast(Any, self._probe.watch())) as trace:
            async for item in trace:
                if isinstance(item, TraceSnapshot):
                    estimator.on_snapshot(item, time.monotonic())
                    first.set()
                elif isinstance(item, CacheDelta):
                    if estimator.on_cache(item):
                        self.resyncs += 1
                        log.warning("trace of the prefix cache has a gap, reading it anew", got=item.number)
                        return
                    continue
                elif estimator.on_delta(item, time.monotonic()):
                    self.resyncs += 1
                    log.warning("trace has a gap, reading it anew", expected_after=estimator.version, got=item.seq)
                    return
                self._changed()
        raise EngineError("the engine ended its trace")

    async def _housekeep(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            late = self.estimator.expire(time.monotonic())
            if late:
                log.warning("reservations expired", request_ids=late)
                self._changed()
            learned = self.learned
            if learned is not None and learned.version != self._learned_version:
                self._learned_version = learned.version
                tell_learned(learned, self.profile)

    def _changed(self) -> None:
        for changed in self._listeners:
            changed()


def _timed(simulation: Callable[[], Answers]) -> tuple[Answers, float]:
    """Its answers and the processor seconds of this thread that they took."""
    began_s = time.thread_time()
    return simulation(), time.thread_time() - began_s
