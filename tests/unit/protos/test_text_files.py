"""Text files in any packing and encoding; what is no text is one error that says what it is."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from protos.runtime import text_files
from protos.runtime.text_files import TextFileError, opened_text, read_text

TEXT = "a;b\r\n1;é\n\n2;ü\r3;ß"


def zstd(data: bytes) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd,
}


@pytest.mark.parametrize("name", ["plain.csv", "lies.gz", "lies.zst"])
@pytest.mark.parametrize("packing", ["", *PACKINGS])
def test_a_packing_is_told_by_content_and_not_by_name(tmp_path: Path, packing: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(PACKINGS.get(packing, bytes)(TEXT.encode()))
    with opened_text(path) as file:
        assert file.packing == packing
        assert "".join(file.pieces()) == TEXT


def test_what_was_packed_twice_is_undone_twice(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(gzip.compress(bz2.compress(TEXT.encode())))
    assert read_text(path) == TEXT


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("damage", [lambda data: data[:-30], lambda data: data[: len(data) // 2] + b"\xff" * 200])
def test_damaged_data_is_one_error_that_names_the_packing(
    tmp_path: Path, packing: str, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "x"
    path.write_bytes(damage(PACKINGS[packing](bytes(i * i * 7 % 95 + 32 for i in range(20_000)))))
    with pytest.raises(TextFileError, match=f"its {packing} data is cut off or damaged"):
        read_text(path)


def test_zstd_without_a_library_names_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"\x28\xb5\x2f\xfd\0\0\0\0")
    monkeypatch.setattr(text_files, "_ZSTD_READERS", (("no_such_library_here", None),))
    with pytest.raises(TextFileError, match="pip install zstandard"):
        read_text(path)


@pytest.mark.parametrize(
    ("codec", "mark", "name"),
    [
        ("utf-8", b"", "UTF-8"),
        ("utf-8-sig", b"", "UTF-8"),
        ("utf-16", b"", "UTF-16"),
        ("utf-16-be", b"\xfe\xff", "UTF-16"),
        ("utf-16-le", b"", "UTF-16"),
        ("utf-16-be", b"", "UTF-16"),
        ("utf-32", b"", "UTF-32"),
    ],
)
def test_an_encoding_is_told_by_its_mark_or_its_zeros(tmp_path: Path, codec: str, mark: bytes, name: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(mark + TEXT.encode(codec))
    with opened_text(path) as file:
        assert file.encoding == name
        assert list(file.lines()) == list(io.StringIO(TEXT, newline=""))


@pytest.mark.parametrize("chars", range(1, 8))
def test_lines_are_the_same_however_the_text_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chars: int) -> None:
    path = tmp_path / "x"
    path.write_text(TEXT, encoding="utf-8", newline="")
    monkeypatch.setattr(text_files, "_HEAD_CHARS", chars)
    monkeypatch.setattr(text_files, "_PIECE_CHARS", chars)
    with opened_text(path) as file:
        assert list(file.lines()) == list(io.StringIO(TEXT, newline=""))


def test_bytes_that_are_not_utf8_are_marked_and_do_not_end_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes("a\nß\n".encode("latin-1"))
    assert text_files.FOREIGN_BYTES.findall(read_text(path)) == ["\udcdf"]


def archive() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        # Not of today: tests are called by what they are given.
        file.writestr(zipfile.ZipInfo("a.csv"), TEXT)
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (archive(), "a ZIP archive"),
        (gzip.compress(archive(), mtime=0), "a ZIP archive"),
        (b"PAR1....", "a Parquet file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (bytes(range(256)), "binary data"),
        ("a,b\n".encode("utf-16") + b"\0", "begins as UTF-16 and is not"),
    ],
)
def test_what_is_no_text_is_named(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(TextFileError, match=says):
        read_text(path)


def test_a_file_that_is_not_there_or_a_folder_is_one_error(tmp_path: Path) -> None:
    for path, says in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(TextFileError, match=says):
            read_text(path)
