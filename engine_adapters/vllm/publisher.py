"""Serves the trace: one thread that turns finished steps into frames, one that lets readers in. Runs in the engine.

The engine's thread only puts references into a queue. A reader that does not keep up loses deltas, and the sequence
numbers show it; one that does not listen costs nothing but the account. Nothing here raises into the engine.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from engine_adapters.vllm.account import Account, Output, Step, Truth
from engine_adapters.vllm.address import TraceAddress
from engine_adapters.vllm.cache_names import CacheNames
from engine_adapters.vllm.cache_watch import CacheNotes
from engine_adapters.vllm.frames import (
    HEADER,
    SCHEMA,
    FrameError,
    Hello,
    PrefixCache,
    Refused,
    frame,
    pack_names,
    parse_attach,
    parse_header,
)
from engine_adapters.vllm.recorder import RawStep, arrival_of
from simcore.types import EngineConfig

log = logging.getLogger("vllm.astrolabe")

ATTACH_TIMEOUT_S = 2.0
MAX_BUFFERED_BYTES = 8 << 20
"""Bytes that may wait for one reader; what would go beyond is dropped."""
HEARTBEAT_S = 0.5
LONGEST_PAUSE_S = 0.05
"""How long the thread may leave a step that has ended in the queue while the engine is busy."""
SHORTEST_PAUSE_S = 0.001
PATIENCE_S = 1.0
"""After a step of a busy engine so long ago the thread waits to be woken."""
FLUSH_S = 0.02
"""How soon bytes that a reader's socket did not take are tried again."""
MAX_QUEUED_STEPS = 2048
"""Steps on their way to this thread; beyond them steps are dropped, and the account starts over."""
MISMATCHES_ALLOWED = 64
"""Steps for which account and engine may differ in the number of requests (some are freed late) before it restarts."""


class _Reader:
    """One connection. All calls come from the publisher's thread."""

    def __init__(self, connection: socket.socket, who: str, exclusive: bool) -> None:
        connection.setblocking(False)
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.connection = connection
        self.who = who
        self.exclusive = exclusive
        self.open = True
        self.unsent = bytearray()

    def send(self, data: bytes) -> None:
        if self.unsent:
            if len(self.unsent) + len(data) <= MAX_BUFFERED_BYTES:
                self.unsent += data
            self.flush()
            return
        sent = self._try(data)
        if sent < len(data):
            self.unsent += data[sent:]

    def flush(self) -> None:
        if self.unsent:
            del self.unsent[: self._try(self.unsent)]

    def close(self) -> None:
        self.open = False
        with contextlib.suppress(OSError):
            self.connection.close()

    def check(self) -> None:
        """Notices that the other side has left; a reader says nothing after it has attached."""
        try:
            if not self.connection.recv(4096):
                self.close()
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.close()

    def _try(self, data: bytes | bytearray) -> int:
        try:
            return self.connection.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self.close()
            return 0


class ReadingPace:
    """When to look for the next step of a busy engine. Pure.

    To wake a thread costs the engine's own a call of the system. So while steps follow each other the publisher comes
    by itself: a quarter of a step after the next one should have ended, when the engine has planned another and waits
    for its device; should it not have ended, then soon again.
    """

    def __init__(self) -> None:
        self._due_s = 0.0
        self._again_s = 0.0
        self._until_s = 0.0

    def ended(self, start_s: float, end_s: float, *, busy: bool) -> None:
        """A step, and whether another follows it."""
        duration_s = end_s - start_s
        self._due_s = end_s + min(1.25 * duration_s, LONGEST_PAUSE_S)
        self._again_s = min(max(SHORTEST_PAUSE_S, duration_s / 4), LONGEST_PAUSE_S / 4)
        self._until_s = end_s + PATIENCE_S if busy else 0.0

    def pause_s(self, now_s: float) -> float | None:
        """How long to sleep before the next look; None: wait to be woken."""
        if now_s >= self._until_s:
            return None
        return self._due_s - now_s if now_s + SHORTEST_PAUSE_S < self._due_s else self._again_s


