"""One file per trained model: a JSON header and raw little-endian arrays. Reading one executes nothing.

    8 bytes   MAGIC
    4 bytes   length of the header, little-endian
    header    JSON: format, kind, meta, arrays [{name, dtype, shape, offset}], sha256 of all the bytes that follow
    payload   the arrays, each at its offset

The hash is also taken over the header (with its own field empty), so a flipped bit anywhere is found.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

MAGIC = b"ASTLEN\x00\x01"
FORMAT_VERSION = 1
SUFFIX = ".alm"

_DTYPES = {"float32": "<f4", "float16": "<f2", "float64": "<f8", "int8": "|i1", "uint8": "|u1", "int64": "<i8"}
_LARGEST_HEADER_BYTES = 4 << 20


class ArtifactError(ValueError):
    """The file is no artefact, is damaged, or belongs to another version. The message says which, and what to do."""


class _ArrayEntry(msgspec.Struct, frozen=True):
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    kind: str
    meta: dict[str, Any]
    arrays: tuple[_ArrayEntry, ...]
    sha256: str


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """A trained model as values. `meta` holds only what JSON holds."""

    kind: str
    """`histogram`, `hashed`, `encoder`, ...: who can read the arrays."""
    meta: dict[str, Any]
    arrays: dict[str, NDArray[Any]]
    sha256: str = ""
    """Content hash; empty until written."""


def to_bytes(kind: str, meta: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Raises ArtifactError for an array with a number that is not finite or a type that the format lacks."""
    entries, chunks, offset = [], [], 0
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        if array.dtype.name not in _DTYPES:
            raise ArtifactError(f"array {name!r}: type {array.dtype} cannot be stored")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ArtifactError(f"array {name!r} holds numbers that are not finite; training diverged")
        raw = array.astype(_DTYPES[array.dtype.name]).tobytes()
        entries.append(_ArrayEntry(name, array.dtype.name, tuple(array.shape), offset))
        chunks.append(raw)
        offset += len(raw)
    payload = b"".join(chunks)
    blank = _Header(format=FORMAT_VERSION, kind=kind, meta=dict(meta), arrays=tuple(entries), sha256="")
    header = msgspec.json.encode(msgspec.structs.replace(blank, sha256=_digest(blank, payload)))
    return MAGIC + struct.pack("<I", len(header)) + header + payload


def from_bytes(data: bytes, origin: str = "artefact") -> Artifact:
    """Raises ArtifactError, naming `origin`, unless every byte is as it was written."""
    if data[: len(MAGIC)] != MAGIC:
        raise ArtifactError(f"{origin}: not a length model artefact (its first bytes are {data[:8]!r})")
    body = len(MAGIC) + 4
    size = struct.unpack("<I", data[len(MAGIC) : body])[0] if len(data) >= body else _LARGEST_HEADER_BYTES + 1
    if size > min(_LARGEST_HEADER_BYTES, len(data) - body):
        raise ArtifactError(f"{origin}: damaged, its header is cut off; train or fetch it again")
    try:
        header = msgspec.json.decode(data[body : body + size], type=_Header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as bad:
        raise ArtifactError(f"{origin}: damaged header ({bad}); train or fetch it again") from None
    if header.format != FORMAT_VERSION:
        raise ArtifactError(
            f"{origin}: artefact format {header.format}, this version reads {FORMAT_VERSION}; train it anew"
        )
    payload = data[body + size :]
    if _digest(msgspec.structs.replace(header, sha256=""), payload) != header.sha256:
        raise ArtifactError(f"{origin}: damaged, its content does not match its hash; train or fetch it again")
    arrays = {entry.name: _array(entry, payload, origin) for entry in header.arrays}
    return Artifact(kind=header.kind, meta=header.meta, arrays=arrays, sha256=header.sha256)


def _array(entry: _ArrayEntry, payload: bytes, origin: str) -> NDArray[Any]:
    code = _DTYPES.get(entry.dtype)
    if code is None or any(n < 0 for n in entry.shape) or entry.offset < 0:
        raise ArtifactError(f"{origin}: array {entry.name!r} is described wrongly")
    count = math.prod(entry.shape)
    if entry.offset + count * np.dtype(code).itemsize > len(payload):
        raise ArtifactError(f"{origin}: array {entry.name!r} reaches beyond the file")
    return np.frombuffer(payload, dtype=code, count=count, offset=entry.offset).reshape(entry.shape)


def _digest(header: _Header, payload: bytes) -> str:
    hashed = hashlib.sha256(msgspec.json.encode(header))
    hashed.update(payload)
    return hashed.hexdigest()


def save(path: Path, kind: str, meta: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """Writes the file whole or not at all; returns its content hash."""
    data = to_bytes(kind, meta, arrays)
    beside = path.with_name(path.name + ".part")
    beside.write_bytes(data)
    beside.replace(path)
    return from_bytes(data, str(path)).sha256


def load(path: Path) -> Artifact:
    """Raises ArtifactError (also for a file that cannot be read)."""
    try:
        data = path.read_bytes()
    except OSError as bad:
        raise ArtifactError(f"{path}: cannot be read ({bad.strerror})") from None
    return from_bytes(data, str(path))
