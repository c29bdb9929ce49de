# mypy: disable-error-code="no-any-return"
"""Notes, in the engine's own thread, what enters and leaves vLLM's prefix cache: one reference per change.

vLLM's own KV events say the same, but each is made with copies of tokens in the engine's thread; these notes become
events (`events`) in the publisher's. The methods of one block pool are wrapped; each does what it did before.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from engine_adapters.vllm.recorder import StepRecorder

_ARGUMENTS = ["request", "blocks", "num_cached_blocks", "num_full_blocks"]
"""Of `cache_full_blocks`, the first ones."""
_WRAPPED = ("cache_full_blocks", "_maybe_evict_cached_block", "reset_prefix_cache")


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


class _Kept(NamedTuple):
    """By reference to vLLM's own objects."""

    request: Any
    begin: int
    end: int
    blocks: Any
    mask: Any


def watch(pool: Any, recorder: StepRecorder) -> None:
    """Begins to note in `recorder.cache_notes` what changes in the block pool of a scheduler with one kind of KV cache
    (`can_watch`). A defect here ends the trace, not the engine."""
    keep, evict, reset = (getattr(pool, name) for name in _WRAPPED)
    append = recorder.cache_notes.append

    def failing(error: Exception) -> None:
        raise error

    def cache_full_blocks(
        request: Any, blocks: Any, num_cached_blocks: int, num_full_blocks: int, *arguments: Any, **named: Any
    ) -> Any:
        done = keep(request, blocks, num_cached_blocks, num_full_blocks, *arguments, **named)
        if num_cached_blocks < num_full_blocks and recorder.on:
            try:
                kept = blocks[num_cached_blocks:num_full_blocks]
                append(_Kept(request, num_cached_blocks, num_full_blocks, kept, named.get("block_mask")))
            except Exception as error:
                recorder.guarded(failing, error)
        return done

    def maybe_evict_cached_block(block: Any) -> Any:
        key = block.block_hash
        done = evict(block)
        if key is not None and done and recorder.on:
            append(key)
        return done

    def reset_prefix_cache(*arguments: Any, **named: Any) -> Any:
        done = reset(*arguments, **named)
        if done and recorder.on:
            append(None)
        return done

    wrappers: tuple[Callable[..., Any], ...] = (cache_full_blocks, maybe_evict_cached_block, reset_prefix_cache)
    for name, wrapper in zip(_WRAPPED, wrappers, strict=True):
        setattr(pool, name, wrapper)


def can_watch(scheduler: Any) -> bool:
    """Whether the scheduler's block pool is one whose notes are understood."""
    pool = scheduler.kv_cache_manager.block_pool
    groups: Any = getattr(getattr(scheduler, "kv_cache_config", None), "kv_cache_groups", ())
    size = getattr(scheduler, "block_size", 0)
    try:
        from vllm.v1.core.kv_cache_utils import get_block_hash  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        return False
    return (
        len(groups) == 1
        and all(callable(getattr(pool, name, None)) for name in _WRAPPED)
        and list(inspect.signature(pool.cache_full_blocks).parameters)[:4] == _ARGUMENTS
        and getattr(pool, "hash_block_size", size) == size == groups[0].kv_cache_spec.block_size
    )


def events(notes: Iterable[Any], block_size_tokens: int, hash_of: Callable[[Any], Any]) -> Iterator[Any]:
    """What the notes tell, for `CacheNames.apply`. `hash_of` gives the hash in a cached block's key."""
    for note in notes:
        if note is None:
            yield CacheEmptied()
        elif isinstance(note, _Kept):
            kept = _kept(note, block_size_tokens)
            if kept is not None:
                yield kept
        else:
            yield BlockDropped((hash_of(note),))


def _kept(note: _Kept, size: int) -> BlocksKept | None:
    """None: no plain prompt can hit them."""
    request, begin, end, blocks, mask = note
    if request.lora_request is not None or getattr(request, "cache_salt", None):
        return None
    if getattr(request, "prompt_embeds", None) is not None or mask is not None:
        return None
    for feature in getattr(request, "mm_features", None) or ():
        # An image, or what else stands for tokens: behind its beginning nothing is plain.
        end = min(end, feature.mm_position.offset // size)
    if begin >= end or any(block.is_null for block in blocks):
        return None
    hashes = request.block_hashes
    return BlocksKept(
        block_hashes=list(hashes[begin:end]),
        parent_block_hash=hashes[begin - 1] if begin else None,
        token_ids=list(request.all_token_ids[begin * size : end * size]),
        block_size=size,
    )
