"""How long a node's steps take at every batch that it can run. Pure."""

from __future__ import annotations

from simcore.types import NodePace

RISE_OVER = 8
"""Sequences over which the rise of a step with the batch is measured: kernels round up to tiles of about so many, and
one sequence more rises by nothing or by all of a tile."""


class Pace:
    """What a node has told (`simcore.types.NodePace`), as tables that a decision reads."""

    __slots__ = ("kv_s_per_token", "prefill_s_per_token", "prefill_s_per_token2", "rise_s", "step_s")

    def __init__(self, told: NodePace, most_seqs: int) -> None:
        """For batches of up to `most_seqs` sequences."""
        self.kv_s_per_token = told.kv_s_per_token
        self.prefill_s_per_token = told.prefill_s_per_token
        self.prefill_s_per_token2 = told.prefill_s_per_token2
        self.step_s = _table(told, most_seqs)
        """Seconds of a step that decodes so many sequences, without reading their KV; index 0 to `most_seqs`."""
        top = len(self.step_s) - 1
        self.rise_s = [_rise(self.step_s, n, min(n + RISE_OVER, top)) for n in range(top)] or [0.0]
        """Seconds by which a step grows with one sequence more, from so many on; the last holds beyond."""
        self.rise_s.append(self.rise_s[-1])


def _table(told: NodePace, most_seqs: int) -> list[float]:
    batches, seconds = told.batches, told.step_s
    table = [seconds[0]]
    i = 0
    for n in range(1, most_seqs + 1):
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
