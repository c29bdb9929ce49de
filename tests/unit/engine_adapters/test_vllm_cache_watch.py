from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from engine_adapters.vllm.cache_names import CacheNames, Changes
from engine_adapters.vllm.cache_watch import CacheNotes, watch
from engine_adapters.vllm.recorder import StepRecorder
from simcore.prefix import block_hashes

IDS = list(range(12))
A, B, C = block_hashes(IDS, 4)


class Pool:
    """A block pool as far as it is watched."""

    def __init__(self) -> None:
        self.refuses_reset = False
        self.blocks = [SimpleNamespace(block_id=i, is_null=False) for i in range(6)]
        self.masks: list[Any] = []
        self._free = list(self.blocks)

    def cache_full_blocks(
        self,
        request: Any,
        blocks: Any,
        num_cached_blocks: int,
        num_full_blocks: int,
        block_size: int,
        kv_cache_group_id: int,
        **more: Any,
    ) -> None:
        self.masks.append(more)

    def get_new_blocks(self, num_blocks: int) -> list[Any]:
        taken, self._free = self._free[:num_blocks], self._free[num_blocks:]
        return taken

    def give_back(self, *blocks: Any) -> None:
        self._free.extend(blocks)

    def evict_blocks(self, block_ids: set[int]) -> None:
        pass

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
        self.blocks = self.pool.get_new_blocks(3)
        self.notes = CacheNotes(4)
        self.names = CacheNames(4)

    def keep(self, what: Any, begin: int, end: int, blocks: Any = None, **more: Any) -> None:
        self.pool.cache_full_blocks(
            request=what,
            blocks=self.blocks if blocks is None else blocks,
            num_cached_blocks=begin,
            num_full_blocks=end,
            block_size=4,
            kv_cache_group_id=0,
            **more,
        )

    def changes(self) -> Changes:
        notes, self.recorder.cache_notes = self.recorder.cache_notes, []
        return self.names.apply(self.notes.events(notes))


def test_what_enters_and_leaves_goes_by_the_names_of_the_whole_prompt() -> None:
    watched = Watched()
    watched.keep(request(), 0, 2)
    watched.keep(request(), 2, 2)
    assert watched.changes() == Changes(False, [A, B], [])
    watched.keep(request(), 2, 3)
    watched.pool.give_back(watched.blocks[0])
    assert watched.pool.get_new_blocks(3)
    assert watched.changes() == Changes(False, [C], []), "the three that had never been used"
    assert watched.pool.get_new_blocks(1) == watched.blocks[:1]
    assert watched.changes() == Changes(False, [], [A])
    assert watched.pool.reset_prefix_cache()
    assert watched.changes() == Changes(True, [], [])
    watched.pool.refuses_reset = True
    watched.keep(request(), 0, 1)
    assert not watched.pool.reset_prefix_cache()
    assert watched.changes() == Changes(False, [A], [])


def test_what_is_evicted_by_its_number_is_gone_once() -> None:
    watched = Watched()
    watched.keep(request(), 0, 3)
    watched.pool.evict_blocks({1, 5})
    watched.pool.evict_blocks({1})
    assert watched.changes() == Changes(False, [A, C], [B])


def test_a_block_that_was_told_before_notes_were_lost_takes_nothing_along() -> None:
    watched = Watched()
    watched.keep(request(), 0, 1)
    assert watched.changes() == Changes(False, [A], [])
    watched.names.forget()
    watched.notes.forget()
    other = watched.pool.get_new_blocks(1)
    watched.keep(request(), 0, 1, other)
    assert watched.changes() == Changes(False, [A], [])
    watched.pool.evict_blocks({0})
    assert watched.changes() == Changes(False, [], []), "the other block still holds it"


def test_two_blocks_with_the_same_tokens_are_two() -> None:
    watched = Watched()
    watched.keep(request(), 0, 2)
    again = watched.pool.get_new_blocks(2)
    watched.keep(request(), 0, 2, again)
    assert watched.changes() == Changes(False, [A, B], [])
    watched.pool.evict_blocks({watched.blocks[1].block_id})
    assert watched.changes() == Changes(False, [], [])
    watched.pool.evict_blocks({again[1].block_id})
    assert watched.changes() == Changes(False, [], [B])


def test_vllm_gets_the_arguments_that_it_gave() -> None:
    watched = Watched()
    watched.keep(request(), 0, 2)
    watched.keep(request(), 0, 2, block_mask=None)
    watched.keep(request(), 0, 2, block_mask=[True, False])
    watched.keep(request(), 0, 2, of_another_release=1)
    assert watched.pool.masks == [{}, {}, {"block_mask": [True, False]}, {"of_another_release": 1}]


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
    watched.recorder.cache_notes = []
    watched.recorder.on = False
    watched.keep(request(), 0, 2)
    watched.pool.get_new_blocks(1)
    watched.pool.evict_blocks({0})
    watched.pool.reset_prefix_cache()
    assert watched.recorder.cache_notes == []
