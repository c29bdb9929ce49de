"""Answer lengths in scenarios: common random numbers, stratified, conditioned on what came."""

from __future__ import annotations

import numpy as np
import pytest

from length_model.core import belief as length_belief
from simcore.beliefs import BeliefTable
from simcore.compiled import layout as at
from simcore.compiled.future.drawing import draw_finals
from simcore.scenarios import OVERDUE_TOKENS, final_lengths, longest_output, permutation
from simcore.types import EngineConfig, LengthBelief
from tests.helpers.kernels import callable_from_python

CONFIG = EngineConfig(model="m")


def test_every_request_meets_every_stratum_once() -> None:
    for request_id in ("a", "b", "some-longer-id"):
        assert sorted(permutation(request_id, 8)) == list(range(8))
    assert list(permutation("a", 8)) == list(permutation("a", 8))
    assert len({tuple(permutation(f"r{i}", 8)) for i in range(50)}) > 40


def test_the_mean_over_scenarios_is_the_mean_of_the_belief() -> None:
    atoms = tuple(range(10, 170, 10))
    lengths = final_lengths(LengthBelief(atoms), "a", produced_tokens=0, longest_tokens=4096, scenarios=len(atoms))
    assert sorted(lengths) == list(atoms)


def test_what_was_produced_already_is_ruled_out() -> None:
    belief = LengthBelief((5, 10, 50, 60))
    lengths = final_lengths(belief, "a", produced_tokens=10, longest_tokens=4096, scenarios=4)
    assert sorted(lengths) == [50, 50, 60, 60]
    late = final_lengths(belief, "a", produced_tokens=60, longest_tokens=4096, scenarios=4)
    assert late == [60 + OVERDUE_TOKENS] * 4


def test_the_rule_for_outlived_beliefs_is_that_of_the_length_model() -> None:
    assert length_belief.OVERDUE_TOKENS == OVERDUE_TOKENS
    outlived = length_belief.given_produced(LengthBelief((5,)), 9)
    drawn = final_lengths(LengthBelief((5,)), "a", produced_tokens=9, longest_tokens=4096, scenarios=1)
    assert outlived.atoms_tokens == tuple(drawn)


def test_compiled_draws_are_those_in_words() -> None:
    beliefs = [
        LengthBelief((7,)),
        LengthBelief((5, 10, 50, 60, 60)),
        LengthBelief(tuple(range(3, 900, 45))),
        LengthBelief((4000,)),
        LengthBelief((2, 3)),
    ]
    produced = [0, 10, 300, 20, 8]
    n, scenarios = len(beliefs), 8
    table = BeliefTable(CONFIG, scenarios)
    ids = [f"r{i}" for i in range(n)]
    rows = table.rows([(i, b, 100, 500) for i, b in zip(ids, beliefs, strict=True)], n)
    req = np.zeros((n, at.N_COLS), dtype=np.int64)
    req[:, at.OUT] = produced
    finals = np.zeros((scenarios, n), dtype=np.int64)
    drawn = callable_from_python(draw_finals)(req, n, table.atoms, table.strata, np.array(rows), scenarios, finals)
    assert drawn == scenarios
    longest = longest_output(CONFIG, 100, 500)
    for i in range(n):
        expected = final_lengths(
            beliefs[i], ids[i], produced_tokens=produced[i], longest_tokens=longest, scenarios=scenarios
        )
        assert finals[:, i].tolist() == expected


def test_rows_are_kept_for_the_same_belief_and_made_anew_for_another() -> None:
    table = BeliefTable(CONFIG, 4)
    belief = LengthBelief((3, 4))
    first = table.rows([("a", belief, 5, 9)], 1)
    assert table.rows([("a", belief, 5, 9)], 1) == first
    assert table.rows([("a", LengthBelief((3, 4)), 5, 9)], 1) == first
    assert table.rows([("a", LengthBelief((3, 5)), 5, 9)], 1) != first
    many = [(f"r{i}", LengthBelief((i + 1,)), 5, 900) for i in range(200)]
    for _ in range(5):
        rows = table.rows(many, len(many))
        assert [int(table.atoms[row, 2]) for row in rows] == list(range(1, 201))


def test_the_longest_answer_is_bound_by_three_limits() -> None:
    config = EngineConfig(model="m", max_model_len_tokens=100, num_blocks=5, block_size_tokens=16)
    assert longest_output(config, 10, 7) == 7
    assert longest_output(config, 10, 900) == 71
    assert longest_output(EngineConfig(model="m", max_model_len_tokens=60, num_blocks=5), 10, 900) == 50
    with pytest.raises(ValueError, match="leaves no room"):
        longest_output(config, 81, 5)
