"""A simulated engine on the wall clock, behind the same Protocols as a real one. The embedded default.

`simcore.node` schedules; this module waits. Steps follow each other on a virtual schedule (a step begins where the last
one ended, not where the process woke up), so that late wake-ups do not add up: a process that has fallen behind runs
its steps without waiting until it has caught up, and says so in the log and in `pacing()`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence

import msgspec
import structlog

from engine_adapters.base import (
    Capabilities,
    EngineError,
    EngineOptions,
    EngineOutput,
    EngineRequest,
    FinishReason,
    OutputSink,
    RequestRefused,
)
from engine_adapters.emulated_answer import Answer, made_up_logprobs, natural_length
from engine_adapters.emulated_api.server import EmulatedApi
from engine_adapters.forwarding import BodyFeed, ForwardCall, ForwardSink
from engine_adapters.streaming import stream
from engine_adapters.tokenizer import StreamDecoder, load_tokenizer, tokenizer_info
from simcore.cache_content import CacheContent
from simcore.cost.step_time import StepTimeModel
from simcore.node import SimNode, SimRequest
from simcore.prefix import block_hashes
from simcore.trace import CacheDelta, TraceDelta, TraceItem
from simcore.types import EngineConfig, TokenLogprobs

log = structlog.get_logger("engine_adapters.emulated")

WATCH_BUFFER_DELTAS = 512
"""Deltas kept for a watcher that does not read; older ones are lost to it, and the sequence numbers show that."""
LATE_S = 0.05
"""A step that ends later than this is worth a warning, at most one per WARN_EVERY_S."""
WARN_EVERY_S = 10.0


class Pacing(msgspec.Struct, frozen=True):
    """How well the wall clock was kept since the last reading."""

    steps: int
    mean_late_s: float
    max_late_s: float


class _Running:
    """One request in the engine."""

    __slots__ = ("answer", "cached_tokens", "finish", "logprobs", "sink", "stop_token_ids")

    def __init__(
        self,
        answer: Iterator[int],
        finish: FinishReason,
        sink: OutputSink,
        *,
        stop_token_ids: tuple[int, ...] = (),
        logprobs: int | None = None,
    ) -> None:
        self.answer = answer
        self.cached_tokens: int | None = None
        """Of its prompt, when it was first admitted; None before that."""
        self.stop_token_ids = stop_token_ids
        self.logprobs = logprobs
        self.finish = finish
        self.sink = sink


class _Watcher:
    """Deltas on their way to one reader."""

    def __init__(self) -> None:
        self.items: deque[TraceItem] = deque(maxlen=WATCH_BUFFER_DELTAS)
        self.ready = asyncio.Event()
        self.wants_snapshot = True

    def push(self, item: TraceItem) -> None:
        self.items.append(item)
        self.ready.set()


class EmulatedEngine:
    """A simulated engine on the wall clock, client and probe in one; takes calls of vLLM's HTTP API too."""

    capabilities = Capabilities(
        per_request_trace=True, exact_rules=True, settable_length=True, logprobs=True, forwards=True
    )

    def __init__(self, options: EngineOptions) -> None:
        if options.config is None or options.step_time is None:
            raise EngineError("the emulated engine needs its limits (config) and a step-time profile")
        if not options.time_scale > 0:
            raise EngineError(f"time_scale must be > 0, got {options.time_scale}")
        config = options.config
        self._config = config = msgspec.structs.replace(config, prefix_cache_traced=config.enable_prefix_caching)
        self._step_time = options.step_time.scaled(1.0 / options.time_scale)
        self._tokenizer = options.tokenizer
        self._text_ids = tokenizer_info(options.tokenizer).text_ids
        self._node = SimNode(options.node_id, config, self._step_time)
        self._cache = CacheContent(self._node)
        self._cache_number = 0
        self._api = EmulatedApi(self, options.tokenizer)
        self._warm = options.warm_tokenizer
        self._here: dict[str, _Running] = {}
        self._aborted: list[str] = []
        self._idle_deltas = 0
        self._in_step = False
        self._watchers: list[_Watcher] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failure: EngineError | None = None
        self._pacing = [0, 0.0, 0.0]
        self._warned_s = -WARN_EVERY_S

    async def start(self) -> None:
        if self._task is None:
            if self._warm:
                await self._api.warm_up()
            self._task = asyncio.create_task(self._run(), name="emulated engine")

    async def close(self) -> None:
        if self._failure is None:
            self._failure = EngineError("the engine was closed")
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            kept = self.pacing()
            if kept.steps:
                log.info(
                    "emulated engine closed",
                    steps=kept.steps,
                    mean_late_ms=round(1e3 * kept.mean_late_s, 3),
                    max_late_ms=round(1e3 * kept.max_late_s, 3),
                )
        self._api.close()
        for request_id in list(self._here):
            self._abort(request_id)
        for watcher in self._watchers:
            watcher.ready.set()

    def config(self) -> EngineConfig:
        return self._config

    async def names(self) -> tuple[str, ...]:
        return self._config.names

    async def adapters(self) -> None:
        """Adapters have no weights here, so it is all one where they are used."""

    def offer(self, name: str, offered: bool) -> None:
        """Serves its model under one more name, or no longer under that one."""
        others = tuple(known for known in self._config.other_names if known != name)
        self._config = msgspec.structs.replace(self._config, other_names=(*others, name) if offered else others)

    def step_time(self) -> StepTimeModel:
        return self._step_time

    def pacing(self) -> Pacing:
        """How late steps ended since the last call; starts a new count."""
        steps, total_s, worst_s = self._pacing
        self._pacing = [0, 0.0, 0.0]
        return Pacing(int(steps), total_s / steps if steps else 0.0, worst_s)

    def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        return stream(self, request)

    def submit(self, request: EngineRequest, sink: OutputSink, prompt: Sequence[int] = ()) -> None:
        """As `EngineClient.submit`. `prompt`: what the prefix cache keeps it by, where that is not what it says."""
        if self._failure is not None:
            raise self._failure
        if self._task is None:
            raise EngineError("the engine is not started")
        tokens, finish = self._length(request)
        words = Answer(request.prompt_token_ids, self._text_ids)
        answer = [words.next_token() for _ in range(tokens)]
        running = _Running(iter(answer), finish, sink, stop_token_ids=request.stop_token_ids, logprobs=request.logprobs)
        self._enter(request, prompt or request.prompt_token_ids, answer, running)

    def submit_script(
        self, request: EngineRequest, script: Sequence[int], sink: OutputSink, prompt: Sequence[int] = ()
    ) -> None:
        """As `submit`, with the answer's tokens given (at least one); it ends with them, or at `max_tokens`."""
        if self._failure is not None:
            raise self._failure
        limit = min(request.max_tokens, self._room(request))
        if limit < 1:
            raise RequestRefused(self._too_long(request))
        running = _Running(iter(script), "stop" if len(script) <= limit else "length", sink)
        self._enter(request, prompt or request.prompt_token_ids, script[:limit], running)

    def forward(self, call: ForwardCall, body: BodyFeed, sink: ForwardSink) -> None:
        if self._failure is not None:
            raise self._failure
        if self._task is None:
            raise EngineError("the engine is not started")
        self._api.forward(call, body, sink)

    def hold(self, request_id: str, held: bool) -> None:
        self._api.hold(request_id, held)

    async def abort(self, request_id: str) -> bool:
        return self._api.abort(request_id) or self._abort(request_id)

    def drop(self, request_id: str) -> bool:
        """As `abort`, at once, of a request in the scheduler."""
        return self._abort(request_id)

    async def watch(self) -> AsyncIterator[TraceItem]:
        watcher = _Watcher()
        if not self._in_step:
            self._send_snapshot(watcher, time.monotonic())
        self._watchers.append(watcher)
        try:
            while True:
                while watcher.items:
                    yield watcher.items.popleft()
                if self._failure is not None:
                    raise self._failure
                watcher.ready.clear()
                await watcher.ready.wait()
        finally:
            self._watchers.remove(watcher)

    def _enter(self, request: EngineRequest, prompt: Sequence[int], answer: Sequence[int], running: _Running) -> None:
        names: tuple[int, ...] = ()
        if self._config.enable_prefix_caching:
            # What is said is cached as what was asked is: a next turn begins with both.
            names = block_hashes((*prompt, *answer), self._config.block_size_tokens)
        sim = SimRequest(
            request_id=request.request_id,
            prompt_tokens=len(request.prompt_token_ids),
            output_tokens=len(answer),
            block_hashes=names,
            max_output_tokens=min(request.max_tokens, self._room(request)),
            priority=request.priority,
        )
        try:
            self._node.add(sim, time.monotonic())
        except ValueError as refused:
            raise RequestRefused(str(refused)) from None
        self._here[request.request_id] = running
        self._wake.set()

    async def _run(self) -> None:
        try:
            while True:
                if self._node.has_work:
                    await self._one_step()
                    continue
                if self._aborted:
                    self._publish_idle()
                self._wake.clear()
                await self._wake.wait()
        except asyncio.CancelledError:
            raise
        except Exception as defect:
            log.exception("emulated engine failed")
            self._failure = EngineError(f"the emulated engine failed: {defect!r}")
            for request_id, running in list(self._here.items()):
                del self._here[request_id]
                running.sink(request_id, self._failure)
            for watcher in self._watchers:
                watcher.ready.set()

    async def _one_step(self) -> None:
        delta = self._node.step(self._node.next_step_s)
        aborted, self._aborted = tuple(self._aborted), []
        # An idle engine has told of aborts that the node counts towards its next step.
        if self._idle_deltas or delta.aborted != aborted:
            delta = msgspec.structs.replace(delta, seq=delta.seq + self._idle_deltas, aborted=aborted)
        batch = []
        for entry in delta.scheduled:
            running = self._here[entry.request_id]
            if running.cached_tokens is None:
                running.cached_tokens = entry.cached_tokens
            if entry.produced:
                batch.append((entry.request_id, running, entry.produced))
        self._in_step = True
        # Also when late: others must get their turn between two steps.
        await asyncio.sleep(max(0.0, delta.end_s - time.monotonic()))
        self._in_step = False
        self._note_lateness(time.monotonic() - delta.end_s)
        self._publish(delta)
        finished = frozenset(delta.finished)
        here = self._here
        for request_id, running, produced in batch:
            # It may have been aborted (and even come again) while the step ran.
            if here.get(request_id) is not running:
                continue
            tokens = tuple([next(running.answer) for _ in range(produced)])
            logprobs: tuple[TokenLogprobs, ...] = ()
            if running.logprobs is not None:
                logprobs = tuple([made_up_logprobs(t, running.logprobs, self._text_ids) for t in tokens])
            if request_id in finished:
                del here[request_id]
                stopped = running.finish == "stop" and tokens[-1] in running.stop_token_ids
                stop_token_id = tokens[-1] if stopped else None
                cached_tokens = running.cached_tokens or 0
                running.sink(request_id, EngineOutput(tokens, running.finish, cached_tokens, stop_token_id, logprobs))
            else:
                running.sink(request_id, EngineOutput(tokens, logprobs=logprobs))

    def _abort(self, request_id: str) -> bool:
        running = self._here.pop(request_id, None)
        if running is None:
            return False
        if self._node.abort(request_id):
            self._aborted.append(request_id)
        running.sink(request_id, EngineOutput((), "aborted"))
        return True

    def _publish(self, delta: TraceDelta) -> None:
        stored, evicted = self._cache.look(1)
        if stored or evicted:
            self._cache_number += 1
        for watcher in self._watchers:
            if watcher.wants_snapshot:
                self._send_snapshot(watcher, delta.end_s)
                continue
            watcher.push(delta)
            if stored or evicted:
                watcher.push(CacheDelta(self._cache_number, False, tuple(stored), tuple(evicted)))

    def _publish_idle(self) -> None:
        """Aborts have left nothing to do: no step will tell of them, so an empty one does."""
        now_s = time.monotonic()
        self._idle_deltas += 1
        state = self._node.snapshot(now_s)
        delta = TraceDelta(
            seq=state.seq + self._idle_deltas,
            start_s=now_s,
            duration_s=0.0,
            aborted=tuple(self._aborted),
            free_blocks=state.free_blocks,
        )
        self._aborted.clear()
        self._publish(delta)

    def _send_snapshot(self, watcher: _Watcher, now_s: float) -> None:
        state = self._node.snapshot(now_s)
        watcher.push(msgspec.structs.replace(state, seq=state.seq + self._idle_deltas))
        if self._config.prefix_cache_traced:
            watcher.push(CacheDelta(self._cache_number, True, tuple(dict.fromkeys(self._cache.names())), ()))
        watcher.wants_snapshot = False

    def _note_lateness(self, late_s: float) -> None:
        pacing = self._pacing
        pacing[0] += 1
        pacing[1] += max(0.0, late_s)
        pacing[2] = max(pacing[2], late_s)
        if late_s > LATE_S:
            now_s = time.monotonic()
            if now_s - self._warned_s >= WARN_EVERY_S:
                self._warned_s = now_s
                log.warning("emulated engine is behind its schedule", late_s=round(late_s, 4), running=len(self._here))

    def _room(self, request: EngineRequest) -> int:
        """Output tokens that the engine can hold behind this prompt."""
        config = self._config
        kv_tokens = config.num_blocks * config.block_size_tokens
        # The last token is never computed, so it needs no slot.
        return min(config.max_model_len_tokens, kv_tokens + 1) - len(request.prompt_token_ids)

    def _length(self, request: EngineRequest) -> tuple[int, FinishReason]:
        """Tokens of the answer and why it ends there. Raises RequestRefused."""
        prompt = request.prompt_token_ids
        if request.max_tokens < 1:
            raise RequestRefused(f"max_tokens must be >= 1, got {request.max_tokens}")
        if not prompt:
            raise RequestRefused("the prompt has no tokens; send at least one")
        if "" in request.stop:
            raise RequestRefused("stop holds an empty text, which would end every answer: leave it out")
        room = self._room(request)
        if room < 1:
            raise RequestRefused(self._too_long(request))
        tokens, finish = min(request.max_tokens, room), "length"
        if not request.ignore_eos:
            natural = natural_length(prompt, self._text_ids, wanted_tokens=request.emulated_output_tokens)
            natural = max(natural, request.min_tokens)
            if natural <= tokens:
                tokens, finish = natural, "stop"
        if request.stop or request.stop_token_ids:
            stopped = self._stopped_at(request, tokens)
            if stopped:
                tokens, finish = stopped, "stop"
        return tokens, "stop" if finish == "stop" else "length"

    def _too_long(self, request: EngineRequest) -> str:
        config = self._config
        return (
            f"the prompt has {len(request.prompt_token_ids)} tokens; with one token of answer the engine takes "
            f"{config.max_model_len_tokens} (max_model_len_tokens) and holds "
            f"{config.num_blocks * config.block_size_tokens} in its KV cache: shorten the prompt"
        )

    def _stopped_at(self, request: EngineRequest, tokens: int) -> int:
        """How many tokens the answer has when a stop token or text appears; 0 if none does within `tokens`."""
        answer = Answer(request.prompt_token_ids, self._text_ids)
        decoder = StreamDecoder(load_tokenizer(self._tokenizer)) if request.stop else None
        ids = frozenset(request.stop_token_ids)
        longest = max((len(s) for s in request.stop), default=0)
        tail = ""
        for produced in range(1, tokens + 1):
            token = answer.next_token()
            early = produced <= request.min_tokens
            if token in ids and not early:
                return produced
            if decoder is not None:
                piece = decoder.push([token])
                tail += piece
                if not early and any(s in tail[-len(piece) - len(s) + 1 :] for s in request.stop if piece):
                    return produced
                tail = tail[-longest:]
        return 0