class _Nothing:
    """Came out of the queue in time: look after the readers."""


class Publisher:
    """Serves one engine's trace to its readers; the recorder's Sink."""

    def __init__(self, *, config: EngineConfig, address: TraceAddress, settable_length: bool = False) -> None:
        """`settable_length` as in `Hello`."""
        self.wants_truth = False
        self._config = config
        self._settable_length = settable_length
        self._address = address
        self._queue: queue.SimpleQueue[RawStep | Truth | _Reader | None] = queue.SimpleQueue()
        self._account = Account(by_priority=config.scheduling_policy == "priority", free_blocks=config.num_blocks)
        self._readers: list[_Reader] = []
        self._server: socket.socket | None = None
        self._pace = ReadingPace()
        self._mismatches = 0
        self._cache = CacheNames(config.block_size_tokens)
        self._cache_number = 0
        self._cache_notes = CacheNotes(config.block_size_tokens)

    def start(self, server: socket.socket) -> None:
        self._server = server
        for name, work in (("astrolabe-trace", self._run), ("astrolabe-trace-accept", self._accept)):
            threading.Thread(target=work, name=name, daemon=True).start()

    def put(self, item: RawStep | Truth) -> None:
        if self._queue.qsize() > MAX_QUEUED_STEPS:
            self.wants_truth = True
        else:
            self._queue.put(item)

    def backlog(self) -> int:
        """Steps that wait for the thread."""
        return self._queue.qsize()

    def close(self) -> None:
        """Ends both threads; idempotent."""
        server, self._server = self._server, None
        if server is None:
            return
        self._queue.put(None)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()
        if self._address.path:
            with contextlib.suppress(OSError):
                os.unlink(self._address.path)

    def _accept(self) -> None:
        server = self._server
        while server is not None and self._server is server:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            try:
                self._queue.put(_greet(connection))
            except (FrameError, OSError) as error:
                with contextlib.suppress(OSError):
                    connection.settimeout(ATTACH_TIMEOUT_S)
                    connection.sendall(frame(Refused(str(error))))
                connection.close()

    def _run(self) -> None:
        beat_s = time.monotonic()
        while True:
            item = self._next()
            if item is None:
                for reader in self._readers:
                    reader.close()
                return
            try:
                now_s = time.monotonic()
                if isinstance(item, RawStep):
                    self._step(item)
                elif isinstance(item, Truth):
                    self._restart(item)
                elif isinstance(item, _Reader):
                    self._welcome(item)
                if now_s - beat_s >= HEARTBEAT_S:
                    beat_s = now_s
                    self._beat(now_s)
                for reader in self._readers:
                    reader.flush()
            except Exception:
                log.exception("astrolabe: a step could not be published; the trace starts over, the engine goes on")
                self.wants_truth = True
            self._readers = [r for r in self._readers if r.open]

    def _next(self) -> RawStep | Truth | _Reader | _Nothing | None:
        """Out of the queue, at which the engine's thread finds nobody to wake as long as it is busy (`ReadingPace`)."""
        if self._queue.empty():
            longest_s = FLUSH_S if any(r.unsent for r in self._readers) else HEARTBEAT_S
            pause_s = self._pace.pause_s(time.monotonic())
            if pause_s is None:
                with contextlib.suppress(queue.Empty):
                    return self._queue.get(timeout=longest_s)
                return _Nothing()
            time.sleep(min(pause_s, longest_s))
            if self._queue.empty():
                return _Nothing()
        return self._queue.get()

    def _step(self, raw: RawStep) -> None:
        self._pace.ended(raw.start_s, raw.end_s, busy=raw.alive > 0)
        account = self._account
        delta = account.apply(_step_of(raw))
        if delta is not None and self._readers:
            self._send(frame(delta))
        told = raw.kv_events
        if raw.cache_notes:
            told = list(self._cache_notes.events(raw.cache_notes))
        if told:
            changes = self._cache.apply(told)
            self._cache_number += 1
            self._send(frame(self._cache_frame(changes.stored, changes.evicted, cleared=changes.cleared)))
        if len(account) == raw.alive:
            self._mismatches = 0
            return
        self._mismatches += 1
        if self._mismatches == MISMATCHES_ALLOWED:
            log.warning(
                "astrolabe: account and engine differ (%d, %d requests); starting over", len(account), raw.alive
            )
            self.wants_truth = True

    def _restart(self, truth: Truth) -> None:
        """Steps were lost, and what they told of the prefix cache."""
        self._account.restart(truth)
        if self._config.prefix_cache_traced:
            self._cache.forget()
            self._cache_notes.forget()
            self._cache_number += 1
            self._send(frame(self._cache_frame((), (), cleared=True)))

    def _beat(self, now_s: float) -> None:
        for reader in self._readers:
            reader.check()
        if not len(self._account) and self._readers and not self._queue.qsize():
            self._send(frame(self._account.idle(now_s)))

    def _welcome(self, reader: _Reader) -> None:
        for other in self._readers:
            other.check()
        rival = next((r for r in self._readers if r.open and r.exclusive and r.who != reader.who), None)
        if rival is not None and reader.exclusive:
            reason = (
                f"the engine at {self._address} already has a daemon ({rival.who}); stop it before starting another"
            )
            reader.send(frame(Refused(reason)))
            reader.close()
            return
        reader.send(frame(Hello(SCHEMA, self._config, os.getpid(), self._settable_length)))
        reader.send(frame(self._account.snapshot(time.monotonic() if not len(self._account) else None)))
        if self._config.prefix_cache_traced:
            reader.send(frame(self._cache_frame(self._cache.all(), (), cleared=True)))
        self._readers.append(reader)

    def _send(self, data: bytes) -> None:
        for reader in self._readers:
            reader.send(data)

    def _cache_frame(self, stored: Sequence[int], evicted: Sequence[int], *, cleared: bool) -> PrefixCache:
        return PrefixCache(self._cache_number, cleared, pack_names(stored), pack_names(evicted))


