"""What the engines did to each request: when work on it began, and what preemptions cost it. Pure."""

from __future__ import annotations

from collections import Counter, deque

from simcore.node import SimNode
from simcore.tracing import EVERYBODY, NOBODY


class RequestAccount:
    """Of all nodes together, by request id. Times in seconds of the run."""

    def __init__(self) -> None:
        self.preemptions: Counter[str] = Counter()
        self.started_s: dict[str, float] = {}
        """Begin of the first step that worked on it."""
        self.lost_s: dict[str, float] = {}
        """From the end of each step that preempted it to the end of the one that brought its next token."""


class EngineWatch:
    """Keeps the account for one engine: run it with `watched`, and call `after` when it has run."""

    def __init__(self, engine: SimNode, account: RequestAccount) -> None:
        self._engine = engine
        self._account = account
        self._fresh: deque[str] = deque()
        self._evicted: dict[str, tuple[float, int]] = {}
        self._in_order = engine.config.scheduling_policy == "fcfs"

    @property
    def is_waiting(self) -> bool:
        """For somebody's start or return: else `after` need not be called."""
        return bool(self._fresh or self._evicted)

    @property
    def watched(self) -> int:
        """The slot of the one whose start is waited for (`TracingNode.run`)."""
        if self._evicted:
            return EVERYBODY
        if not self._fresh:
            return NOBODY
        known = self._engine.requests.get(self._fresh[0])
        return known.slot if known is not None and self._in_order else EVERYBODY

    def came(self, request_id: str) -> None:
        self._fresh.append(request_id)

    def preempted(self, request_id: str, at_s: float) -> None:
        self._account.preemptions[request_id] += 1
        tokens = self._engine.output_tokens(request_id)
        if tokens is None:
            return
        self._returned(request_id, at_s)
        self._evicted[request_id] = (at_s, tokens)

    def left(self, request_id: str, at_s: float) -> None:
        """It has ended, here or at all."""
        self._returned(request_id, at_s)

    def after(self, began_s: float) -> None:
        """The engine has run the step, or the steps, from `began_s` to its `free_at_s`."""
        if self._fresh:
            self._note_starts(began_s)
        if self._evicted:
            engine = self._engine
            for request_id, (_, before) in list(self._evicted.items()):
                tokens = engine.output_tokens(request_id)
                if tokens is None or tokens > before:
                    self._returned(request_id, engine.free_at_s)

    def _note_starts(self, began_s: float) -> None:
        engine, fresh, started_s = self._engine, self._fresh, self._account.started_s
        waiting: list[str] = []
        while fresh:
            request_id = fresh[0]
            if engine.computed_tokens(request_id) == 0:
                if self._in_order:
                    break
                waiting.append(request_id)
            else:
                started_s.setdefault(request_id, began_s)
            fresh.popleft()
        fresh.extend(waiting)

    def _returned(self, request_id: str, at_s: float) -> None:
        evicted = self._evicted.pop(request_id, None)
        if evicted is not None:
            lost_s = self._account.lost_s
            lost_s[request_id] = lost_s.get(request_id, 0.0) + at_s - evicted[0]
