"""Purity is the same wherever a module claims it: no I/O, no clock, no hidden state of a random generator.

The folders that are pure are those of import-linter's contract in pyproject.toml, without the modules that it excepts;
a module outside of them that calls itself pure in its docstring is held to the same.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONTRACT = next(
    contract
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    if contract["type"] == "forbidden"
)
FOLDERS = tuple(ROOT / name.replace(".", "/") for name in CONTRACT["source_modules"])
EXCEPTED = {ROOT / f"{line.partition(' ')[0].replace('.', '/')}.py" for line in CONTRACT["ignore_imports"]}
FORBIDDEN = frozenset(CONTRACT["forbidden_modules"])
SEEDED = frozenset({"Random", "default_rng", "Generator", "SeedSequence", "PCG64"})
"""Of `random` and `numpy.random`: what has a state of its own, given by the caller's seed."""
PACKAGES = ("simcore", "length_model", "engine_adapters", "predictor", "gateway", "deploy", "bench", "tests")


def breaches(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                imported = [name.name for name in names]
            case ast.ImportFrom(module=str(module), level=0, names=names):
                imported = [module]
                if module in ("random", "numpy.random"):
                    yield from (f"line {node.lineno}: {module}.{n.name}" for n in names if n.name not in SEEDED)
            case ast.Call(func=ast.Name(id="open" | "print" | "input" as called)):
                yield f"line {node.lineno}: {called}()"
                continue
            case ast.Call(func=ast.Attribute(attr="open")):
                yield f"line {node.lineno}: .open()"
                continue
            case ast.Attribute(value=owner, attr=attribute):
                whole = ast.unparse(owner)
                if whole == "time" or (whole in ("random", "np.random", "numpy.random") and attribute not in SEEDED):
                    yield f"line {node.lineno}: {whole}.{attribute}"
                continue
            case _:
                continue
        yield from (f"line {node.lineno}: import {name}" for name in imported if name.split(".")[0] in FORBIDDEN)


def says_that_it_is_pure(tree: ast.Module) -> bool:
    return re.search(r"\bPure\b", ast.get_docstring(tree) or "") is not None


def test_pure_modules_do_no_io_and_read_no_clock() -> None:
    checked, found = 0, []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text())
            in_pure_folder = path not in EXCEPTED and any(path.is_relative_to(folder) for folder in FOLDERS)
            if says_that_it_is_pure(tree) or in_pure_folder:
                checked += 1
                found += [f"{path.relative_to(ROOT)}: {breach}" for breach in breaches(tree)]
    assert checked > len(FOLDERS)
    assert found == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_every_pure_folder_is_there(folder: Path) -> None:
    assert any(folder.rglob("*.py")), "the contract names a folder without modules"


@pytest.mark.parametrize(
    "code",
    [
        "import time",
        "from os import path",
        "import urllib.request as r",
        "def f():\n    from pathlib import Path",
        "open('x')",
        "folder.open()",
        "time.monotonic()",
        "random.random()",
        "np.random.seed(1)",
        "from random import shuffle",
    ],
)
def test_a_breach_is_found(code: str) -> None:
    assert len(list(breaches(ast.parse(code)))) == 1


def test_what_the_caller_seeds_and_times_is_pure() -> None:
    code = "import random\nrandom.Random(1).random()\nnp.random.default_rng(2)\nnow_s = event.time\ncase.opens()"
    assert list(breaches(ast.parse(code))) == []