def _greet(connection: socket.socket) -> _Reader:
    connection.settimeout(ATTACH_TIMEOUT_S)
    length, checksum = parse_header(_receive(connection, HEADER.size))
    if length > 4096:
        raise FrameError("a reader that begins with something else than `attach`")
    attach = parse_attach(_receive(connection, length), checksum)
    if attach.schema != SCHEMA:
        raise FrameError(
            f"this engine's trace has schema {SCHEMA}, the daemon reads {attach.schema}: update the older one"
        )
    return _Reader(connection, attach.who, attach.exclusive)


def _receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise FrameError("the reader left before it had attached")
        data += more
    return data


def _step_of(raw: RawStep) -> Step:
    plan = raw.plan
    return Step(
        start_s=raw.start_s,
        end_s=raw.end_s,
        events=[event if isinstance(event, str) else arrival_of(event) for event in raw.events],
        preempted=raw.preempted,
        admitted=_admitted(plan),
        scheduled=plan.num_scheduled_tokens,
        drafted={i: len(drafts) for i, drafts in plan.scheduled_spec_decode_tokens.items()},
        outputs=list(_outputs(raw.outputs)),
        free_blocks=raw.free_blocks,
    )


def _admitted(plan: Any) -> dict[str, int]:
    """How many tokens of those that the plan admits, new or once preempted, were computed already."""
    admitted = {new.req_id: new.num_computed_tokens for new in plan.scheduled_new_reqs}
    cached = plan.scheduled_cached_reqs
    if resumed := cached.resumed_req_ids:
        of_all = zip(cached.req_ids, cached.num_computed_tokens, strict=True)
        admitted.update({i: computed for i, computed in of_all if i in resumed})
    return admitted


def _outputs(outputs: Any) -> Iterator[Output]:
    """The request outputs in what `Scheduler.update_from_output` returned: EngineCoreOutputs by client."""
    for of_client in outputs.values():
        for o in of_client.outputs:
            yield Output(o.request_id, len(o.new_token_ids), o.finish_reason is not None)
