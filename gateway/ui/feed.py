"""The stream of the page: one look a second, shared by all who watch; none while nobody does.

A viewer gets everything once and then what has changed, as server-sent events. One that does not read is dropped: it
connects again and gets everything anew. Of several workers the one that a page is connected to shows all: while anybody
watches there, the others tell it their parts once a second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec
import orjson

from gateway.http.connection import Exchange
from gateway.ui.part import PagePart
from gateway.ui.picture import Picture
from gateway.ui.rows import Row, Rows, changed_fields, changes
from gateway.ui.siblings import SiblingParts
from gateway.ui.tail import LogTail
from gateway.ui.timeline import FIELDS, SAMPLE_S, pause_s
from gateway.ui.view import FleetView, PartReader

LOOK_S = 1.0
MOST_VIEWERS = 16
MOST_UNREAD_BYTES = 2 * 1024 * 1024
"""What may wait for one viewer. Everything, of 400 nodes and an hour, is a quarter of it."""


class Feed:
    """`start`, `watch` for each viewer, `close`."""

    def __init__(
        self,
        view: FleetView,
        tail: LogTail,
        about: Callable[[], dict[str, Any]],
        *,
        siblings: SiblingParts,
        worker: int = 0,
    ) -> None:
        """`about`: what is told once to each viewer. `worker`: the number of this one among the `siblings`."""
        self._view = view
        self._tail = tail
        self._about = about
        self._siblings = siblings
        self._worker = worker
        self._viewers: set[Exchange] = set()
        self._new: set[Exchange] = set()
        """Those who get everything at the next look."""
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._reader = self.reader()
        self._picture = self._blank()
        self._awaited: set[int] = set()
        """Siblings of which nothing is known yet since somebody watches."""
        self._rows: Rows = {}
        self._now: Row = {}
        self._scaling: dict[str, Any] | None = None
        self.is_closed = False

    @property
    def viewers(self) -> int:
        return len(self._viewers)

    @property
    def is_looking(self) -> bool:
        """Whether there will be another look."""
        return "look" in self._timers

    def start(self) -> None:
        """Begins the timeline."""
        self._sample_later()

    def reader(self) -> PartReader:
        """Of this worker's parts, for one that gets them all."""
        return PartReader(self._view, self._tail)

    def watch(self, exchange: Exchange) -> None:
        """Begins an answer that goes on until the viewer leaves or the gateway stops. There is room for it."""
        if not self._viewers:
            self._begin()
        self._viewers.add(exchange)
        self._new.add(exchange)
        exchange.on_left = lambda: self._left(exchange)
        if exchange.is_over:
            self._left(exchange)
        elif not self._awaited:
            self._publish()

    def close(self) -> None:
        """Says goodbye to all viewers; there are no more."""
        self.is_closed = True
        self.end_all()
        for timer in self._timers.values():
            timer.cancel()

    def end_all(self) -> None:
        """Ends all streams; who still may watch connects again."""
        for exchange in list(self._viewers):
            exchange.on_left = None
            exchange.send(_event("bye", {}), last=True)
            self._left(exchange)

    def _begin(self) -> None:
        """Somebody watches."""
        self._reader, self._picture = self.reader(), self._blank()
        self._rows, self._now, self._scaling = {}, {}, None
        self._awaited = self._siblings.workers
        self._siblings.open(self._told, self._lost)
        self._call_later("look", LOOK_S, self._tick)

    def _blank(self) -> Picture:
        return Picture(self._worker, every_s=SAMPLE_S)

    def _left(self, exchange: Exchange) -> None:
        self._viewers.discard(exchange)
        self._new.discard(exchange)
        if not self._viewers and (timer := self._timers.pop("look", None)) is not None:
            timer.cancel()
            self._siblings.close()

    def _told(self, worker: int, part: PagePart) -> None:
        if self._picture.take(worker, part):
            # What it did before cannot be told as a change.
            self._new |= self._viewers
        self._known(worker)

    def _lost(self, worker: int) -> None:
        self._picture.forget(worker)
        self._known(worker)

    def _known(self, worker: int) -> None:
        """Once all siblings have told their parts, or cannot, nobody need wait for the next look."""
        if worker in self._awaited:
            self._awaited.discard(worker)
            if not self._awaited:
                self._publish()

    def _sample_later(self) -> None:
        # All workers at the same moments, for their samples to be added up.
        self._call_later("sample", pause_s(time.time(), SAMPLE_S), self._sample)

    def _sample(self) -> None:
        self._sample_later()
        self._view.sample()

    def _tick(self) -> None:
        self._call_later("look", LOOK_S, self._tick)
        # Who has not said anything by now is not waited for any longer.
        self._awaited = set()
        self._publish()

    def _publish(self) -> None:
        change = _event("change", self._look())
        whole = _event("whole", self._whole()) if self._new else b""
        for exchange in list(self._viewers):
            exchange.send(whole if exchange in self._new else change)
            if exchange.unsent_bytes > MOST_UNREAD_BYTES:
                exchange.abort()
                self._left(exchange)
        self._new.clear()

    def _look(self) -> dict[str, Any]:
        """Looks, and returns what is new since the last look."""
        picture = self._picture
        picture.take(self._worker, self._reader.read())
        rows = self._view.rows(picture.nodes(), picture.workers)
        now = {"policy": self._view.policy, **picture.now()}
        scaling = picture.scaling()
        changed, gone = changes(self._rows, rows)
        lines, skipped_lines = picture.new_lines()
        new = {
            "nodes": changed,
            "gone": gone,
            "now": changed_fields(self._now, now),
            "samples": [msgspec.structs.astuple(sample) for sample in picture.new_samples()],
            "log": lines,
            "skipped_lines": skipped_lines,
        }
        if scaling != self._scaling:
            new["scaling"] = scaling
        self._rows, self._now, self._scaling = rows, now, scaling
        return {name: value for name, value in new.items() if value or name == "scaling"}

    def _whole(self) -> dict[str, Any]:
        """Everything as of the last look, so that what comes next fits."""
        return {
            "about": self._about(),
            "nodes": self._rows,
            "now": self._now,
            "slo": self._view.slo(),
            "scaling": self._scaling,
            "timeline": {"fields": FIELDS, "every_s": SAMPLE_S, "columns": self._picture.columns()},
            "log": self._picture.lines(),
        }

    def _call_later(self, name: str, after_s: float, callback: Callable[[], None]) -> None:
        self._timers[name] = asyncio.get_running_loop().call_later(after_s, callback)


def _event(name: str, data: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(data, default=str))
