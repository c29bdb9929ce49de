"""The wheels, installed where the checkout is not."""

from __future__ import annotations

import json
import signal
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.wheels import ROOT, clean_environ, copy_of_checkout, environment_with, make_wheel, ship_kernels

pytestmark = pytest.mark.e2e

NOT_CODE = ("*.proto", "*.pyi", "*.json", "*.toml", "*.alm", "*.service")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of `astrolabe`, with compiled kernels, and of `astrolabe-trace`."""
    sources = copy_of_checkout(tmp_path_factory.mktemp("sources"))
    ship_kernels(sources)
    into = tmp_path_factory.mktemp("dist")
    return make_wheel(sources, into), make_wheel(sources / "engine_adapters/trace_package", into)


@pytest.fixture(scope="module")
def installed(wheels: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with both."""
    return environment_with(*wheels, folder=tmp_path_factory.mktemp("venv"))


def said(command: Sequence[str | Path], folder: Path, **environ: str) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=clean_environ(**environ), capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_wheel_has_all_that_is_no_code(wheels: tuple[Path, Path]) -> None:
    inside = set(zipfile.ZipFile(wheels[0]).namelist())
    packages = {name.partition("/")[0] for name in inside if ".dist-info/" not in name}
    here = {
        str(path.relative_to(ROOT))
        for package in packages
        for kind in NOT_CODE
        for path in (ROOT / package).rglob(kind)
        if "trace_package" not in path.parts
    }
    assert len(here) > 60
    assert here - inside == set()
    assert packages.isdisjoint({"tests", "build"})


def test_the_wheel_s_commands_run_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    assert said([installed / "astrolabe", "--version"], tmp_path).startswith("astrolabe ")
    origins = "import bench, deploy, gateway, simcore; print(*(m.__file__ for m in (bench, deploy, gateway, simcore)))"
    for origin in said([installed / "python", "-c", origins], tmp_path).split():
        assert Path(origin).is_relative_to(installed.parent)
    (tmp_path / "rows.csv").write_text("num_prefill_tokens,num_decode_tokens\n100,20\n50,30\n")
    command: list[str | Path] = [
        installed / "astrolabe",
        "bench",
        "simulate",
        "--fleet",
        "mixed",
        "--requests",
        "12",
        "--rate",
        "9",
    ]
    command += ["--policy", "min_total_latency", "--dataset", "lengths", "--dataset-path", "rows.csv"]
    assert "12 requests and" in said(command, tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "compiled"))
    assert list((tmp_path / "compiled").iterdir()) == [], "what was shipped serves"


def test_a_cluster_of_the_wheel_answers(installed: Path, tmp_path: Path) -> None:
    command = [installed / "astrolabe", "up", "--nodes", "1", "--port", "0", "--json", "--time-scale", "20"]
    command += ["--tokenizer", "bytes", "--log-dir", tmp_path]
    environ = clean_environ(NUMBA_CACHE_DIR=str(tmp_path / "compiled"))
    up = subprocess.Popen(
        list(map(str, command)), cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert up.stdout is not None
        ready: dict[str, Any] = json.loads(up.stdout.readline())
        asked = [installed / "astrolabe", "request", "Why?", "--gateway", ready["gateway"], "--max-tokens", "5"]
        answer = json.loads(said([*asked, "--json"], tmp_path).splitlines()[-1])
        assert answer["outcome"] == "length"
        assert list((tmp_path / "compiled").iterdir()) == [], "the node has found its kernels in the wheel"
    finally:
        up.send_signal(signal.SIGINT)
        up.communicate(timeout=60)
    assert up.returncode == 0


def test_the_trace_package_needs_nothing_and_shares_no_file(
    wheels: tuple[Path, Path], installed: Path, tmp_path: Path
) -> None:
    whole, trace = (set(zipfile.ZipFile(wheel).namelist()) for wheel in wheels)
    assert whole & trace == set()
    (metadata,) = (name for name in trace if name.endswith("METADATA"))
    assert "Requires-Dist" not in zipfile.ZipFile(wheels[1]).read(metadata).decode()
    points = "from importlib.metadata import entry_points as e; [p.load()() for p in e(group='vllm.general_plugins')]"
    said([installed / "python", "-c", points], tmp_path)
    loaded = (
        "import sys; before = set(sys.modules); import astrolabe_trace.publisher, astrolabe_trace.describe;"
        "import astrolabe_trace.recorder, astrolabe_trace.plugin;"
        "print(*{m.partition('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    found = set(said([installed / "python", "-c", loaded], tmp_path).split())
    assert found - {"typing_extensions"} == {"astrolabe_trace", "msgspec"}
