"""What running processes cost: processor time and resident memory, from Linux's /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_MIB = 2**20


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Of a group of processes over a while, per process."""

    cpu_share: float
    """Of one core, mean of the processes."""
    rss_mib: float
    """At the end, mean of the processes."""
    rss_max_mib: float


class CostMeter:
    """Starts when it is made."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = list(pids)
        self._began_s = time.perf_counter()
        self._cpu_s = [cpu_seconds(pid) for pid in self._pids]

    def read(self) -> Cost:
        """Since the start. Raises OSError when a process has gone."""
        wall_s = time.perf_counter() - self._began_s
        shares = [(cpu_seconds(pid) - before) / wall_s for pid, before in zip(self._pids, self._cpu_s, strict=True)]
        resident = [rss_mib(pid) for pid in self._pids]
        return Cost(
            cpu_share=sum(shares) / len(shares), rss_mib=sum(resident) / len(resident), rss_max_mib=max(resident)
        )


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its threads. Raises OSError."""
    # The command name may hold spaces and brackets; the numbers begin after the last bracket.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def rss_mib(pid: int) -> float:
    """Resident memory. Raises OSError."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES / _MIB
