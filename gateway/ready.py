"""The file by which a gateway tells that it serves, and where."""

from __future__ import annotations

import os
from pathlib import Path

import orjson

SERVICE = "astrolabe.v1.Dispatch"


def write_ready(path: Path, address: str, http_address: str) -> None:
    """Appears whole or not at all."""
    draft = path.with_name(f"{path.name}.tmp")
    where = {"address": address, "http": http_address, "pid": os.getpid(), "service": SERVICE}
    draft.write_bytes(orjson.dumps(where) + b"\n")
    draft.replace(path)
