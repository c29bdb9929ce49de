"""One node at run time: its engine, what is known of it, and the requests that run through this daemon.

Shell: everything that waits or reads the clock is in three parts, one job each; what follows from what they see is
`predictor.core`'s to say. All methods run on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable

import msgspec
import structlog

from engine_adapters.base import EngineClient, EngineError, EngineProbe
from engine_adapters.forwarding import BodyFeed
from predictor.asking import Asking
from predictor.core.calibration import Calibration
from predictor.core.lease import LeaseKeeper
from predictor.core.leaving import Leaving
from predictor.core.lookout import EVERY_S as LOOK_EVERY_S
from predictor.core.node_predictor import NodePredictor
from predictor.core.step_learning import Learned
from predictor.core.traced_engine import TracedEngine
from predictor.held_reply import NAMES_CHANGE, HeldReply
from predictor.news import NewsRelay
from predictor.notices import log_learned, log_rules
from predictor.requests import ForwardOrder, ReplySink, Requests
from predictor.spans import NodeSpans
from predictor.trace import TraceFollower
from simcore.cost.step_time import StepTimeModel
from simcore.types import Candidate, EngineConfig, NodeLoad, NodePace

log = structlog.get_logger("predictor")

HOUSEKEEPING_S = 1.0
ADAPTERS_S = 1.0
"""Time between two looks at which adapters are in use, where the engine tells."""


class NodeRuntime:
    """Engine, predictor and requests of one daemon: `start`, then use, then `close`."""

    config: EngineConfig
    """The engine's limits, and its names as they are now: another object when they have changed. It and what is below
    are there after `start`."""
    engine: TracedEngine
    """What is known of the engine."""
    predictor: NodePredictor
    asking: Asking
    requests: Requests
    trace: TraceFollower

    def __init__(
        self,
        node_id: str,
        client: EngineClient,
        probe: EngineProbe,
        *,
        profile: StepTimeModel,
        reservation_ttl_s: float,
        scenarios: int,
        profile_ahead: StepTimeModel | None = None,
        models_every_s: float = 10.0,
        own_chats: bool = False,
        engine_address: str = "",
        kv_source: str = "",
        ask_engine: bool = True,
        calibrate: bool = True,
        spans: NodeSpans | None = None,
        prepare: Callable[[EngineConfig], Awaitable[None]] | None = None,
    ) -> None:
        """`profile` holds while the engine does not know its own step times, or is not asked (`ask_engine`), and
        `profile_ahead` in its place where the engine schedules asynchronously: its host works beside the device. With
        `calibrate` that is only where learning begins. `models_every_s`: between two looks at the engine's names.
        `own_chats`: the engine's server words all chats itself. `engine_address`, `kv_source`: as in
        `EngineConfig`. `prepare` is waited for once it is known what the engine is, before anything is simulated."""
        self.node_id = node_id
        self.closing = False
        self.leaving = Leaving()
        self.lease = LeaseKeeper(time.monotonic())
        self.news = NewsRelay()
        """Between the gateways that ask for that lease."""
        self.adapters: tuple[str, ...] | None = None
        """LoRA adapters that requests in the engine use; None: it does not tell."""
        self._client = client
        self._probe = probe
        self._profile = profile
        self._profile_ahead = profile_ahead or profile
        self._ttl_s = reservation_ttl_s
        self._scenarios = scenarios
        self._ask_engine = ask_engine
        self._calibrate = calibrate
        self._models_every_s = models_every_s
        self._own_chats = own_chats
        self._engine_address = engine_address
        self._kv_source = kv_source
        self._spans = spans
        self._prepare = prepare
        self._learned_version = 0
        self._looking = asyncio.Lock()
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._listeners: list[Callable[[], None]] = []

    async def start(self) -> None:
        """Starts the engine and returns when it runs and its first snapshot is here. Raises EngineError."""
        await self._client.start()
        can = self._client.capabilities
        config = self._client.config()
        self.config = msgspec.structs.replace(
            config,
            forwards=can.forwards,
            tells_logprobs=can.logprobs,
            own_chats=can.forwards and (self._own_chats or config.own_chats),
            address=self._engine_address,
            kv_source=self._kv_source,
        )
        log_rules(self.config)
        if self._prepare is not None:
            await self._prepare(self.config)
        told = self._profile_ahead if config.async_scheduling else self._profile
        self.engine = TracedEngine(
            self.node_id,
            self.config,
            (self._client.step_time() if self._ask_engine else None) or told,
            scenarios=self._scenarios,
            reservation_ttl_s=self._ttl_s,
            calibrate=self._calibrate,
        )
        self.predictor = NodePredictor(
            self.engine,
            Calibration() if can.per_request_trace else Calibration.of_counts(),
            source="simulated" if can.per_request_trace and can.exact_rules else "approximate",
        )
        self.asking = Asking(self.predictor)
        self.requests = Requests(
            self.node_id, self._client, self.engine, self.predictor, self.asking, self._changed, self._spans
        )
        self.trace = TraceFollower(self._probe, self.engine, self._changed)
        self._tasks = (
            asyncio.create_task(self._housekeep(), name="housekeeping"),
            asyncio.create_task(self._look_ahead(), name="looking ahead now and then"),
            asyncio.create_task(self._follow_names(), name="served names"),
            asyncio.create_task(self._follow_adapters(), name="adapters in use"),
        )
        await self.trace.start()

    async def close(self) -> None:
        """Aborts what runs and lets go of the engine. Idempotent."""
        self.closing = True
        if self._tasks:
            self.requests.closing = True
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, self.trace.close(), return_exceptions=True)
        await self._client.close()
        if self._tasks:
            await self.asking.close()
            await self.requests.close()

    @property
    def profile(self) -> str:
        """Name of the step-time profile in use, as gpu/model."""
        return self.engine.step_time.name

    @property
    def learned(self) -> Learned | None:
        """What the trace has taught of the step times; None when that is switched off."""
        learner = self.engine.learner
        return None if learner is None else learner.learned()

    @property
    def pace(self) -> NodePace:
        """How fast the engine works: another object when that has changed."""
        return self.engine.pace

    def load(self) -> NodeLoad | None:
        return self.predictor.load(time.monotonic())

    def age_s(self) -> float:
        return self.engine.age_s(time.monotonic())

    def reserve(self, candidate: Candidate, ttl_s: float | None = None) -> float:
        """Counts a request that will come by other means; the seconds for which it is held."""
        held_s = ttl_s or self._ttl_s
        self.engine.reserve(candidate, now_s=time.monotonic(), ttl_s=held_s)
        self._changed()
        return held_s

    def release(self, request_id: str) -> bool:
        """A reserved request will not come. False if it was not reserved."""
        was_reserved = self.engine.release(request_id)
        if was_reserved:
            self._changed()
        return was_reserved

    def announce(self, candidate: Candidate, *, is_unnamed: bool) -> None:
        """A proxy takes this request to the engine, which will call it by its name unless `is_unnamed`."""
        self.engine.dispatched(candidate, time.monotonic(), by_others=True)
        if is_unnamed:
            self.engine.comes_unnamed(candidate.request_id)
        self._changed()

    def withdraw(self, request_id: str) -> None:
        """An announced request has ended, or will not come."""
        self.engine.ended(request_id)
        self._changed()

    def retire(self, *, undo: bool, by: str) -> None:
        """The node is to leave, or to stay after all, says the gateway `by`."""
        is_empty = self._is_empty()
        changed = self.leaving.undo(is_empty=is_empty) if undo else self.leaving.retire(is_empty=is_empty)
        self.requests.retiring = self.leaving.retiring
        if changed:
            log.info("the node stays" if undo else "the node is to leave", gateway=by, running=len(self.requests))
            self._changed()

    def forward(self, order: ForwardOrder, body: BodyFeed, sink: ReplySink) -> None:
        """As `Requests.forward`. What a call changes of the engine's names is known before its reply is told."""
        if order.call.target.partition("?")[0].endswith(NAMES_CHANGE):
            sink = HeldReply(sink, self._look_at_names)
        self.requests.forward(order, body, sink)

    def listen(self, on_change: Callable[[], None]) -> Callable[[], None]:
        """Calls `on_change` whenever what is known may have changed, until the returned function is called."""
        self._listeners.append(on_change)
        return lambda: self._listeners.remove(on_change)

    async def _housekeep(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            late = self.engine.expire(time.monotonic())
            if late or self.leaving.retiring:
                self._changed()
            if late:
                log.warning("reservations expired", request_ids=late)
            learner = self.engine.learner
            if learner is not None and learner.version != self._learned_version:
                self._learned_version = learner.version
                log_learned(learner.learned(), self.profile)

    async def _look_ahead(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if self.predictor.is_look_due(time.monotonic()):
                self.asking.look_ahead(self._changed)

    async def _follow_names(self) -> None:
        jitter = random.Random()
        while True:
            await asyncio.sleep(self._models_every_s * jitter.uniform(0.8, 1.2))
            await self._look_at_names()

    async def _look_at_names(self) -> None:
        # One after the other: what was read before must not be told after.
        async with self._looking:
            try:
                names = await self._client.names()
            except EngineError:
                # It is restarted, or busy: whether it is well is the trace's to say.
                return
        before = self.config.names
        if names != before:
            log.info(
                "the engine serves other names",
                model=names[0],
                come=[name for name in names if name not in before],
                gone=[name for name in before if name not in names],
            )
            self.config = msgspec.structs.replace(self.config, model=names[0], other_names=names[1:])
            self._changed()

    async def _follow_adapters(self) -> None:
        jitter = random.Random()
        while True:
            with contextlib.suppress(EngineError):
                # An engine with one name has no adapters.
                told = await self._client.adapters() if self.config.other_names else None
                if told != self.adapters:
                    self.adapters = told
                    self._changed()
            pause_s = self._models_every_s if self.adapters is None else ADAPTERS_S
            await asyncio.sleep(pause_s * jitter.uniform(0.8, 1.2))

    def _is_empty(self) -> bool:
        """Whether nothing runs or is expected here, by whatever way it came."""
        load = self.load()
        return not self.requests and load is not None and not (load.running or load.waiting)

    def _changed(self) -> None:
        if self.leaving.retiring and not self.leaving.has_left and self.leaving.look(is_empty=self._is_empty()):
            log.info("the node has left: nothing runs here any more")
        for on_change in self._listeners:
            on_change()
