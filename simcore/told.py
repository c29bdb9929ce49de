"""A compiled state as a trace tells of it: with the outcome of every finished step and nothing of the one in flight.

An engine that schedules asynchronously has planned a step before the one in progress ends: its lists already contain
who that plan admits and preempts. A trace tells of a step when it has ended, so the lists that readers know are older.
"""

from __future__ import annotations

from typing import NamedTuple

from simcore.compiled import layout as at


class Told(NamedTuple):
    """Slots in the order of their queues, and what the plan in flight has changed of them."""

    running: list[int]
    waiting: list[int]
    """Front to back."""
    computed: dict[int, int]
    """Tokens computed, where the array says otherwise."""
    preempted: list[int]
    """By the plan in flight, in the order in which it happened; they stand in `running`."""
    free_blocks: int


def told(head: at.Ints, req: at.Ints, lists: at.Ints) -> Told:
    """What readers of the trace know after the last step."""
    running = lists[at.RUNNING, : head[at.N_RUNNING]].tolist()
    waiting = lists[at.WAITING, : head[at.N_WAITING]][::-1].tolist()
    if not head[at.AHEAD]:
        return Told(running, waiting, {}, [], int(head[at.FREE]))
    before = lists[at.RUNNING_BEFORE, : head[at.N_BEFORE]].tolist()
    known, queued = set(before), set(waiting)
    # The first to be preempted was the last to run.
    preempted = [slot for slot in reversed(before) if slot in queued]
    admitted = [slot for slot in running if slot not in known]
    waiting = admitted + [slot for slot in waiting if slot not in known]
    if head[at.BY_PRIORITY]:
        waiting.sort(key=lambda slot: (req[slot, at.PRIORITY], req[slot, at.ORDER]))
    bank, n = int(head[at.BANK]), int(head[at.N_PLAN])
    computed = dict.fromkeys(admitted, 0)
    planned = zip(lists[at.PLAN_SLOT + bank, :n].tolist(), lists[at.PLAN_TOKENS + bank, :n].tolist(), strict=True)
    for slot, entry in planned:
        if slot in known:
            computed[slot] = int(req[slot, at.COMPUTED]) - entry // 2
    for slot in preempted:
        computed[slot] = int(req[slot, at.BEFORE])
    return Told(before, waiting, computed, preempted, int(head[at.FREE] + head[at.PLAN_GREW]))
