"""What an engine can never run, and what its state must always satisfy."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from simcore.compiled import layout as at
from simcore.types import EngineConfig


class Lengths(Protocol):
    """Anything with an id and its lengths."""

    @property
    def request_id(self) -> str: ...

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def output_tokens(self) -> int: ...


def check_fits(config: EngineConfig, request: Lengths) -> None:
    """Raises ValueError if the engine can never run this request to its end."""
    who = f"request {request.request_id!r}"
    if request.prompt_tokens < 1 or request.output_tokens < 1:
        raise ValueError(
            f"{who}: prompt and output must be >= 1 token, got {request.prompt_tokens} and {request.output_tokens}"
        )
    total = request.prompt_tokens + request.output_tokens
    if total > config.max_model_len_tokens:
        raise ValueError(f"{who}: {total} tokens exceed max_model_len_tokens {config.max_model_len_tokens}")
    # The last token produced is never computed, so it needs no slot.
    blocks = -(-(total - 1) // config.block_size_tokens)
    if blocks > config.num_blocks:
        raise ValueError(f"{who}: needs {blocks} KV blocks, the engine has {config.num_blocks}")


def check_state(head: at.Ints, req: at.Ints, lists: at.Ints, shared: at.Shared) -> None:
    """Raises AssertionError naming the invariant that a compiled state breaks."""
    running = lists[at.RUNNING, : head[at.N_RUNNING]].tolist()
    waiting = lists[at.WAITING, : head[at.N_WAITING]].tolist()
    slots = running + waiting
    assert len(slots) == len(set(slots)), "a request stands in two places"
    assert len(running) <= head[at.MAX_SEQS], "more running than max_num_seqs"
    block = int(head[at.BLOCK])
    held = 0
    for slot in running:
        row = req[slot].tolist()
        assert row[at.CAPACITY] == -(-row[at.COMPUTED] // block) * block, f"slot {slot}: blocks do not match its tokens"
        assert row[at.KEYED] <= row[at.COMPUTED], f"slot {slot}: blocks are named that are not computed"
        assert 0 <= row[at.PENDING] <= 1, f"slot {slot}: more tokens in flight than one step yields"
        assert row[at.SEGMENT] == -1, f"slot {slot} runs and has blocks in the free queue"
        held += row[at.CAPACITY] // block
    assert all(req[s, at.COMPUTED] == 0 and req[s, at.CAPACITY] == 0 for s in waiting), "a waiting request holds blocks"
    assert not req[slots, at.GRANTED].any(), "a step was planned and not applied"
    free, total = int(head[at.FREE]), int(head[at.TOTAL_BLOCKS])
    assert free >= 0, "blocks were handed out that are not there"
    if shared is not None:
        _check_blocks(head, req, running, shared)
        return
    assert held + free == total, f"{held} blocks held and {free} free are not {total}"
    owned = {s: int(req[s, at.SEGMENT]) for s in waiting if req[s, at.SEGMENT] >= 0}
    assert len(owned) == head[at.OWNED], "the count of cached requests is wrong"
    if owned:
        first, end = int(head[at.SEG_HEAD]), int(head[at.SEG_TAIL])
        counts = lists[at.SEG_COUNT, first:end]
        assert int(head[at.FRONT]) + int(counts.sum()) == free, "the free queue does not hold the free blocks"
        owners = {int(s): first + i for i, s in enumerate(lists[at.SEG_OWNER, first:end]) if s >= 0}
        assert owners == owned, "the free queue and the waiting requests disagree about cached blocks"


def _check_blocks(head: at.Ints, req: at.Ints, running: list[int], shared: at.Arrays) -> None:
    pool, table, _ = shared
    total, size = int(head[at.TOTAL_BLOCKS]), int(head[at.BLOCK])
    counts = [0] * total
    for slot in running:
        for block in table[slot, : req[slot, at.CAPACITY] // size].tolist():
            counts[block] += 1
    assert counts == pool[at.REFS, :total].tolist(), "reference counts differ from what requests hold"
    queue: list[int] = []
    block = int(pool[at.NEXT, total])
    while block != total + 1 and len(queue) <= total:
        queue.append(block)
        block = int(pool[at.NEXT, block])
    assert sorted(queue) == [b for b in range(total) if counts[b] == 0], "the free queue does not hold the free blocks"
    assert len(queue) == head[at.FREE], "the free queue is not as long as it should be"
    keyed: list[int] = []
    for first in pool[at.BUCKETS].tolist():
        while first >= 0:
            keyed.append(first)
            first = int(pool[at.CHAIN, first])
    assert sorted(keyed) == np.flatnonzero(pool[at.HAS_KEY, :total]).tolist(), "a block cannot be found by its key"
