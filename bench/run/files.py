"""Results on disk, one JSON line each. Writes and reads them.

A log (`runs.jsonl`) has one line per finished run and grows as they finish, so that a sweep can go on later. A file of
requests has a line of provenance, then one line per request of one run; as Parquet the provenance is in its metadata.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from io import FileIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import msgspec

from bench.measure.results import SCHEMA_VERSION, RequestResult, Run
from bench.run.provenance import Provenance, header
from bench.run.simulated import RunLine

if TYPE_CHECKING:
    from bench.run.simulated import Done

FILE_NAME = "runs.jsonl"
SCALING_FILE = "scaling.json"
REQUEST_SCHEMAS = (1, SCHEMA_VERSION)
"""Schemas whose lines of requests are read: these are the same in both."""
_PROVENANCE_KEY = b"astrolabe"
"""Of a Parquet file's metadata."""

T = TypeVar("T")


class ResultFileError(Exception):
    """A file of results that cannot be read or written. The message names it and says what to do."""


class _Version(msgspec.Struct):
    schema_version: int


def write_run(folder: Path, head: Provenance, run: Run, results: Sequence[RequestResult]) -> Path:
    """The requests of one run among others, in a file named by policy, rate and seed. Raises OSError."""
    config = {**head.config, "policy": run.policy, "rate": run.rate_per_s}
    at = "recorded" if run.rate_per_s is None else f"{run.rate_per_s:g}"
    path = folder / f"{run.policy}-{at}-{run.seed}.jsonl"
    write_results(path, msgspec.structs.replace(head, seed=run.seed, config=config), results)
    return path


def write_scaling(folder: Path, head: Provenance, runs: Sequence[Done]) -> Path:
    """What the scaled runs of a command did over time, with every decision, in `scaling.json`. Raises OSError."""
    path = folder / SCALING_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "schema_version": SCHEMA_VERSION,
        "header": head,
        "runs": [
            {
                "variant": done.line.variant,
                "scaler": done.line.spec.scaler,
                "policy": done.line.spec.policy,
                "rate_per_s": done.line.spec.rate_per_s,
                "seed": done.line.spec.seed,
                "measures": done.line.measures,
                "course": done.line.scaling,
                "scaling": done.scaling,
            }
            for done in runs
        ],
    }
    path.write_bytes(msgspec.json.encode(document))
    return path


def records_writer(folder: Path, kind: str) -> Callable[[Done], None] | None:
    """Writes the requests of each simulated run into `folder`, as `jsonl` or `parquet`; None when no kind is named.

    What it returns raises as `write_results`.
    """
    if not kind:
        return None

    def write(done: Done) -> None:
        line = done.line
        head = msgspec.structs.replace(
            header(msgspec.to_builtins(line.spec), seed=line.spec.seed),
            machine=line.machine,
            commit=line.commit,
            started_at=line.started_at,
        )
        write_results(folder / "requests" / f"{line.key}.{kind}", head, done.results)

    return write


def write_results(path: Path, head: Provenance, results: Sequence[RequestResult]) -> None:
    """The requests of one run; as Parquet when the path ends so.

    Creates the folder; an older file of that name is replaced. Raises OSError, and ResultFileError for Parquet without
    the package pyarrow.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".parquet":
        path.write_bytes(msgspec.json.Encoder().encode_lines([head, *results]))
        return
    arrow, parquet = _arrow()
    table = arrow.Table.from_pylist([msgspec.to_builtins(result) for result in results])
    parquet.write_table(table.replace_schema_metadata({_PROVENANCE_KEY: msgspec.json.encode(head)}), path)


def read_results(path: Path) -> tuple[Provenance, list[RequestResult]]:
    """What `write_results` wrote. Raises ResultFileError naming file and line."""
    if path.suffix == ".parquet":
        _, parquet = _arrow()
        table = parquet.read_table(path)
        head = _head(path, (table.schema.metadata or {}).get(_PROVENANCE_KEY, b""))
        return head, msgspec.convert(table.to_pylist(), list[RequestResult])
    lines = _lines(_read(path))
    head = _head(path, next(lines, (1, b""))[1])
    decoder = msgspec.json.Decoder(RequestResult)
    return head, [_decoded(path, line, decoder, "a result", "the file may be cut off") for line in lines]


def read_lines(path: Path) -> list[RunLine]:
    """The runs of a log; none when there is no file. Raises ResultFileError naming file and line.

    A torn last line, which a killed process or a full disk leaves, is passed over.
    """
    if not path.exists():
        return []
    # What stands after the last newline was not finished.
    whole, _, _ = _read(path).rpartition(b"\n")
    decoder = msgspec.json.Decoder(RunLine)
    found: list[RunLine] = []
    for line in _lines(whole):
        what, mend = "a result line", "delete that line and run again"
        _check_schema(path, line, (SCHEMA_VERSION,), what, mend)
        found.append(_decoded(path, line, decoder, what, mend))
    return found


class RunLog:
    """Appends to one log. A context manager."""

    def __init__(self, path: Path) -> None:
        """Creates folder and file, cuts a torn last line. Raises ResultFileError."""
        self.path = path
        self._encoder = msgspec.json.Encoder()
        self._file: FileIO
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Without a buffer: what a full disk refuses must not be written again when the file is cut or closed.
            self._file = path.open("ab", buffering=0)
            self._cut_torn_line()
        except OSError as error:
            raise ResultFileError(f"{path} cannot be written ({error.strerror}); choose another folder") from None

    def add(self, line: RunLine) -> None:
        """On disk when this returns. Raises ResultFileError, with the file as it was, when there is no room."""
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
            raise ResultFileError(
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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ResultFileError(f"{path} cannot be read ({error.strerror}); check the path") from None


def _lines(text: bytes) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line), without those that are empty."""
    return ((number, line) for number, line in enumerate(text.split(b"\n"), start=1) if line.strip())


def _head(path: Path, text: bytes) -> Provenance:
    if not text:
        raise ResultFileError(f"{path}: no provenance; expected a file written with --output or --records")
    what, mend = "the header of a result file", "run it again"
    _check_schema(path, (1, text), REQUEST_SCHEMAS, what, mend)
    return _decoded(path, (1, text), msgspec.json.Decoder(Provenance), what, mend)


def _check_schema(path: Path, line: tuple[int, bytes], readable: Collection[int], what: str, mend: str) -> None:
    version = _decoded(path, line, msgspec.json.Decoder(_Version), what, mend).schema_version
    if version not in readable:
        raise ResultFileError(
            f"{path}, line {line[0]}: results of schema {version}, this version reads {SCHEMA_VERSION}; "
            "move the file away and run again"
        )


def _decoded(path: Path, line: tuple[int, bytes], decoder: msgspec.json.Decoder[T], what: str, mend: str) -> T:
    number, text = line
    try:
        return decoder.decode(text)
    except msgspec.DecodeError as error:
        raise ResultFileError(f"{path}, line {number}: not {what} ({error}); {mend}") from None


def _arrow() -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ResultFileError("Parquet needs the package pyarrow: pip install pyarrow, or choose jsonl") from None
    return pyarrow, parquet
