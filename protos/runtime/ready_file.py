"""The file by which a daemon tells that it serves, and where."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from protos.runtime.config import ConfigError


def check_ready_file(path: str) -> None:
    """Before a daemon starts for nothing; empty: there is none. Raises ConfigError."""
    folder = Path(path).parent
    if path and not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise _unwritable(path, "no such folder" if not folder.is_dir() else "its folder cannot be written")


def write_ready_file(path: Path, where: Mapping[str, Any]) -> None:
    """One JSON line with the process id beside `where`; appears whole or not at all. Raises ConfigError."""
    draft = path.with_name(f"{path.name}.tmp")
    try:
        draft.write_bytes(orjson.dumps({**where, "pid": os.getpid()}) + b"\n")
        draft.replace(path)
    except OSError as bad:
        raise _unwritable(path, str(bad.strerror)) from None


def _unwritable(path: str | Path, why: str) -> ConfigError:
    return ConfigError(f"key 'ready_file': cannot write {path}: {why}; name a file in a folder that can be written")
