"""`astrolabe bench sweep | capacity | report | experiment` as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.run.files import read_results
from deploy.cli import main

ROOT = Path(__file__).resolve().parents[2]
ROWS = "num_prefill_tokens,num_decode_tokens\n" + "".join(
    f"{20 + 37 * i % 900},{1 + 53 * i % 200}\n" for i in range(60)
)
SMALL = ("--set", "dataset=lengths", "--set", "dataset_path=lengths.csv", "--set", "nodes=2", "--set", "requests=60")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lengths.csv").write_text(ROWS)
    return tmp_path


def bench(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> tuple[str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *(str(a) for a in arguments)])
    out, err = capsys.readouterr()
    assert ended.value.code == code, err
    return out, err


def document(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bench(capsys, *arguments, "--json")[0])
    return found


def test_a_sweep_keeps_one_line_per_run_and_goes_on_where_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("sweep", "--axis", "policy=random,infaas", "--axis", "rate=4:8:4", *SMALL, "--seeds", 2, "--jobs", 1)
    first = document(capsys, *arguments, "--output", "s")
    assert (len(first["runs"]), first["reused"]) == (8, 0)
    run = first["runs"][0]
    assert run["spec"]["policy"] == "random"
    assert {"commit", "machine", "started_at", "wall_s", "measures"} <= set(run)
    assert run["measures"]["completed_share"] == 1.0
    # As if it had been killed in the middle of a line, with half of the runs done.
    log = Path("s/runs.jsonl")
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:4]) + lines[4][:100])
    again = document(capsys, *arguments, "--output", "s")
    assert again["reused"] == 4
    assert len(log.read_bytes().splitlines()) == 8

    def told(runs: list[dict[str, Any]]) -> list[dict[str, float]]:
        return [{k: v for k, v in r["measures"].items() if k != "cpu_s"} for r in runs]

    assert told(again["runs"]) == told(first["runs"])
    out, _ = bench(capsys, *arguments, "--output", "s", "--measure", "p99_ttft_ms")
    assert "p99_" in out, "a long name stands on two lines"
    assert "ttft_ms" in out


def started(folder: Path, *more: str) -> subprocess.Popen[str]:
    """A long sweep on two workers, in a process group of its own as a terminal would have it."""
    command = [
        sys.executable, "-m", "deploy.cli", "bench", "sweep", "--axis", "policy=random", "--axis", "rate=1:20:0.5",
        *SMALL, "--set", "requests=150", "--seeds", "20", "--jobs", "2", "--output", "s", *more,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def begun(folder: Path) -> subprocess.Popen[str]:
    """The same, of which some runs are finished."""
    process = started(folder)
    log = folder / "s" / "runs.jsonl"
    deadline_s = time.monotonic() + 50
    while not (log.exists() and log.read_bytes().count(b"\n") >= 3):
        assert time.monotonic() < deadline_s, "no run was finished"
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.05)
    return process


def test_ctrl_c_keeps_what_was_finished(folder: Path) -> None:
    process, log = begun(folder), folder / "s" / "runs.jsonl"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=50)
    assert process.returncode == 130
    assert "what was finished is kept: give the same command again" in err
    assert "Traceback" not in err
    kept = log.read_bytes()
    assert kept.endswith(b"\n")
    assert all(json.loads(line)["schema_version"] == 2 for line in kept.splitlines())


def test_a_second_ctrl_c_drops_what_is_under_way(folder: Path) -> None:
    process = started(folder, "--set", "requests=3000000")
    deadline_s = time.monotonic() + 50
    # Workers that still import must not die of the first one.
    while len(workers := psutil.Process(process.pid).children(recursive=True)) < 3:
        assert time.monotonic() < deadline_s, "no workers"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    assert process.stderr is not None
    said = ""
    while "Ctrl-C again drops them" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    time.sleep(0.5)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "what was finished is kept" in err
    assert "Traceback" not in said + err
    assert "leaked" not in said + err
    _, left = psutil.wait_procs(workers, timeout=5)
    assert not left


def test_workers_end_with_a_sweep_that_is_killed(folder: Path) -> None:
    process = begun(folder)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    process.kill()
    process.communicate(timeout=50)
    _, left = psutil.wait_procs(workers, timeout=20)
    assert not left


def test_files_of_ones_own_serve_as_policy_workload_and_profile(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = json.loads((ROOT / "simcore/profiles/a30-llama-2-7b.json").read_text())
    profile["name"] = "mine/fast"
    profile["dense"]["seconds"] = [s / 2 for s in profile["dense"]["seconds"]]
    Path("fast.json").write_text(json.dumps(profile))
    own = ROOT / "bench/examples"
    found = document(
        capsys, "sweep", "--axis", f"policy=round_robin,{own / 'soonest_token.py'}",
        "--axis", "profile=a30/llama-2-7b,./fast.json", "--set", f"dataset={own / 'lunch_peak.py'}",
        "--set", "rate=4", "--set", "nodes=2", "--set", "requests=60", "--seeds", 1, "--jobs", 2, "--output", "s",
    )  # fmt: skip
    e2e = {(Path(r["spec"]["policy"]).stem, r["spec"]["profile"]): r["measures"]["e2e_mean_s"] for r in found["runs"]}
    assert len(e2e) == 4
    for policy in ("round_robin", "soonest_token"):
        assert e2e[policy, "./fast.json"] < e2e[policy, "a30/llama-2-7b"]
    table, _ = bench(
        capsys, "compare", "--simulate", "--policy", f"random,{own / 'soonest_token.py'}", "--rate", 6, "--seeds", 3,
        "--nodes", 2, "--dataset", own / "lunch_peak.py", "--profile", "./fast.json", "--requests", 50,
        "--plot", "c.png",
    )  # fmt: skip
    assert "soonest_token" in table
    assert "against random, 3 paired seeds" in table


def test_a_policy_against_itself_is_no_difference(capsys: pytest.CaptureFixture[str]) -> None:
    same = (ROOT / "gateway/core/decision/policies/random_node.py").read_text().replace('"random"', '"random_again"')
    Path("again.py").write_text(same.replace("RandomNode", "RandomAgain"))
    found = document(
        capsys, "compare", "--simulate", "--policy", "random,again.py", "--rate", 6, "--seeds", 3, "--nodes", 2,
        "--dataset", "lengths", "--dataset-path", "lengths.csv", "--requests", 40, "--plot", "c.png", "--jobs", 1,
    )  # fmt: skip
    assert {one["verdict"] for one in found["differences"]} == {"no difference"}


def test_capacity_finds_a_rate_with_its_interval_and_knows_its_runs_again(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (
        "capacity", "--policy", "random", "--slo", "ttft_p99_s<=0.5", *SMALL, "--set", "requests=600", "--seeds", 2,
        "--step", 2,
    )  # fmt: skip
    found = document(capsys, *arguments, "--output", "c")
    rate = found["capacities"][0]["rate_per_s"]
    assert rate["count"] == 2
    assert rate["low"] <= rate["mean"] <= rate["high"]
    lines = Path("c/runs.jsonl").read_bytes()
    assert document(capsys, *arguments, "--output", "c")["capacities"] == found["capacities"]
    assert Path("c/runs.jsonl").read_bytes() == lines
    by_rate = {r["spec"]["rate_per_s"]: r["measures"]["ttft_p99_s"] for r in map(json.loads, lines.splitlines())}
    assert min(by_rate.values()) <= 0.5 < max(by_rate.values())


def test_the_rows_that_stand_in_are_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASTROLABE_DATA", "/nonexistent")
    small = ("--set", "dataset=conversations", "--set", "nodes=2", "--set", "requests=20", "--seeds", 1, "--jobs", 1)
    swept, _ = bench(capsys, "sweep", "--axis", "rate=2", "--set", "policy=random", *small, "--output", "s")
    found, _ = bench(capsys, "capacity", "--policy", "random", "--slo", "ttft_p99_s<=0.001", *small, "--output", "c")
    for said in (swept, found):
        assert "not on this machine, drawn-conversations in its place" in " ".join(said.split())


def test_a_report_is_one_page_with_everything_inside(capsys: pytest.CaptureFixture[str]) -> None:
    bench(
        capsys, "sweep", "--axis", "policy=random,infaas", "--axis", "rate=4,8", *SMALL, "--seeds", 2, "--jobs", 1,
        "--output", "s",
    )  # fmt: skip
    out, _ = bench(capsys, "report", "s")
    assert "infaas" in out
    page = Path("s/report.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    assert "<td>random</td>" in page
    assert "src='http" not in page


EXPERIMENT = """
name = "mine"
title = "Mine"
system = "own"
source = "nobody"
exact = ["the rows"]
[base]
dataset = "lengths"
dataset_path = "lengths.csv"
nodes = 2
requests = 60
[[variants]]
name = "a"
values = { policy = "random" }
[[variants]]
name = "b"
values = { policy = "min_total_latency" }
ours = true
[[grids]]
axes = { rate_per_s = [4.0, 8.0] }
[[figures]]
name = "f"
title = "F"
kind = "curves"
panels = [{ title = "p", measure = "ttft_p99_s" }]
[[figures]]
name = "m"
title = "M"
kind = "course"
panels = [{ title = "free", measure = "free_blocks_mean" }]
[[claims]]
what = "E2E of b against a"
variant = "b"
against = "a"
measure = "e2e_mean_s"
at = { rate_per_s = 8.0 }
published = 1.0
published_against = 2.0
"""


def test_an_experiment_of_ones_own_leaves_figures_and_claims(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.toml").write_text(EXPERIMENT)
    found = document(capsys, "experiment", "mine.toml", "--seeds", 2, "--jobs", 1, "--output", "e")
    assert found[0]["runs"] == 8  # type: ignore[index]
    names = {path.name for path in Path("e/mine").iterdir()}
    assert {"runs.jsonl", "mine.claim", "mine.claim.json", "f.png", "f.pdf", "m.png", "m.pdf"} <= names
    text = Path("e/mine/mine.claim").read_text()
    assert "published: 1 against 2, ratio 0.500" in text
    assert "reproduced exactly:\n  - the rows" in text


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("experiment", "mian"), 1, "did you mean 'main'?"),
        (("experiment", "overhead"), 1, "overhead needs real processes: add --live"),
        (("experiment", "none.toml"), 1, "none.toml: cannot be read"),
        (("sweep", "--axis", "polici=random"), 2, "unknown key 'polici'; did you mean 'policy'?"),
        (("sweep", "--axis", "policy=rundom"), 2, "did you mean 'random'?"),
        (("sweep", "--axis", "policy=./mine.py"), 2, "is not there; check the path"),
        (("sweep", "--axis", "dataset=sharegtp"), 1, "Did you mean 'sharegpt'?"),
        (("sweep", "--axis", "rate=20:10:1"), 2, "write FROM:TO:STEP"),
        (("sweep", "--axis", "rate=20:30"), 2, "write FROM:TO:STEP"),
        (("sweep", "--axis", "router.hold=sometimes"), 2, "when must be one of never, forecast, always"),
        (("sweep", "--axis", "rate"), 2, "write KEY=VALUE"),
        (("sweep", "--axis", "rate=0"), 2, "must be above 0"),
        (("sweep", "--axis", "sample=99"), 2, "there are only 12 nodes to draw from"),
        (("sweep", "--axis", "rate=4", "--measure", "p9_ttft_ms"), 1, "did you mean 'p99_ttft_ms'?"),
        (("sweep", "--axis", "seed=1,2"), 2, "seeds are counted with --seeds"),
        (("capacity", "--slo", "ttft"), 1, "cannot read the objective 'ttft'"),
        (("capacity", "--policy", "rundom"), 2, "did you mean 'random'?"),
        (("report", "nowhere"), 1, "nowhere: no runs.jsonl there or below"),
    ],
)
def test_what_was_asked_wrongly_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, says: str
) -> None:
    _, err = bench(capsys, *arguments, code=code)
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    assert says in lines[0]


def test_results_of_another_schema_are_not_mixed_in(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("sweep", "--axis", "rate=4", *SMALL, "--set", "policy=random", "--seeds", 1, "--jobs", 1)
    bench(capsys, *arguments, "--output", "s")
    log = Path("s/runs.jsonl")
    log.write_bytes(log.read_bytes().replace(b'"schema_version":2', b'"schema_version":7'))
    _, err = bench(capsys, *arguments, "--output", "s", code=1)
    assert "results of schema 7, this version reads 2" in err


def test_rows_that_cannot_be_read_are_named_or_counted(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.csv").write_text(ROWS + "12,x\n13\n14,15\n")
    arguments = (
        "simulate", "--dataset", "lengths", "--dataset-path", "bad.csv", "--rate", 4, "--requests", 20, "--nodes", 1,
        "--policy", "random", "--jobs", 1,
    )  # fmt: skip
    _, err = bench(capsys, *arguments, code=1)
    assert "bad.csv, row 62: column `num_decode_tokens` holds `x`" in err
    out, _ = bench(capsys, *arguments, "--skip-bad")
    assert "2 rows that cannot be read left out; the first is row 62" in " ".join(out.split())


def test_every_request_is_kept_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    document(
        capsys, "sweep", "--axis", "rate=4", *SMALL, "--set", "policy=random", "--seeds", 1, "--jobs", 1,
        "--output", "s", "--records", "jsonl",
    )  # fmt: skip
    (file,) = Path("s/requests").iterdir()
    head, rows = read_results(file)
    assert (head.seed, head.config["policy"], head.config["rate_per_s"]) == (0, "random", 4.0)
    assert len(rows) == 60
    assert all(row.ttft_s is not None and row.scheduling_delay_s is not None for row in rows)
