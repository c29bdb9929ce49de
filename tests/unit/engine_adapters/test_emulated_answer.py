"""Made-up answers depend on the tokens so far and on nothing else, their end included."""

from __future__ import annotations

import random

import pytest

from engine_adapters.emulated_answer import Answer, mix, natural_length, rolling
from engine_adapters.tokenizer import TOKENIZERS
from length_model.core.belief import DEFAULT_PRIOR

ALPHABETS = [info.text_ids for info in TOKENIZERS.values()]


def answer_to(prompt: list[int], alphabet: range, tokens: int) -> list[int]:
    answer = Answer(prompt, alphabet)
    return [answer.next_token() for _ in range(tokens)]


@pytest.mark.parametrize("alphabet", ALPHABETS, ids=list(TOKENIZERS))
def test_a_resumed_answer_has_the_same_tokens_and_the_same_end(alphabet: range) -> None:
    seed = 7
    rng = random.Random(seed)
    for _ in range(200):
        # Prompts out of the answer's own alphabet are the hard case: their last tokens may look like an answer.
        prompt = [rng.choice(alphabet) for _ in range(rng.randint(1, 30))]
        total = natural_length(prompt, alphabet)
        whole = answer_to(prompt, alphabet, total)
        for cut in {1, total // 3, total - 1} - {0, total}:
            assert natural_length(prompt + whole[:cut], alphabet) == total - cut, f"seed {seed}"
            assert answer_to(prompt + whole[:cut], alphabet, total - cut) == whole[cut:]


def test_natural_lengths_follow_the_default_prior() -> None:
    alphabet = TOKENIZERS["qwen2"].text_ids
    lengths = [natural_length([i, i + 1, 5], alphabet) for i in range(4000)]
    atoms = DEFAULT_PRIOR.atoms_tokens
    assert set(lengths) <= set(atoms)
    for atom in atoms:
        assert lengths.count(atom) == pytest.approx(4000 / len(atoms), rel=0.35)


def test_different_prompts_get_different_answers_over_the_whole_alphabet() -> None:
    alphabet = TOKENIZERS["bytes"].text_ids
    answers = {tuple(answer_to([i], alphabet, 8)) for i in range(500)}
    assert len(answers) == 500
    assert {t for a in answers for t in a} == set(alphabet)


def test_the_hash_can_be_continued() -> None:
    assert rolling([3, 4, 5]) == rolling([5], rolling([3, 4]))
    assert rolling([0]) != rolling([0, 0]) != rolling([])
    assert len({mix(i) % 1000 for i in range(200)}) > 150


def test_a_wanted_length_holds_and_counts_what_has_come_already() -> None:
    prompt = [1, 2, 3]
    assert natural_length(prompt, TOKENIZERS["bytes"].text_ids, wanted_tokens=40) == 40
    answer = Answer(prompt, TOKENIZERS["bytes"].text_ids)
    begun = [answer.next_token() for _ in range(15)]
    assert natural_length(prompt + begun, TOKENIZERS["bytes"].text_ids, wanted_tokens=40) == 25
