"""How long a node's steps take at every batch that it can run. Pure."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from simcore.types import NodePace

DESIGN_UTILISATION = 0.85
"""The share of its room, seats or KV, at which a node is meant to run: where it matters what a request takes from later
ones. Higher: nodes are kept freer for them, waits are shorter and answers of those who come now a little longer."""

RISE_OVER = 8
"""Sequences over which the rise of a step with the batch is measured: kernels round up to tiles of about so many, and
one sequence more rises by nothing or by all of a tile."""


LEAST_S_PER_TOKEN = 1e-9
"""A pace may tell that tokens of prompts cost nothing."""


class Pace:
    """What a node has told (`simcore.types.NodePace`), as tables that a decision reads."""

    __slots__ = (
        "decode_speed",
        "kv_s_per_token",
        "later_waits",
        "prefill_s_per_token",
        "prefill_s_per_token2",
        "prefill_speed",
        "rise_s",
        "seats",
        "step_s",
        "told",
    )

    def __init__(self, told: NodePace, seats: int) -> None:
        """For batches of up to `seats` sequences."""
        self.told = told
        self.seats = seats
        self.kv_s_per_token = told.kv_s_per_token
        self.prefill_s_per_token = told.prefill_s_per_token
        self.prefill_s_per_token2 = told.prefill_s_per_token2
        self.step_s = _table(told, seats)
        """Seconds of a step that decodes so many sequences, without reading their KV; index 0 to `seats`."""
        top = len(self.step_s) - 1
        self.rise_s = [_rise(self.step_s, n, min(n + RISE_OVER, top)) for n in range(top)] or [0.0]
        """Seconds by which a step grows with one sequence more, from so many on; the last holds beyond."""
        self.rise_s.append(self.rise_s[-1])
        self.later_waits = later_waits(seats)
        """`later_waits` by the number of requests there."""
        self.decode_speed = 1.0 / told.step_s[0]
        """Tokens per second of a sequence alone."""
        self.prefill_speed = 1.0 / max(told.prefill_s_per_token, LEAST_S_PER_TOKEN)
        """Prompt tokens per second."""


@functools.cache
def later_waits(seats: int) -> Sequence[float]:
    """How long those who come later will wait, in sum, because of one request more among n, for n from 0 to `seats`;
    in units of the mean time between two ends on a full node.

    The value function of the queue M/M/`seats` at `DESIGN_UTILISATION`: with g its mean number of waiting requests
    (Erlang C), arrivals at rate u and ends at rate min(n, seats) / seats, the growth w(n) of all waiting by one request
    more solves 0 = (n - seats)+ - g + u w(n) - min(n, seats) / seats * w(n - 1) (Poisson's equation; first policy
    iteration from a random split, Krishnan 1990).
    """
    offered = DESIGN_UTILISATION * seats
    inverse_b = 1.0
    for n in range(1, seats + 1):
        inverse_b = 1.0 + inverse_b * n / offered
    erlang_b = 1.0 / inverse_b
    erlang_c = erlang_b / (1.0 - DESIGN_UTILISATION * (1.0 - erlang_b))
    queued = erlang_c * DESIGN_UTILISATION / (1.0 - DESIGN_UTILISATION)
    waits, last = [], 0.0
    for n in range(seats + 1):
        last = (queued + n / seats * last) / DESIGN_UTILISATION
        waits.append(last)
    return waits


def _table(told: NodePace, seats: int) -> list[float]:
    batches, seconds = told.batches, told.step_s
    table = [seconds[0]]
    i = 0
    for n in range(1, seats + 1):
        while i + 1 < len(batches) and batches[i + 1] < n:
            i += 1
        if i + 1 < len(batches):
            share = (n - batches[i]) / (batches[i + 1] - batches[i])
            table.append(seconds[i] + share * (seconds[i + 1] - seconds[i]))
        else:
            table.append(seconds[-1])
    return table


def _rise(table: list[float], low: int, high: int) -> float:
    return (table[high] - table[low]) / (high - low) if high > low else 0.0
