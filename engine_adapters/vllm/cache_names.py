"""What vLLM's prefix cache holds, by the names that `simcore.prefix` gives to blocks. Pure; runs inside the engine.

vLLM names a block by a hash that is salted anew in each process. Its events carry the tokens and the name of the block
before, which is enough to give each block the name by which a gateway asks for it. Blocks that no plain prompt can hit
(of a LoRA adapter, behind an image, with a cache salt, not on the device) are left out.

Two blocks may hold the same tokens: vLLM tells of each that it was stored, and evicts them one by one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from simcore.prefix import ROOT, block_hashes

_DEVICE = (None, "GPU")
_STORED = frozenset({"BlockStored", "BlocksKept"})
_REMOVED = frozenset({"BlockRemoved", "BlockDropped"})
_CLEARED = frozenset({"AllBlocksCleared", "CacheEmptied"})


class Changes(msgspec.Struct, frozen=True):
    """What some events came to: `cleared` first, then the others; no name is in both."""

    cleared: bool
    stored: list[int]
    evicted: list[int]


class CacheNames:
    """The names of the blocks in one engine's prefix cache.

    Not thread-safe; one owner. Grows with the engine's cache, never beyond it.
    """

    def __init__(self, block_size_tokens: int) -> None:
        self._block_size_tokens = block_size_tokens
        self._names: dict[bytes | int, int] = {}
        self._copies: dict[bytes | int, int] = {}
        """How many blocks with the same tokens there are besides the first."""

    def __len__(self) -> int:
        return len(self._names)

    def all(self) -> list[int]:
        return list(self._names.values())

    def forget(self) -> None:
        """Events were lost: what is known no longer holds."""
        self._names.clear()
        self._copies.clear()

    def apply(self, events: Iterable[Any]) -> Changes:
        """vLLM's KV cache events (BlockStored, BlockRemoved, AllBlocksCleared) or those made of our own notes
        (`cache_watch`), in order."""
        names = self._names
        changed: dict[int, bool] = {}
        cleared = False
        for event in events:
            kind = type(event).__name__
            if kind in _CLEARED:
                self.forget()
                changed.clear()
                cleared = True
            elif event.medium not in _DEVICE or getattr(event, "group_idx", None):
                continue
            elif kind in _STORED:
                for block, name in self._named(event):
                    if block in names:
                        self._copies[block] = self._copies.get(block, 0) + 1
                    else:
                        names[block] = name
                        changed[name] = True
            elif kind in _REMOVED:
                for block in event.block_hashes:
                    gone = self._removed(block)
                    if gone is not None:
                        changed[gone] = False
        stored = [name for name, is_there in changed.items() if is_there]
        return Changes(cleared, stored, [name for name, is_there in changed.items() if not is_there])

    def _removed(self, block: bytes | int) -> int | None:
        """The name that is gone with this block, if it is."""
        copies = self._copies.pop(block, 0)
        if copies > 1:
            self._copies[block] = copies - 1
        return None if copies else self._names.pop(block, None)

    def _named(self, event: Any) -> list[tuple[bytes | int, int]]:
        """The event's blocks that plain prompts can hit, with their names."""
        size = event.block_size
        parent = ROOT if event.parent_block_hash is None else self._names.get(event.parent_block_hash)
        if size != self._block_size_tokens or parent is None or event.lora_id is not None:
            return []
        blocks = list(event.block_hashes)
        for i, extra in enumerate(getattr(event, "extra_keys", None) or ()):
            if extra:
                del blocks[i:]
                break
        is_vllms = type(event).__name__ != "BlocksKept"
        if is_vllms and event.parent_block_hash is None and len(blocks) > 1 and all(b in self._names for b in blocks):
            # A hit that its request wanted told (`kv_cache_report_mode`): nothing was stored.
            return []
        named = block_hashes(event.token_ids[: size * len(blocks)], size, parent)
        return list(zip(blocks, named, strict=False))
