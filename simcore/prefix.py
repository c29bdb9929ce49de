"""Names for what a KV block holds, so that two prompts that begin alike can be told to share blocks.

The name of block i stands for all tokens up to its end, as in vLLM's prefix cache (`hash_block_tokens`): equal names
mean equal prefixes. It is made of the name of block i - 1 and the tokens of block i alone, so whoever follows an engine
block by block needs no prompt. Names are the same in every process and on every machine.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from hashlib import blake2b

ROOT = 0
"""What stands for the name of the block before the first one."""
_HASH_BYTES = 8
_TOKEN_BYTES = 4


def block_hashes(token_ids: Iterable[int], block_size_tokens: int, parent: int = ROOT) -> tuple[int, ...]:
    """One 64-bit hash (unsigned) per full block of `block_size_tokens` tokens, each over everything up to its end.

    `parent` is the hash of the block before the first of these. The tokens behind the last full block have no hash.
    Raises ValueError for a block size under 1 and for ids that are not whole numbers from 0 to 2^32 - 1.
    """
    if block_size_tokens < 1:
        raise ValueError(f"block_size_tokens must be >= 1, got {block_size_tokens}")
    ids = tuple(token_ids)
    try:
        data = struct.pack(f"<{len(ids)}I", *ids)
    except struct.error as bad:
        raise ValueError(f"token ids must be a flat sequence of whole numbers from 0 to 2^32 - 1 ({bad})") from None
    width = _TOKEN_BYTES * block_size_tokens
    name = parent.to_bytes(_HASH_BYTES, "little")
    hashes: list[int] = []
    for at in range(0, len(data) - width + 1, width):
        name = blake2b(name + data[at : at + width], digest_size=_HASH_BYTES).digest()
        hashes.append(int.from_bytes(name, "little"))
    return tuple(hashes)
