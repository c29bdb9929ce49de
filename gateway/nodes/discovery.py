"""Which nodes there are: those of the configuration, those that its sources find, and those that a connector has
started.

A source that does not know for a while keeps its last list: an outage of a name service must not take away nodes that
work.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import aclosing

import structlog

from gateway.config import NodeEntry
from gateway.nodes.sources.base import NodeSource, NodesUnknown
from gateway.nodes.sources.dns_host import DnsHostSource, Resolve

log = structlog.get_logger("gateway")

FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 10.0
"""Between two tries of a source that does not know."""


class Discovery:
    """Keeps the node table at what the configuration names and the sources say."""

    def __init__(
        self,
        *,
        interval_s: float,
        on_change: Callable[[Sequence[NodeEntry]], None],
        resolve: Resolve | None = None,
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        """`on_change` gets all entries, found ones included, whenever they are not what they were. `interval_s` and
        `resolve` are of names among the configuration's entries."""
        self._interval_s = interval_s
        self._on_change = on_change
        self._resolve = resolve
        self._first_pause_s = first_pause_s
        self._fixed: tuple[NodeEntry, ...] = ()
        self._started: tuple[NodeEntry, ...] = ()
        self._followers: dict[str, asyncio.Task[None]] = {}
        """By what is asked, in the order of the configuration."""
        self._known: dict[str, tuple[NodeEntry, ...]] = {}
        self._announced: list[NodeEntry] | None = None
        self._jitter = random.Random()

    def set_entries(self, entries: Sequence[NodeEntry], sources: Sequence[NodeSource] = ()) -> None:
        """The configuration's entries and sources from now on. Addresses are announced at once, others when they are
        found. A source that was there before goes on."""
        self._fixed = tuple(entry for entry in entries if not entry.is_name)
        names = [entry for entry in entries if entry.is_name]
        hosts = [DnsHostSource(entry, interval_s=self._interval_s, resolve=self._resolve) for entry in names]
        wanted: dict[str, NodeSource] = {source.where: source for source in (*hosts, *sources)}
        for where in [where for where in self._followers if where not in wanted]:
            self._followers.pop(where).cancel()
            self._known.pop(where, None)
        followers = {}
        for where, source in wanted.items():
            followers[where] = self._followers.get(where) or asyncio.create_task(self._follow(source), name=where)
        self._followers = followers
        self._announce()

    def set_started(self, entries: Sequence[NodeEntry]) -> None:
        """The nodes that run beside those of the configuration, whole, by address."""
        self._started = tuple(entries)
        self._announce()

    async def close(self) -> None:
        """Asks no more."""
        tasks = list(self._followers.values())
        self._followers = {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, source: NodeSource) -> None:
        where = source.where
        pause_s, is_silent = self._first_pause_s, False
        while True:
            detail = "it has ended without a word"
            try:
                async with aclosing(source.lists()) as lists:
                    async for entries in lists:
                        if is_silent:
                            log.info("nodes are found again", where=where, nodes=len(entries))
                        pause_s, is_silent = self._first_pause_s, False
                        self._known[where] = tuple(entries)
                        self._announce()
            except NodesUnknown as bad:
                detail = str(bad)
            except Exception:
                log.exception("defect in a source of nodes", where=where)
            if not is_silent:
                is_silent = True
                kept = len(self._known.get(where, ()))
                log.warning("nodes are not found, the last list holds", where=where, kept=kept, detail=detail)
            await asyncio.sleep(pause_s * self._jitter.uniform(0.8, 1.2))
            pause_s = min(LAST_PAUSE_S, pause_s * 2)

    def _announce(self) -> None:
        by_address: dict[str, NodeEntry] = {entry.address: entry for entry in self._fixed}
        for entry in (*self._started, *(entry for where in self._followers for entry in self._known.get(where, ()))):
            by_address.setdefault(entry.address, entry)
        entries = list(by_address.values())
        if entries != self._announced:
            self._announced = entries
            self._on_change(entries)
