"""What gateways that scale the same nodes tell each other of their requests, so that every rule hears of all. Pure.

A gateway tells it once a second to one node, one of the leader's, which hands it on to all that ask for its lease
(`predictor/news.py`): whoever leads next has heard the same. Where no node is up nobody hears of it, and every gateway
leads for itself (`lease.py`).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator

import msgspec

from gateway.core.scale.events import FleetSeen
from gateway.core.scale.watch import RequestEvent

NEWS_S = 1.0
"""Between two messages. What one tells happens so much later for those who hear it, and as far apart as it was: a
second's requests at one moment would be a burst."""
MOST_EVENTS = 20_000
"""In one message; it stays below gRPC's usual 4 MB. What is more is not told."""


class HeldRequests(msgspec.Struct, frozen=True, kw_only=True):
    """What waits at one gateway; the fields are those of `FleetSeen`."""

    held: int = 0
    held_prompt_tokens: int = 0
    held_expected_tokens: float = 0.0
    oldest_held_s: float = 0.0
    waiting_models: tuple[str, ...] = ()


class ScalingNews(msgspec.Struct, frozen=True, kw_only=True):
    """One message."""

    gateway: str
    """Name of this one run of the gateway's process."""
    number: int
    """Grows with each of that gateway's."""
    held: HeldRequests
    requests: tuple[tuple[float, RequestEvent], ...] = ()
    """What has happened since the message before, oldest first, and how many seconds before this one."""


class NewsTeller:
    """Collects what one gateway has to tell."""

    def __init__(self, gateway: str) -> None:
        self._gateway = gateway
        self._number = 0
        self._events: list[tuple[float, RequestEvent]] = []

    def add(self, event: RequestEvent, now_s: float) -> None:
        if len(self._events) < MOST_EVENTS:
            self._events.append((now_s, event))

    def forget(self) -> None:
        """There is nobody to tell it to."""
        self._events.clear()

    def news(self, held: HeldRequests, now_s: float) -> ScalingNews:
        """All since the last time."""
        self._number += 1
        events, self._events = self._events, []
        requests = tuple((now_s - then_s, event) for then_s, event in events)
        return ScalingNews(gateway=self._gateway, number=self._number, held=held, requests=requests)


class _Told(msgspec.Struct, frozen=True):
    number: int
    heard_s: float
    held: HeldRequests


class NewsListener:
    """What one gateway has heard of the others. One that has not told anything for `ttl_s` holds nothing any more."""

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._told: dict[str, _Told] = {}
        self._coming: list[tuple[float, int, RequestEvent]] = []
        self._sequence = itertools.count()

    def heard(self, news: ScalingNews, now_s: float) -> None:
        """One that comes twice, or after a later one, counts for nothing."""
        before = self._told.get(news.gateway)
        if before is not None and news.number <= before.number:
            return
        self._told[news.gateway] = _Told(news.number, now_s, news.held)
        for ago_s, event in news.requests:
            due_s = now_s + min(NEWS_S, max(0.0, NEWS_S - ago_s))
            heapq.heappush(self._coming, (due_s, next(self._sequence), event))

    def due(self, now_s: float) -> Iterator[tuple[RequestEvent, float]]:
        """What has happened by now, in order, and when. Each is given once."""
        while self._coming and self._coming[0][0] <= now_s:
            due_s, _, event = heapq.heappop(self._coming)
            yield event, due_s

    def with_held(self, seen: FleetSeen, now_s: float) -> FleetSeen:
        """With what waits at the others."""
        for gateway, told in list(self._told.items()):
            if now_s - told.heard_s > self._ttl_s:
                del self._told[gateway]
                continue
            held = told.held
            if not held.held and not held.waiting_models:
                continue
            seen = msgspec.structs.replace(
                seen,
                held=seen.held + held.held,
                held_prompt_tokens=seen.held_prompt_tokens + held.held_prompt_tokens,
                held_expected_tokens=seen.held_expected_tokens + held.held_expected_tokens,
                oldest_held_s=max(seen.oldest_held_s, held.oldest_held_s + now_s - told.heard_s),
                waiting_models=tuple(dict.fromkeys((*seen.waiting_models, *held.waiting_models))),
            )
        return seen
