"""The last hour in samples of some seconds: what the page draws, also of the time before it was opened. Pure."""

from __future__ import annotations

from collections import deque

import msgspec

from gateway.core.events import Slo
from gateway.core.scale.config import Objective

SAMPLE_S = 5.0
KEPT = 720
"""Samples: one hour."""
_NONE = Objective(ttft_s=None, tpot_s=None, e2e_s=None)


class Sample(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A moment, and what has happened since the sample before it. Counts, unless the name says a unit."""

    at_s: float
    """Unix time."""
    placed_per_s: float
    """Placements decided, moves and retries too."""
    ended_per_s: float
    """Requests that have ended."""
    failed: int
    """Of these, those without a whole answer, other than by their client's wish."""
    promised: int
    """Of these, those that a service level was asked for, or is configured for."""
    kept: int
    """Of the promised ones, those within it."""
    under_way: int
    held: int
    """In the gateway's queue: no node can take them yet."""
    nodes_up: int
    moves: int
    """Moves to another node that were carried out."""
    wanted: int | None = None
    """Nodes, by the scaler, as the others below; None where nothing is scaled."""
    serving: int | None = None
    starting: int | None = None
    draining: int | None = None
    """Also those that are being stopped."""


FIELDS = Sample.__struct_fields__


class Totals(msgspec.Struct, kw_only=True):
    """Counts since the start."""

    placed: int = 0
    ended: int = 0
    failed: int = 0
    promised: int = 0
    kept: int = 0
    moves: int = 0


class Timeline:
    """Totals in, samples out. `add` is called every SAMPLE_S seconds or so."""

    def __init__(self, now_s: float) -> None:
        """`now_s` on the clock that `add` has."""
        self.samples: deque[Sample] = deque(maxlen=KEPT)
        self._taken = 0
        self._before = Totals()
        self._before_s = now_s

    def add(
        self,
        totals: Totals,
        now_s: float,
        *,
        at_s: float,
        under_way: int,
        held: int,
        nodes_up: int,
        scaled: dict[str, int] | None,
    ) -> Sample:
        """Takes a sample; `at_s` is the Unix time, `scaled` the scaler's nodes by the names that `Sample` has."""
        before, took_s = self._before, max(1e-3, now_s - self._before_s)
        sample = Sample(
            at_s=round(at_s, 1),
            placed_per_s=round((totals.placed - before.placed) / took_s, 2),
            ended_per_s=round((totals.ended - before.ended) / took_s, 2),
            failed=totals.failed - before.failed,
            promised=totals.promised - before.promised,
            kept=totals.kept - before.kept,
            moves=totals.moves - before.moves,
            under_way=under_way,
            held=held,
            nodes_up=nodes_up,
            **(scaled or {}),
        )
        self.samples.append(sample)
        self._taken += 1
        self._before, self._before_s = msgspec.structs.replace(totals), now_s
        return sample

    def since(self, number: int) -> tuple[int, list[Sample]]:
        """The number of the last sample, and the samples after `number` that are still kept."""
        fresh = min(len(self.samples), self._taken - number)
        return self._taken, list(self.samples)[len(self.samples) - fresh :]


def pause_s(unix_s: float, every_s: float) -> float:
    """Seconds until the next moment of Unix time that is a multiple of `every_s`. A timer that goes off a little early
    is not set to that same moment again."""
    left_s = every_s - unix_s % every_s
    return left_s if left_s > every_s / 10 else left_s + every_s


def is_kept(
    asked: Slo,
    objective: Objective | None,
    *,
    ttft_s: float | None,
    e2e_s: float,
    output_tokens: int,
    whole: bool,
) -> bool | None:
    """Whether an ended request was within its service level: each time that it asked for itself, or else the objective.
    None where nothing was promised. Without a whole answer nothing is kept."""
    else_s = objective or _NONE
    first_s = asked.ttft_s if asked.ttft_s is not None else else_s.ttft_s
    each_s = asked.tpot_s if asked.tpot_s is not None else else_s.tpot_s
    all_s = asked.deadline_s if asked.deadline_s is not None else else_s.e2e_s
    if first_s is None and each_s is None and all_s is None:
        return None
    if not whole:
        return False
    if all_s is not None and e2e_s > all_s:
        return False
    if ttft_s is None:
        # Nobody saw when it began, as of an answer that came in one piece.
        return True
    if first_s is not None and ttft_s > first_s:
        return False
    return each_s is None or output_tokens < 2 or (e2e_s - ttft_s) / (output_tokens - 1) <= each_s
