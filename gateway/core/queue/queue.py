"""The gateway's queue of requests that no node can start yet: its order, its bounds, and who is shed. Pure.

Every request gets a due time when it joins, and the queue is in order of due times:

    due = arrival + aging_s * (class + share),  0 <= share <= 1

`class` is the request's priority (smaller first, at most `CLASSES` from 0 either way) and `share` its place within the
class: 0 under `fcfs`; growing with its length under `shortest_forecast`; with the time that its client gives it under
`deadline`. So a request of class p is never overtaken by one of class q that arrived more than
`aging_s * (p - q + 1)` after it: nobody starves, and the order needs no sorting again as requests age.
"""

from __future__ import annotations

import bisect
import random
from collections import Counter
from typing import Annotated, Any, Literal, get_args

import msgspec

from gateway.core.events import RequestShape
from gateway.core.request.live import LiveRequest
from simcore.types import CLASSES, class_of

HoldOrder = Literal["fcfs", "shortest_forecast", "deadline"]
HoldWhen = Literal["never", "forecast", "always"]
TYPICAL_TOKENS = 500
"""Length at which `shortest_forecast` gives half of the largest share: about the mean of a conversation's turn."""


class HoldConfig(msgspec.Struct, frozen=True, kw_only=True):
    """When requests are held instead of sent to a node that cannot start them, and for how long."""

    when: Annotated[HoldWhen, msgspec.Meta(extra={"option": ""})] = "forecast"
    """When to hold a request that no node can start; `forecast`: under policies that ask for forecasts; `always`: under
    the others too, judged by the nodes' load."""
    order: HoldOrder = "fcfs"
    """Order of held requests within a priority."""
    aging_s: float = 10.0
    """By how much later a request of the next class, or a shorter one, may come and still go first."""
    max_requests: int = 4096
    """Most requests that are held; beyond them, and gradually before, they are refused with a time to come back."""
    max_tokens: int = 4_000_000
    """Most prompt and expected output tokens of all held requests together."""
    shed_from: float = 0.8
    """Share of either bound from which the lowest class begins to be turned away."""
    max_s: float = 60.0
    """After so long a request is placed where it costs least, whatever it has to wait for there."""
    preemption: float = 0.2
    """Largest probability of a preemption at which a node still takes a request. Lower means fewer preemptions and
    emptier nodes; without knowledge of lengths 0.1 to 0.6 make little difference to the tail."""
    recheck_s: float = 0.01
    """Pause between two looks at the nodes."""
    heads: int = 4
    """How many of each model are tried from the front at each look: so far may one pass others that fit nowhere."""

    def __post_init__(self) -> None:
        if self.when not in get_args(HoldWhen):
            raise ValueError(f"when must be one of {', '.join(get_args(HoldWhen))}, got {self.when!r}")
        if self.order not in get_args(HoldOrder):
            raise ValueError(f"order must be one of {', '.join(get_args(HoldOrder))}, got {self.order!r}")
        for name in ("aging_s", "max_s", "recheck_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0 seconds, got {getattr(self, name)}")
        for name in ("max_requests", "max_tokens", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("shed_from", "preemption"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")


class GatewayQueue:
    """Requests in order of their due times. One that is being asked for keeps its place until it has left."""

    def __init__(self, config: HoldConfig) -> None:
        self._config = config
        self._entries: list[tuple[float, int, LiveRequest]] = []
        self.places: dict[str, tuple[float, int]] = {}
        """Of each that is held: due time, and a number for those of the same. Empty nearly always: a look at it is what
        a request pays for the queue."""
        self._classes: Counter[int] = Counter()
        self._models: Counter[str] = Counter()
        self._joined = 0
        self.tokens = 0
        """Prompt and expected output tokens of all that are held."""
        self.prompt_tokens = 0
        """Of them, those of prompts."""

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, live: LiveRequest) -> bool:
        return live.request_id in self.places

    def holds_model(self, model: str) -> bool:
        """Whether a request for this model is held."""
        return self._models[model] > 0

    def models(self) -> list[str]:
        """Models for which requests are held, sorted."""
        return sorted(self._models)

    def heads(self) -> list[LiveRequest]:
        """The first few of each model, in order: a model whose nodes are full does not keep another waiting."""
        most = self._config.heads
        wanted = {model: min(most, count) for model, count in self._models.items()}
        left = sum(wanted.values())
        heads: list[LiveRequest] = []
        for _, _, live in self._entries:
            if not left:
                break
            if wanted[live.shape.model]:
                wanted[live.shape.model] -= 1
                left -= 1
                heads.append(live)
        return heads

    def oldest_arrival_s(self) -> float | None:
        """When the longest waiting of all came; None when there is none."""
        return min((live.arrival_s for _, _, live in self._entries), default=None)

    def ahead_of(self, live: LiveRequest) -> int:
        """How many are held whose turn would come before that of a request that joined now."""
        return bisect.bisect_left(self._entries, (due_s(live, self._config), self._joined + 1))

    def join(self, live: LiveRequest) -> None:
        self._joined += 1
        key = (due_s(live, self._config), self._joined)
        self.places[live.request_id] = key
        bisect.insort(self._entries, (*key, live))
        self._classes[queue_class(live)] += 1
        self._models[live.shape.model] += 1
        self.tokens += tokens_of(live.shape)
        self.prompt_tokens += live.shape.prompt_tokens

    def leave(self, live: LiveRequest) -> None:
        """KeyError if it is not there."""
        key = self.places.pop(live.request_id)
        del self._entries[bisect.bisect_left(self._entries, key)]
        _take_one(self._classes, queue_class(live))
        _take_one(self._models, live.shape.model)
        self.tokens -= tokens_of(live.shape)
        self.prompt_tokens -= live.shape.prompt_tokens

    def fill_with(self, shape: RequestShape) -> float:
        """Share of the tighter bound that is taken once this request has joined; above 1: there is no room."""
        config = self._config
        return max((len(self._entries) + 1) / config.max_requests, (self.tokens + tokens_of(shape)) / config.max_tokens)

    def turns_away(self, live: LiveRequest, rng: random.Random) -> bool:
        """Whether a newcomer is shed to keep room for its betters.

        The chance grows linearly from 0 at `shed_from` of the bound to 1 at the bound for the lowest class; the larger
        the share of those held that are of a lower class than the newcomer, the later it begins.
        """
        fill = self.fill_with(live.shape)
        if fill <= self._config.shed_from:
            return False
        own = queue_class(live)
        lower = sum(count for held, count in self._classes.items() if held > own) / max(len(self._entries), 1)
        begin = 1.0 - (1.0 - self._config.shed_from) * (1.0 - lower)
        return fill > begin and rng.random() * (1.0 - begin) < fill - begin

    def victim_for(self, live: LiveRequest) -> LiveRequest | None:
        """The request that makes room for this one: the last of the lowest class held, if that is below its own."""
        lowest = max(self._classes, default=None)
        if lowest is None or lowest <= queue_class(live):
            return None
        return next(other for _, _, other in reversed(self._entries) if queue_class(other) == lowest)


def _take_one(counts: Counter[Any], key: object) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]


def queue_class(live: LiveRequest) -> int:
    """The request's class; smaller goes first. One that will miss its service level anyway makes way for all others."""
    return CLASSES if live.infeasible else class_of(live.shape.priority)


def tokens_of(shape: RequestShape) -> int:
    """Prompt and expected output tokens."""
    return shape.prompt_tokens + round(shape.expected_tokens)


def due_s(live: LiveRequest, config: HoldConfig) -> float:
    """Where a request stands in the queue, as a time; see the module's formula."""
    shape = live.shape
    match config.order:
        case "fcfs":
            share = 0.0
        case "shortest_forecast":
            tokens = tokens_of(shape)
            share = tokens / (tokens + TYPICAL_TOKENS)
        case "deadline":
            times = [t for t in (shape.slo.ttft_s, shape.slo.deadline_s) if t is not None]
            share = min(1.0, min(times, default=config.aging_s) / config.aging_s)
    return live.arrival_s + config.aging_s * (queue_class(live) + share)
