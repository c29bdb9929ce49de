"""Fixtures for all tests."""

from __future__ import annotations

import os
import random
import signal
import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from gateway.core.decision.policies import registry
from simcore import kernel_files
from simcore.warmup import warm

# A busy machine is slow: neither the time of an example nor that of making it up says anything of the code.
settings.register_profile("astrolabe", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
# What CI checks must not depend on its luck: there the examples are the same each time, everywhere else new ones.
settings.register_profile("ci", settings.get_profile("astrolabe"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "astrolabe")

ROOT = Path(__file__).resolve().parents[1]
UNIT = ROOT / "tests" / "unit"
RERUN_LINES = 25


def pytest_sessionstart(session: pytest.Session) -> None:
    """Compiles the kernels where nobody has yet: half a minute that no test's time limit should have to hold."""
    # By name, so that a test that gives its processes another cache folder does not have them compile anew.
    os.environ.setdefault("NUMBA_CACHE_DIR", str(kernel_files.folder() or ""))
    if not hasattr(session.config, "workerinput") and not session.config.option.collectonly:
        warm(shared_prefixes=True, clusters=True)
    # A shell that starts tests in the background has them ignore Ctrl-C, and all processes that they start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Real processes are late now and then on a busy machine: their tests get three more tries, and are listed."""
    for item in items:
        if ROOT / "tests" / "vllm" in item.path.parents or item.get_closest_marker("e2e"):
            item.add_marker(pytest.mark.flaky(reruns=3))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What made a test be tried again is told, whatever came of it."""
    for report in terminalreporter.stats.get("rerun", ()):
        terminalreporter.write_sep("-", f"tried again: {report.nodeid}")
        terminalreporter.write_line("\n".join(report.longreprtext.splitlines()[-RERUN_LINES:]))


@pytest.fixture(autouse=True)
def _random_examples_are_the_same_in_ci(request: pytest.FixtureRequest) -> None:
    if os.environ.get("CI"):
        random.seed(request.node.nodeid)


@pytest.fixture(autouse=True)
def _policies_of_a_test_leave_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers must not be a policy to those after it."""
    monkeypatch.setattr(registry, "_POLICIES", dict(registry._POLICIES))
    monkeypatch.setattr(registry, "_origins", dict(registry._origins))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real traces and profiles (`../shared/data`, or where ASTROLABE_DATA points); skips the test without them."""
    folder = Path(os.environ.get("ASTROLABE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}; set ASTROLABE_DATA")
    return folder


@pytest.fixture(autouse=True)
def _unit_tests_open_no_socket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit test that reaches for the network fails at once."""
    if UNIT in Path(request.path).parents:

        def refuse(*args: object, **kwargs: object) -> None:
            raise AssertionError("a unit test tried to connect; put it under tests/e2e")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket.socket, "bind", refuse)
