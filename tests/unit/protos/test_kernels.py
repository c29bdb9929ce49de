"""Warming up beside the event loop."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path

import pytest

from protos.runtime import kernels


def test_the_end_does_not_wait_for_what_is_still_compiled() -> None:
    may_end = threading.Event()
    ended: list[bool] = []

    def compiling() -> None:
        may_end.wait(10.0)
        ended.append(True)

    async def stopped_meanwhile() -> None:
        warming = asyncio.create_task(kernels._aside(compiling))
        await asyncio.sleep(0.01)
        warming.cancel()

    asyncio.run(stopped_meanwhile())
    assert not ended
    may_end.set()


def test_what_goes_wrong_is_told() -> None:
    def broken() -> None:
        raise OSError("no kernels")

    with pytest.raises(OSError, match="no kernels"):
        asyncio.run(kernels._aside(broken))


def test_kernels_without_assertions_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = kernels._fingerprint()

    class Flags:
        optimize = 1

    monkeypatch.setattr(sys, "flags", Flags())
    assert kernels._fingerprint() != plain


def test_the_stamp_lies_beside_the_kernels_of_a_service_without_a_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kernels"))
    assert kernels._cache_folder() == tmp_path / "kernels"
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert kernels._cache_folder() == tmp_path / "user" / "astrolabe"


def test_where_no_folder_can_be_written_there_is_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/proc/neither")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert kernels._cache_folder().parent == tmp_path
