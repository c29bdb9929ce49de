# mypy: disable-error-code="no-any-return"
"""Notes, in the engine's own thread, what enters and leaves vLLM's prefix cache: one reference per call of its pool.

vLLM's own KV events say the same, but each is made with copies of tokens in the engine's thread; these notes become
events (`CacheNotes`) in the publisher's. A block leaves the cache when it is taken for something else, so it is enough
to note which blocks are taken. The methods of one block pool are wrapped; each does what it did before.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from engine_adapters.vllm.describe import has_only_full_attention
from engine_adapters.vllm.recorder import StepRecorder

_ARGUMENTS = ["request", "blocks", "num_cached_blocks", "num_full_blocks", "block_size", "kv_cache_group_id"]
"""Of `cache_full_blocks`, the first ones."""
_WRAPPED = ("cache_full_blocks", "get_new_blocks", "evict_blocks", "reset_prefix_cache")


class BlocksKept(msgspec.Struct, frozen=True):
    """Full blocks of a request can be found by others from now on. Fields as in vLLM's `BlockStored`."""

    block_hashes: list[Any]
    parent_block_hash: Any
    token_ids: list[int]
    block_size: int
    lora_id: None = None
    medium: None = None


class BlockDropped(msgspec.Struct, frozen=True):
    """A block is used for something else."""

    block_hashes: tuple[Any, ...]
    medium: None = None


class CacheEmptied(msgspec.Struct, frozen=True):
    """Nothing can be found any more."""


class _Kept(msgspec.Struct, gc=False):
    """By reference to vLLM's own objects."""

    request: Any
    begin: int
    end: int
    blocks: Any
    mask: Any


def watch(pool: Any, recorder: StepRecorder) -> None:
    """Begins to note in `recorder.cache_notes` what changes in the block pool of a scheduler with one kind of KV cache
    (`can_watch`). A defect here ends the trace, not the engine."""
    keep, take, evict, reset = (getattr(pool, name) for name in _WRAPPED)

    def failing(error: Exception) -> None:
        raise error

    def cache_full_blocks(
        request: Any,
        blocks: Any,
        num_cached_blocks: int,
        num_full_blocks: int,
        block_size: int,
        kv_cache_group_id: int,
        block_mask: Any = None,
        **named: Any,
    ) -> Any:
        # Spelled out, because to collect keywords and hand them on would cost several times what the note does.
        if block_mask is None and not named:
            done = keep(request, blocks, num_cached_blocks, num_full_blocks, block_size, kv_cache_group_id)
        else:
            if block_mask is not None:
                named["block_mask"] = block_mask
            done = keep(request, blocks, num_cached_blocks, num_full_blocks, block_size, kv_cache_group_id, **named)
        if num_cached_blocks < num_full_blocks and recorder.on:
            try:
                kept = blocks[num_cached_blocks:num_full_blocks]
                recorder.cache_notes.append(_Kept(request, num_cached_blocks, num_full_blocks, kept, block_mask))
            except Exception as error:
                recorder.guarded(failing, error)
        return done

    def get_new_blocks(num_blocks: int) -> Any:
        taken = take(num_blocks)
        if recorder.on:
            recorder.cache_notes.append(taken)
        return taken

    def evict_blocks(block_ids: Any) -> Any:
        done = evict(block_ids)
        if recorder.on:
            recorder.cache_notes.append([pool.blocks[i] for i in block_ids])
        return done

    def reset_prefix_cache(*arguments: Any, **named: Any) -> Any:
        done = reset(*arguments, **named)
        if done and recorder.on:
            recorder.cache_notes.append(None)
        return done

    wrappers: tuple[Callable[..., Any], ...] = (cache_full_blocks, get_new_blocks, evict_blocks, reset_prefix_cache)
    for name, wrapper in zip(_WRAPPED, wrappers, strict=True):
        setattr(pool, name, wrapper)


def can_watch(scheduler: Any) -> bool:
    """Whether the scheduler's block pool is one whose notes are understood."""
    pool = scheduler.kv_cache_manager.block_pool
    groups: Any = getattr(getattr(scheduler, "kv_cache_config", None), "kv_cache_groups", ())
    size = getattr(scheduler, "block_size", 0)
    return (
        len(groups) == 1
        and has_only_full_attention(scheduler)
        and all(callable(getattr(pool, name, None)) for name in _WRAPPED)
        and list(inspect.signature(pool.cache_full_blocks).parameters)[: len(_ARGUMENTS)] == _ARGUMENTS
        and getattr(pool, "hash_block_size", size) == size == groups[0].kv_cache_spec.block_size
    )


class CacheNotes:
    """What the notes tell, as events for `CacheNames.apply`. Not thread-safe; one owner."""

    def __init__(self, block_size_tokens: int) -> None:
        self._block_size_tokens = block_size_tokens
        self._held: dict[int, Any] = {}
        """The hash by which each cached block is found."""

    def forget(self) -> None:
        """Notes were lost: what is known no longer holds."""
        self._held.clear()

    def events(self, notes: Iterable[Any]) -> Iterator[Any]:
        held = self._held
        for note in notes:
            if note is None:
                held.clear()
                yield CacheEmptied()
            elif isinstance(note, _Kept):
                kept = _kept(note, self._block_size_tokens)
                if kept is not None:
                    held.update(zip([block.block_id for block in note.blocks], kept.block_hashes, strict=False))
                    yield kept
            else:
                dropped = [held.pop(block.block_id) for block in note if block.block_id in held]
                if dropped:
                    yield BlockDropped(tuple(dropped))


def _kept(note: _Kept, size: int) -> BlocksKept | None:
    """None: no plain prompt can hit them."""
    request, begin, end = note.request, note.begin, note.end
    if request.lora_request is not None or getattr(request, "cache_salt", None):
        return None
    if getattr(request, "prompt_embeds", None) is not None or note.mask is not None:
        return None
    for feature in getattr(request, "mm_features", None) or ():
        # An image, or what else stands for tokens: behind its beginning nothing is plain.
        end = min(end, feature.mm_position.offset // size)
    if begin >= end or any(block.is_null for block in note.blocks):
        return None
    hashes = request.block_hashes
    return BlocksKept(
        block_hashes=list(hashes[begin:end]),
        parent_block_hash=hashes[begin - 1] if begin else None,
        token_ids=list(request.all_token_ids[begin * size : end * size]),
        block_size=size,
    )
