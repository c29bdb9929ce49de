from __future__ import annotations

import random

from predictor.core.prefix_content import PrefixContent
from simcore.prefix import block_hashes
from simcore.trace import CacheDelta

PROMPT = list(range(100))
NAMES = block_hashes(PROMPT, 16)


def content(*stored: int, most_blocks: int = 100) -> PrefixContent:
    found = PrefixContent(block_size_tokens=16, most_blocks=most_blocks)
    assert not found.apply(CacheDelta(7, True, stored, ()))
    return found


def test_leading_blocks_count_and_those_behind_a_hole_do_not() -> None:
    assert content(*NAMES).cached_tokens(NAMES, 100) == 96
    assert content(*NAMES[:3]).cached_tokens(NAMES, 100) == 48
    assert content(*NAMES[:1], *NAMES[2:]).cached_tokens(NAMES, 100) == 16
    assert content(*NAMES[1:]).cached_tokens(NAMES, 100) == 0
    assert content().cached_tokens(NAMES, 100) == 0


def test_the_last_token_is_always_computed() -> None:
    assert content(*NAMES).cached_tokens(NAMES, 96) == 80
    assert content(*NAMES).cached_tokens(NAMES[:1], 16) == 0
    assert content(*NAMES).cached_tokens((), 5) == 0


def test_a_lost_change_shows() -> None:
    found = content(*NAMES[:2])
    assert not found.apply(CacheDelta(8, False, NAMES[2:3], ()))
    assert found.apply(CacheDelta(10, False, NAMES[3:4], ()))
    assert found.cached_tokens(NAMES, 100) == 48, "what was known stays until the trace begins anew"
    found.begin()
    assert len(found) == 0
    assert found.apply(CacheDelta(11, False, NAMES, ())), "changes to an unknown content are of no use"
    assert not found.apply(CacheDelta(11, True, NAMES, ()))
    assert found.cached_tokens(NAMES, 100) == 96


def test_an_emptied_cache_is_empty() -> None:
    found = content(*NAMES)
    assert not found.apply(CacheDelta(8, True, NAMES[:1], ()))
    assert found.cached_tokens(NAMES, 100) == 16


def test_memory_is_bounded_by_the_engine_s_blocks_whatever_a_trace_says() -> None:
    found = content(*range(1000), most_blocks=50)
    assert len(found) == 50
    assert not found.apply(CacheDelta(8, False, tuple(range(2000, 3000)), tuple(range(10))))
    assert len(found) == 50


def test_equal_to_a_plain_set_under_random_changes() -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")  # noqa: T201
    rng = random.Random(seed)
    found, plain = content(), set[int]()
    for number in range(8, 500):
        stored = {rng.choice(NAMES) for _ in range(rng.randrange(4))}
        evicted = {rng.choice(NAMES) for _ in range(rng.randrange(4))} - stored
        cleared = rng.random() < 0.05
        assert not found.apply(CacheDelta(number, cleared, tuple(stored), tuple(evicted)))
        plain = (set() if cleared else plain - evicted) | stored
        leading = next((i for i, name in enumerate(NAMES) if name not in plain), len(NAMES))
        assert (len(found), found.cached_tokens(NAMES, 100)) == (len(plain), 16 * leading)
