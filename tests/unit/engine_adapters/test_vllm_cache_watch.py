from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from engine_adapters.vllm.cache_names import CacheNames, Changes
from engine_adapters.vllm.cache_watch import events, watch
from engine_adapters.vllm.recorder import StepRecorder
from simcore.prefix import block_hashes

IDS = list(range(12))
A, B, C = block_hashes(IDS, 4)


class Pool:
    """A block pool as far as it is watched; blocks have keys of their hash and a group."""

    def __init__(self) -> None:
        self.refuses_reset = False

    def cache_full_blocks(
        self, request: Any, blocks: Any, num_cached_blocks: int, num_full_blocks: int, block_size: int, **more: Any
    ) -> None:
        for i in range(num_cached_blocks, num_full_blocks):
            blocks[i].block_hash = (request.block_hashes[i], 0)

    def _maybe_evict_cached_block(self, block: Any) -> bool:
        was_cached = block.block_hash is not None
        block.block_hash = None
        return was_cached

    def reset_prefix_cache(self) -> bool:
        return not self.refuses_reset


def request(**more: Any) -> SimpleNamespace:
    plain = {"lora_request": None, "block_hashes": [b"x", b"y", b"z"], "all_token_ids": IDS}
    return SimpleNamespace(**{**plain, **more})


class Watched:
    """A pool that is watched, and the names of what it holds."""

    def __init__(self) -> None:
        self.pool = Pool()
        self.recorder = SimpleNamespace(on=True, cache_notes=[])
        watch(self.pool, cast(StepRecorder, self.recorder))
        self.blocks = [SimpleNamespace(block_hash=None, is_null=False) for _ in range(3)]
        self.names = CacheNames(4)

    def keep(self, what: Any, begin: int, end: int, **more: Any) -> None:
        self.pool.cache_full_blocks(
            request=what, blocks=self.blocks, num_cached_blocks=begin, num_full_blocks=end, block_size=4, **more
        )

    def changes(self) -> Changes:
        notes = self.recorder.cache_notes.copy()
        self.recorder.cache_notes.clear()
        return self.names.apply(events(notes, 4, lambda key: key[0]))


def test_what_enters_and_leaves_goes_by_the_names_of_the_whole_prompt() -> None:
    watched = Watched()
    watched.keep(request(), 0, 2)
    watched.keep(request(), 2, 2)
    assert watched.changes() == Changes(False, [A, B], [])
    watched.keep(request(), 2, 3)
    assert watched.pool._maybe_evict_cached_block(watched.blocks[0])
    assert not watched.pool._maybe_evict_cached_block(watched.blocks[0])
    assert watched.changes() == Changes(False, [C], [A])
    assert watched.pool.reset_prefix_cache()
    assert watched.changes() == Changes(True, [], [])
    watched.pool.refuses_reset = True
    watched.keep(request(), 0, 1)
    assert not watched.pool.reset_prefix_cache()
    assert watched.changes() == Changes(False, [A], [])


def test_two_blocks_with_the_same_tokens_are_two() -> None:
    watched = Watched()
    watched.keep(request(), 0, 2)
    first = watched.blocks
    watched.blocks = [SimpleNamespace(block_hash=None, is_null=False) for _ in range(3)]
    watched.keep(request(), 0, 2)
    assert watched.changes() == Changes(False, [A, B], [])
    watched.pool._maybe_evict_cached_block(first[1])
    assert watched.changes() == Changes(False, [], [])
    watched.pool._maybe_evict_cached_block(watched.blocks[1])
    assert watched.changes() == Changes(False, [], [B])


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ({"lora_request": object()}, []),
        ({"cache_salt": "s"}, []),
        ({"prompt_embeds": object()}, []),
        ({"mm_features": [SimpleNamespace(mm_position=SimpleNamespace(offset=9))]}, [A, B]),
        ({"mm_features": [SimpleNamespace(mm_position=SimpleNamespace(offset=0))]}, []),
    ],
)
def test_blocks_that_a_plain_prompt_cannot_hit_are_left_out(more: dict[str, Any], names: list[int]) -> None:
    watched = Watched()
    watched.keep(request(**more), 0, 3)
    assert watched.changes().stored == names


def test_blocks_that_are_none_or_left_out_by_vllm_itself_have_no_names() -> None:
    watched = Watched()
    watched.keep(request(), 0, 2, block_mask=[True, False])
    assert watched.changes().stored == []
    watched.blocks[1].is_null = True
    watched.keep(request(), 0, 2)
    assert watched.changes().stored == []


def test_when_the_trace_has_ended_nothing_is_collected_any_more() -> None:
    watched = Watched()
    watched.recorder.on = False
    watched.keep(request(), 0, 2)
    watched.pool._maybe_evict_cached_block(watched.blocks[0])
    watched.pool.reset_prefix_cache()
    assert watched.recorder.cache_notes == []
