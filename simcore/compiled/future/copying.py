"""Copies of a compiled node's state: into a checkpoint or back, and compacted into the base of what-ifs."""

from __future__ import annotations

from simcore.compiled import layout as at
from simcore.compiled.draft_tokens import copy_drafts, copy_odds
from simcore.compiled.layout import Ints, Shared
from simcore.kernel_cache import kernel


@kernel
def copy_state(heads: Ints, reqs: Ints, lists3: Ints, shared: Shared, source: int, target: int, slots: int) -> None:
    """Copies a state of which only the slots 0..slots-1 are in use."""
    head, req, lists = heads[source], reqs[source], lists3[source]
    to_head, to_req, to_lists = heads[target], reqs[target], lists3[target]
    for i in range(at.N_HEAD):
        to_head[i] = head[i]
    for slot in range(slots):
        for column in range(at.N_COLS):
            to_req[slot, column] = req[slot, column]
    for i in range(head[at.N_RUNNING]):
        to_lists[at.RUNNING, i] = lists[at.RUNNING, i]
    for i in range(head[at.N_WAITING]):
        to_lists[at.WAITING, i] = lists[at.WAITING, i]
    if head[at.MAX_LORAS] > 0:
        for slot in range(slots):
            to_lists[at.ADAPTER_OF, slot] = lists[at.ADAPTER_OF, slot]
    if shared is not None and head[at.WINDOW_GROUPS] > 0:
        for row in (at.LEFT_BEHIND, at.UNDER_WAY, at.KNOWN_BEGIN):
            for slot in range(slots):
                to_lists[row, slot] = lists[row, slot]
    to_head[at.N_BEFORE] = 0
    bank = head[at.BANK]
    if shared is not None and head[at.SPECULATIVE] > 0:
        copy_odds(lists, to_lists)
        for slot in range(slots):
            copy_drafts(lists, to_lists, slot, slot)
        for i in range(head[at.N_PLAN]):
            to_lists[at.PLAN_DRAFTS + bank, i] = lists[at.PLAN_DRAFTS + bank, i]
    for i in range(head[at.N_PLAN]):
        to_lists[at.PLAN_SLOT + bank, i] = lists[at.PLAN_SLOT + bank, i]
        to_lists[at.PLAN_TOKENS + bank, i] = lists[at.PLAN_TOKENS + bank, i]
        to_lists[at.PLAN_CACHED + bank, i] = lists[at.PLAN_CACHED + bank, i]
    if head[at.OWNED] > 0:
        for i in range(head[at.SEG_HEAD], head[at.SEG_TAIL]):
            to_lists[at.SEG_OWNER, i] = lists[at.SEG_OWNER, i]
            to_lists[at.SEG_COUNT, i] = lists[at.SEG_COUNT, i]


@kernel
def compact_state(
    head: Ints, req: Ints, lists: Ints, shared: Shared, to_head: Ints, to_req: Ints, to_lists: Ints, source: Ints
) -> None:
    """Copies any state into a compacted one. `source[i]` becomes the old slot of new slot i."""
    for i in range(at.N_HEAD):
        to_head[i] = head[i]
    running, waiting = head[at.N_RUNNING], head[at.N_WAITING]
    for i in range(running):
        source[i] = lists[at.RUNNING, i]
        to_lists[at.RUNNING, i] = i
    for i in range(waiting):
        source[running + i] = lists[at.WAITING, waiting - 1 - i]
        to_lists[at.WAITING, waiting - 1 - i] = running + i
    for slot in range(running + waiting):
        for column in range(at.N_COLS):
            to_req[slot, column] = req[source[slot], column]
        to_lists[at.ADAPTER_OF, slot] = lists[at.ADAPTER_OF, source[slot]]
    if shared is not None and head[at.WINDOW_GROUPS] > 0:
        for slot in range(running + waiting):
            for row in (at.LEFT_BEHIND, at.UNDER_WAY, at.KNOWN_BEGIN):
                to_lists[row, slot] = lists[row, source[slot]]
    if shared is not None and head[at.SPECULATIVE] > 0:
        copy_odds(lists, to_lists)
        for slot in range(running + waiting):
            copy_drafts(lists, to_lists, source[slot], slot)
    # Those of the step in flight stand in the running list in the same order.
    bank = head[at.BANK]
    n_plan = slot = 0
    for i in range(head[at.N_PLAN]):
        if lists[at.PLAN_SLOT + bank, i] < 0:
            continue
        while source[slot] != lists[at.PLAN_SLOT + bank, i]:
            slot += 1
        to_lists[at.PLAN_SLOT + bank, n_plan] = slot
        to_lists[at.PLAN_TOKENS + bank, n_plan] = lists[at.PLAN_TOKENS + bank, i]
        to_lists[at.PLAN_CACHED + bank, n_plan] = lists[at.PLAN_CACHED + bank, i]
        if shared is not None and head[at.SPECULATIVE] > 0:
            to_lists[at.PLAN_DRAFTS + bank, n_plan] = lists[at.PLAN_DRAFTS + bank, i]
        n_plan += 1
    to_head[at.N_PLAN] = n_plan
    to_head[at.N_BEFORE] = 0
    if head[at.OWNED] == 0:
        return
    to = 0
    for i in range(head[at.SEG_HEAD], head[at.SEG_TAIL]):
        if lists[at.SEG_COUNT, i] == 0:
            continue
        to_lists[at.SEG_COUNT, to] = lists[at.SEG_COUNT, i]
        to_lists[at.SEG_OWNER, to] = -1
        if lists[at.SEG_OWNER, i] >= 0:
            slot = running
            while source[slot] != lists[at.SEG_OWNER, i]:
                slot += 1
            to_lists[at.SEG_OWNER, to] = slot
            to_req[slot, at.SEGMENT] = to
        to += 1
    to_head[at.SEG_HEAD] = 0
    to_head[at.SEG_TAIL] = to
