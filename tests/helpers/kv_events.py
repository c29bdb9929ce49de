"""vLLM's KV cache events as far as the trace reads them, made by hand. Named as vLLM names them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class _Event:
    medium: str | None = "GPU"
    group_idx = 0
    lora_id: int | None = None
    extra_keys: Any = None

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


class BlockStored(_Event):
    pass


class BlockRemoved(_Event):
    pass


class AllBlocksCleared:
    pass


def stored(
    blocks: Iterable[bytes | int], parent: bytes | int | None, tokens: Iterable[int], **more: Any
) -> BlockStored:
    """Blocks of four tokens."""
    fields = {"block_size": 4, **more}
    return BlockStored(block_hashes=list(blocks), parent_block_hash=parent, token_ids=list(tokens), **fields)


def removed(*blocks: bytes | int, **more: Any) -> BlockRemoved:
    return BlockRemoved(block_hashes=list(blocks), **more)
