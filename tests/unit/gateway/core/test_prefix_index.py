from __future__ import annotations

import pytest

from gateway.core.nodes.prefix_index import ASK_AGAIN_S, CLAIMS, PrefixIndex
from simcore.cache_summary import MOST_NAMES, CacheSummary
from tests.helpers.routing import engine_config

CONFIG = engine_config()
PROMPT = (1, 2, 3, 4, 5)


def whole(*names: int, number: int = 1, one_in: int = 1) -> CacheSummary:
    return CacheSummary(number=number, whole=True, stored=names, names=len(names), one_in=one_in)


def told(*names: int) -> PrefixIndex:
    index = PrefixIndex()
    assert not index.hear(whole(*names), 0.0)
    return index


def send(index: PrefixIndex, request_id: str, names: tuple[int, ...] = PROMPT, at_s: float = 0.0) -> None:
    index.sent(request_id, names, CONFIG, at_s)


def test_what_does_not_fit_the_node_is_forgotten_from_the_end_of_the_oldest() -> None:
    index, small = PrefixIndex(), engine_config(num_blocks=4)
    index.sent("a", (1, 2, 3), small, 0.0)
    index.sent("b", (7, 8), small, 0.0)
    assert index.cached_blocks((7, 8)) == 2
    assert index.cached_blocks((1, 2, 3)) == 2


def test_the_node_s_word_replaces_our_own_account() -> None:
    index = PrefixIndex()
    send(index, "r")
    assert (index.is_told, index.cached_blocks(PROMPT)) == (False, 5)
    assert not index.hear(whole(1, 2, 9), 0.0)
    assert (index.is_told, index.cached_blocks(PROMPT)) == (True, 2)
    assert not index.hear(CacheSummary(number=2, stored=(3,), evicted=(9,), names=3), 0.0)
    assert index.cached_blocks(PROMPT) == 3


def test_what_is_on_its_way_counts_until_a_summary_can_tell_of_it() -> None:
    index = told(1, 2)
    send(index, "r")
    assert index.cached_blocks(PROMPT) == 5
    assert not index.hear(CacheSummary(number=2, stored=(3,), names=3), 1.0)
    assert index.cached_blocks(PROMPT) == 5, "not computed yet"
    index.computed("r", 2.0)
    assert not index.hear(CacheSummary(number=3, stored=(4,), names=4), 2.05)
    assert index.cached_blocks(PROMPT) == 5, "too soon after it was"
    assert not index.hear(CacheSummary(number=4, evicted=(4,), names=3), 2.5)
    assert index.cached_blocks(PROMPT) == 3, "evicted meanwhile"


def test_what_ended_before_it_was_computed_is_not_there() -> None:
    index = told(1, 2)
    send(index, "r")
    send(index, "s", (1, 2, 3))
    index.over("r")
    assert index.cached_blocks(PROMPT) == 3
    index.computed("s", 1.0)
    index.over("s", 2)
    assert index.cached_blocks(PROMPT) == 3, "its end does not take the blocks away"
    assert not index.hear(CacheSummary(number=2, evicted=(2,), names=1), 3.0)
    assert index.cached_blocks(PROMPT) == 1


def test_prompts_that_were_computed_long_ago_are_not_kept_when_nothing_new_is_told() -> None:
    index = told(*PROMPT)
    for i in range(50):
        send(index, f"r{i}", at_s=float(i))
        index.computed(f"r{i}", i + 0.1)
        index.over(f"r{i}", 5)
    assert len(index._sent) <= 4
    assert index.cached_blocks(PROMPT) == 5


def test_placements_that_others_carry_out_leave_nothing_behind() -> None:
    index = told(1)
    index.sent(None, PROMPT, CONFIG, 0.0)
    assert index.cached_blocks(PROMPT) == 1


