"""Prompt token ids for requests of which only the length is known. Pure."""

from __future__ import annotations

import numpy as np


def prompt_token_ids(*, seed: int, index: int, prompt_tokens: int, vocab_size: int) -> list[int]:
    """`prompt_tokens` ids in [0, vocab_size), a fixed function of the arguments.

    Ids are uniform draws from a generator of their own per request, so two requests share no prefix worth a cache
    block: with 256 ids, two blocks of 16 tokens are equal with probability 256^-16.
    """
    rng = np.random.default_rng((seed, index))
    return [int(token) for token in rng.integers(0, vocab_size, size=prompt_tokens)]
