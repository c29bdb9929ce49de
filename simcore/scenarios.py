"""Scenarios: how long every request on a node turns out to be, in each of a few equally likely futures.

Common random numbers: the draw depends on the request's id and the scenario only, so two nodes that are asked about
the same candidate see the same answer lengths. Within one request the scenarios are stratified: scenario s takes the
quantile (p(s) + 1/2) / S, with p a permutation fixed by the request id.
"""

from __future__ import annotations

from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from simcore.types import EngineConfig, LengthBelief

OVERDUE_TOKENS = 10
"""A request that has outlived its belief is expected to end this many tokens from now."""


def longest_output(config: EngineConfig, prompt_tokens: int, max_output_tokens: int) -> int:
    """The most output tokens the engine can give a prompt: its own limit, the model's, the KV blocks'.

    Raises ValueError if not even one fits.
    """
    longest = min(config.max_model_len_tokens, config.kv_tokens + 1)
    room = min(max_output_tokens, longest - prompt_tokens)
    if room < 1:
        raise ValueError(
            f"a prompt of {prompt_tokens} tokens with max_output_tokens {max_output_tokens} leaves no room for an "
            f"answer: the engine takes {config.max_model_len_tokens} tokens and {config.num_blocks} KV blocks"
        )
    return room


def permutation(request_id: str, scenarios: int) -> NDArray[np.int64]:
    """The order in which this request's strata are given to the scenarios. Shape (scenarios,)."""
    order = list(range(scenarios))
    state = crc32(request_id.encode())
    for i in range(scenarios - 1, 0, -1):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        j = (state >> 8) % (i + 1)
        order[i], order[j] = order[j], order[i]
    return np.array(order, dtype=np.int64)


def final_lengths(
    belief: LengthBelief, request_id: str, *, produced_tokens: int, longest_tokens: int, scenarios: int
) -> list[int]:
    """Total output tokens of one request in each scenario, given that `produced_tokens` came and it still runs."""
    atoms = belief.atoms_tokens
    if atoms[0] <= produced_tokens:
        atoms = tuple(a for a in atoms if a > produced_tokens) or (produced_tokens + OVERDUE_TOKENS,)
    # An engine at its own limit still produces the token it is about to.
    ceiling = max(longest_tokens, produced_tokens + 1)
    n = len(atoms)
    if scenarios == 1:
        return [min(ceiling, atoms[n // 2])]
    strata = permutation(request_id, scenarios)
    return [min(ceiling, atoms[(2 * int(p) + 1) * n // (2 * scenarios)]) for p in strata]
