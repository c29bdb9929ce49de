"""Moves that a run asks for by itself."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from bench.run.simulated import Done, Task, run_task
from bench.run.spec import RunSpec, SpecError, check_spec, with_values
from bench.show.simulated import moves_text

BASE = {
    "policy": "round_robin",
    "as_published": True,
    "nodes": 2,
    "dataset": "fixed",
    "prompt_tokens": 400,
    "output_tokens": 300,
    "requests": 3,
    "rate_per_s": 20.0,
    "arrivals": "uniform",
}


def spec_with(**values: Any) -> RunSpec:
    return with_values(RunSpec(), {**BASE, **values})


def run(**values: Any) -> Done:
    return run_task(Task(group="", variant="", spec=spec_with(**values)), keep_results=True)


def test_the_request_that_is_named_moves_to_the_node_that_is_named() -> None:
    done = run(moves_asked="3>node-1@2", moves_gently=False)
    assert [(result.node_id, result.moves) for result in done.results] == [
        ("node-0", None),
        ("node-1", None),
        ("node-1", 1),
    ]
    assert done.line.measures["moves_done"] == 1
    assert done.line.measures["moves_downtime_mean_s"] > 0
    assert done.line.measures["completed_share"] == 1.0


@pytest.mark.parametrize(
    ("values", "begins"),
    [({}, "here at 20/s, seed 0: 1 moves"), ({"rate_per_s": None, "rate_steps": "20x10"}, "here, seed 0: 1 moves")],
)
def test_what_moves_did_is_told_with_the_rate_if_there_is_one(values: dict[str, Any], begins: str) -> None:
    line = run(moves_asked="3>node-1@2", moves_gently=False, **values).line
    text = moves_text(msgspec.structs.replace(line, variant="here"))
    assert text is not None
    assert text.startswith(begins)


def test_who_has_ended_already_does_not_move() -> None:
    done = run(moves_asked="1>node-1@500")
    assert "moves_done" not in done.line.measures
    text = moves_text(msgspec.structs.replace(done.line, variant="here"))
    assert text is not None
    assert text.endswith("seed 0: no request moved")
    assert [result.node_id for result in done.results] == ["node-0", "node-1", "node-0"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("3>node-1", "is no move; write REQUEST>NODE@SECONDS"),
        ("0>node-1@3", "is no move"),
        ("3>node-7@3", "no node 'node-7'; there are: node-0, node-1"),
    ],
)
def test_what_is_no_move_is_one_clear_error(text: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        check_spec(spec_with(moves_asked=text))


def test_a_request_beyond_the_run_is_one_clear_error() -> None:
    with pytest.raises(ValueError, match="request 4 shall move, but the run has only 3"):
        run(moves_asked="4>node-1@1")
