"""Shared prefixes: names of blocks and token ids agree on who shares how much."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from bench.workload.prefix import prefix_block_hashes, prefix_token_ids

IDS = st.lists(st.integers(0, 3), max_size=4)
TOKENS = 64


def cumulative(path: list[int]) -> tuple[int, ...]:
    """Ids that stand for everything up to their end."""
    return tuple(int("".join(map(str, path[: i + 1])), 4) + 4**i for i in range(len(path)))


def shared(a: tuple[int, ...] | list[int], b: tuple[int, ...] | list[int]) -> int:
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


@given(IDS, IDS, st.sampled_from([16, 32, 64, 24]), st.integers(1, 256))
def test_prompts_share_as_many_blocks_as_their_ids_say(a: list[int], b: list[int], block: int, prompt: int) -> None:
    first, second = (
        prefix_block_hashes(cumulative(p), prefix_block_tokens=TOKENS, prompt_tokens=prompt, block_size_tokens=block)
        for p in (a, b)
    )
    common_tokens = min(prompt, shared(cumulative(a), cumulative(b)) * TOKENS)
    assert len(first) == min(prompt, len(a) * TOKENS) // block
    if block == 24:
        # Blocks that do not divide the data set's: a block that is shared in part has a name of its own.
        assert shared(first, second) >= common_tokens // block
    else:
        assert shared(first, second) == common_tokens // block


@given(IDS, IDS, st.integers(1, 256))
def test_token_ids_share_at_least_the_named_prefix(a: list[int], b: list[int], prompt: int) -> None:
    first, second = (
        prefix_token_ids(cumulative(p), prefix_block_tokens=TOKENS, prompt_tokens=prompt, vocab_size=50_000)
        for p in (a, b)
    )
    assert len(first) == min(prompt, len(a) * TOKENS)
    assert shared(first, second) >= min(prompt, shared(cumulative(a), cumulative(b)) * TOKENS)
    assert all(0 <= token < 50_000 for token in first)
