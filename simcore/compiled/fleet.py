"""A whole fleet ahead of now, request by request: how many of those who come will be served as was asked. Pure.

Coarser than a node's what-if, which runs every step: between two events (a request comes, starts, ends, a node becomes
ready) a node gives each of its running requests tokens at the pace of a step of its batch, prompts are computed one
after the other while decoding stands still, and a request starts where there is a seat and room for its KV. The choice
of the node and the queue in front of them are the router's: least added latency, own and others', first come first
served where nobody can start it. So a second of a node costs the events in it, not its steps.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simcore.kernel_cache import cached, kernel

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

KV_GROWN = 0.1
"""Share of an expected answer that is kept free for each request that runs when it is decided whether another fits:
of a batch's requests few are at their end at once, and an engine fills its KV as far as it goes."""
FOREVER_S = 1e300


@kernel
def _step_s(batch: int, kv_tokens: float, group: int, tables: Floats, kv_s: float) -> float:
    return float(tables[group, min(batch, tables.shape[1] - 1)] + kv_s * kv_tokens)


@kernel
def _advance(
    node: int, to_s: float, at_s: Floats, stall_s: Floats, clock: Floats, kv: Floats, running: Ints, pace_s: Floats
) -> None:
    """Brings a node's token clock to `to_s`."""
    begin_s = max(at_s[node], stall_s[node])
    if to_s > begin_s and running[node] > 0:
        tokens = (to_s - begin_s) / pace_s[node]
        clock[node] += tokens
        kv[node] += tokens * running[node]
    at_s[node] = max(at_s[node], to_s)


@kernel
def _push(ends: Floats, whose: Ints, base: int, count: int, end: float, who: int) -> None:
    """One more in the heap of `count` ends from `base` on, the soonest first."""
    k = count
    while k:
        parent = (k - 1) >> 1
        if ends[base + parent] <= end:
            break
        ends[base + k], whose[base + k] = ends[base + parent], whose[base + parent]
        k = parent
    ends[base + k], whose[base + k] = end, who


@kernel
def _pop(ends: Floats, whose: Ints, base: int, count: int) -> None:
    """The soonest of `count` + 1 leaves.

    The hole goes to the bottom first and what fills it up again: a comparison less at each level, and the fuller a node
    the more levels there are.
    """
    end, who, k = ends[base + count], whose[base + count], 0
    child = 1
    while child < count:
        if child + 1 < count:
            child += ends[base + child + 1] < ends[base + child]
        ends[base + k], whose[base + k] = ends[base + child], whose[base + child]
        k, child = child, 2 * child + 1
    while k:
        parent = (k - 1) >> 1
        if ends[base + parent] < end:
            break
        ends[base + k], whose[base + k] = ends[base + parent], whose[base + parent]
        k = parent
    ends[base + k], whose[base + k] = end, who


@kernel
def _ascending(times_s: Floats) -> Floats:
    """The same in order: by as many stretches of time as there are values, and each stretch by itself. Arrivals lie so
    evenly that this takes a tenth of what a sort does that compares them."""
    n = len(times_s)
    first_s = last_s = 0.0
    for at_s in times_s:
        first_s, last_s = min(first_s, at_s), max(last_s, at_s)
    per_s = n / (last_s - first_s) if last_s > first_s else 0.0
    begins = np.zeros(n + 2, np.int64)
    for at_s in times_s:
        begins[int((at_s - first_s) * per_s) + 1] += 1
    for k in range(1, n + 2):
        begins[k] += begins[k - 1]
    ordered = np.empty(n)
    for at_s in times_s:
        stretch = int((at_s - first_s) * per_s)
        ordered[begins[stretch]] = at_s
        begins[stretch] += 1
    for k in range(1, n):
        at_s = ordered[k]
        while k and ordered[k - 1] > at_s:
            ordered[k] = ordered[k - 1]
            k -= 1
        ordered[k] = at_s
    return ordered


