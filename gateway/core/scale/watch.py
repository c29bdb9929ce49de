"""What a scaler hears of requests, made of what a router hears and wants: the same in both worlds. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from gateway.core import events as ev
from gateway.core.outcomes import COMPLETE
from gateway.core.scale.events import RequestCame, RequestDone, RequestPlaced

RequestEvent = RequestCame | RequestPlaced | RequestDone


class _Followed(msgspec.Struct, kw_only=True):
    """A request between its arrival and its end."""

    prompt_tokens: int
    model: str
    arrival_s: float
    node_id: str = ""
    waited_s: float = 0.0
    first_s: float | None = None
    output_tokens: int = 0
    cached_tokens: int = 0


class RequestWatch:
    """Follows every request of one router until its end, whatever that is: of one that was given up nothing is left."""

    def __init__(self, tell: Callable[[RequestEvent, float], object]) -> None:
        """`tell` gets each event of a request and when it was."""
        self._tell = tell
        self._followed: dict[str, _Followed] = {}
        self._readers: dict[type[ev.Event], Callable[[Any, float], None]] = {
            ev.Arrived: self._arrived,
            ev.TokensSeen: self._tokens_seen,
            ev.StreamEnded: self._ended,
        }

    def __len__(self) -> int:
        """Requests that are followed."""
        return len(self._followed)

    def saw(self, event: ev.AnyEvent, actions: Sequence[ev.AnyAction], now_s: float) -> None:
        """A router has heard the event and wants the actions done."""
        reader = self._readers.get(type(event))
        if reader is not None:
            reader(event, now_s)
        for action in actions:
            if type(action) is ev.Dispatch:
                self._dispatched(action, now_s)
            elif type(action) is ev.Finish:
                self._finished(action, now_s)

    def _arrived(self, event: ev.Arrived, now_s: float) -> None:
        shape = event.request
        if shape.place_only:
            return
        self._followed[shape.request_id] = _Followed(
            prompt_tokens=shape.prompt_tokens, model=shape.model, arrival_s=now_s
        )
        came = RequestCame(prompt_tokens=shape.prompt_tokens, expected_tokens=shape.expected_tokens, model=shape.model)
        self._tell(came, now_s)

    def _dispatched(self, action: ev.Dispatch, now_s: float) -> None:
        request = self._followed.get(action.request_id)
        if request is None:
            return
        request.node_id, request.waited_s = action.node_id, now_s - request.arrival_s
        forecast = action.decision.scores[0].forecast if action.decision.scores else None
        placed = RequestPlaced(
            node_id=action.node_id,
            waited_s=request.waited_s,
            ttft_s=None if forecast is None else forecast.ttft_s.p50,
            e2e_s=None if forecast is None else forecast.e2e_s.p50,
            tpot_s=None if forecast is None else forecast.tpot_s.p50,
            model=request.model,
        )
        self._tell(placed, now_s)

    def _tokens_seen(self, event: ev.TokensSeen, now_s: float) -> None:
        request = self._followed.get(event.request_id)
        if request is not None:
            if request.first_s is None and not event.whole:
                request.first_s = now_s
            request.output_tokens += event.tokens

    def _ended(self, event: ev.StreamEnded, now_s: float) -> None:
        request = self._followed.get(event.request_id)
        if request is not None and event.found_tokens is not None:
            request.cached_tokens = event.found_tokens

    def _finished(self, action: ev.Finish, now_s: float) -> None:
        request = self._followed.pop(action.request_id, None)
        if request is None or action.outcome not in COMPLETE or not request.node_id:
            return
        done = RequestDone(
            node_id=request.node_id,
            prompt_tokens=request.prompt_tokens,
            cached_tokens=request.cached_tokens,
            output_tokens=request.output_tokens,
            waited_s=request.waited_s,
            ttft_s=None if request.first_s is None else request.first_s - request.arrival_s,
            e2e_s=now_s - request.arrival_s,
            model=request.model,
        )
        self._tell(done, now_s)
