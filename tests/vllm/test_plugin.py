"""The trace with no flag: the entry point of `vllm.general_plugins`, switched on by the environment."""

from __future__ import annotations

import json
import subprocess

from tests.vllm.servers import ROOT


def test_the_class_that_the_configuration_names_is_traced_once(vllm_python: str) -> None:
    done = subprocess.run(
        [vllm_python, "-m", "tests.vllm.plugin_driver"], cwd=ROOT, capture_output=True, text=True, timeout=200
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


def test_the_modules_inside_the_engine_import_nothing_heavy(vllm_python: str) -> None:
    """What the plugin loads besides vLLM: msgspec, the standard library and our own records."""
    code = (
        "import sys; before = set(sys.modules);"
        "import engine_adapters.vllm.publisher, engine_adapters.vllm.recorder, engine_adapters.vllm.describe;"
        "import engine_adapters.vllm.plugin;"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before};"
        "print(sorted(m for m in new if m not in sys.stdlib_module_names))"
    )
    done = subprocess.run([vllm_python, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    # msgspec brings typing_extensions along where it is installed.
    assert set(json.loads(done.stdout.replace("'", '"'))) - {"typing_extensions"} == {
        "engine_adapters",
        "msgspec",
        "simcore",
    }
