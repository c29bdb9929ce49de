"""Text files as people have them: packed or not, in any Unicode encoding. Both are told by content, never by name."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import importlib
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

_PEEK_BYTES = 4096
_BUFFER_BYTES = 2**20
_HEAD_CHARS = 2**16
_PIECE_CHARS = 2**20
_MOST_LAYERS = 3
"""Of packing: a file packed twice is a common accident, one packed four times an attack."""

_ZSTD_READERS: tuple[tuple[str, Callable[[Any, BinaryIO], Any]], ...] = (
    ("compression.zstd", lambda library, file: library.ZstdFile(file)),
    ("backports.zstd", lambda library, file: library.ZstdFile(file)),
    ("zstandard", lambda library, file: library.ZstdDecompressor().stream_reader(file, read_across_frames=True)),
    ("pyarrow", lambda library, file: library.CompressedInputStream(library.PythonFile(file), "zstd")),
)
"""Modules that undo zstd, and how. Any of them will do."""

_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\x03\x04", "a ZIP archive (or an Excel sheet)", "Unpack it, or save the sheet as CSV."),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it first."),
    (b"PAR1", "a Parquet file", "Save it as CSV or as JSON lines."),
    (b"ARROW1", "an Arrow file", "Save it as CSV or as JSON lines."),
    (b"SQLite format 3", "an SQLite database", "Export the table as CSV."),
    (b"%PDF", "a PDF", "Is it the right file?"),
    (
        b"version https://git-lfs",
        "a Git LFS pointer and not the data",
        "Fetch the data with `git lfs pull`, or download the file itself.",
    ),
)
_HTML = re.compile(rb"\s*<(!doctype html|html|head)\b", re.IGNORECASE)
_BOMS = (
    # UTF-32 before UTF-16: the little-endian marks begin alike.
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
FOREIGN_BYTES = re.compile("[\udc80-\udcff]+")
"""What bytes that are not UTF-8 become: see `TextFile.text`."""


class TextFileError(ValueError):
    """A file that is not readable text. `reason` and `mend` are for people; the message has both and the path."""

    def __init__(self, path: Path, reason: str, mend: str) -> None:
        super().__init__(f"{path}: {reason}. {mend}")
        self.reason = reason
        self.mend = mend


class TextFile:
    """An open text file, read once from its beginning."""

    def __init__(self, text: io.TextIOWrapper, *, packing: str, encoding: str) -> None:
        self.packing = packing
        """What was undone, `gzip` for example; empty for a plain file."""
        self.encoding = encoding
        """`UTF-8` or which other."""
        self._text = text
        self.head = text.read(_HEAD_CHARS)
        """The first characters, to look at; they come again in `pieces` and `lines`."""

    def pieces(self) -> Iterator[str]:
        """All text, in pieces of about a million characters.

        Bytes that are not UTF-8 come as half surrogates, which `FOREIGN_BYTES` finds: a reader that knows rows can say
        which one they are in.
        """
        piece = self.head
        while piece:
            yield piece
            piece = self._text.read(_PIECE_CHARS)

    def lines(self) -> Iterator[str]:
        """All lines with their ends, whichever of the three ends they have."""
        # Read by pieces and not by the wrapper's own lines: the head was taken already.
        rest = ""
        for piece in self.pieces():
            parts = re.split("(?<=\n)|(?<=\r)(?!\n)", rest + piece)
            rest = parts.pop()
            if parts and parts[-1].endswith("\r"):
                # The other half of its end may come with the next piece.
                rest = parts.pop() + rest
            yield from parts
        yield from (part for part in re.split("(?<=\n)|(?<=\r)(?!\n)", rest) if part)


@contextlib.contextmanager
def opened_text(path: Path) -> Iterator[TextFile]:
    """The file as text: gzip, bzip2, xz and zstd undone, in UTF-8, UTF-16 or UTF-32.

    Everything that can go wrong with the bytes, while it is read too, is raised as TextFileError.
    """
    packing = ""
    try:
        with contextlib.ExitStack() as open_files:
            file = open_files.enter_context(path.open("rb", buffering=_BUFFER_BYTES))
            for _ in range(_MOST_LAYERS):
                start = file.peek(_PEEK_BYTES)[:_PEEK_BYTES]  # type: ignore[attr-defined]
                undo = next((how for magic, how in _PACKINGS if start.startswith(magic)), None)
                if undo is None:
                    break
                packing, unpacked = undo(path, file)
                file = open_files.enter_context(io.BufferedReader(cast(io.RawIOBase, unpacked), _BUFFER_BYTES))
            start = file.peek(_PEEK_BYTES)[:_PEEK_BYTES]  # type: ignore[attr-defined]
            codec, encoding = _encoding_of(path, start)
            text = io.TextIOWrapper(
                file, encoding=codec, errors="surrogateescape" if encoding == "UTF-8" else "strict", newline=""
            )
            yield TextFile(open_files.enter_context(text), packing=packing, encoding=encoding)
    except UnicodeError as error:
        reason = f"it begins as {encoding} and is not ({getattr(error, 'reason', error)})"
        raise TextFileError(path, reason, "Save it as UTF-8.") from error
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise _damaged(path, packing, error) from error
    except OSError as error:
        if error.errno is None and packing:
            raise _damaged(path, packing, error) from error
        raise TextFileError(path, f"cannot be read ({error.strerror or error})", "Check the path.") from error


def read_text(path: Path) -> str:
    """The whole file, as `opened_text` has it. Raises TextFileError."""
    with opened_text(path) as file:
        return "".join(file.pieces())


def _damaged(path: Path, packing: str, error: Exception) -> TextFileError:
    return TextFileError(path, f"its {packing} data is cut off or damaged ({error})", "Fetch it again.")


def _zstd(path: Path, file: BinaryIO) -> Any:
    for module, reader in _ZSTD_READERS:
        try:
            library = importlib.import_module(module)
        except ImportError:
            continue
        return reader(library, file)
    raise TextFileError(
        path,
        "it is packed with zstd, which nothing installed here undoes",
        "pip install zstandard, or run `unzstd` on it.",
    )


_PACKINGS: tuple[tuple[bytes, Callable[[Path, BinaryIO], tuple[str, Any]]], ...] = (
    (b"\x1f\x8b", lambda _path, file: ("gzip", gzip.GzipFile(fileobj=file, mode="rb"))),
    (b"BZh", lambda _path, file: ("bzip2", bz2.BZ2File(file))),
    (b"\xfd7zXZ\x00", lambda _path, file: ("xz", lzma.LZMAFile(file))),  # noqa: SIM115
    (b"\x28\xb5\x2f\xfd", lambda path, file: ("zstd", _zstd(path, file))),
)


def _encoding_of(path: Path, start: bytes) -> tuple[str, str]:
    """Codec and name. Raises TextFileError for what is no text."""
    for magic, what, mend in _FOREIGN:
        if start.startswith(magic):
            raise TextFileError(path, f"it is {what}", mend)
    if start[257:262] == b"ustar":
        raise TextFileError(path, "it is a tar archive", "Unpack it first.")
    if _HTML.match(start):
        raise TextFileError(
            path, "it is a web page and not the data", "Download the file itself; perhaps it asks for a login."
        )
    for mark, codec, name in _BOMS:
        if start.startswith(mark):
            return codec, name
    if b"\0" not in start:
        return "utf-8", "UTF-8"
    # Latin letters, which headers and keys are made of, have their zero in every second byte.
    half = max(1, len(start) // 2)
    if start[1::2].count(0) > 0.8 * half and start[::2].count(0) == 0:
        return "utf-16-le", "UTF-16"
    if start[::2].count(0) > 0.8 * half and start[1::2].count(0) == 0:
        return "utf-16-be", "UTF-16"
    raise TextFileError(path, "it is binary data and not text", "Is it the right file?")
