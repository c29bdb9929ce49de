"""Shared prefixes of a workload, as an engine sees them: names of KV blocks, and token ids that share as much. Pure.

A data set names the blocks that its prompts share in its own block size (`DataRow.prefix_ids`). Here each becomes the
token ids that it stands for, a fixed function of the id, so that simulated and real engines share the same blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from bench.workload.item import WorkloadItem
from simcore.prefix import ROOT, block_hashes
from simcore.types import EngineConfig

_PREFIX_STREAM = 7
_NAMING_VOCAB = 2**31


def prefix_token_ids(
    prefix_ids: Sequence[int], *, prefix_block_tokens: int, prompt_tokens: int, vocab_size: int
) -> list[int]:
    """Token ids in [0, vocab_size) for the part of a prompt that its prefix ids cover.

    Equal ids at the head of two prompts give equal tokens; ids are prefix-cumulative, so different ones share nothing.
    """
    covered = min(prompt_tokens, len(prefix_ids) * prefix_block_tokens)
    ids: list[int] = []
    for prefix_id in prefix_ids:
        if len(ids) >= covered:
            break
        ids.extend(_block(prefix_id, prefix_block_tokens, vocab_size))
    return ids[:covered]


def prefix_block_hashes(
    prefix_ids: Sequence[int], *, prefix_block_tokens: int, prompt_tokens: int, block_size_tokens: int
) -> tuple[int, ...]:
    """Hashes of the engine's full KV blocks that the prefix ids cover, for `SimRequest.block_hashes`.

    Where the data set's blocks are whole multiples of the engine's, each id is hashed once and its names are kept:
    a trace repeats the same ids thousands of times.
    """
    covered = min(prompt_tokens, len(prefix_ids) * prefix_block_tokens)
    if prefix_block_tokens % block_size_tokens:
        ids = prefix_token_ids(
            prefix_ids, prefix_block_tokens=prefix_block_tokens, prompt_tokens=covered, vocab_size=_NAMING_VOCAB
        )
        return block_hashes(ids, block_size_tokens)
    hashes: list[int] = []
    parent = ROOT
    for prefix_id in prefix_ids:
        named = _block_hashes(prefix_id, prefix_block_tokens, block_size_tokens, parent)
        hashes.extend(named)
        parent = named[-1]
    return tuple(hashes[: covered // block_size_tokens])


def item_block_hashes(item: WorkloadItem, config: EngineConfig) -> tuple[int, ...]:
    """Hashes of the blocks that a request may share on such an engine; none where the data set does not tell."""
    if not item.prefix_ids or not config.enable_prefix_caching:
        return ()
    return prefix_block_hashes(
        item.prefix_ids,
        prefix_block_tokens=item.prefix_block_tokens,
        prompt_tokens=item.prompt_tokens,
        block_size_tokens=config.block_size_tokens,
    )


def _block(prefix_id: int, tokens: int, vocab_size: int) -> list[int]:
    rng = np.random.default_rng((_PREFIX_STREAM, prefix_id))
    drawn: list[int] = rng.integers(0, vocab_size, size=tokens).tolist()
    return drawn


@functools.lru_cache(maxsize=65_536)
def _block_hashes(prefix_id: int, tokens: int, block_size_tokens: int, parent: int) -> tuple[int, ...]:
    return block_hashes(_block(prefix_id, tokens, _NAMING_VOCAB), block_size_tokens, parent)
