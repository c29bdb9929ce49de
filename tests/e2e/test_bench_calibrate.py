"""`astrolabe bench calibrate` as a person runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.commands.calibrate import calibrate

pytestmark = pytest.mark.e2e


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    path = tmp_path / "lengths.csv"
    rows = [f"{20 + 37 * i % 900},{10 + 53 * i % 300}" for i in range(300)]
    path.write_text("num_prefill_tokens,num_decode_tokens\n" + "\n".join(rows) + "\n")
    return ["--dataset", "lengths", "--dataset-path", str(path)]


def test_table_picture_and_json(data: list[str], tmp_path: Path) -> None:
    run = [*data, "--steps", "1200", "--change-at", "800", "--prior", "x3", "--prior", "h100/llama-2-7b"]
    picture = tmp_path / "new" / "calibration.png"
    shown = CliRunner().invoke(calibrate, [*run, "--plot", str(picture)], catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    assert "h100/llama-2-7b" in shown.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    document = json.loads(CliRunner().invoke(calibrate, [*run, "--json"], catch_exceptions=False).stdout)
    assert [course["prior"] for course in document["courses"]] == ["x3", "h100/llama-2-7b"]
    for course in document["courses"]:
        assert course["before"] > 0.5
        assert course["steps_to"]["10%"] <= 500
        assert course["final"] < 0.05


def test_the_change_of_speed_comes_within_the_steps(data: list[str]) -> None:
    run = [*data, "--steps", "600", "--prior", "x3", "--json"]
    document = json.loads(CliRunner().invoke(calibrate, run, catch_exceptions=False).stdout)
    assert document["hardware"]["change_at_step"] == 375


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["--prior", "h1000/llama"], "h1000/llama"),
        (["--prior", "x0"], "above 0"),
        (["--steps", "1000", "--change-at", "900"], "200 steps on either side"),
        (["--steps", "5000", "--requests", "3"], "the workload ends after"),
    ],
)
def test_what_cannot_be_is_said(data: list[str], wrong: list[str], words: str) -> None:
    result = CliRunner().invoke(calibrate, [*data, "--change-at", "0", *wrong])
    assert result.exit_code != 0
    assert words in " ".join(result.output.split())
