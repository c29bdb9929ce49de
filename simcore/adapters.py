"""LoRA adapters as numbers: what kernels compare in place of names."""

from __future__ import annotations

import hashlib
from functools import lru_cache


@lru_cache(maxsize=4096)
def adapter_number(name: str) -> int:
    """A positive number of 62 bits that two names do not share in practice; 0 for no adapter.

    Of the name alone, so that states of a node, its copies and candidates agree without a table between them.
    """
    if not name:
        return 0
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 2 | 1
