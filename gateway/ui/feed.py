"""The stream of the page: one look a second, shared by all who watch; none while nobody does.

A viewer gets everything once and then what has changed, as server-sent events. One that does not read is dropped: it
connects again and gets everything anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import orjson

from gateway.http.connection import Exchange
from gateway.ui.rows import Row, Rows, changed_fields, changes
from gateway.ui.tail import LogTail
from gateway.ui.timeline import FIELDS, SAMPLE_S, Sample
from gateway.ui.view import FleetView

LOOK_S = 1.0
MOST_VIEWERS = 16
MOST_UNREAD_BYTES = 2 * 1024 * 1024
"""What may wait for one viewer. Everything, of 400 nodes and an hour, is a quarter of it."""
MOST_LINES = 100
"""Of the log, in one event: more cannot be read in a second."""


class Feed:
    """`start`, `watch` for each viewer, `close`."""

    def __init__(self, view: FleetView, tail: LogTail, about: Callable[[], dict[str, Any]]) -> None:
        """`about`: what is told once to each viewer."""
        self._view = view
        self._tail = tail
        self._about = about
        self._viewers: set[Exchange] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._rows: Rows = {}
        self._now: Row = {}
        self._scaling: dict[str, Any] | None = None
        self._line = 0
        self._samples: list[Sample] = []
        """Taken since the last look."""
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
        self._call_later("sample", SAMPLE_S, self._sample)

    def watch(self, exchange: Exchange) -> None:
        """Begins an answer that goes on until the viewer leaves or the gateway stops. There is room for it."""
        # What it gets next must go on from where it begins.
        self._publish()
        if not self._viewers:
            self._call_later("look", LOOK_S, self._tick)
        self._viewers.add(exchange)
        exchange.on_left = lambda: self._left(exchange)
        if exchange.is_over:
            self._left(exchange)
            return
        exchange.send(_event("whole", self._whole()))

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

    def _left(self, exchange: Exchange) -> None:
        self._viewers.discard(exchange)
        if not self._viewers and (timer := self._timers.pop("look", None)) is not None:
            timer.cancel()

    def _sample(self) -> None:
        self._call_later("sample", SAMPLE_S, self._sample)
        sample = self._view.sample()
        if self._viewers:
            self._samples.append(sample)

    def _tick(self) -> None:
        self._call_later("look", LOOK_S, self._tick)
        self._publish()

    def _publish(self) -> None:
        event = _event("change", self._look())
        for exchange in list(self._viewers):
            exchange.send(event)
            if exchange.unsent_bytes > MOST_UNREAD_BYTES:
                exchange.abort()
                self._left(exchange)

    def _look(self) -> dict[str, Any]:
        """Looks, and returns what is new since the last look."""
        rows, now, scaling = self._view.rows(), self._view.now(), self._view.scaling()
        changed, gone = changes(self._rows, rows)
        self._line, lines = self._tail.since(self._line)
        new = {
            "nodes": changed,
            "gone": gone,
            "now": changed_fields(self._now, now),
            "samples": [msgspec.structs.astuple(sample) for sample in self._samples],
            "log": lines[-MOST_LINES:],
            "skipped_lines": max(0, len(lines) - MOST_LINES),
        }
        if scaling != self._scaling:
            new["scaling"] = scaling
        self._rows, self._now, self._scaling, self._samples = rows, now, scaling, []
        return {name: value for name, value in new.items() if value or name == "scaling"}

    def _whole(self) -> dict[str, Any]:
        """Everything as of the last look, so that what comes next fits."""
        _, lines = self._tail.since(0)
        return {
            "about": self._about(),
            "nodes": self._rows,
            "now": self._now,
            "slo": self._view.slo(),
            "scaling": self._scaling,
            "timeline": {"fields": FIELDS, "every_s": SAMPLE_S, "columns": self._view.timeline.columns()},
            "log": lines,
        }

    def _call_later(self, name: str, after_s: float, callback: Callable[[], None]) -> None:
        self._timers[name] = asyncio.get_running_loop().call_later(after_s, callback)


def _event(name: str, data: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(data, default=str))
