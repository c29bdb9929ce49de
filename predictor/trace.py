"""Follows the engine's trace: feeds what is known of the engine, through gaps and broken connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, cast

import structlog

from engine_adapters.base import EngineError, EngineProbe
from predictor.core.traced_engine import TracedEngine
from simcore.trace import CacheDelta, TraceSnapshot

log = structlog.get_logger("predictor")

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
SNAPSHOT_TIMEOUT_S = 30.0


class TraceFollower:
    """One task from `start` to `close`."""

    def __init__(self, probe: EngineProbe, engine: TracedEngine, on_change: Callable[[], None]) -> None:
        """`on_change` is called after each item that says something new of the engine."""
        self.resyncs = 0
        """Gaps in the trace so far (a count)."""
        self._probe = probe
        self._engine = engine
        self._on_change = on_change
        self._first_snapshot = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to follow and returns when the first snapshot is here. Raises EngineError."""
        self._task = asyncio.create_task(self._follow(), name="trace")
        try:
            await asyncio.wait_for(self._first_snapshot.wait(), SNAPSHOT_TIMEOUT_S)
        except TimeoutError:
            raise EngineError(f"the engine sent no snapshot of its state within {SNAPSHOT_TIMEOUT_S:g} s") from None

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                await self._read()
                pause_s = FIRST_PAUSE_S
                continue
            except EngineError as error:
                self._engine.on_disconnect()
                self._on_change()
                log.warning("trace is broken", detail=str(error), again_in_s=pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)

    async def _read(self) -> None:
        """One trace, until a delta is lost. Raises EngineError."""
        engine = self._engine
        # Protocols promise an iterator; adapters write generators, which want to be closed.
        async with aclosing(cast(Any, self._probe.watch())) as trace:
            async for item in trace:
                if isinstance(item, TraceSnapshot):
                    engine.on_snapshot(item, time.monotonic())
                    self._first_snapshot.set()
                elif isinstance(item, CacheDelta):
                    if engine.on_cache(item):
                        self.resyncs += 1
                        log.warning("trace of the prefix cache has a gap, reading it anew", got=item.number)
                        return
                elif engine.on_delta(item, time.monotonic()):
                    self.resyncs += 1
                    log.warning("trace has a gap, reading it anew", expected_after=engine.version, got=item.seq)
                    return
                self._on_change()
        raise EngineError("the engine ended its trace")
