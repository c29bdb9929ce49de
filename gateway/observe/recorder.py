"""The decision log: all that a router or a scaler heard and wanted, in a file that its `replay` reads
(`gateway.core.recording`, `gateway.core.scale.recording`)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from gateway.core.recording import RecordingFormat
from protos.runtime.config import ConfigError

log = structlog.get_logger("gateway.observe.recorder")

FLUSH_S = 1.0
"""How old the end of the file may be when the process is killed."""
BUFFER_BYTES = 1 << 18

Config = TypeVar("Config")
Event = TypeVar("Event")
Action = TypeVar("Action")


class FileRecorder(Generic[Config, Event, Action]):
    """Writes one recording. A file of that name from an earlier run is kept, renamed to end in `.old`.

    A recording begins with a fresh machine, so it can never be appended to.
    """

    def __init__(self, path: Path, config: Config, kind: RecordingFormat[Config, Event, Action]) -> None:
        """`config` is that of the machine. Raises ConfigError when the file cannot be written."""
        self._path = path
        self._format = kind
        try:
            if path.is_file():
                path.replace(path.with_name(f"{path.name}.old"))
            self._file = path.open("wb", buffering=BUFFER_BYTES)
            self._file.write(kind.header_line(config))
            self._file.flush()
        except OSError as bad:
            raise ConfigError(f"key 'record': cannot write {path}: {bad.strerror}; name a file in a folder") from None
        self._flush_timer: asyncio.TimerHandle | None = None

    def record(self, now_s: float, event: Event, actions: Sequence[Action]) -> None:
        """Adds a line. When the file cannot be written any more, recording ends and the gateway goes on."""
        if self._file.closed:
            return
        try:
            self._file.write(self._format.entry_line(now_s, event, actions))
        except OSError as bad:
            self._give_up(bad)
            return
        if self._flush_timer is None:
            self._flush_timer = asyncio.get_running_loop().call_later(FLUSH_S, self._flush)

    def close(self) -> None:
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        try:
            self._file.close()
        except OSError as bad:
            log.error("decision log is incomplete", path=str(self._path), detail=str(bad))

    def _flush(self) -> None:
        self._flush_timer = None
        try:
            self._file.flush()
        except OSError as bad:
            self._give_up(bad)

    def _give_up(self, bad: OSError) -> None:
        log.error("decision log ends here", path=str(self._path), detail=str(bad))
        try:
            self._file.close()
        except OSError:
            # Closing flushes what could not be written; that has been said.
            pass
