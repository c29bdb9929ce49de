"""Warming up beside the event loop."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path

import pytest

from protos.runtime import kernels
from simcore import kernel_files


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


def test_kernels_of_another_checkout_serve_and_those_of_other_sources_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found_in(folder: Path) -> str:
        monkeypatch.setattr("importlib.resources.files", lambda _: folder)
        return kernels._fingerprint()

    for name in ("here", "there"):
        (tmp_path / name / "compiled").mkdir(parents=True)
        (tmp_path / name / "compiled" / "step.py").write_text("1")
    assert found_in(tmp_path / "here") == found_in(tmp_path / "there")
    (tmp_path / "there" / "compiled" / "step.py").write_text("2")
    assert found_in(tmp_path / "here") != found_in(tmp_path / "there")


async def test_who_waits_for_a_compiler_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_files, "WAIT_S", 0.0)
    async with kernels._locked(tmp_path / "k.lock"), kernels._locked(tmp_path / "k.lock"):
        pass


@pytest.mark.parametrize(
    ("of", "compiling"), [("warm_node", ["warm_what_if", "warm_node"]), (kernels.FLEET, [kernels.FLEET])]
)
async def test_what_ifs_are_compiled_beside_the_rest(
    of: str, compiling: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def command(of: str) -> list[str]:
        asked.append(of)
        return [sys.executable, "-c", ""]

    monkeypatch.setattr(kernels, "_command", command)
    await kernels._compile(of)
    assert asked == compiling
