"""`astrolabe length` as a user types it, in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bench.workload.dataset_error import DatasetError
from bench.workload.item import WorkloadItem, belief_of
from bench.workload.jsonl import parse_jsonl
from deploy.cli import LENGTH
from length_model.models import load_model
from length_model.sample_files import manifest_path, read_manifest, read_samples
from simcore.types import LengthBelief
from tests.helpers.length_samples import made_samples

TINY = ("--set", "hash_buckets=256", "--set", "width=4", "--set", "hidden=8")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(LENGTH, [str(a) for a in arguments])


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """A foreign JSON-lines file turned into a sample file with a split."""
    raw = tmp_path / "raw.jsonl"
    rows = [
        {
            "prompt": s.query.prompt,
            "conversation": s.group,
            "output_tokens": s.output_tokens,
            "model": "m",
            "outcome": "length" if s.censored else "stop",
        }
        for s in made_samples(240, censored_share=0.1)
    ]
    rows += [{"prompt": "no length"}, {"prompt": "nothing came", "output_tokens": 0}]
    raw.write_text("\n".join(map(json.dumps, rows)))
    output = tmp_path / "samples.jsonl"
    result = run("sample", "--dataset", "jsonl", "--dataset-path", raw, "--tokenizer", "bytes", "--output", output)
    assert result.exit_code == 0, result.output
    assert "2 rows skipped" in result.output
    return output


def test_samples_keep_what_the_file_said(samples: Path) -> None:
    found = read_samples(samples)
    manifest = read_manifest(manifest_path(samples))
    assert len(found.samples) == 240
    assert any(s.censored for s in found.samples)
    assert manifest.samples_sha256 == found.sha256
    assert sum(manifest.counts.values()) == 240


def test_train_judge_and_tag(samples: Path, tmp_path: Path) -> None:
    model, card, plot, tagged = (tmp_path / n for n in ("hashed.alm", "card.md", "plot.png", "tagged.jsonl"))
    trained = run("train", "hashed", "--samples", samples, "--output", model, *TINY)
    assert trained.exit_code == 0, trained.output
    assert load_model(str(model)).name == "hashed"

    judged = run("eval", model, "constant", "--samples", samples, "--json", "--card", card, "--plot", plot)
    assert judged.exit_code == 0, judged.output
    baseline, ours, constant = json.loads(judged.output)
    assert [e["model"] for e in (baseline, ours, constant)] == ["histogram", "hashed", "constant"]
    assert ours["sha256"] == load_model(str(model)).sha256
    assert ours["left_out_censored"] > 0
    assert 0 <= ours["overall"]["coverage_90"]["low"] <= ours["overall"]["coverage_90"]["high"] <= 1
    assert [p["other"] for p in constant["against"]] == ["histogram", "hashed"]
    assert "# Model card: constant" in card.read_text()
    assert plot.read_bytes().startswith(b"\x89PNG")

    people = run("eval", model, "--samples", samples)
    assert people.exit_code == 0, people.output
    assert "published" in people.output

    assert run("tag", "--model", model, "--samples", samples, "--belief", "--output", tagged).exit_code == 0
    with tagged.open() as lines:
        rows = parse_jsonl(lines, "tagged", count_tokens=len, default_output_tokens=1).rows
    assert len(rows) == ours["overall"]["count"]
    for row in rows:
        atoms = row.predicted_atoms_tokens
        assert len(atoms) == 20
        assert row.predicted_output_tokens is not None
        assert atoms[8] <= row.predicted_output_tokens <= atoms[11]


def test_what_to_train_and_where_to_need_not_be_said(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained = run("train", "--samples", samples, *TINY)
    assert trained.exit_code == 0, trained.output
    assert load_model("results/length/hashed.alm").name == "hashed"
    assert "100% training" in trained.output
    # Whoever names an encoder wants one; here it is missing, or what trains it is.
    encoder = run("train", "--encoder", "./no-such-folder", "--samples", samples)
    assert encoder.exit_code == 1
    assert "no such folder" in encoder.output or "needs the package" in encoder.output


def test_tags_are_added_to_any_workload(tmp_path: Path) -> None:
    workload, tagged = tmp_path / "w.jsonl", tmp_path / "t.jsonl"
    workload.write_text('{"workload": "hello", "session": "s"}\n\n{"prompt_tokens": 5, "output_tokens": 7}\n')
    result = run("tag", "--model", "constant", "--workload", workload, "--output", tagged, "--statistic", "p90")
    assert result.exit_code == 0, result.output
    first, second = (json.loads(line) for line in tagged.read_text().splitlines())
    assert first["session"] == "s"
    assert first["predicted_output_tokens"] == second["predicted_output_tokens"] > 300


def test_sharegpt_files_become_samples(tmp_path: Path) -> None:
    file, output = tmp_path / "sharegpt.json", tmp_path / "s.jsonl"
    turns = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}] * 2
    file.write_text(json.dumps([{"id": f"c{i}", "conversations": turns} for i in range(30)]))
    result = run("sample", "--dataset-path", file, "--tokenizer", "bytes", "--output", output, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.output)
    assert told["counts"] == {"train": 2, "calibration": 0, "test": 0}  # copies of one conversation stay together


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "no usable rows"),
        (b'{"prompt": "a"}\n', "no usable rows (1 skipped)"),
        (b'{"prompt": "a", "output_tokens": 0}\n{"prompt": "b", "output_tokens": -4}\n', "no usable rows (2 skipped)"),
        (b'{"prompt": "a", "output_tokens": NaN}\n', "line 1"),
        (b'{"prompt": "a", "output_tokens": 1e300}\n', "no usable rows (1 skipped)"),
        (b'{"prompt": "a", "output_tokens": "many"}\n', "no usable rows (1 skipped)"),
        (b'{"output_tokens": 5}\nnonsense\n', "line 2"),
        (b"\xff\xfe\x00binary", "line 1"),
        (b"[1, 2]\n", "line 1"),
    ],
)
def test_a_file_without_usable_rows_is_one_clear_error(content: bytes, complaint: str, tmp_path: Path) -> None:
    raw = tmp_path / "raw.jsonl"
    raw.write_bytes(content)
    result = run(
        "sample", "--dataset", "jsonl", "--dataset-path", raw, "--tokenizer", "bytes", "--output", tmp_path / "o"
    )
    assert result.exit_code == 1
    assert complaint in result.output
    assert str(raw) in result.output
    assert "Traceback" not in result.output


def test_mistakes_are_one_line(samples: Path, tmp_path: Path) -> None:
    model = tmp_path / "m.alm"
    model.write_bytes(b"rubbish")
    for arguments, complaint in (
        (("eval", model, "--samples", samples), "not a length model artefact"),
        (("eval", "no-such-model", "--samples", samples), "no length model 'no-such-model'"),
        (("eval", "--samples", tmp_path / "absent"), "astrolabe length sample"),
        (("train", "hashed", "--samples", samples, "--output", model, "--set", "depth=3"), "depth"),
        (("train", "hashed", "--samples", samples, "--output", model, "--set", "depth"), "NAME=VALUE"),
        (("train", "hashed", "--samples", samples, "--encoder", "roberta-base"), "--encoder is for encoders"),
        (("tag", "--output", tmp_path / "x"), "either --workload"),
        (("sample", "--dataset", "jsonl"), "--dataset-path"),
    ):
        result = run(*arguments)
        assert result.exit_code in (1, 2), (arguments, result.output)
        assert complaint in result.output
        assert "Traceback" not in result.output


def test_a_split_of_another_file_is_refused(samples: Path) -> None:
    samples.write_bytes(samples.read_bytes().replace(b"rivers", b"forest"))
    result = run("eval", "constant", "--samples", samples)
    assert result.exit_code == 1
    assert "belongs to another sample file" in result.output


def test_bench_takes_the_whole_belief_before_the_point() -> None:
    item = WorkloadItem(
        request_id="r",
        arrival_s=0.0,
        prompt_tokens=1,
        output_tokens=5,
        predicted_output_tokens=50,
        predicted_atoms_tokens=(10, 90),
    )
    assert belief_of(item, "predicted") == LengthBelief((10, 90))
    assert belief_of(item, "known") == LengthBelief((5,))


@pytest.mark.parametrize("atoms", ["[9, 3]", "[0, 3]"])
def test_bench_refuses_a_belief_that_is_none(atoms: str) -> None:
    line = f'{{"prompt_tokens": 3, "output_tokens": 4, "predicted_atoms_tokens": {atoms}}}'
    with pytest.raises(DatasetError, match="row 1"):
        parse_jsonl([line], "f", count_tokens=len, default_output_tokens=1)


def test_the_worth_of_a_belief_is_told(samples: Path, tmp_path: Path) -> None:
    told, plot = tmp_path / "worth.md", tmp_path / "worth.png"
    few = ("--nodes", 1, "--requests", 120, "--load", 1.0, "--seed", 0, "--slo-ttft", 1.0)
    result = run("worth", "histogram", "--samples", samples, *few, "--markdown", told, "--plot", plot, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert {c["knowledge"] for c in found["cells"]} >= {"oracle", "histogram", "none"}
    assert "shortest forecast first" in told.read_text()
    assert plot.stat().st_size > 0
    assert run("worth", "no-such-model", "--samples", samples).exit_code == 1
    short = run("worth", "--samples", samples, "--nodes", 4, "--requests", 20)
    assert short.exit_code == 1
    assert "more with --requests" in short.output
