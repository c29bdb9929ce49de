# mypy: disable-error-code="import-not-found"
"""Runs inside a vLLM server: the traced scheduler with a watch on our own code, for `bench.vllm_checks.overhead`.

For `--scheduler-cls bench.vllm_checks.timed_scheduler.TimedTraceScheduler`. A step costs what the hooks take from the
end of the step before to its own end, by the clock and by the thread's processor time. Only steps that ran at least
`ASTROLABE_TIMED_LEAST` requests count. The file named by `ASTROLABE_TIMED_FILE` gets the distribution each EVERY_STEPS
of them. Reading the clocks is part of what is measured: about a microsecond per hook.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine_adapters.vllm.recorder import StepRecorder
from engine_adapters.vllm.scheduler import TraceScheduler

ENV_FILE = "ASTROLABE_TIMED_FILE"
ENV_LEAST = "ASTROLABE_TIMED_LEAST"
EVERY_STEPS = 200
MICRO = 1e6


class Watch:
    """Stands where the recorder's `guarded` stands."""

    def __init__(self, recorder: StepRecorder, scheduler: Any, path: Path, least: int) -> None:
        self._inner = recorder.guarded
        self._ended = recorder.ended
        self._scheduler = scheduler
        self._path = path
        self._least = least
        self._clock_s = self._cpu_s = 0.0
        self._clock: list[float] = []
        self._cpu: list[float] = []

    def __call__(self, hook: Callable[..., None], *arguments: Any) -> None:
        # A kernel that puts a switch of threads off until the next call of the system makes it in this reading, which
        # does not count: nobody but the watch has called.
        time.thread_time()
        clock_s, cpu_s = time.perf_counter(), time.thread_time()
        self._inner(hook, *arguments)
        self._cpu_s += time.thread_time() - cpu_s
        self._clock_s += time.perf_counter() - clock_s
        if hook != self._ended:
            return
        if len(self._scheduler.running) >= self._least:
            self._clock.append(self._clock_s * MICRO)
            self._cpu.append(self._cpu_s * MICRO)
            if len(self._cpu) % EVERY_STEPS == 0:
                self._write()
        self._clock_s = self._cpu_s = 0.0

    def _write(self) -> None:
        times = {"steps": len(self._cpu), "clock_us": _spread(self._clock), "cpu_us": _spread(self._cpu)}
        self._path.write_text(json.dumps(times))


def _spread(values: list[float]) -> dict[str, float]:
    ascending = sorted(values)
    at = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: round(ascending[min(len(ascending) - 1, int(q * len(ascending)))], 1) for name, q in at.items()}


class TimedTraceScheduler:
    """`TraceScheduler`, watched."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        scheduler = TraceScheduler(*args, **kwargs)
        recorder = scheduler._astrolabe
        if recorder is not None:
            watch = Watch(recorder, scheduler, Path(os.environ[ENV_FILE]), int(os.environ[ENV_LEAST]))
            recorder.guarded = watch
        return scheduler
