"""A pure core knows nothing of the shell around it: `X.core` imports of its package only `X.core`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORES = ("gateway", "length_model", "predictor")


@pytest.mark.parametrize("package", CORES)
def test_a_core_imports_of_its_package_only_itself(package: str) -> None:
    files = sorted((ROOT / package / "core").rglob("*.py"))
    assert files
    upward = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            else:
                continue
            upward += [
                f"{file.relative_to(ROOT)}: {n}"
                for n in names
                if n.split(".")[0] == package and n.split(".")[1:2] != ["core"]
            ]
    assert not upward, "\n".join(upward)
