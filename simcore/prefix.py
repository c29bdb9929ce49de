"""Names for what a KV block holds, so that two prompts that begin alike can be told to share blocks.

The name of block i stands for all tokens up to its end, as in vLLM's prefix cache (`hash_block_tokens`): equal names
mean equal prefixes. Names are the same in every process and on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import ArrayLike

_HASH_BYTES = 8


def block_hashes(token_ids: Sequence[int] | ArrayLike, block_size_tokens: int) -> tuple[int, ...]:
    """One 64-bit hash (unsigned) per full block of `block_size_tokens` tokens, each over everything up to its end.

    The tokens behind the last full block have no hash. Raises ValueError for a block size under 1 and for
    ids that are not whole numbers from 0 to 2^32 - 1.
    """
    if block_size_tokens < 1:
        raise ValueError(f"block_size_tokens must be >= 1, got {block_size_tokens}")
    ids = np.asarray(token_ids)
    if ids.size and (ids.ndim != 1 or ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() > 0xFFFFFFFF):
        raise ValueError("token ids must be a flat sequence of whole numbers from 0 to 2^32 - 1")
    data = ids.astype("<u4").tobytes()
    width = 4 * block_size_tokens
    state = blake2b(digest_size=_HASH_BYTES)
    hashes: list[int] = []
    for at in range(0, len(data) - width + 1, width):
        state.update(data[at : at + width])
        hashes.append(int.from_bytes(state.copy().digest(), "little"))
    return tuple(hashes)
