"""Quotas that all workers of a gateway share: their accounts lie in one memory-mapped file."""

from __future__ import annotations

import mmap
from pathlib import Path

from gateway.intake.quotas import Quotas, size_bytes


def shared_quotas(path: Path, *, worker: int, workers: int) -> Quotas:
    """The accounts as this worker sees them; the file is made if it is not there."""
    with path.open("a+b") as file:
        file.truncate(size_bytes(workers))
        memory = memoryview(mmap.mmap(file.fileno(), size_bytes(workers)))
    return Quotas(memory, worker=worker, workers=workers)