def test_of_many_blocks_some_are_told() -> None:
    names = tuple((i % 4) << 32 | i for i in range(20))
    index = PrefixIndex()
    assert not index.hear(whole(*(n & 0xFFFF_FFFF for n in names[:13] if not n >> 32), one_in=4), 0.0)
    assert index.cached_blocks(names) == 13, "0, 4, 8 and 12 are told"
    assert index.cached_blocks(names[:12]) == 9, "at least"
    assert index.cached_blocks(names[1:3]) == 0


@pytest.mark.parametrize(
    "bad",
    [
        CacheSummary(number=3, stored=(7,), names=3),
        CacheSummary(number=1, stored=(7,), names=3),
        CacheSummary(number=2, stored=(7,), names=4),
        CacheSummary(number=2, stored=(7,), names=3, one_in=2),
        CacheSummary(number=2, stored=(1 << 32,), names=3),
        CacheSummary(number=2, stored=tuple(range(10, MOST_NAMES + 11)), names=MOST_NAMES + 3),
        whole(1, number=2, one_in=3),
        whole(1, number=2, one_in=0),
        whole(1, number=2, one_in=1 << 40),
        whole(1, 1, number=2),
        whole(-1, number=2),
        whole(*range(MOST_NAMES + 1), number=2),
        CacheSummary(number=2, whole=True, stored=(1,), evicted=(2,), names=1),
        CacheSummary(number=2, unknown=True),
        None,
    ],
)
def test_after_a_gap_or_nonsense_nothing_is_known_until_the_whole_is_told(bad: CacheSummary | None) -> None:
    index = told(1, 2)
    assert index.hear(bad, 0.0)
    assert (index.is_told, index.cached_blocks(PROMPT)) == (False, 0)
    assert index.hear(CacheSummary(number=3, stored=(7,), names=3), 1.0), "changes to what is not known"
    assert not index.hear(whole(1, 2, 3, number=9), 2.0)
    assert index.cached_blocks(PROMPT) == 3


def test_a_node_that_talks_nonsense_is_asked_now_and_then_only() -> None:
    index = told(1)
    assert sum(index.hear(None, i / 100) for i in range(1000)) == 10 / ASK_AGAIN_S
    assert "makes no sense" in index.alarm()
    assert not index.hear(whole(1, number=7), 20.0)
    assert not index.alarm()


def test_a_node_that_does_not_know_says_so() -> None:
    index = told(1, 2)
    assert not index.hear(CacheSummary(number=2, whole=True, unknown=True), 0.0)
    assert not index.is_told
    assert index.hear(CacheSummary(number=3, stored=(3,), names=1), 0.0)


def serve(index: PrefixIndex, count: int, found_blocks: int, *, waited_s: float = 0.1) -> None:
    for i in range(count):
        request_id = f"{found_blocks}-{i}"
        send(index, request_id)
        index.computed(request_id, waited_s)
        index.over(request_id, found_blocks)


def test_claims_that_do_not_come_true_cost_the_node_its_word_until_they_do() -> None:
    index = told(*PROMPT)
    serve(index, CLAIMS, 5)
    serve(index, CLAIMS - 1, 0)
    assert index.is_told
    serve(index, 2 * CLAIMS, 0)
    assert (index.is_told, index.cached_blocks((1, 2, 9))) == (False, 2)
    assert index.cached_blocks((8, 9)) == 0
    assert "claims" in index.alarm()
    assert not index.hear(whole(*PROMPT, 8, 9, number=2), 5.0)
    assert index.cached_blocks((8, 9)) == 0, "our own account"
    serve(index, 4 * CLAIMS, 5)
    assert (index.is_told, index.alarm(), index.cached_blocks((8, 9))) == (True, "", 2)


def test_claims_of_requests_that_waited_long_prove_nothing() -> None:
    index = told(*PROMPT)
    serve(index, 100, 0, waited_s=60.0)
    assert index.is_told


def test_more_found_than_claimed_is_no_lie() -> None:
    index = told(1)
    serve(index, 100, 5)
    assert index.is_told
