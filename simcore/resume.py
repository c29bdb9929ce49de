"""A simulated engine in the state that a trace shows, so that it can be run on from there."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from simcore.compiled import layout as at
from simcore.compiled.entry import ENTRIES
from simcore.cost.step_time import StepTimeModel
from simcore.node import Arrived, SimNode, SimRequest
from simcore.trace import TraceSnapshot
from simcore.types import RequestState


def node_at(
    snapshot: TraceSnapshot,
    node_id: str,
    step_time: StepTimeModel,
    *,
    output_tokens: Callable[[RequestState], int],
    free_at_s: float,
) -> SimNode:
    """The engine of the snapshot, its next step beginning at `free_at_s` (on any clock the caller likes).

    `output_tokens` says how long each answer is taken to be in all; an answer that is that long already goes on by one
    token. What a snapshot cannot show is taken to be absent: free blocks that still hold tokens of preempted requests.
    """
    config = snapshot.config
    node = SimNode(node_id, config, step_time)
    states = [*snapshot.running, *snapshot.waiting]
    n, running = len(states), len(snapshot.running)
    while len(node.ids) < n:
        node._grow()
    block = config.block_size_tokens
    rows: list[list[int]] = []
    for slot, s in enumerate(states):
        final = max(output_tokens(s), s.output_tokens + 1)
        computed = s.computed_tokens if slot < running else 0
        rows.append(
            at.request_row(
                prompt=s.prompt_tokens,
                out=s.output_tokens,
                computed=computed,
                final=final,
                max_out=s.max_output_tokens,
                priority=s.priority,
                order=slot,
                preemptions=s.preemptions,
                block=block,
            )
        )
        node.ids[slot] = s.request_id
        request = SimRequest(
            request_id=s.request_id,
            prompt_tokens=s.prompt_tokens,
            output_tokens=final,
            max_output_tokens=s.max_output_tokens,
            priority=s.priority,
        )
        node.requests[s.request_id] = Arrived(slot, request, s.arrival_s)
    if n:
        node.req[:n] = rows
        node._free_slots = [slot for slot in node._free_slots if slot >= n]
    if config.scheduling_policy == "priority":
        by_arrival = sorted(range(n), key=lambda i: (states[i].arrival_s, i))
        node.req[by_arrival, at.ORDER] = np.arange(n)
    node.lists[at.RUNNING, :running] = np.arange(running)
    node.lists[at.WAITING, : n - running] = np.arange(n - 1, running - 1, -1)
    node.head[at.N_RUNNING] = running
    node.head[at.N_WAITING] = n - running
    node.head[at.FREE] = min(snapshot.free_blocks, config.num_blocks)
    node.head[at.PREEMPTED_TOTAL] = snapshot.preemptions_total
    # A busy engine that schedules asynchronously has the next step planned already. (Of who has just left it, the
    # snapshot knows no more; that plan still knew them.)
    ENTRIES.plan_ahead(node.head, node.req, node.lists, node._log)
    node.interventions = n
    node.seq = snapshot.seq
    node.free_at_s = float(free_at_s)
    node.next_step_s = node.free_at_s if n else math.inf
    node.membership = n
    return node
