"""The load of a node in three numbers: what its queue needs, and what is still to be computed."""

from __future__ import annotations

from simcore.compiled import layout as at
from simcore.compiled.layout import Ints
from simcore.compiled.windows import asked_blocks
from simcore.kernel_cache import cached


@cached
def measure(head: Ints, req: Ints, lists: Ints) -> tuple[int, int, int]:
    """(blocks that waiting prompts need, tokens not processed yet with `FINAL` as the length, those of prompts alone).

    Of an engine that plans ahead: as it stood before it planned the step in flight (`simcore.node.TraceView`).
    """
    needed = tokens = prefill = 0
    for i in range(head[at.N_BEFORE]):
        req[lists[at.RUNNING_BEFORE, i], at.GRANTED] = 1
    for i in range(head[at.N_WAITING]):
        slot = lists[at.WAITING, i]
        tokens += req[slot, at.PROMPT] + req[slot, at.FINAL] - req[slot, at.COMPUTED]
        if req[slot, at.GRANTED]:
            tokens -= req[slot, at.BEFORE]
            prefill += max(0, req[slot, at.PROMPT] - req[slot, at.BEFORE])
        else:
            prefill += max(0, req[slot, at.PROMPT] - req[slot, at.COMPUTED])
            needed += asked_blocks(head, req[slot, at.PROMPT] + req[slot, at.OUT])
    for i in range(head[at.N_RUNNING]):
        slot = lists[at.RUNNING, i]
        tokens += req[slot, at.PROMPT] + req[slot, at.FINAL] - req[slot, at.COMPUTED]
        prefill += max(0, req[slot, at.PROMPT] - req[slot, at.COMPUTED])
        if head[at.ASYNC] and not req[slot, at.GRANTED]:
            needed += asked_blocks(head, req[slot, at.PROMPT] + req[slot, at.OUT])
    for i in range(head[at.N_PLAN]):
        slot = lists[at.PLAN_SLOT + head[at.BANK], i]
        if slot >= 0:
            planned = lists[at.PLAN_TOKENS + head[at.BANK], i] // 2
            left = req[slot, at.PROMPT] - req[slot, at.COMPUTED]
            tokens += planned
            prefill += max(0, left + planned) - max(0, left)
    for i in range(head[at.N_BEFORE]):
        req[lists[at.RUNNING_BEFORE, i], at.GRANTED] = 0
    return needed, tokens, prefill
