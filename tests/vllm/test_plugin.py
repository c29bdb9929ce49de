"""The trace with no flag: the entry point of `vllm.general_plugins`, switched on by the environment."""

from __future__ import annotations

import json
import subprocess

from tests.unit.engine_adapters.test_vllm_plugin_imports import loaded_by_the_plugin
from tests.vllm.servers import ROOT


def test_the_class_that_the_configuration_names_is_traced_once(vllm_python: str) -> None:
    done = subprocess.run(
        [vllm_python, "-m", "tests.vllm.plugin_driver"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.strip().splitlines()[-1]) == {
        "off": "AsyncScheduler",
        "async": "TracedAsyncScheduler",
        "sync": "TracedScheduler",
        "own": "TracedOwn",
        "alien": "Alien",
        "flag too": "TraceScheduler",
    }
    assert "Alien" in done.stderr + done.stdout


def test_the_modules_inside_the_engine_import_nothing_heavy_in_vllm_s_environment(vllm_python: str) -> None:
    loaded = {m.partition(".")[0] for m in loaded_by_the_plugin(vllm_python)}
    assert loaded - {"typing_extensions"} == {"engine_adapters", "msgspec", "simcore"}
