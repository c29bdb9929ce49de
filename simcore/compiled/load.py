"""The load of a node in two numbers: what its queue needs, and what is still to be computed."""

from __future__ import annotations

from numba import njit

from simcore.compiled.layout import (
    AHEAD,
    BANK,
    BEFORE,
    BLOCK,
    COMPUTED,
    FINAL,
    GRANTED,
    N_BEFORE,
    N_PLAN,
    N_RUNNING,
    N_WAITING,
    OUT,
    PLAN_SLOT,
    PLAN_TOKENS,
    PROMPT,
    RUNNING,
    RUNNING_BEFORE,
    WAITING,
    Ints,
)


@njit(nogil=True)
def measure(head: Ints, req: Ints, lists: Ints) -> tuple[int, int]:
    """(blocks that waiting prompts need, tokens not processed yet with `FINAL` as the length).

    Of an engine that plans ahead: as it stood before it planned the step in flight (`simcore.node.TraceView`).
    """
    needed = tokens = 0
    for i in range(head[N_BEFORE]):
        req[lists[RUNNING_BEFORE, i], GRANTED] = 1
    for i in range(head[N_WAITING]):
        slot = lists[WAITING, i]
        tokens += req[slot, PROMPT] + req[slot, FINAL] - req[slot, COMPUTED]
        if req[slot, GRANTED]:
            tokens -= req[slot, BEFORE]
        else:
            needed += (req[slot, PROMPT] + req[slot, OUT] + head[BLOCK] - 1) // head[BLOCK]
    for i in range(head[N_RUNNING]):
        slot = lists[RUNNING, i]
        tokens += req[slot, PROMPT] + req[slot, FINAL] - req[slot, COMPUTED]
        if head[AHEAD] and not req[slot, GRANTED]:
            needed += (req[slot, PROMPT] + req[slot, OUT] + head[BLOCK] - 1) // head[BLOCK]
    for i in range(head[N_PLAN]):
        if lists[PLAN_SLOT + head[BANK], i] >= 0:
            tokens += lists[PLAN_TOKENS + head[BANK], i] // 2
    for i in range(head[N_BEFORE]):
        req[lists[RUNNING_BEFORE, i], GRANTED] = 0
    return needed, tokens
