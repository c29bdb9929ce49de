"""Which modules go into the distribution that vLLM's environment gets."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine_adapters.test_vllm_plugin_imports import OURS

ROOT = Path(__file__).resolve().parents[3]
MODULE: dict[str, Any] = runpy.run_path(str(ROOT / "engine_adapters/trace_package/trace_modules.py"))


def write(root: Path, **texts: str) -> Path:
    for name in ("engine_adapters/vllm", "simcore"):
        (root / name).mkdir(parents=True)
    for name, text in {"plugin": "", "scheduler": "", **texts}.items():
        home = "simcore" if name.startswith("sim_") else "engine_adapters/vllm"
        (root / home / f"{name.removeprefix('sim_')}.py").write_text(text)
    return root


def test_they_are_those_that_are_loaded_inside_the_engine() -> None:
    files = MODULE["trace_modules"](ROOT)
    loaded = {f"{name.rpartition('.')[2]}.py" for name in OURS if "." in name.removeprefix("engine_adapters.vllm")}
    assert set(files) == (loaded - {"vllm.py"}) | {"scheduler.py", "__init__.py"}
    for text in files.values():
        imported = {node.module or "" for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
        assert {name.partition(".")[0] for name in imported}.isdisjoint({"simcore", "engine_adapters"})


def test_imports_and_words_name_the_package(tmp_path: Path) -> None:
    root = write(
        tmp_path, scheduler='"""See `simcore.types_of`."""\nfrom simcore.types import X\n', sim_types="X = 1\n"
    )
    files = MODULE["trace_modules"](root)
    assert files["scheduler.py"] == '"""See `simcore.types_of`."""\nfrom astrolabe_trace.types import X\n'
    assert files["types.py"] == "X = 1\n"


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ({"plugin": "import grpc"}, "engine_adapters.vllm.plugin imports grpc, which vLLM's environment does not have"),
        ({"plugin": "def f():\n    from protos.codec import x"}, "imports protos.codec"),
        ({"plugin": "from simcore.plugin import x", "sim_plugin": ""}, "two modules have one name"),
    ],
)
def test_what_cannot_run_there_is_not_built(tmp_path: Path, texts: dict[str, str], says: str) -> None:
    with pytest.raises(Exception, match=says) as refused:
        MODULE["trace_modules"](write(tmp_path, **texts))
    assert type(refused.value).__name__ == "TraceModulesError"
