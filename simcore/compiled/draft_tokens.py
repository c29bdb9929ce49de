"""Drafts of speculative decoding: what each request has for its next step. How they fare: `simcore.drafts`."""

from __future__ import annotations

from simcore import drafts
from simcore.compiled import layout as at
from simcore.compiled.layout import Ints
from simcore.kernel_cache import kernel


@kernel
def lose_drafts(lists: Ints, slot: int) -> None:
    """A slot prefills, or is to."""
    lists[at.DRAFTS, slot] = -1
    lists[at.RIGHT, slot] = 0


@kernel
def draw_drafts(req: Ints, lists: Ints, slot: int) -> None:
    """A slot will have a token: it gets drafts for its next step, as `drafts.draw` says."""
    share = req[slot, at.ORDER] * drafts.NEXT_REQUEST + lists[at.DRAWN, slot] * drafts.NEXT_DRAW
    share &= drafts.SHARES - 1
    place = 0
    while lists[at.DRAFT_ODDS, place] >> 16 <= share:
        place += 1
    cell = lists[at.DRAFT_ODDS, place]
    lists[at.DRAFTS, slot] = (cell >> 8) & 255
    lists[at.RIGHT, slot] = cell & 255
    lists[at.DRAWN, slot] += 1


@kernel
def take_up_drafts(head: Ints, req: Ints, lists: Ints) -> None:
    """Draws drafts for those that decode, in a state that was told without them."""
    for i in range(head[at.N_RUNNING]):
        slot = lists[at.RUNNING, i]
        lose_drafts(lists, slot)
        if req[slot, at.OUT] > 0 and req[slot, at.PROMPT] + req[slot, at.OUT] - req[slot, at.COMPUTED] == 1:
            draw_drafts(req, lists, slot)


@kernel
def accepted_of(lists: Ints, slot: int, planned: int) -> int:
    """How many of a slot's `planned` drafts are right."""
    return min(planned, lists[at.RIGHT, slot])


@kernel
def padding(head: Ints, req: Ints, lists: Ints) -> int:
    """Whom the step being planned admits as if it had all drafts, of those with a single token missing: 0: nobody, 1:
    who has found others cached, 2: everybody."""
    decoding = 1
    for i in range(head[at.N_RUNNING]):
        slot = lists[at.RUNNING, i]
        if req[slot, at.GRANTED] > 0:
            if lists[at.DRAFTS, slot] < 0:
                return 0
            decoding = 2
    return decoding


@kernel
def copy_drafts(lists: Ints, to_lists: Ints, slot: int, to_slot: int) -> None:
    """Copies what is kept of a slot."""
    for row in (at.DRAFTS, at.RIGHT, at.DRAWN):
        to_lists[row, to_slot] = lists[row, slot]


@kernel
def copy_odds(lists: Ints, to_lists: Ints) -> None:
    place = 0
    to_lists[at.DRAFT_ODDS, 0] = lists[at.DRAFT_ODDS, 0]
    while lists[at.DRAFT_ODDS, place] >> 16 < drafts.SHARES:
        place += 1
        to_lists[at.DRAFT_ODDS, place] = lists[at.DRAFT_ODDS, place]
