from __future__ import annotations

import pickle
import random
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save

from length_model.artifact import BEFORE_SAFETENSORS, ArtifactError, from_bytes, to_bytes

ARRAYS: dict[str, NDArray[Any]] = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([1, -2], dtype=np.int8),
}
DATA = to_bytes("hashed", {"note": "x"}, ARRAYS)


def test_what_was_written_comes_back() -> None:
    found = from_bytes(DATA)
    assert found.kind == "hashed"
    assert found.meta == {"note": "x"}
    assert found.arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert (found.arrays[name] == array).all()
        assert found.arrays[name].dtype == array.dtype


def test_the_same_content_has_the_same_hash() -> None:
    assert from_bytes(DATA).sha256 == from_bytes(to_bytes("hashed", {"note": "x"}, ARRAYS)).sha256
    assert from_bytes(DATA).sha256 != from_bytes(to_bytes("hashed", {"note": "y"}, ARRAYS)).sha256


def test_any_flipped_bit_is_found() -> None:
    rng = random.Random(7)
    for _ in range(200):
        damaged = bytearray(DATA)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        with pytest.raises(ArtifactError, match="the artefact"):
            from_bytes(bytes(damaged), "the artefact")


@pytest.mark.parametrize("length", [0, 4, 8, 11, 12, 40, len(DATA) - 1])
def test_a_cut_off_file_is_refused(length: int) -> None:
    with pytest.raises(ArtifactError):
        from_bytes(DATA[:length])


def test_another_format_version_says_so() -> None:
    other = DATA.replace(b'\\"format\\":2', b'\\"format\\":3', 1)
    assert other != DATA
    with pytest.raises(ArtifactError, match=r"format 3.*reads 2.*train it anew"):
        from_bytes(other)
    with pytest.raises(ArtifactError, match=r"mine\.alm: artefact format 1.*reads 2.*train it anew"):
        from_bytes(BEFORE_SAFETENSORS + DATA, "mine.alm")


def test_other_files_are_no_artefacts() -> None:
    with pytest.raises(ArtifactError, match="not a length model artefact"):
        from_bytes(pickle.dumps({"weights": list(range(100))}))
    with pytest.raises(ArtifactError, match="safetensors file of something else"):
        from_bytes(bytes(save(ARRAYS)))
    with pytest.raises(ArtifactError, match="safetensors file of something else"):
        from_bytes(bytes(save(ARRAYS, metadata={"format": "pt"})))


def test_a_header_nested_without_end_is_an_error_and_not_a_crash() -> None:
    deep = b'{"__metadata__":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"
    with pytest.raises(ArtifactError, match="damaged header"):
        from_bytes(struct.pack("<Q", len(deep)) + deep)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_not_stored(bad: float) -> None:
    with pytest.raises(ArtifactError, match=r"'w'.*not finite"):
        to_bytes("hashed", {}, {"w": np.array([1.0, bad], dtype=np.float32)})


def test_objects_are_not_stored() -> None:
    with pytest.raises(ArtifactError, match="cannot be stored"):
        to_bytes("hashed", {}, {"w": np.array([object()])})
