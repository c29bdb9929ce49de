"""What one process compiles, all others take: from another folder too, and never for code that says something else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from protos.runtime import kernels

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
INNER = """
from simcore.kernel_cache import kernel

@kernel
def doubled(x):
    return 2 * x
"""
OUTER = """
from simcore.kernel_cache import cached
from inner import doubled

ADDED = 1

@cached
def answer(x):
    return doubled(x) + ADDED
"""
ASK = """
import json, sys
from outer import answer
if "wait" in sys.argv:
    import time
    def compile_for_ever(*_):
        print("compiling", flush=True)
        time.sleep(600)
    answer._compiler.compile = compile_for_ever
print(json.dumps([int(answer(20)), sum(answer._cache_misses.values())]))
"""
COMPILED, FOUND = 1, 0


class Checkout:
    """A folder with two kernels, one of which is compiled into the other."""

    def __init__(self, folder: Path, cache: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.environ = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": f"{folder}:{ROOT}"}
        self.write(INNER, OUTER)

    def write(self, inner: str, outer: str) -> None:
        (self.folder / "inner.py").write_text(inner)
        (self.folder / "outer.py").write_text(outer)
        # Python trusts the second in which a source was written, and tests write twice in one.
        shutil.rmtree(self.folder / "__pycache__", ignore_errors=True)

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", ASK, *arguments]
        return subprocess.Popen(command, env=self.environ, stdout=subprocess.PIPE, text=True)

    def ask(self) -> list[int]:
        """The kernel's answer for 20, and how often it was compiled for that."""
        return answer_of(self.begin())


def answer_of(process: subprocess.Popen[str]) -> list[int]:
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0
    found: list[int] = json.loads(said.splitlines()[-1])
    return found


@pytest.fixture
def here(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "here", tmp_path / "cache")


@pytest.fixture
def compiling_for_ever(here: Checkout) -> Iterator[subprocess.Popen[str]]:
    process = here.begin("wait")
    assert process.stdout is not None
    assert process.stdout.readline() == "compiling\n"
    yield process
    process.kill()
    process.communicate()


def test_another_checkout_finds_what_this_one_has_compiled(here: Checkout, tmp_path: Path) -> None:
    assert here.ask() == [41, COMPILED]
    assert here.ask() == [41, FOUND]
    there = Checkout(tmp_path / "there", tmp_path / "cache")
    there.write(f"# Written later, and a line lower.\n{INNER}", OUTER)
    assert there.ask() == [41, FOUND]


def test_a_kernel_that_says_something_else_is_compiled_anew(here: Checkout) -> None:
    assert here.ask() == [41, COMPILED]
    here.write(INNER.replace("2 * x", "3 * x"), OUTER)
    assert here.ask() == [61, COMPILED], "of what only its caller takes in"
    here.write(INNER, OUTER.replace("ADDED = 1", "ADDED = 2"))
    assert here.ask() == [42, COMPILED], "of a number beside it"
    here.write(INNER, OUTER)
    assert here.ask() == [41, FOUND]


def test_another_cpu_or_setting_gets_code_of_its_own(here: Checkout) -> None:
    assert here.ask() == [41, COMPILED]
    for name, value in (("NUMBA_CPU_NAME", "generic"), ("NUMBA_OPT", "1")):
        here.environ[name] = value
        assert here.ask() == [41, COMPILED], name


def test_half_a_file_is_none(here: Checkout, tmp_path: Path) -> None:
    assert here.ask() == [41, COMPILED]
    (kept,) = (tmp_path / "cache").glob("*.kernel")
    for length in (0, len(kept.read_bytes()) // 2):
        kept.write_bytes(kept.read_bytes()[:length])
        assert here.ask() == [41, COMPILED]
    assert here.ask() == [41, FOUND]


def test_of_processes_that_start_together_one_compiles(here: Checkout) -> None:
    together = [here.begin() for _ in range(4)]
    assert sorted(map(answer_of, together)) == [[41, FOUND]] * 3 + [[41, COMPILED]]


def test_who_waits_for_a_process_that_is_killed_compiles_itself(
    here: Checkout, compiling_for_ever: subprocess.Popen[str]
) -> None:
    waiting = here.begin()
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(timeout=3)
    compiling_for_ever.send_signal(signal.SIGKILL)
    assert answer_of(waiting) == [41, COMPILED]
    assert here.ask() == [41, FOUND]


def test_what_compiles_beside_a_run_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would else be waited for until this test's time is up."""
    monkeypatch.setattr(kernels, "_command", lambda _: [sys.executable, "-c", "import time; time.sleep(600)"])
    with kernels.compiling_beside("warm_node"):
        pass
