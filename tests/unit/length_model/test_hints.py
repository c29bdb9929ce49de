"""What is learned of clients' own numbers."""

from __future__ import annotations

import numpy as np
import pytest

from length_model.core.belief import known
from length_model.core.distribution import ATOMS, Ints
from length_model.core.hints import AS_SAID_ANSWERS, WINDOW, Hint, HintSource, LearnedHints
from simcore.types import LengthBelief

ALICE: HintSource = ("alice", "m")


def taught(said: Ints, came: Ints, source: HintSource = ALICE) -> LearnedHints:
    hints = LearnedHints()
    for hint, tokens in zip(said.tolist(), came.tolist(), strict=True):
        hints.observe(Hint(source, hint), tokens, censored=False)
    return hints


def answers(rng: np.random.Generator, count: int) -> Ints:
    return np.maximum(1, rng.lognormal(5.5, 1.0, count)).astype(np.int64)


def crps(belief: LengthBelief, tokens: int) -> float:
    atoms = np.array(belief.atoms_tokens, dtype=np.float64)
    return float(np.abs(atoms - tokens).mean() - np.abs(atoms[:, None] - atoms).mean() / 2)


def loss(hints: LearnedHints, said: Ints, came: Ints) -> float:
    pairs = zip(said.tolist(), came.tolist(), strict=True)
    return float(np.mean([crps(hints.belief(Hint(ALICE, hint)), tokens) for hint, tokens in pairs]))


def test_of_whom_nothing_is_known_the_number_is_believed() -> None:
    assert LearnedHints().belief(Hint(ALICE, 250)) == known(250)


def test_who_is_always_right_is_believed_to_the_token() -> None:
    lengths = answers(np.random.default_rng(1), WINDOW + 100)
    hints = taught(lengths, lengths)
    assert {hints.belief(Hint(ALICE, hint)) for hint in (1, 7, 300, 4000)} == set(map(known, (1, 7, 300, 4000)))


def test_an_answer_that_was_cut_does_not_make_a_right_number_doubtful() -> None:
    hints = taught(np.full(20, 300), np.full(20, 300))
    for tokens in (1, 150, 299):
        hints.observe(Hint(ALICE, 300), tokens, censored=True)
    assert hints.belief(Hint(ALICE, 300)) == known(300)


def test_answers_that_were_all_cut_lie_beyond_the_longest_cut() -> None:
    hints = LearnedHints()
    for _ in range(38):
        hints.observe(Hint(ALICE, 100), 160, censored=True)
    atoms = hints.belief(Hint(ALICE, 100)).atoms_tokens
    assert atoms == (100,) * (ATOMS * AS_SAID_ANSWERS // 40) + (160,) * (ATOMS - ATOMS * AS_SAID_ANSWERS // 40)


def test_a_bias_goes_and_differs_with_the_number() -> None:
    said = np.tile([10, 400], 60)
    hints = taught(said, np.where(said == 10, 30, 380))
    assert hints.belief(Hint(ALICE, 10)).quantile_tokens(0.5) == 30
    assert hints.belief(Hint(ALICE, 400)).quantile_tokens(0.5) == 380
    assert hints.belief(Hint(ALICE, 60)) == known(60)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("error", [0.05, 0.25, 1.0])
def test_a_spread_is_learned_within_500_answers(error: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    came = answers(rng, WINDOW + 1000)
    said = np.maximum(1, np.round(came * np.clip(1 + rng.normal(0, error, len(came)), 0.1, 5))).astype(np.int64)
    judged = said[WINDOW:], came[WINDOW:]
    bare, half, whole = (loss(taught(said[:n], came[:n]), *judged) for n in (0, 250, 500))
    assert whole < 0.8 * bare
    assert (bare - half) / (bare - whole) > 0.85
    hints = taught(said[:500], came[:500])
    under = [t <= hints.belief(Hint(ALICE, s)).quantile_tokens(0.9) for s, t in zip(*judged, strict=True)]
    assert np.mean(under) == pytest.approx(0.9, abs=0.08)


def test_what_a_client_said_before_is_forgotten() -> None:
    said = np.full(2 * WINDOW, 100)
    came = np.where(np.arange(2 * WINDOW) < WINDOW, 500, 100)
    assert taught(said, came).belief(Hint(ALICE, 100)) == known(100)


def test_clients_and_models_are_told_apart_and_the_least_recent_goes() -> None:
    hints = LearnedHints(most=2)
    sources = [("alice", "m"), ("bob", "m"), ("alice", "n")]
    for source in sources[:2]:
        for _ in range(10):
            hints.observe(Hint(source, 100), 200, censored=False)
    assert hints.belief(Hint(sources[2], 100)) == known(100)
    hints.observe(Hint(sources[2], 100), 100, censored=False)
    assert hints.belief(Hint(sources[0], 100)) == known(100)
    assert hints.belief(Hint(sources[1], 100)).quantile_tokens(0.5) == 200


def test_no_answer_teaches_nothing() -> None:
    hints = LearnedHints()
    hints.observe(Hint(ALICE, 100), 0, censored=True)
    assert hints.belief(Hint(ALICE, 100)) == known(100)
