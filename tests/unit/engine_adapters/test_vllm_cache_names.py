from __future__ import annotations

import pytest

from engine_adapters.vllm.cache_names import CacheNames, Changes
from simcore.prefix import block_hashes
from tests.helpers.kv_events import AllBlocksCleared, removed, stored

IDS = list(range(12))
A, B, C = block_hashes(IDS, 4)


@pytest.fixture
def names() -> CacheNames:
    return CacheNames(4)


def test_a_chain_stored_in_pieces_gets_the_names_of_the_whole_prompt(names: CacheNames) -> None:
    assert names.apply([stored([b"x", b"y"], None, IDS[:8])]) == Changes(False, [A, B], [])
    assert names.apply([stored([7], b"y", IDS[8:])]) == Changes(False, [C], [])
    assert names.all() == [A, B, C]
    assert names.apply([removed(7), removed(b"x", b"unknown")]) == Changes(False, [], [C, A])
    assert names.all() == [B]


def test_what_came_and_went_in_one_step_is_gone(names: CacheNames) -> None:
    once = stored([b"x"], None, IDS[:4])
    assert names.apply([once, removed(b"x"), once]) == Changes(False, [A], [])
    assert names.apply([removed(b"x"), once]) == Changes(False, [A], [])
    assert names.apply([stored([b"y"], b"x", IDS[4:8]), removed(b"y")]) == Changes(False, [], [B])


def test_of_blocks_with_the_same_tokens_the_last_one_counts(names: CacheNames) -> None:
    once = stored([b"x"], None, IDS[:4])
    assert names.apply([once, once, once]) == Changes(False, [A], [])
    assert names.apply([removed(b"x"), removed(b"x")]) == Changes(False, [], [])
    assert names.apply([removed(b"x")]) == Changes(False, [], [A])
    assert names.apply([removed(b"x"), once]) == Changes(False, [A], [])


def test_a_hit_that_is_told_stores_nothing(names: CacheNames) -> None:
    chain = stored([b"x", b"y"], None, IDS[:8])
    assert names.apply([chain, chain]) == Changes(False, [A, B], [])
    assert names.apply([removed(b"x", b"y")]) == Changes(False, [], [A, B])


def test_an_emptied_cache(names: CacheNames) -> None:
    names.apply([stored([b"x"], None, IDS[:4])])
    events = [stored([b"y"], b"x", IDS[4:8]), AllBlocksCleared(), stored([b"x"], None, IDS[:4])]
    assert names.apply(events) == Changes(True, [A], [])
    assert names.apply([AllBlocksCleared()]) == Changes(True, [], [])
    assert len(names) == 0


@pytest.mark.parametrize(
    "more",
    [
        {"lora_id": 1},
        {"medium": "CPU"},
        {"group_idx": 1},
        {"extra_keys": [("salt",), None]},
        {"block_size": 2},
    ],
)
def test_blocks_that_a_plain_prompt_cannot_hit_are_left_out_with_all_behind_them(
    names: CacheNames, more: dict[str, object]
) -> None:
    assert names.apply([stored([b"x", b"y"], None, IDS[:8], **more)]) == Changes(False, [], [])
    assert names.apply([stored([b"z"], b"y", IDS[8:])]) == Changes(False, [], [])


def test_an_image_in_the_second_block_leaves_the_first(names: CacheNames) -> None:
    assert names.apply([stored([b"x", b"y"], None, IDS[:8], extra_keys=[None, (("image", 1),)])]).stored == [A]


def test_after_lost_events_only_chains_known_from_their_beginning_count(names: CacheNames) -> None:
    names.apply([stored([b"x"], None, IDS[:4])])
    names.forget()
    assert names.apply([stored([b"y"], b"x", IDS[4:8])]).stored == []
    assert names.apply([stored([b"x", b"y"], None, IDS[:8])]).stored == [A, B]
