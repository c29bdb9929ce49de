"""What a gateway tells of itself when it serves."""

from __future__ import annotations

from pathlib import Path

from protos.runtime.ready_file import write_ready_file

SERVICE = "astrolabe.v1.Dispatch"


def write_ready(path: Path, address: str, http_address: str) -> None:
    """Raises ConfigError."""
    write_ready_file(path, {"address": address, "http": http_address, "service": SERVICE})
