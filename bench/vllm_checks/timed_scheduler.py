# mypy: disable-error-code="import-not-found"
"""Runs inside a vLLM server: the traced scheduler with a watch on our own code, for `bench.vllm_checks.overhead`.

For `--scheduler-cls bench.vllm_checks.timed_scheduler.TimedTraceScheduler`. A step costs what the recorder's hooks take
from the end of the step before to its own end, and what the wrappers of the block pool add to vLLM's own methods (the
prefix events). Reading the thread's processor time is a call of the system, so every other step has its hooks timed by
it and the rest by the clock; the wrappers, called dozens of times a step, are timed by the clock in all of them. What
one such timing takes with nothing to be timed is told too (`watch_us`), and not taken off.

Only steps that ran at least `ASTROLABE_TIMED_LEAST` requests count. The file named by `ASTROLABE_TIMED_FILE` gets the
distribution each EVERY_STEPS of them.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine_adapters.vllm import scheduler as traced_scheduler
from engine_adapters.vllm.cache_watch import watch
from engine_adapters.vllm.recorder import StepRecorder
from engine_adapters.vllm.scheduler import TraceScheduler

ENV_FILE = "ASTROLABE_TIMED_FILE"
ENV_LEAST = "ASTROLABE_TIMED_LEAST"
EVERY_STEPS = 100
HOOKS = ("begin", "planned", "ended", "arrived", "aborting", "preempting")


class Watch:
    """The times of one scheduler's steps, in nanoseconds."""

    def __init__(self, path: Path, least: int) -> None:
        self._path = path
        self._least = least
        self._read: Callable[[], int] = time.perf_counter_ns
        self._hooks = self._arrivals = 0
        self._steps: dict[str, list[tuple[int, int, int, int, int]]] = {"clock": [], "cpu": []}
        """Hooks, prefix events, how many of them, arrivals, admitted; by what the hooks were timed by."""
        self._spent: list[int] = []
        """Of the prefix events of this step."""
        self._floor = self._floor_of_events()

    def watch_hooks(self, recorder: StepRecorder) -> None:
        for name in HOOKS:
            setattr(recorder, name, self._timed_hook(name, getattr(recorder, name)))

    def time_events(self, pool: Any, sign: int) -> None:
        """`sign`: 1 around the wrappers, -1 around what they wrap. Only those that are called in every step."""
        pool.cache_full_blocks = self._timed_keeping(pool.cache_full_blocks, sign)
        pool.get_new_blocks = self._timed_taking(pool.get_new_blocks, sign)

    def _timed_hook(self, name: str, hook: Callable[..., None]) -> Callable[..., None]:
        def timed(*arguments: Any) -> None:
            # A kernel that puts a switch of threads off until the next call of the system makes it in this reading,
            # which does not count: nobody but the watch has called.
            time.thread_time_ns()
            began = self._read()
            hook(*arguments)
            self._hooks += self._read() - began
            if name == "ended":
                self._step(arguments[0])
            elif name == "arrived":
                self._arrivals += 1

        return timed

    # Arguments as vLLM hands them over, spelled out: collecting them would cost more than what is timed.

    def _timed_keeping(self, inner: Callable[..., Any], sign: int) -> Callable[..., Any]:
        clock, spent = time.perf_counter_ns, self._spent

        def timed(
            request: Any,
            blocks: Any,
            num_cached_blocks: int,
            num_full_blocks: int,
            block_size: int,
            kv_cache_group_id: int,
            block_mask: Any = None,
        ) -> Any:
            began = clock()
            done = inner(request, blocks, num_cached_blocks, num_full_blocks, block_size, kv_cache_group_id, block_mask)
            spent.append(sign * (clock() - began))
            return done

        return timed

    def _timed_taking(self, inner: Callable[..., Any], sign: int) -> Callable[..., Any]:
        clock, spent = time.perf_counter_ns, self._spent

        def timed(num_blocks: int) -> Any:
            began = clock()
            done = inner(num_blocks)
            spent.append(sign * (clock() - began))
            return done

        return timed

    def _floor_of_events(self) -> float:
        """What a prefix event costs by this watch with nothing between its two timings: half are of each kind."""
        keeping = self._timed_keeping(self._timed_keeping(lambda *_: None, -1), 1)
        taking = self._timed_taking(self._timed_taking(lambda _: None, -1), 1)
        seen = []
        for _ in range(1000):
            keeping(request=1, blocks=2, num_cached_blocks=1, num_full_blocks=2, block_size=16, kv_cache_group_id=0)
            taking(1)
            seen.append(sum(self._spent) / 2)
            self._spent.clear()
        return statistics.median(seen)

    def _step(self, plan: Any) -> None:
        if len(plan.num_scheduled_tokens) >= self._least:
            by = "cpu" if self._read is time.thread_time_ns else "clock"
            admitted = len(plan.scheduled_new_reqs)
            spent = self._spent
            self._steps[by].append((self._hooks, sum(spent), len(spent) // 2, self._arrivals, admitted))
            if sum(map(len, self._steps.values())) % EVERY_STEPS == 0:
                self._write()
        self._hooks = self._arrivals = 0
        self._spent.clear()
        self._read = time.perf_counter_ns if self._read is time.thread_time_ns else time.thread_time_ns

    def _write(self) -> None:
        every = [step for steps in self._steps.values() for step in steps]
        found: dict[str, Any] = {
            "steps": len(every),
            "events": _spread([step[2] * 1e3 for step in every]),
            "watch_us": _spread([step[2] * self._floor for step in every]),
        }
        for by, steps in self._steps.items():
            quiet = [step for step in steps if not (step[3] or step[4])]
            found[f"hooks_{by}_us"] = _spread([step[0] for step in steps])
            found[f"hooks_{by}_nobody_new_us"] = _spread([step[0] for step in quiet])
            found[f"with_events_{by}_us"] = _spread([step[0] + step[1] for step in steps])
        self._path.write_text(json.dumps(found))


def _spread(values_ns: list[float] | list[int]) -> dict[str, float]:
    ascending = sorted(values_ns)
    at = {"P50": 0.5, "P90": 0.9, "P99": 0.99, "most": 1.0}
    if not ascending:
        return {}
    return {name: round(ascending[min(len(ascending) - 1, int(q * len(ascending)))] / 1e3, 1) for name, q in at.items()}


class TimedTraceScheduler:
    """`TraceScheduler`, watched."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        timer = Watch(Path(os.environ[ENV_FILE]), int(os.environ[ENV_LEAST]))

        def watch_timed(pool: Any, recorder: StepRecorder) -> None:
            timer.time_events(pool, -1)
            watch(pool, recorder)
            timer.time_events(pool, 1)

        traced_scheduler.watch = watch_timed  # type: ignore[attr-defined]
        scheduler = TraceScheduler(*args, **kwargs)
        if scheduler._astrolabe is not None:
            timer.watch_hooks(scheduler._astrolabe)
        return scheduler
