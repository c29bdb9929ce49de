"""One safetensors file per trained model. Reading one executes nothing.

The arrays are the file's tensors. Its metadata has one entry, `astrolabe`: JSON of format, kind, meta, and the SHA-256
of the whole file with zeros in that hash's place. So a flipped bit anywhere is found, which safetensors itself does not
do.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

FORMAT_VERSION = 2
SUFFIX = ".alm"
BEFORE_SAFETENSORS = b"ASTLEN\x00\x01"
"""First bytes of files that versions up to 0.1.0 wrote."""

_KEY = "astrolabe"
_STORABLE = frozenset({"float32", "float16", "float64", "int8", "uint8", "int64"})
_NO_HASH = "0" * 64


class ArtifactError(ValueError):
    """The file is no artefact, is damaged, or belongs to another version. The message says which, and what to do."""


class _Description(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    kind: str
    meta: dict[str, Any]
    sha256: str


class _TensorsHeader(msgspec.Struct, frozen=True):
    metadata: dict[str, str] = msgspec.field(name="__metadata__", default_factory=dict)


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
    for name, array in arrays.items():
        if array.dtype.name not in _STORABLE:
            raise ArtifactError(f"array {name!r}: type {array.dtype} cannot be stored")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ArtifactError(f"array {name!r} holds numbers that are not finite; training diverged")
    tensors = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
    blank = _Description(format=FORMAT_VERSION, kind=kind, meta=dict(meta), sha256=_NO_HASH)

    def written(sha256: str) -> bytes:
        description = msgspec.json.encode(msgspec.structs.replace(blank, sha256=sha256))
        return bytes(save_tensors(tensors, metadata={_KEY: description.decode()}))

    return written(hashlib.sha256(written(_NO_HASH)).hexdigest())


def from_bytes(data: bytes, origin: str = "artefact") -> Artifact:
    """Raises ArtifactError, naming `origin`, unless every byte is as it was written."""
    if data.startswith(BEFORE_SAFETENSORS):
        raise ArtifactError(f"{origin}: artefact format 1, this version reads {FORMAT_VERSION}; train it anew")
    text = _header(data, origin).metadata.get(_KEY)
    if text is None:
        raise ArtifactError(f"{origin}: not a length model artefact (a safetensors file of something else)")
    try:
        description = msgspec.json.decode(text, type=_Description)
    except (msgspec.DecodeError, RecursionError) as bad:
        raise ArtifactError(f"{origin}: damaged header ({bad}); train or fetch it again") from None
    if description.format != FORMAT_VERSION:
        raise ArtifactError(
            f"{origin}: artefact format {description.format}, this version reads {FORMAT_VERSION}; train it anew"
        )
    if (
        hashlib.sha256(data.replace(description.sha256.encode(), _NO_HASH.encode(), 1)).hexdigest()
        != description.sha256
    ):
        raise ArtifactError(f"{origin}: damaged, its content does not match its hash; train or fetch it again")
    try:
        arrays = load_tensors(data)
    except SafetensorError as bad:
        raise ArtifactError(f"{origin}: damaged ({bad}); train or fetch it again") from None
    return Artifact(kind=description.kind, meta=description.meta, arrays=arrays, sha256=description.sha256)


def _header(data: bytes, origin: str) -> _TensorsHeader:
    """Eight bytes of length, then JSON: https://huggingface.co/docs/safetensors (Format)."""
    size = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    if not 0 < size <= len(data) - 8:
        raise ArtifactError(f"{origin}: not a length model artefact, or cut off (its first bytes are {data[:8]!r})")
    try:
        return msgspec.json.decode(data[8 : 8 + size], type=_TensorsHeader)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as bad:
        raise ArtifactError(f"{origin}: damaged header ({bad}); train or fetch it again") from None


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
