"""What Python calls. These are the only kernels with a cache on disk.

numba decides from the file of a cached function alone whether its cache is stale; it does not see a change in a
function it calls or in a constant of another module. Each entry point therefore closes over a fingerprint of all code
and constants under it, which is part of numba's cache key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from zlib import crc32

from numba import njit

from simcore.compiled import future, jump, kv, step
from simcore.compiled.layout import (
    BLOCK,
    C_FINALS,
    C_PRIORITY,
    C_PROMPT,
    C_SCENARIOS,
    COMPUTED,
    E2E,
    FINAL,
    HARM,
    HEADROOM,
    N_RUNNING,
    N_WAITING,
    OUT,
    PREEMPTION_COUNT,
    PROMPT,
    RUNNING,
    TPOT,
    TTFT,
    WAITING,
    Floats,
    Ints,
)
from simcore.cost import step_time

_MODULES = (kv, step, jump, future, step_time)
_LAST = 1 << 62
"""An arrival order behind everybody else's."""


def _fingerprint() -> int:
    """Changes when any kernel, or any number a kernel takes from its module, changes."""
    value = 0
    for module in _MODULES:
        for name, function in sorted(vars(module).items()):
            source = getattr(function, "py_func", None)
            if source is None:
                continue
            code = source.__code__
            numbers = [(n, v) for n in code.co_names if isinstance(v := source.__globals__.get(n), int | float)]
            value = crc32(repr((name, code.co_code, code.co_consts, code.co_names, numbers)).encode(), value)
    return value


class Entries(NamedTuple):
    """The compiled entry points; see the functions in `_compile`."""

    step: Callable[..., Any]
    advance: Callable[..., Any]
    measure: Callable[..., Any]
    enqueue: Callable[..., Any]
    remove: Callable[..., Any]
    compact: Callable[..., Any]
    draw: Callable[..., Any]
    forecast: Callable[..., Any]


@njit(nogil=True)
def summarise(values: Floats, n: int, out: Floats, at: int) -> None:
    """Mean, median and 90th percentile (linear between order statistics) of the first `n` values; sorts them."""
    total = 0.0
    for i in range(n):
        x = values[i]
        total += x
        j = i
        while j > 0 and values[j - 1] > x:
            values[j] = values[j - 1]
            j -= 1
        values[j] = x
    out[at] = total / n
    for k, q in ((1, 0.5), (2, 0.9)):
        place = q * (n - 1)
        low = int(place)
        high = min(low + 1, n - 1)
        out[at + k] = values[low] + (place - low) * (values[high] - values[low])


@njit(nogil=True)
def run_scenario(
    heads: Ints,
    reqs: Ints,
    lists: Ints,
    log: Ints,
    packed: Floats,
    start_s: float,
    finals: Ints,
    scenario: int,
    candidate: Ints,
    candidate_final: int,
    ends: Floats,
    jumping: bool,
) -> tuple[float, int, int]:
    """One future from the base state (index 0 of the stacked arrays) in the scratch state (index 1).

    `candidate_final` 0 means without the candidate.
    """
    head, req, queues = heads[1], reqs[1], lists[1]
    future.copy_state(heads[0], reqs[0], lists[0], head, req, queues)
    n = head[N_RUNNING] + head[N_WAITING]
    for slot in range(n):
        req[slot, FINAL] = finals[scenario, slot]
    who = -1
    if candidate_final > 0:
        who = n
        future.admit_candidate(head, req, queues, n, candidate[C_PROMPT], candidate[C_PRIORITY], _LAST)
        req[n, FINAL] = candidate_final
    return future.run(head, req, queues, log, packed, start_s, who, ends, jumping)


