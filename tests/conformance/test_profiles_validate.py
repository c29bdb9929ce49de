"""Measured runs replayed through the simulator: the bar on the real one, and runs that cannot be replayed."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from bench.commands.profile import profile as profile_command
from bench.commands.validate import validate as command
from bench.profile.host_gap import follow, host_gap
from bench.profile.measured_run import MeasuredRequest, MeasuredRunError, read_run
from bench.profile.rows import read_rows
from bench.profile.validate import validate
from simcore.cost.profile import DenseCurve
from simcore.cost.shipped import load_shipped
from simcore.cost.step_time import StepTimeModel
from simcore.node import NodeEvent, SimNode, SimRequest
from simcore.trace import StepBatch
from simcore.types import EngineConfig

CONFIG = EngineConfig(
    model="meta-llama/Llama-3.1-8B",
    max_num_seqs=64,
    max_num_batched_tokens=1024,
    num_blocks=2587,
    async_scheduling=True,
)
STEP_TIME = load_shipped("rtx4090/llama-3.1-8b", async_scheduling=True)


def simulated_run() -> list[MeasuredRequest]:
    """A run as an engine would have logged it, had it been our simulator."""
    node = SimNode("engine", CONFIG, STEP_TIME)
    shapes = [(40 + 97 * i % 900, 1 + 61 * i % 300) for i in range(60)]
    events: list[NodeEvent] = []
    for i, (prompt, output) in enumerate(shapes):
        events += node.advance(0.1 * i)
        request = SimRequest(request_id=f"r{i}", prompt_tokens=prompt, output_tokens=output, max_output_tokens=output)
        node.add(request, 0.1 * i)
    events += node.advance(1e6)
    first = {e.request_id: e.at_s for e in events if e.kind == "first_token"}
    last = {e.request_id: e.at_s for e in events if e.kind == "finished"}
    return [
        MeasuredRequest(
            request_id=f"r{i}",
            input_toks=prompt,
            output_toks=output,
            queued_ts=1000.0 + 0.1 * i,
            first_token_ts=1000.0 + first[f"r{i}"],
            last_token_ts=1000.0 + last[f"r{i}"],
        )
        for i, (prompt, output) in enumerate(shapes)
    ]


def write_run(folder: Path, requests: list[Any], meta: dict[str, Any] | None = None) -> Path:
    (folder / "vllm").mkdir(parents=True)
    lines = b"\n".join(msgspec.json.encode(r) for r in requests)
    (folder / "vllm" / "requests.jsonl.gz").write_bytes(gzip.compress(lines))
    settings = meta or {
        "model": CONFIG.model,
        "vllm_version": "0.19.0",
        "engine_kwargs": {"max_num_seqs": 64, "max_num_batched_tokens": 1024, "max_model_len": 4096},
        "kv_cache": {"num_gpu_blocks": 2588, "block_size": 16},
    }
    (folder / "vllm" / "meta.json").write_bytes(msgspec.json.encode(settings))
    return folder


def test_a_run_of_the_simulator_itself_is_reproduced(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "RTX4090" / "own", simulated_run()))
    assert run.config.num_blocks == 2587  # vLLM keeps one block for itself
    result = validate(run.requests, run.config, STEP_TIME)
    for metric, errors in result.error.items():
        assert errors == pytest.approx(dict.fromkeys(errors, 0.0), abs=1e-6), metric


def test_a_slower_profile_shows() -> None:
    """By a tenth and more: a slower engine also has more requests in each batch."""
    result = validate(simulated_run(), CONFIG, STEP_TIME.scaled(1.1))
    assert 0.095 < result.error["tpot_s"]["mean"] < 0.25
    assert result.error["e2e_s"]["mean"] > 0.05


def test_two_replicas_share_the_load() -> None:
    one = validate(simulated_run(), CONFIG, STEP_TIME)
    two = validate(simulated_run(), CONFIG, STEP_TIME, replicas=2)
    assert two.simulated["e2e_s"].mean < one.simulated["e2e_s"].mean


def test_the_command_prints_measured_beside_simulated(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "RTX4090" / "own", simulated_run())
    shown = CliRunner().invoke(command, [str(folder)])
    assert shown.exit_code == 0, shown.output
    assert "profile rtx4090/llama-3.1-8b" in shown.output
    assert "TPOT mean" in shown.output
    as_json = CliRunner().invoke(command, [str(folder), "--profile", "h100/llama-3.1-8b", "--json"])
    assert msgspec.json.decode(as_json.output)["validation"]["error"]["tpot_s"]["mean"] < -0.2


def test_the_profile_is_that_of_the_parallel_degree_and_an_estimate_says_that_it_is_one(tmp_path: Path) -> None:
    meta = {
        "model": "Qwen/Qwen3-32B",
        "engine_kwargs": {"max_num_seqs": 64, "max_num_batched_tokens": 1024, "tensor_parallel_size": 2},
        "resolved_config": {"scheduler_config": {"policy": "priority", "long_prefill_token_threshold": 256}},
    }
    run = write_run(tmp_path / "RTXPRO6000" / "own", simulated_run(), meta)
    shown = CliRunner().invoke(command, [str(run)])
    assert shown.exit_code == 0, shown.output
    assert "profile rtxpro6000/qwen3-32b-tp2" in shown.output
    config = read_run(run).config
    assert (config.scheduling_policy, config.long_prefill_token_threshold_tokens) == ("priority", 256)
    unknown = write_run(tmp_path / "A40" / "own", simulated_run(), meta)
    shown = CliRunner().invoke(command, [str(unknown)])
    assert "profile a40/qwen3-32b-tp2" in shown.output
    assert "No table of this pair. Such estimates are off by" in shown.output


@pytest.mark.parametrize(
    ("device", "folder", "profile"),
    [
        ("NVIDIA GeForce RTX 4090", "A30", "rtx4090/llama-3.1-8b"),
        ("NVIDIA H100 80GB HBM3", "mine", "h100/llama-3.1-8b"),
        ("NVIDIA A100-SXM4-40GB", "mine", "a100-40gb/llama-3.1-8b"),
        ("NVIDIA A10", "A30", "a30/llama-3.1-8b"),
        (None, "a30", "a30/llama-3.1-8b"),
        ("NVIDIA L40", "llama30b", None),
        (None, "runs", None),
    ],
)
def test_the_gpu_is_that_of_the_settings_or_the_folder_and_never_made_up(
    tmp_path: Path, device: str | None, folder: str, profile: str | None
) -> None:
    meta: dict[str, Any] = {
        "model": CONFIG.model,
        "engine_kwargs": {"max_num_seqs": 64, "max_num_batched_tokens": 1024, "max_model_len": 4096},
        "kv_cache": {"num_gpu_blocks": 2588, "block_size": 16},
        "hardware": {"device_name": device} if device else None,
    }
    run = write_run(tmp_path / folder / "own", simulated_run(), meta)
    shown = CliRunner().invoke(command, [str(run)])
    if profile is None:
        assert shown.exit_code == 1
        assert "which GPU?" in shown.output
        assert "--profile, for example a100/llama-3.1-8b or " in shown.output
        assert "No such" not in shown.output
        assert f"{folder}/llama" not in shown.output.lower()
    else:
        assert shown.exit_code == 0, shown.output
        assert f"profile {profile}" in shown.output


def test_a_model_that_nobody_measured_is_named_as_the_run_names_it(tmp_path: Path) -> None:
    meta = {"model": "own/brand-new-9b", "engine_kwargs": {"max_num_seqs": 64, "max_num_batched_tokens": 1024}}
    shown = CliRunner().invoke(command, [str(write_run(tmp_path / "A30" / "own", simulated_run(), meta))])
    assert shown.exit_code == 1
    assert "no step times of own/brand-new-9b on a30" in shown.output


REQUEST = {
    "request_id": "a",
    "input_toks": 10,
    "output_toks": 5,
    "queued_ts": 1.0,
    "first_token_ts": 2.0,
    "last_token_ts": 3.0,
}


@pytest.mark.parametrize(
    ("requests", "meta", "reason"),
    [
        ([REQUEST], None, r"1 request\(s\)"),
        ([REQUEST, REQUEST], None, "occurs twice"),
        ([REQUEST, REQUEST | {"request_id": "b", "output_toks": 0}], None, "line 2: .*must be >= 1"),
        ([REQUEST, REQUEST | {"request_id": "b", "first_token_ts": 0.5}], None, "line 2: .*times run backwards"),
        ([REQUEST, {"request_id": "b"}], None, "line 2: .*missing required field"),
        ([REQUEST, REQUEST | {"request_id": "b"}], {"model": "x"}, "meta.json: not the settings of a run"),
    ],
)
def test_a_broken_run_is_refused(tmp_path: Path, requests: list[Any], meta: dict[str, Any] | None, reason: str) -> None:
    folder = write_run(tmp_path / "run", requests, meta)
    with pytest.raises(MeasuredRunError, match=reason):
        read_run(folder)
    failed = CliRunner().invoke(command, [str(folder)])
    assert failed.exit_code == 1
    assert str(folder) in failed.output


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    assert "neither requests.jsonl nor" in CliRunner().invoke(command, [str(tmp_path)]).output
    folder = write_run(tmp_path / "cut", simulated_run())
    packed = folder / "vllm" / "requests.jsonl.gz"
    packed.write_bytes(packed.read_bytes()[:200])
    assert "cut off" in CliRunner().invoke(command, [str(folder)]).output


def test_a_real_dense_run_is_forecast_within_two_per_cent(data_dir: Path) -> None:
    """300 ShareGPT requests on vLLM 0.19, Llama-3.1-8B, RTX 4090; the profile has not seen the run."""
    run = read_run(data_dir / "llmservingsim" / "bench" / "examples" / "RTX4090" / "Llama-3.1-8B")
    result = validate(run.requests, run.config, STEP_TIME)
    for metric in ("ttft_s", "tpot_s", "e2e_s"):
        assert abs(result.error[metric]["mean"]) <= 0.02, (metric, result.error[metric])
    assert run.authors_error["tpot_s", "mean"] == pytest.approx(0.002)


def test_real_decode_times_on_an_h100_are_forecast_within_five_per_cent(data_dir: Path) -> None:
    """vLLM 0.12 serving Qwen3-32B at TP 2, synchronous, 1,024 tokens in and 1,024 out, 8 to 128 at a time.

    In the steady state every step decodes the whole batch, and each request's prefill is spread over its answer.
    """
    step_time = load_shipped("h100/qwen3-32b-tp2")
    prompt, answer = 1024, 1024
    rows = read_rows(data_dir / "aiconfigurator" / "silicon_sample.csv.gz", ("silicon_tpot_ms", "batch_size"))
    found = {}
    for row in rows:
        cells = row.cells
        if (cells["backend"], cells["model_path"], cells["system"]) != ("vllm", "Qwen/Qwen3-32B", "h100_sxm"):
            continue
        if (cells["precision"], cells["tp_size"], cells["isl"], cells["osl"]) == ("", "2", str(prompt), str(answer)):
            batch = row.integer("batch_size")
            decode = StepBatch(decode_seqs=batch, decode_kv_tokens=batch * (prompt + answer // 2))
            mixed = StepBatch(
                prefill_tokens=prompt,
                prefill_work_tokens2=prompt * prompt / 2,
                prefill_seqs=1,
                decode_seqs=batch - 1,
                decode_kv_tokens=(batch - 1) * (prompt + answer // 2),
            )
            decode_s = step_time.seconds(decode)
            forecast_s = decode_s + (step_time.seconds(mixed) - decode_s) * batch / answer
            found[batch] = forecast_s * 1e3 / row.number_or_nan("silicon_tpot_ms") - 1.0
    assert sorted(found) == [8, 16, 32, 64, 128]
    assert max(abs(error) for error in found.values()) <= 0.05, found


def test_what_replicas_share_takes_as_long_as_the_tokens_of_all_together_want() -> None:
    """Where one of two replicas has all the work, what both do for it is half as much."""
    requests = simulated_run()[:1]
    shared = DenseCurve((1, 1024), (1e-5, 1024e-5), "a price per token")
    equal = validate(requests, CONFIG, STEP_TIME, replicas=2, in_step=True)
    together = validate(requests, CONFIG, STEP_TIME, replicas=2, in_step=True, shared=shared)
    saved_s = equal.simulated["ttft_s"].mean - together.simulated["ttft_s"].mean
    assert saved_s == pytest.approx(requests[0].input_toks / 2 * 1e-5, rel=1e-6)


def with_a_host(gap_s: float, gap_prefill_s: float) -> StepTimeModel:
    return msgspec.structs.replace(STEP_TIME, constant_s=STEP_TIME.constant_s + gap_s, prefill_step_s=gap_prefill_s)


def followed_run(step_time: StepTimeModel, requests: int = 120) -> list[MeasuredRequest]:
    """A run as `simulated_run`, its requests taken in between steps, as an engine does."""
    node = SimNode("engine", CONFIG, step_time)
    taken: dict[str, float] = {}
    seen: list[NodeEvent] = []
    for i in range(requests):
        came_s = 0.11 * i
        seen += node.advance(came_s)
        taken[f"bench-{i}"] = max(came_s, node.free_at_s if node.has_work else came_s)
        prompt, output = 40 + 97 * i % 900, 5 + 61 * i % 200
        node.add(
            SimRequest(request_id=f"bench-{i}", prompt_tokens=prompt, output_tokens=output, max_output_tokens=output),
            came_s,
        )
    seen += node.advance(1e6)
    first = {e.request_id: e.at_s for e in reversed(seen) if e.kind == "first_token"}
    last = {e.request_id: e.at_s for e in seen if e.kind == "finished"}
    return [
        MeasuredRequest(
            request_id=f"bench-{i}",
            input_toks=40 + 97 * i % 900,
            output_toks=5 + 61 * i % 200,
            arrival_time=5e8 + 0.11 * i,
            queued_ts=1000.0 + taken[f"bench-{i}"],
            first_token_ts=1000.0 + first[f"bench-{i}"],
            last_token_ts=1000.0 + last[f"bench-{i}"],
        )
        for i in range(requests)
    ]


def test_the_hosts_part_is_read_off_a_run() -> None:
    requests = followed_run(with_a_host(0.0008, 0.004))
    found = host_gap(follow(requests, CONFIG, STEP_TIME), STEP_TIME)
    assert found.gap_s == pytest.approx(0.0008, rel=0.02)
    assert found.gap_prefill_s == pytest.approx(0.004, rel=0.05)
    none = host_gap(follow(followed_run(STEP_TIME), CONFIG, STEP_TIME), STEP_TIME)
    assert none.gap_s == pytest.approx(0.0, abs=1e-6)


def test_a_run_that_does_not_follow_the_rules_tells_nothing() -> None:
    requests = followed_run(STEP_TIME)
    strange = [msgspec.structs.replace(r, first_token_ts=r.last_token_ts) for r in requests]
    with pytest.raises(ValueError, match="20 of each are needed"):
        host_gap(follow(strange, CONFIG, STEP_TIME), STEP_TIME)


def test_the_command_tells_of_the_host(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "RTX4090" / "own", followed_run(with_a_host(0.0008, 0.004)))
    told = CliRunner().invoke(profile_command, ["host", str(folder), "--json"])
    assert told.exit_code == 0, told.output
    assert msgspec.json.decode(told.output)["gap_s"] == pytest.approx(0.0008, rel=0.02)
    assert "between any two steps" in CliRunner().invoke(profile_command, ["host", str(folder)]).output
    few = write_run(tmp_path / "RTX4090" / "few", followed_run(STEP_TIME, requests=4))
    assert "of each are needed" in CliRunner().invoke(profile_command, ["host", str(few)]).output


def test_times_count_from_when_a_request_came(tmp_path: Path) -> None:
    """An engine takes requests in between steps; the way from the client is the shortest of all."""
    requests = followed_run(STEP_TIME)
    run = read_run(write_run(tmp_path / "RTX4090" / "own", requests))
    assert [r.came_ts for r in run.requests] == pytest.approx([1000.0 + 0.11 * i for i in range(120)], abs=1e-6)
    result = validate(run.requests, run.config, STEP_TIME)
    for metric, errors in result.error.items():
        assert errors == pytest.approx(dict.fromkeys(errors, 0.0), abs=1e-5), metric
    bare = [msgspec.structs.replace(r, arrival_time=None) for r in requests]
    assert all(r.came_ts == r.queued_ts for r in read_run(write_run(tmp_path / "A30" / "own", bare)).requests)


def write_workload(path: Path, requests: list[MeasuredRequest]) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"input_toks": r.input_toks, "input_tok_ids": list(range(r.input_toks))} for r in requests]
    text = b'{"sub_requests": [{}]}\n' + b"\n".join(msgspec.json.encode(row) for row in rows) + b"\n"
    path.write_bytes(text)
    return text


def test_prompts_that_begin_alike_find_each_other(tmp_path: Path) -> None:
    requests = followed_run(STEP_TIME)
    text = write_workload(tmp_path / "workloads" / "w.jsonl", requests)
    meta = {
        "model": CONFIG.model,
        "engine_kwargs": {"max_num_seqs": 64, "max_num_batched_tokens": 1024, "max_model_len": 4096},
        "kv_cache": {"num_gpu_blocks": 2588, "block_size": 16},
        "dataset_path": "workloads/w.jsonl",
        "dataset_hash": hashlib.sha256(text).hexdigest(),
    }
    folder = write_run(tmp_path / "RTX4090" / "own", requests, meta)
    run = read_run(folder)
    assert run.prompts_known
    assert [len(r.block_hashes) for r in run.requests] == [r.input_toks // 16 for r in run.requests]
    assert validate(run.requests, run.config, STEP_TIME).error["ttft_s"]["mean"] < -0.1
    assert "prompts not at hand" not in CliRunner().invoke(command, [str(folder)]).output
    plain = write_run(tmp_path / "A30" / "own", requests)
    assert "prompts not at hand" in CliRunner().invoke(command, [str(plain)]).output
    named = CliRunner().invoke(command, [str(plain), "--workload", str(tmp_path / "workloads" / "w.jsonl")])
    assert "prompts not at hand" not in named.output
    other = write_run(tmp_path / "H100" / "own", requests, meta | {"dataset_hash": "0" * 64})
    assert "not the workload of this run" in CliRunner().invoke(command, [str(other)]).output
    write_workload(tmp_path / "other.jsonl", requests[1:])
    failed = CliRunner().invoke(command, [str(plain), "--workload", str(tmp_path / "other.jsonl")])
    assert failed.exit_code == 1
    assert "another workload" in failed.output


@pytest.mark.parametrize(
    "name",
    [
        "RTX4090/Llama-3.1-8B",
        "RTXPRO6000/Llama-3.1-8B",
        "RTXPRO6000/Qwen3-32B",
        "RTXPRO6000/Qwen3-30B-A3B-Instruct-2507",
    ],
)
def test_real_runs_with_their_prompts_are_forecast_within_three_per_cent(name: str, data_dir: Path) -> None:
    """Runs of vLLM 0.19, beside whose examples the workloads lie, as in a clone of LLMServingSim."""
    folder = data_dir / "llmservingsim" / "bench" / "examples" / name
    if not folder.is_dir() or not (data_dir / "llmservingsim" / "workloads").is_dir():
        pytest.skip(f"no run {folder} with its workload; clone github.com/casys-kaist/LLMServingSim there")
    shown = CliRunner().invoke(command, [str(folder), "--json"])
    assert shown.exit_code == 0, shown.output
    error = msgspec.json.decode(shown.output)["validation"]["error"]
    assert max(abs(error[metric]["mean"]) for metric in ("ttft_s", "tpot_s", "e2e_s")) <= 0.03, error


def test_replicas_that_share_experts_wait_for_each_other() -> None:
    """Two replicas in step are never faster than two on their own, and as fast when only one has work."""
    requests = simulated_run()
    alone = validate(requests, CONFIG, STEP_TIME, replicas=2)
    together = validate(requests, CONFIG, STEP_TIME, replicas=2, in_step=True)
    assert together.simulated["e2e_s"].mean > alone.simulated["e2e_s"].mean
    one = validate(requests[:1], CONFIG, STEP_TIME, replicas=2)
    assert validate(requests[:1], CONFIG, STEP_TIME, replicas=2, in_step=True).simulated == one.simulated
