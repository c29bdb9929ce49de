"""A user's own Python file (a policy, a workload) as a module."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType


def run_file(path: str | Path, kind: str) -> ModuleType:
    """The module that a .py file makes, named after what it is for. Raises whatever the file's own code raises."""
    spec = importlib.util.spec_from_file_location(f"astrolabe_{kind}_{Path(path).stem}", path)
    assert spec is not None, "a .py file has a loader"
    assert spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
