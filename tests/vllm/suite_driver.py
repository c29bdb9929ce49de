# mypy: ignore-errors
"""Runs in vLLM's environment, in a folder with a release's `tests`: modules of them before a server and a gateway.

    python suite_driver.py BROKER MODULE ...

Tests that start a server of their own get one of the broker's instead: a server with the options that they ask for, and
then a gateway before it. For each module one JSON line: of each side the outcome of each test and the reason; what
passed at the server alone is tried again, and that outcome counts.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
import urllib.request

import pytest

SIDES = ("plain", "gateway")


class Side:
    """A plugin of pytest: servers come from the broker, tests without a server are left out."""

    def __init__(self, broker, side):
        self.broker, self.side, self.outcomes = broker, side, {}

    def server(self, model, arguments, environ):
        asked = {"side": self.side, "model": model, "arguments": arguments, "environ": environ}
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.broker, json.dumps(asked).encode(), timeout=900) as reply:
            told = json.load(reply)
        if "error" in told:
            raise RuntimeError(told["error"])
        return told["host"], told["port"]

    def pytest_collection_modifyitems(self, config, items):
        kept = [item for item in items if asks_for_a_server(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept

    def pytest_runtest_logreport(self, report):
        before = self.outcomes.get(report.nodeid, ("passed", ""))
        if before[0] != "passed" or report.passed:
            self.outcomes.setdefault(report.nodeid, before)
            return
        kind = report.outcome if report.when == "call" or report.skipped else "error"
        self.outcomes[report.nodeid] = (kind, reason(report))

    def pytest_collectreport(self, report):
        if report.failed:
            self.outcomes[report.nodeid] = ("error", str(report.longrepr)[-2000:])


def reason(report):
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        return f"{crash.message[:1500]} ({crash.path.rsplit('/', 1)[-1]}:{crash.lineno})"
    return str(report.longrepr)[-1500:]


def asks_for_a_server(item):
    definitions = item._fixtureinfo.name2fixturedefs.values()
    functions = [item.function, *(one.func for several in definitions for one in several)]
    return any(re.search(r"Remote\w*Server\w*\(", source_of(function)) for function in functions)


def source_of(function):
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return ""


def replaced(utils, current):
    """Their class of a server, which keeps its clients and URLs and starts nothing."""

    def made(self, model, vllm_serve_args, *, env_dict=None, **_):
        self.uds, self.proc, self.show_hidden_metrics = None, None, False
        self._shutdown_complete = True
        # What renders without an engine has routes that a whole server has when it is told to.
        more = ["--enable-scale-out"] if isinstance(self, utils.RemoteLaunchRenderServer) else []
        self.host, self.port = current[0].server(model, [*vllm_serve_args, *more], env_dict or {})

    utils.RemoteVLLMServer.__init__ = made


def run(module, broker, current, only=()):
    told = {}
    for side in SIDES:
        plugin = Side(broker, side)
        current[:] = [plugin]
        options = ["-q", "--no-header", "-p", "no:cacheprovider", "--tb", "short"]
        options += ["-k", os.environ.get("ASTROLABE_SUITE_TESTS", "")]
        pytest.main([*options, "--confcutdir", "tests/entrypoints", *(only or [module])], plugins=[plugin])
        told[side] = plugin.outcomes
    return told


def main():
    broker, *modules = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open("pytest.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND), 1)
    sys.path.insert(0, ".")
    from tests import utils

    current = []
    replaced(utils, current)
    for module in modules:
        told = run(module, broker, current)
        plain, through = (told[side] for side in SIDES)
        lost = [name for name, how in plain.items() if how[0] == "passed" and through.get(name, "")[:1] != ("passed",)]
        if lost:
            again = run(module, broker, current, lost)
            told = {side: {**told[side], **again[side]} for side in SIDES}
        print(json.dumps({"module": module, **told}), file=answers, flush=True)


if __name__ == "__main__":
    main()
