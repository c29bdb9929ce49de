"""What the commands of `astrolabe length` refuse before they begin."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy.cli import LENGTH
from length_model import sample_options as length_samples


@pytest.mark.parametrize("command", ["eval", "worth"])
def test_a_plot_that_cannot_be_drawn_is_refused_before_the_work(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(length_samples, "find_spec", lambda name: None)
    samples, plot = str(tmp_path / "none.jsonl"), str(tmp_path / "x.png")
    said = CliRunner().invoke(LENGTH, [command, "hashed", "--samples", samples, "--plot", plot])
    assert said.exit_code == 2
    assert "plots need matplotlib: pip install" in said.output
