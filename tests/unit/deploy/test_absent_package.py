"""A command whose packages are an extra says which, where they are not installed."""

from __future__ import annotations

import importlib
import sys
import tomllib
from pathlib import Path

import click
import pytest

from deploy.cli import ASTROLABE, EXTRA_OF, LazyCommand, main

ROOT = Path(__file__).resolve().parents[3]


@click.command()
def plots() -> None:
    """Begins, and then wants what is not there."""
    importlib.import_module("scipy.stats")


def test_it_is_one_line_with_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(ASTROLABE._entries, "plots", LazyCommand(f"{__name__}:plots", "For this test."))
    monkeypatch.delitem(sys.modules, "scipy.stats", raising=False)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(SystemExit) as ended:
        main(["plots"])
    assert ended.value.code == 1
    assert capsys.readouterr().err.strip() == "error: this needs the package scipy: pip install 'astrolabe[bench]'"


def test_each_package_is_in_the_extra_that_is_named() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package, extra in EXTRA_OF.items():
        assert any(line.replace("-", "_").startswith(package) for line in extras[extra]), package
