"""What a gateway tells of itself when it serves."""

from __future__ import annotations

from pathlib import Path

from protos.runtime.ready_file import write_ready_file

SERVICE = "astrolabe.v1.Dispatch"


def write_ready(path: Path, address: str, http_address: str, ext_proc_address: str = "") -> None:
    """Raises ConfigError."""
    where = {"address": address, "http": http_address, "service": SERVICE}
    write_ready_file(path, {**where, "ext_proc": ext_proc_address} if ext_proc_address else where)