@cached
def run_fleet(
    group_of: Ints,
    ready_s: Floats,
    tables: Floats,
    paces: Floats,
    limits: Floats,
    left_tokens: Floats,
    left_node: Ints,
    kv_tokens: Floats,
    prefill_s: Floats,
    coming_s: Floats,
    prompts: Floats,
    answers: Floats,
    mean_answer: float,
    window_from_s: float,
    window_to_s: float,
    ttft_s: float,
    tpot_s: float,
    e2e_s: float,
) -> tuple[float, float, float, float]:
    """(Requests of the window, those of them within all three times, mean running of a node at its end, most that
    waited). Time 0 is now.

    Of each node: its group, from when it is there, KV tokens held, seconds of prompts that it still has to compute. Of
    each group: `tables[g, batch]` seconds of a decode step (the last holds beyond), `paces[g]` = (KV seconds a token
    read, prefill seconds a token, a pair of tokens), `limits[g]` = (seats, KV tokens). `left_tokens` of the requests
    that run, each on its `left_node`. Of those that come: when, in any order (below 0: it waits already); of each, in
    the order in which they come, tokens of prompt to compute and of answer. The window is by the time of arrival; one
    that has not ended when all is over counts by how it has gone.
    """
    nodes, come, here = len(group_of), len(coming_s), len(left_tokens)
    coming_s = _ascending(coming_s)
    at_s = np.zeros(nodes)
    stall_s = prefill_s.copy()
    clock = np.zeros(nodes)
    kv = kv_tokens.copy()
    promised = np.zeros(nodes)
    running = np.zeros(nodes, np.int64)
    pace_s = np.ones(nodes)
    next_s = np.full(nodes, FOREVER_S)
    seats_most = 1
    for n in range(nodes):
        seats_most = max(seats_most, int(limits[group_of[n], 0]))
    ends = np.empty(nodes * seats_most)
    whose = np.empty(nodes * seats_most, np.int64)
    for i in range(here):
        n = left_node[i]
        if running[n] < seats_most:
            _push(ends, whose, n * seats_most, running[n], left_tokens[i], -1)
            running[n] += 1
            promised[n] += KV_GROWN * left_tokens[i]
    # Of each node, not of its group: what is looked at for every request.
    seats = np.empty(nodes)
    room_tokens = np.empty(nodes)
    kv_s, token_s, pair_s = np.empty(nodes), np.empty(nodes), np.empty(nodes)
    for n in range(nodes):
        g = group_of[n]
        seats[n], room_tokens[n] = limits[g, 0], limits[g, 1]
        kv_s[n], token_s[n], pair_s[n] = paces[g, 0], paces[g, 1], paces[g, 2]
    first_s = np.full(come, FOREVER_S)
    waiting = np.empty(come, np.int64)
    head = tail = 0
    asked = met = 0.0
    most_waiting = 0
    arrived = 0
    for n in range(nodes):
        pace_s[n] = _step_s(running[n], kv[n], group_of[n], tables, paces[group_of[n], 0])
        if running[n]:
            next_s[n] = stall_s[n] + max(0.0, ends[n * seats_most]) * pace_s[n]
    # Of each that runs now, when all of a node have as much.
    had_kv = kv_tokens / np.maximum(running, 1)
    woken = np.sort(ready_s)
    wake = 0
    while wake < nodes and woken[wake] <= 0.0:
        wake += 1
    end_s = coming_s[come - 1] if come else 0.0
    while True:
        soonest, node = FOREVER_S, -1
        for n in range(nodes):
            if next_s[n] < soonest:
                soonest, node = next_s[n], n
        arrives_s = coming_s[arrived] if arrived < come else FOREVER_S
        wakes_s = woken[wake] if wake < nodes else FOREVER_S
        now_s = min(soonest, arrives_s, wakes_s)
        if now_s > end_s or now_s >= FOREVER_S:
            break
        freed = False
        if now_s == soonest:
            _advance(node, now_s, at_s, stall_s, clock, kv, running, pace_s)
            base = node * seats_most
            done_at = clock[node] + 1e-9
            while running[node] and ends[base] <= done_at:
                i = whose[base]
                if i >= 0:
                    kv[node] -= prompts[i] + answers[i]
                    promised[node] -= KV_GROWN * mean_answer
                    if window_from_s <= coming_s[i] <= window_to_s:
                        tpot = (now_s - first_s[i]) / max(1.0, answers[i] - 1.0)
                        if first_s[i] - coming_s[i] <= ttft_s and tpot <= tpot_s and now_s - coming_s[i] <= e2e_s:
                            met += 1.0
                        asked += 1.0
                else:
                    kv[node] -= had_kv[node] + ends[base]
                    promised[node] -= KV_GROWN * ends[base]
                running[node] -= 1
                _pop(ends, whose, base, running[node])
            kv[node] = max(0.0, kv[node])
            promised[node] = max(0.0, promised[node])
            freed = True
            if running[node]:
                pace_s[node] = _step_s(running[node], kv[node], group_of[node], tables, kv_s[node])
                end = max(0.0, ends[base] - clock[node])
                next_s[node] = max(at_s[node], stall_s[node]) + end * pace_s[node]
            else:
                next_s[node] = FOREVER_S
        elif now_s == arrives_s:
            waiting[tail] = arrived
            tail += 1
            arrived += 1
            freed = tail - head == 1
        else:
            wake += 1
            freed = True
        while freed and head < tail:
            i = waiting[head]
            prompt, answer = prompts[i], answers[i]
            best, best_s = -1, FOREVER_S
            needs = prompt + KV_GROWN * mean_answer
            for n in range(nodes):
                if ready_s[n] > now_s or running[n] >= seats[n]:
                    continue
                if running[n] and kv[n] + promised[n] + needs > room_tokens[n]:
                    continue
                takes_s = token_s[n] * prompt + pair_s[n] * prompt * prompt
                grown_s = _step_s(running[n] + 1, kv[n] + prompt, group_of[n], tables, kv_s[n])
                own_s = max(0.0, stall_s[n] - now_s) + takes_s + mean_answer * grown_s
                harm_s = running[n] * (takes_s + 0.5 * mean_answer * max(0.0, grown_s - pace_s[n]))
                if own_s + harm_s < best_s:
                    best, best_s = n, own_s + harm_s
            if best < 0:
                break
            head += 1
            _advance(best, now_s, at_s, stall_s, clock, kv, running, pace_s)
            takes_s = token_s[best] * prompt + pair_s[best] * prompt * prompt
            stall_s[best] = max(stall_s[best], now_s) + takes_s
            if answer < 2.0:
                # It ends with its prompt, before those behind it.
                first_s[i] = stall_s[best]
                if window_from_s <= coming_s[i] <= window_to_s:
                    asked += 1.0
                    met += first_s[i] - coming_s[i] <= min(ttft_s, e2e_s)
                continue
            kv[best] += prompt
            promised[best] += KV_GROWN * mean_answer
            base = best * seats_most
            _push(ends, whose, base, running[best], clock[best] + max(0.0, answer - 1.0), i)
            running[best] += 1
            pace_s[best] = _step_s(running[best], kv[best], group_of[best], tables, kv_s[best])
            end = max(0.0, ends[base] - clock[best])
            next_s[best] = max(at_s[best], stall_s[best]) + end * pace_s[best]
            first_s[i] = stall_s[best] + pace_s[best]
        most_waiting = max(most_waiting, tail - head)
    mean_running = 0.0
    for n in range(nodes):
        mean_running += running[n] / nodes
        _advance(n, end_s, at_s, stall_s, clock, kv, running, pace_s)
        for k in range(n * seats_most, n * seats_most + running[n]):
            i = whose[k]
            if i < 0 or not window_from_s <= coming_s[i] <= window_to_s:
                continue
            asked += 1.0
            done = answers[i] - 1.0 - (ends[k] - clock[n])
            tpot = (end_s - first_s[i]) / done if done >= 1.0 else pace_s[n]
            if first_s[i] - coming_s[i] <= ttft_s and tpot <= tpot_s and end_s - coming_s[i] <= e2e_s:
                met += 1.0
    for k in range(head, tail):
        i = waiting[k]
        if window_from_s <= coming_s[i] <= window_to_s and end_s - coming_s[i] > ttft_s:
            # Of those that have waited for less nobody can say.
            asked += 1.0
    return asked, met, mean_running, float(most_waiting)
