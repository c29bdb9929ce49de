"""Result files: a header line of provenance, then one JSON line per request. Reads and writes them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from bench.measure.results import SCHEMA_VERSION, RequestResult, Run

if TYPE_CHECKING:
    from bench.run.simulated import Done

_ROOT = Path(__file__).resolve().parents[2]
CHANGED = "+changes"
"""Ends the commit of a checkout that has uncommitted changes."""


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run's numbers come from: the first line of its file."""

    schema_version: int
    command: str
    """As typed."""
    config: dict[str, Any]
    """Everything that decided the run: data set, rate, policy, limits, ..."""
    seed: int
    machine: dict[str, str | int]
    commit: str
    """Of the checkout, with `+changes` when it has uncommitted ones; empty when not run from a checkout."""
    started_at: str
    """UTC, ISO 8601."""


class ResultFileError(ValueError):
    """Not a result file of a version that this code reads."""


def header(config: Mapping[str, Any], *, seed: int) -> Provenance:
    """The provenance of a run that begins now."""
    return Provenance(
        schema_version=SCHEMA_VERSION,
        command=" ".join(["astrolabe", *sys.argv[1:]]),
        config=dict(config),
        seed=seed,
        machine=machine(),
        commit=commit(),
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def machine() -> dict[str, str | int]:
    """What the numbers were measured on."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count() or 0,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def commit() -> str:
    """The checkout's commit; empty outside one or without git."""
    if not (_ROOT / ".git").exists():
        return ""
    try:
        head = _git("rev-parse", "HEAD")
        return head + (CHANGED if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(*args: str) -> str:
    done = subprocess.run(["git", "-C", str(_ROOT), *args], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def _cpu_name() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def write_results(path: Path, head: Provenance, results: Sequence[RequestResult]) -> None:
    """Creates the folder; an older file of that name is replaced. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoder = msgspec.json.Encoder()
    with path.open("wb") as file:
        file.write(encoder.encode(head) + b"\n")
        for result in results:
            file.write(encoder.encode(result) + b"\n")


def write_request_lines(path: Path, results: Sequence[RequestResult], kind: str) -> None:
    """Requests alone, without a header, as `path`.jsonl or `path`.parquet. Raises OSError, ValueError.

    Parquet needs the package pyarrow.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "jsonl":
        encoder = msgspec.json.Encoder()
        with path.with_suffix(".jsonl").open("wb") as file:
            file.writelines(encoder.encode(result) + b"\n" for result in results)
        return
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError("records as Parquet need the package pyarrow: pip install pyarrow, or choose jsonl") from None
    rows = [msgspec.to_builtins(result) for result in results]
    parquet.write_table(arrow.Table.from_pylist(rows), path.with_suffix(".parquet"))


def records_writer(folder: Path, kind: str) -> Callable[[Done], None] | None:
    """Writes the requests of each run into `folder`, as `write_request_lines`; None when no kind is named."""
    if not kind:
        return None
    return lambda done: write_request_lines(folder / "requests" / done.line.key, done.results, kind)


def result_path(folder: Path, run: Run) -> Path:
    """Name of one run's file among others: policy, rate, seed."""
    at = "recorded" if run.rate_per_s is None else f"{run.rate_per_s:g}"
    return folder / f"{run.policy}-{at}-{run.seed}.jsonl"


def read_results(path: Path) -> tuple[Provenance, list[RequestResult]]:
    """Raises ResultFileError naming file and line, or OSError."""
    with path.open("rb") as file:
        lines = _numbered(file)
        first = next(lines, None)
        if first is None:
            raise ResultFileError(f"{path}: the file is empty; expected one written with --output")
        try:
            head = msgspec.json.decode(first[1], type=Provenance)
        except msgspec.DecodeError as error:
            raise ResultFileError(f"{path}, line 1: not the header of a result file ({error})") from error
        if head.schema_version != SCHEMA_VERSION:
            raise ResultFileError(
                f"{path}: results of schema {head.schema_version}, this version reads {SCHEMA_VERSION}; run it again"
            )
        decoder = msgspec.json.Decoder(RequestResult)
        results: list[RequestResult] = []
        for number, line in lines:
            try:
                results.append(decoder.decode(line))
            except msgspec.DecodeError as error:
                raise ResultFileError(
                    f"{path}, line {number}: not a result ({error}); the file may be cut off"
                ) from error
    return head, results


def _numbered(lines: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
