"""Result lines on disk: one JSON line per finished run, appended as they finish, so that a sweep can go on later.

A line is whole or it does not count: a torn last line, which a killed process or a full disk leaves, is cut off when
the file is opened for more.
"""

from __future__ import annotations

import errno
import os
from io import FileIO
from pathlib import Path

import msgspec

from bench.run.simulated import SCHEMA_VERSION, RunLine

FILE_NAME = "runs.jsonl"


class RunLogError(Exception):
    """A file of result lines that cannot be used or written. The message says what to do."""


class _Version(msgspec.Struct):
    schema_version: int = 0


def read_lines(path: Path) -> list[RunLine]:
    """All lines; a torn last one is passed over. Raises RunLogError naming file and line."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunLogError(f"{path} cannot be read ({error.strerror}); check the path") from None
    lines = text.split(b"\n")
    # What stands after the last newline was not finished.
    decoder = msgspec.json.Decoder(RunLine)
    found: list[RunLine] = []
    for number, line in enumerate(lines[:-1], start=1):
        if not line.strip():
            continue
        try:
            version = msgspec.json.decode(line, type=_Version).schema_version
            if version != SCHEMA_VERSION:
                raise RunLogError(
                    f"{path}, line {number}: results of schema {version}, this version reads {SCHEMA_VERSION}; "
                    "move the file away and run again"
                )
            found.append(decoder.decode(line))
        except msgspec.DecodeError as error:
            raise RunLogError(
                f"{path}, line {number}: not a result line ({error}); delete that line and run again"
            ) from None
    return found


class RunLog:
    """Appends to one file. A context manager."""

    def __init__(self, path: Path) -> None:
        """Creates folder and file, cuts a torn last line. Raises RunLogError."""
        self.path = path
        self._encoder = msgspec.json.Encoder()
        self._file: FileIO
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Without a buffer: what a full disk refuses must not be written again when the file is cut or closed.
            self._file = path.open("ab", buffering=0)
            self._cut_torn_line()
        except OSError as error:
            raise RunLogError(f"{path} cannot be written ({error.strerror}); choose another folder") from None

    def add(self, line: RunLine) -> None:
        """On disk when this returns. Raises RunLogError, with the file as it was, when there is no room."""
        whole_bytes = self._file.seek(0, os.SEEK_END)
        rest = memoryview(self._encoder.encode(line) + b"\n")
        try:
            while rest:
                # What is left of a disk takes the line's beginning only.
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(whole_bytes)
            why = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error))
            raise RunLogError(
                f"{self.path} cannot be written ({why}); what was finished before is safe: make room and give the same "
                "command again"
            ) from None

    def close(self) -> None:
        self._file.close()

    def _cut_torn_line(self) -> None:
        text = self.path.read_bytes()
        if text and not text.endswith(b"\n"):
            self._file.truncate(text.rfind(b"\n") + 1)
        self._file.seek(0, os.SEEK_END)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
