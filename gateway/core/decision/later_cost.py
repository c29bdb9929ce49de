"""What a request at a node costs those who will come there later. Pure."""

from __future__ import annotations

from gateway.core.events import RequestShape
from gateway.core.nodes.pace import Pace
from gateway.core.nodes.view import NodeView
from simcore.types import NodeLoad

QUEUE_UTILISATION = 0.8
"""The share of its time that a node with a queue is meant to be busy with prompts and steps ahead."""
LATER_WAITS_PER_WAIT = QUEUE_UTILISATION / (1.0 - QUEUE_UTILISATION)
"""Seconds that those who come while a queue lasts wait, in sum, for each second that one who joins it waits: the growth
of all waiting in M/G/1 by one request of mean size."""


def taken(view: NodeView, load: NodeLoad) -> float:
    """Share of the node's room that is taken, of seats or KV blocks, whichever is scarcer; requests and prompts that
    wait count as if they had begun. Above 1: there is a queue."""
    free_blocks = load.free_blocks - load.waiting_prompt_blocks
    return max((load.running + load.waiting) / view.config.max_num_seqs, 1.0 - free_blocks / max(1, load.total_blocks))


def left_tokens(load: NodeLoad) -> float:
    """Output tokens that requests at the node have still to get, in sum, as far as is expected."""
    return max(0, load.unprocessed_tokens - load.prefill_tokens)


def end_s_per_token(view: NodeView, load: NodeLoad, pace: Pace) -> float:
    """Seconds between two ends on the node as it would be when full, for each token of an answer there."""
    here = load.running + load.waiting
    # Where KV runs out before seats, fewer are there when the node is full.
    full = max(1, min(pace.seats, round(here / taken(view, load)))) if here else pace.seats
    kv_tokens = load.total_blocks * view.config.tokens_per_block
    return (pace.step_s[full] + pace.kv_s_per_token * kv_tokens) / full


def later_waits(view: NodeView, load: NodeLoad, pace: Pace) -> float:
    """What later ones will wait, in sum, for the room that one request more takes: in times between two ends on a full
    node.

    How full the node is goes by its scarcest room. A queue that there is already shows in the wait of the request
    itself (`LATER_WAITS_PER_WAIT`).
    """
    waits = pace.later_waits
    place = max(0.0, min(1.0, taken(view, load))) * pace.seats
    below = int(place)
    above = min(below + 1, pace.seats)
    return waits[below] + (place - below) * (waits[above] - waits[below])


def room_s(request: RequestShape, view: NodeView) -> float:
    """Seconds that those who come later will wait, in sum, for the room that the request takes at a node; 0 where
    nothing is known of it.

    Two ends lie as far apart as what requests there, this one among them, have left in the mean takes the node: answers
    with all others of a full batch, prompts for themselves.
    """
    load, pace = view.load, view.pace
    if load is None or pace is None:
        return 0.0
    answers_s = (left_tokens(load) + request.expected_tokens) * end_s_per_token(view, load, pace)
    new_tokens = max(1, request.prompt_tokens - view.cached_tokens)
    prompts_s = (load.prefill_tokens + new_tokens) * pace.prefill_s_per_token
    return (answers_s + prompts_s) / (load.running + load.waiting + 1) * later_waits(view, load, pace)