def _compile(fingerprint: int) -> Entries:
    @njit(cache=True, nogil=True)
    def one_step(head: Ints, req: Ints, lists: Ints, log: Ints) -> tuple[int, int, float, int, int, int, int]:
        """`step.step`, with everything scheduled in the log."""
        assert fingerprint >= 0
        return step.step(head, req, lists, log, True)

    @njit(cache=True, nogil=True)
    def advance(
        head: Ints, req: Ints, lists: Ints, log: Ints, times_s: Floats, packed: Floats, next_s: float, until_s: float
    ) -> tuple[int, int, float]:
        """Steps that begin before `until_s`, the first at `next_s`, until the log might overflow in one more.

        Returns (log rows, steps, end of the last step). `times_s` gets the time of each log row.
        """
        assert fingerprint >= 0
        n_log = steps = 0
        while next_s < until_s and head[N_RUNNING] + head[N_WAITING] > 0:
            if n_log + 3 * (head[N_RUNNING] + head[N_WAITING]) > log.shape[0]:
                break
            n, prefill, work, prefill_seqs, decode, read, _ = step.step(head, req, lists, log[n_log:], False)
            next_s += step_time.step_seconds(packed, prefill + decode, work, read, prefill_seqs + decode)
            times_s[n_log : n_log + n] = next_s
            n_log += n
            steps += 1
        return n_log, steps, next_s

    @njit(cache=True, nogil=True)
    def measure(head: Ints, req: Ints, lists: Ints) -> tuple[int, int]:
        """(blocks that waiting prompts need, tokens not processed yet with `FINAL` as the length)."""
        assert fingerprint >= 0
        blocks = tokens = 0
        for i in range(head[N_WAITING]):
            slot = lists[WAITING, i]
            blocks += (req[slot, PROMPT] + req[slot, OUT] + head[BLOCK] - 1) // head[BLOCK]
            tokens += req[slot, PROMPT] + req[slot, FINAL] - req[slot, COMPUTED]
        for i in range(head[N_RUNNING]):
            slot = lists[RUNNING, i]
            tokens += req[slot, PROMPT] + req[slot, FINAL] - req[slot, COMPUTED]
        return blocks, tokens

    @njit(cache=True, nogil=True)
    def enqueue(head: Ints, req: Ints, lists: Ints, slot: int) -> None:
        """`step.enqueue` at the back."""
        assert fingerprint >= 0
        step.enqueue(head, req, lists, slot, False)

    @njit(cache=True, nogil=True)
    def remove(head: Ints, req: Ints, lists: Ints, slot: int) -> None:
        """`step.remove`."""
        assert fingerprint >= 0
        step.remove(head, req, lists, slot)

    @njit(cache=True, nogil=True)
    def compact(head: Ints, req: Ints, lists: Ints, to_heads: Ints, to_reqs: Ints, to_lists: Ints, source: Ints) -> int:
        """`future.compact_state` into index 0; returns the number of requests."""
        assert fingerprint >= 0
        future.compact_state(head, req, lists, to_heads[0], to_reqs[0], to_lists[0], source)
        return head[N_RUNNING] + head[N_WAITING]

    @njit(cache=True, nogil=True)
    def draw(reqs: Ints, slots: int, atoms: Ints, strata: Ints, rows: Ints, scenarios: int, finals: Ints) -> None:
        """`future.draw_finals` for the base state."""
        assert fingerprint >= 0
        future.draw_finals(reqs[0], slots, atoms, strata, rows, scenarios, finals)

    @njit(cache=True, nogil=True)
    def forecast(
        heads: Ints,
        reqs: Ints,
        lists: Ints,
        log: Ints,
        packed: Floats,
        start_s: float,
        finals: Ints,
        base_scenarios: int,
        base_done: bool,
        candidates: Ints,
        n_candidates: int,
        ends: Floats,
        samples: Floats,
        out: Floats,
        jumping: bool,
    ) -> bool:
        """One row of `out` (layout TTFT...) per candidate. `base_done`: `ends[0..base_scenarios)` is the baseline.

        `samples` is scratch (4, scenarios). False if some future could not go on.
        """
        assert fingerprint >= 0
        n = heads[0, N_RUNNING] + heads[0, N_WAITING]
        fine = True
        if not base_done:
            for s in range(base_scenarios):
                _, _, lowest = run_scenario(
                    heads, reqs, lists, log, packed, start_s, finals, s, candidates[0], 0, ends[s], jumping
                )
                fine = fine and lowest >= 0
        mine = ends[ends.shape[0] - 1]
        for c in range(n_candidates):
            candidate = candidates[c]
            scenarios = candidate[C_SCENARIOS]
            preemptions = 0
            headroom = _LAST
            for s in range(scenarios):
                final = candidate[C_FINALS + s]
                base = min(s, base_scenarios - 1)
                first_s, preempted, lowest = run_scenario(
                    heads, reqs, lists, log, packed, start_s, finals, base, candidate, final, mine, jumping
                )
                fine = fine and lowest >= 0
                harm_s = 0.0
                for slot in range(n):
                    harm_s += mine[slot] - ends[base, slot]
                samples[0, s] = first_s
                samples[1, s] = (mine[n] - first_s) / (final - 1) if final > 1 else 0.0
                samples[2, s] = mine[n]
                samples[3, s] = harm_s
                preemptions += preempted
                headroom = min(headroom, lowest)
            summarise(samples[0], scenarios, out[c], TTFT)
            summarise(samples[1], scenarios, out[c], TPOT)
            summarise(samples[2], scenarios, out[c], E2E)
            summarise(samples[3], scenarios, out[c], HARM)
            out[c, PREEMPTION_COUNT] = preemptions / scenarios
            out[c, HEADROOM] = headroom
        return fine

    return Entries(one_step, advance, measure, enqueue, remove, compact, draw, forecast)


ENTRIES = _compile(_fingerprint())
