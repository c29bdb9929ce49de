"""What the trace loads into the engine's process: the standard library, msgspec, and these few modules of ours."""

from __future__ import annotations

import json
import subprocess
import sys

OURS = [
    "engine_adapters",
    "engine_adapters.vllm",
    "engine_adapters.vllm.account",
    "engine_adapters.vllm.address",
    "engine_adapters.vllm.cache_names",
    "engine_adapters.vllm.cache_watch",
    "engine_adapters.vllm.describe",
    "engine_adapters.vllm.frames",
    "engine_adapters.vllm.plugin",
    "engine_adapters.vllm.publisher",
    "engine_adapters.vllm.recorder",
    "engine_adapters.vllm.request_ids",
    "simcore",
    "simcore.prefix",
    "simcore.proved",
    "simcore.trace",
    "simcore.types",
]
CODE = (
    "import json, sys; before = set(sys.modules);"
    "import engine_adapters.vllm.publisher, engine_adapters.vllm.recorder, engine_adapters.vllm.describe;"
    "import engine_adapters.vllm.address, engine_adapters.vllm.plugin;"
    "new = sorted(set(sys.modules) - before);"
    "print(json.dumps([m for m in new if m.partition('.')[0] not in sys.stdlib_module_names]))"
)


def loaded_by_the_plugin(python: str) -> list[str]:
    """Modules that come with the trace's (all but `scheduler`, which is vLLM's own imports and theirs)."""
    done = subprocess.run(
        [python, "-c", CODE], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=True
    )
    return list(json.loads(done.stdout))


def test_nothing_heavy_comes_into_the_engine() -> None:
    loaded = loaded_by_the_plugin(sys.executable)
    # msgspec brings typing_extensions along where it is installed.
    others = {m.partition(".")[0] for m in loaded} - {"engine_adapters", "simcore", "typing_extensions"}
    assert others == {"msgspec"}
    assert [m for m in loaded if m.startswith(("engine_adapters", "simcore"))] == OURS
