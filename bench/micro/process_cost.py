"""What running processes cost: processor time and resident memory."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
import psutil

_MIB = 2**20


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Of a group of processes over a while, per process."""

    cpu_share: float
    """Of one core, mean of the processes."""
    rss_mib: float
    """At the end, mean of the processes."""
    rss_max_mib: float


class CostMeter:
    """Starts when it is made. Raises psutil.Error for a process that is not there."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._processes = [psutil.Process(pid) for pid in pids]
        self._began_s = time.perf_counter()
        self._cpu_s = [_cpu_seconds(process) for process in self._processes]

    def read(self) -> Cost:
        """Since the start. Raises psutil.Error when a process has gone."""
        wall_s = time.perf_counter() - self._began_s
        spent_s = [_cpu_seconds(process) - before for process, before in zip(self._processes, self._cpu_s, strict=True)]
        resident = [process.memory_info().rss / _MIB for process in self._processes]
        return Cost(
            cpu_share=sum(spent_s) / wall_s / len(spent_s),
            rss_mib=sum(resident) / len(resident),
            rss_max_mib=max(resident),
        )


def _cpu_seconds(process: psutil.Process) -> float:
    """User and system time of a process and its threads, without its children."""
    times = process.cpu_times()
    return float(times.user + times.system)
