"""The parts of all workers put together: what the page shows, and what of it is new since the last look. Pure."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from itertools import takewhile

import msgspec

from gateway.ui.part import NOTHING, NodePart, PagePart
from gateway.ui.rows import Row
from gateway.ui.tail import KEPT as KEPT_LINES
from gateway.ui.tail import MOST_NEW, Line
from gateway.ui.timeline import FIELDS, KEPT, Sample

_SUMS = ("placed_per_s", "ended_per_s", "failed", "promised", "kept", "under_way", "held", "moves")
"""Of a sample; the rest is the fleet's, of which all workers see the same."""


class Picture:
    """`take` parts as they come, `forget` who comes no more, then look.

    Workers take their samples at the same moments of Unix time, so a moment's samples are added up. It is shown once
    all have told theirs; one that is a whole sample late is not waited for.
    """

    def __init__(self, own: int, *, every_s: float) -> None:
        """`own`: the number of this very worker. `every_s`: from one sample to the next."""
        self._own = own
        self._every_s = every_s
        self._parts: dict[int, PagePart] = {}
        self._samples: dict[int, dict[int, Sample]] = defaultdict(dict)
        """By worker, then by moment, ascending: in units of `every_s`."""
        self._shown: dict[int, Sample] = {}
        self._lines: deque[Line] = deque(maxlen=KEPT_LINES)
        self._new_lines: list[Line] = []
        self._skipped_lines = 0
        self._last_line: dict[int, str] = {}
        """By worker, when it was written."""

    @property
    def workers(self) -> int:
        """How many are in it."""
        return len(self._parts)

    def take(self, worker: int, part: PagePart) -> bool:
        """Whether that worker was not there before: then much may be new that is old."""
        is_new = worker not in self._parts
        lines = part.lines
        if is_new:
            # One that was lost for a moment tells again what it has told.
            last = self._last_line.get(worker, "")
            lines = tuple(line for line in lines if _written(line) > last)
            self._shown.clear()
        if lines:
            self._last_line[worker] = _written(lines[-1])
        self._parts[worker] = msgspec.structs.replace(part, lines=(), samples=())
        self._new_lines += lines
        self._skipped_lines += part.skipped_lines
        taken = self._samples[worker]
        taken.update((round(sample.at_s / self._every_s), sample) for sample in part.samples)
        while len(taken) > KEPT:
            del taken[next(iter(taken))]
        return is_new

    def forget(self, worker: int) -> None:
        """It does not answer any more. What it has done stays, what it does is unknown."""
        self._parts.pop(worker, None)

    def nodes(self) -> dict[str, NodePart]:
        """By address, of all workers together."""
        found: dict[str, NodePart] = {}
        for worker in self._ranked():
            for address, node in self._parts[worker].nodes.items():
                found[address] = found.get(address, NOTHING) + node
        return found

    def now(self) -> Row:
        """Numbers of the whole gateway."""
        parts = self._parts.values()
        return {
            "under_way": sum(part.under_way for part in parts),
            "held": sum(part.held for part in parts),
            "wait_s": max((round(part.wait_s, 1) for part in parts), default=0.0),
            "moves": sum(part.moves for part in parts),
            "workers": len(parts),
        }

    def scaling(self) -> Row | None:
        """As the worker tells it that leads, or else this one."""
        ranked = self._ranked()
        return self._parts[ranked[0]].scaling if ranked else None

    def new_lines(self) -> tuple[list[Line], int]:
        """Those of the log since the last look, in order, and how many were left out before them."""
        lines, skipped = sorted(self._new_lines, key=_written), self._skipped_lines
        self._lines.extend(lines)
        self._new_lines, self._skipped_lines = [], 0
        return lines[-MOST_NEW:], skipped + max(0, len(lines) - MOST_NEW)

    def lines(self) -> list[Line]:
        """All that are kept, as of the last look."""
        return sorted(self._lines, key=_written)

    def new_samples(self) -> list[Sample]:
        """Moments that are whole since the last look, in order; after a new worker's first part all that are kept."""
        told = max(self._shown, default=-1)
        newest = [next(reversed(taken)) for worker in self._parts if (taken := self._samples[worker])]
        if not newest:
            return []
        whole = max(min(newest), max(newest) - 1)
        moments = {at for taken in self._samples.values() for at in takewhile(lambda at: at > told, reversed(taken))}
        ranked = [*self._ranked(), *(worker for worker in self._samples if worker not in self._parts)]
        fresh = []
        for at in sorted(at for at in moments if at <= whole):
            samples = [sample for worker in ranked if (sample := self._samples[worker].get(at)) is not None]
            self._shown[at] = _together(samples, at * self._every_s)
            fresh.append(self._shown[at])
        while len(self._shown) > KEPT:
            del self._shown[next(iter(self._shown))]
        return fresh

    def columns(self) -> list[list[float | None]]:
        """All moments that are kept, as of the last look: a list for each of FIELDS."""
        samples = self._shown.values()
        return [[getattr(sample, name) for sample in samples] for name in FIELDS]

    def _ranked(self) -> list[int]:
        """Workers, those first whose word on the fleet holds."""
        return sorted(self._parts, key=lambda worker: (not self._parts[worker].leads, worker != self._own, worker))


def _together(samples: Sequence[Sample], at_s: float) -> Sample:
    """Of one moment, at least one."""
    first, *others = samples
    sums = {name: round(sum(getattr(sample, name) for sample in samples), 2) for name in _SUMS} if others else {}
    return msgspec.structs.replace(first, at_s=round(at_s, 1), **sums)


def _written(line: Line) -> str:
    return str(line.get("timestamp", ""))
