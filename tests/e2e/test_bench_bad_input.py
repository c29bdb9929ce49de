"""`astrolabe bench …` asked wrongly: one line on standard error, an exit code, no traceback, no other output."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.cli import main

V1 = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
NOBODY = "127.0.0.1:1"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and the one line on standard error."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    assert isinstance(ended.value.code, int)
    return ended.value.code, lines[0]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one file of each sort; also the working directory and the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").touch()
    (tmp_path / "none.py").write_text("x = 1\n")
    (tmp_path / "short.csv").write_text(f"{V1}\n1,ChatGPT,5,6,11,API log\n2,ChatGPT,5\n")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "lengths.csv").write_text("num_prefill_tokens,num_decode_tokens\n7,9\n")
    (tmp_path / "long.csv").write_text("num_prefill_tokens,num_decode_tokens\n7000,9\n")
    return tmp_path


COMMANDS = [("replay",), ("simulate",), ("compare", "--simulate")]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--rate", "0"], 2, "--rate: must be above 0 requests per second, got 0"),
        (["--rate", "-3"], 2, "--rate: must be above 0 requests per second, got -3"),
        (["--rate", "nan"], 2, "--rate: must be above 0"),
        (["--rate", "fast"], 2, "'fast' is not a valid float"),
        (["--rate", "1", "--burstiness", "0"], 2, "--burstiness: must be above 0"),
        (["--rate", "1", "--duration", "0"], 2, "--duration: must be above 0 seconds"),
        (["--rate", "1", "--requests", "0"], 2, "0 is not in the range x>=1"),
        (["--rate", "1", "--rows", "5:2"], 2, "--rows: write A:B"),
        (["--rate", "1", "--policy", "min_total_latenzy"], 2, "did you mean 'min_total_latency'?"),
        (["--rate", "1", "--tokenizer", "gpt9", "--dataset-path", "empty"], 1, "unknown tokenizer 'gpt9'"),
        (["--rate", "1", "--dataset", "burstgpt"], 1, "Add --dataset-path FILE"),
        (["--rate", "1", "--dataset", "burstgpt", "--dataset-path", "none.csv"], 1, "none.csv: cannot be read"),
        (["--rate", "1", "--dataset", "burstgpt", "--dataset-path", "empty"], 1, "empty: the file is empty"),
        (["--rate", "1", "--dataset", "burstgpt", "--dataset-path", "short.csv"], 1, "short.csv, row 3: 3 fields"),
        (["--rate", "1", "--dataset", "burstgpt", "--dataset-path", "other.csv"], 1, "its header is `a,b`"),
        (["--rate", "1", "--dataset", "lengths", "--dataset-path", "other.csv"], 1, "no column `num_prefill_tokens`"),
        (
            ["--rate", "1", "--dataset", "jsonl", "--dataset-path", "other.csv"],
            1,
            "other.csv, row 1: not such an object",
        ),
        (["--rate", "1", "--dataset", "sharegpt", "--dataset-path", "other.csv"], 1, "it begins with `a`"),
        (["--dataset", "lengths", "--dataset-path", "lengths.csv"], 2, "no arrival times: add --rate"),
        (["--rate", "1", "--dataset", "./mine.py"], 1, "./mine.py: there is no such workload file"),
        (["--rate", "1", "--dataset", "none.py"], 1, "it has no function `workload`"),
        (
            ["--rate", "1", "--dataset", "none.py", "--rows", "1:2"],
            2,
            "makes its own requests and arrivals: leave --rows",
        ),
    ],
)
def test_one_line_says_what_is_wrong(
    files: Path,
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...],
    arguments: list[str],
    code: int,
    says: str,
) -> None:
    found, line = run(capsys, "bench", *command, *arguments)
    assert says in line
    assert line.startswith("error: ")
    assert found == code


def test_a_replay_without_a_gateway_says_how_to_get_one(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = run(
        capsys, "bench", "replay", "--rate", "1", "--dataset", "lengths", "--dataset-path", "lengths.csv",
        "--gateway", NOBODY,
    )  # fmt: skip
    assert code == 1
    assert f"no gateway answers at {NOBODY}" in line
    assert "astrolabe up" in line


@pytest.mark.parametrize("command", COMMANDS[1:], ids=" ".join)
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--profile", "a30/llama-9"], 1, "a30/llama-9"),
        (["--nodes", "0"], 2, "--nodes"),
        (["--num-blocks", "0"], 2, "--num-blocks"),
        (["--dataset-path", "long.csv"], 1, "every row is longer than 4,096 tokens"),
        (["--lengths", "predicted"], 1, "the data set has no predicted length"),
    ],
)
def test_a_simulation_asked_wrongly(
    files: Path,
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...],
    arguments: list[str],
    code: int,
    says: str,
) -> None:
    options = ["--rate", "1", "--requests", "2", "--dataset", "lengths", "--dataset-path", "lengths.csv", *arguments]
    found, line = run(capsys, "bench", *command, *options)
    assert says in line
    assert found == code
