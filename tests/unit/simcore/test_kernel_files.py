"""Where compiled kernels are kept, found and dropped."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from simcore import kernel_files


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "own"))
    monkeypatch.setattr(kernel_files, "SHIPPED", tmp_path / "shipped")
    (tmp_path / "shipped").mkdir()


def test_what_was_kept_is_found_and_before_what_was_shipped(tmp_path: Path) -> None:
    assert kernel_files.load("k") is None
    (tmp_path / "shipped" / "k.kernel").write_bytes(b"shipped")
    assert kernel_files.load("k") == b"shipped"
    kernel_files.save("k", b"own")
    assert kernel_files.load("k") == b"own"
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["k.kernel"]


def test_kernels_of_a_service_without_a_home_lie_where_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert kernel_files.folder() == tmp_path / "own"
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert kernel_files.folder() == tmp_path / "user" / "astrolabe" / "kernels"


def test_where_nothing_can_be_written_what_was_shipped_is_found_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/proc/neither")
    (tmp_path / "shipped" / "k.kernel").write_bytes(b"shipped")
    assert kernel_files.folder() is None
    kernel_files.save("k", b"own")
    with kernel_files.alone("k"):
        assert kernel_files.load("k") == b"shipped"


def test_who_waits_for_another_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_files, "WAIT_S", 0.0)
    with kernel_files.alone("k"), kernel_files.alone("k"):
        pass
    assert list((tmp_path / "own").iterdir()) == []


def test_what_nobody_uses_any_more_goes_and_what_is_used_stays(tmp_path: Path) -> None:
    old_s = time.time() - (kernel_files.UNUSED_DAYS + 1) * kernel_files.DAY_S
    (tmp_path / "own").mkdir()
    for name in ("used.kernel", "unused.kernel", "kernels-warm_node-1", "notes.txt"):
        (tmp_path / "own" / name).touch()
        os.utime(tmp_path / "own" / name, (old_s, old_s))
    kernel_files.load("used")
    kernel_files.save("new", b"")
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == ["new.kernel", "notes.txt", "used.kernel"]
