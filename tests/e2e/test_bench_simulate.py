"""`astrolabe bench simulate` and `compare --simulate` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.run.files import ResultFileError, read_results
from deploy.cli import main

ROWS = "num_prefill_tokens,num_decode_tokens\n" + "".join(
    f"{20 + 37 * i % 900},{1 + 53 * i % 200}\n" for i in range(60)
)


@pytest.fixture
def lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "lengths.csv"
    file.write_text(ROWS)
    return file


def bench(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *(str(a) for a in arguments)])
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    return out


def document(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bench(capsys, *arguments, "--json"))
    return found


def test_every_policy_at_every_rate_and_the_same_numbers_again(
    lengths: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (
        "simulate", "--nodes", 3, "--dataset", "lengths", "--dataset-path", lengths, "--requests", 90,
        "--rate", 5, "--rate", 20, "--policy", "round_robin,min_total_latency", "--jobs", 1,
    )  # fmt: skip
    found = document(capsys, *arguments, "--output", tmp_path / "runs")
    runs = found["runs"]
    assert [(run["policy"], run["rate_per_s"]) for run in runs] == [
        ("round_robin", 5.0),
        ("min_total_latency", 5.0),
        ("round_robin", 20.0),
        ("min_total_latency", 20.0),
    ]
    assert all(run["summary"]["completed"] == 90 for run in runs)
    assert runs[0]["summary"]["nodes"] == {"node-0": 30, "node-1": 30, "node-2": 30}
    assert runs[2]["summary"]["e2e_s"]["mean"] > runs[0]["summary"]["e2e_s"]["mean"]
    assert [c["policy"] for c in found["capacities"]] == ["round_robin"] * 2 + ["min_total_latency"] * 2
    head, results = read_results(tmp_path / "runs" / "round_robin-5-0.jsonl")
    assert (head.config["policy"], head.config["rate"], len(results)) == ("round_robin", 5.0, 90)
    assert document(capsys, *arguments)["runs"] == runs


def test_two_processes_find_what_one_finds(lengths: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (
        "simulate", "--nodes", 2, "--dataset", "lengths", "--dataset-path", lengths, "--requests", 30, "--rate", 9,
        "--policy", "random", "--seeds", 2,
    )  # fmt: skip
    assert document(capsys, *arguments, "--jobs", 2)["runs"] == document(capsys, *arguments, "--jobs", 1)["runs"]


def test_a_simulated_comparison_has_a_table_and_a_picture(
    lengths: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = bench(
        capsys, "compare", "--simulate", "--nodes", 2, "--dataset", "lengths", "--dataset-path", lengths,
        "--requests", 40, "--rate", 4, "--rate", 8, "--jobs", 1, "--lengths", "none", "--plot", "p/c.png",
    )  # fmt: skip
    for words in ("round_robin", "llumnix_freeness", "min_total_latency", "4.00", "8.00", "picture: p/c.png"):
        assert words in table
    assert (tmp_path / "p" / "c.png").read_bytes().startswith(b"\x89PNG")


def test_recorded_arrivals_keep_their_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "b.csv"
    rows = "\n".join(f"{100 + 2 * i},ChatGPT,30,{i % 3 * 20},0,API log" for i in range(12))
    file.write_text(f"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n{rows}\n")
    found = document(
        capsys, "simulate", "--nodes", 1, "--dataset", "burstgpt", "--dataset-path", file, "--rate-scale", 2,
        "--policy", "random", "--jobs", 1, "--output", tmp_path / "o",
    )  # fmt: skip
    assert "4 failed requests (0 response tokens) left out" in found["header"]["config"]["dataset_notes"]
    _, results = read_results(tmp_path / "o" / "random-recorded-0.jsonl")
    assert [r.arrival_s for r in results] == [0.0, 1.0, 3.0, 4.0, 6.0, 7.0, 9.0, 10.0]


def test_a_cut_result_file_is_named_with_its_line(
    lengths: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench(
        capsys, "simulate", "--nodes", 1, "--dataset", "lengths", "--dataset-path", lengths, "--requests", 3,
        "--rate", 4, "--policy", "random", "--jobs", 1, "--output", tmp_path / "o",
    )  # fmt: skip
    file = tmp_path / "o" / "random-4-0.jsonl"
    whole = file.read_bytes()
    for cut, says in (
        (whole[:-9], r"line 4: not a result"),
        (b"", "no provenance"),
        (b"{}\n", "line 1: not the header"),
    ):
        file.write_bytes(cut)
        with pytest.raises(ResultFileError, match=says):
            read_results(file)
