"""Requests read back from an engine's steps are those that it ran."""

from __future__ import annotations

import click
import pytest

from bench.vllm_checks.recorded_steps import Recording, forecasts_of, recording_of, requests_of, step_rows
from simcore.cost.shipped import load_shipped
from simcore.node import SimNode, SimRequest
from simcore.trace import TraceDelta
from simcore.types import EngineConfig

MODEL = load_shipped("a30/llama-2-7b")


def recorded(*, outputs: tuple[int, ...], steps: int) -> Recording:
    config = EngineConfig(model="m", max_num_seqs=4, max_num_batched_tokens=256, num_blocks=500)
    node = SimNode("n", config, MODEL)
    snapshot = node.snapshot(0.0)
    deltas: list[TraceDelta] = []
    for i, tokens in enumerate(outputs):
        node.add(
            SimRequest(request_id=f"r{i}", prompt_tokens=20 + i, output_tokens=tokens, max_output_tokens=tokens), 0.0
        )
    while node.has_work and len(deltas) < steps:
        deltas.append(node.step(node.next_step_s))
    return Recording(snapshot, deltas)


def test_all_requests_come_back_with_their_tokens_and_times() -> None:
    recording = recorded(outputs=(3, 1, 7, 5, 9, 2), steps=1000)
    found = {r.request_id: r for r in requests_of(recording)}
    assert {i: (found[f"r{i}"].input_toks, found[f"r{i}"].output_toks) for i in range(6)} == {
        i: (20 + i, tokens) for i, tokens in enumerate((3, 1, 7, 5, 9, 2))
    }
    assert list(found) == [f"r{i}" for i in range(6)]
    ends = [d.end_s for d in recording.deltas]
    assert max(r.last_token_ts for r in found.values()) == ends[-1]
    assert all(r.first_token_ts in ends for r in found.values())
    assert found["r1"].first_token_ts == found["r1"].last_token_ts


def test_a_recording_cut_short_leaves_out_its_end() -> None:
    assert requests_of(recorded(outputs=(1, 1, 400), steps=50)) == []


def test_a_profile_agrees_with_the_engine_that_runs_by_it() -> None:
    rows = step_rows(recorded(outputs=(30,) * 10, steps=1000).deltas, MODEL)
    assert any("1 to 7 decode" in row for row in rows)
    assert any("with prefill" in row for row in rows)
    assert all("1.000 (1.00 to 1.00)" in row for row in rows[2:])


def test_forecasts_of_a_node_that_runs_by_the_daemons_own_rules_are_what_happened() -> None:
    ttft, e2e = forecasts_of(recorded(outputs=(30,) * 10, steps=1000), MODEL)
    assert len(ttft) == len(e2e) == 10
    assert max(pair.error for pair in e2e) < 0.05
    assert max(pair.error for pair in ttft) < 0.3
    assert min(pair.actual_s for pair in e2e) > 0.5


@pytest.mark.parametrize("content", [b"", b"{}\n", b"not JSON\n", b'{"seq": 1, "duration_s": 0.1}\n'])
def test_a_file_that_is_no_recording_is_refused_by_name(content: bytes) -> None:
    with pytest.raises(click.ClickException, match=r"steps\.jsonl: line 1"):
        recording_of(content, "steps.jsonl")
