"""LoRA adapters of a batch: at most `MAX_LORAS` (vLLM's `max_loras`) can be used in one step."""

from __future__ import annotations

from simcore.compiled import layout as at
from simcore.compiled.kv_cache_manager import fits_now, needed_now
from simcore.compiled.layout import Ints, Shared
from simcore.kernel_cache import kernel


@kernel
def has_adapter(lists: Ints, n: int, adapter: int) -> bool:
    """Whether an adapter is among the first `n` of row `ADAPTERS`."""
    k = 0
    while k < n and lists[at.ADAPTERS, k] != adapter:
        k += 1
    return k < n


@kernel
def add_adapter(lists: Ints, n: int, adapter: int) -> int:
    """Puts an adapter into row `ADAPTERS`, if it is one and not there; how many there are."""
    if adapter == 0 or has_adapter(lists, n, adapter):
        return n
    lists[at.ADAPTERS, n] = adapter
    return n + 1


@kernel
def is_kept_out(head: Ints, lists: Ints, n: int, slot: int) -> bool:
    """Whether a waiting slot is passed over beside the first `n` of row `ADAPTERS`."""
    adapter = lists[at.ADAPTER_OF, slot]
    return adapter != 0 and n == head[at.MAX_LORAS] and not has_adapter(lists, n, adapter)


@kernel
def planned_adapters(head: Ints, req: Ints, lists: Ints) -> int:
    """Fills row `ADAPTERS` with those of the running requests: vLLM 0.32 of those with tokens in the step planned."""
    n = 0
    for i in range(head[at.N_RUNNING]):
        slot = lists[at.RUNNING, i]
        if req[slot, at.GRANTED] > 0 or head[at.RULES_OF_0_33]:
            n = add_adapter(lists, n, lists[at.ADAPTER_OF, slot])
    return n


@kernel
def may_let_in(head: Ints, req: Ints, lists: Ints, shared: Shared) -> bool:
    """Whether one that waits may be admitted while all that run decode."""
    if head[at.N_RUNNING] >= head[at.MAX_SEQS] or head[at.N_RUNNING] >= head[at.BUDGET]:
        return False
    n = 0
    for i in range(head[at.N_RUNNING]):
        n = add_adapter(lists, n, lists[at.ADAPTER_OF, lists[at.RUNNING, i]])
    for place in range(head[at.N_WAITING] - 1, -1, -1):
        slot = lists[at.WAITING, place]
        if not is_kept_out(head, lists, n, slot):
            if shared is not None and head[at.WINDOW_GROUPS] > 0:
                return needed_now(head, req, slot) <= head[at.FREE]
            return fits_now(head, req, slot)
    return False


@kernel
def lift_idle_limit(head: Ints, lists: Ints) -> None:
    """Takes the limit from a state in which it can keep nobody out, nor one more who comes: what it costs to look."""
    n = 0
    for row, counter in ((at.RUNNING, at.N_RUNNING), (at.WAITING, at.N_WAITING)):
        for i in range(head[counter]):
            n = add_adapter(lists, n, lists[at.ADAPTER_OF, lists[row, i]])
            if n == head[at.MAX_LORAS]:
                return
    head[at.MAX_LORAS] = 0
