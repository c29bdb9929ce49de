"""Which plain server gets the next request: round robin, or PlanetServe's cache-aware balance. Pure.

PlanetServe (NSDI '26), `eval/workload/workload_measurer_online.py --dispatch lb`: each server remembers its last ten
prompts as chunks of 10 tokens; match = leading chunks that it remembers / all chunks; balance factor = recent mean
latency in ms x ceil(queued tokens / 2048). Without a match anywhere the smallest balance factor wins; else, among the
matching servers up to the 80th percentile of their factors, the longest match.

Two things differ from the original on purpose. There every dispatch drained 2048 tokens from every server, so the queue
drifted from the truth; here a request leaves it when it ends. And latencies begin equal instead of at random.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Literal, Protocol, get_args

import numpy as np

Dispatch = Literal["rr", "lb"]
DISPATCHES: tuple[Dispatch, ...] = get_args(Dispatch)

CHUNK_TOKENS = 10
REMEMBERED_PROMPTS = 10
QUEUE_UNIT_TOKENS = 2048
FIRST_LATENCY_MS = 71.0
OLD_SHARE = 0.875
"""Weight of the past in the moving average of latencies."""
HIT_QUANTILE = 0.80

Token = int | str
"""Token ids, or words where a prompt is text that nobody has tokenised."""


class Balance(Protocol):
    """Chooses servers by index and hears of ends."""

    def choose(self, prompt: Sequence[Token]) -> int:
        """The server for this prompt, which counts as sent there."""
        ...

    def ended(self, server: int, prompt: Sequence[Token], latency_s: float) -> None:
        """A request to that server is over after `latency_s`."""
        ...


def make_balance(name: Dispatch, servers: int) -> Balance:
    """Raises ValueError without a server."""
    if servers < 1:
        raise ValueError("there must be at least one server")
    return ServerRoundRobin(servers) if name == "rr" else CacheAware(servers)


class ServerRoundRobin:
    """The index of the request modulo the number of servers."""

    def __init__(self, servers: int) -> None:
        self._servers = servers
        self._next = 0

    def choose(self, prompt: Sequence[Token]) -> int:
        chosen = self._next
        self._next = (chosen + 1) % self._servers
        return chosen

    def ended(self, server: int, prompt: Sequence[Token], latency_s: float) -> None:
        pass


class CacheAware:
    """PlanetServe's `lb`."""

    def __init__(self, servers: int) -> None:
        self._servers = [_Server() for _ in range(servers)]

    def choose(self, prompt: Sequence[Token]) -> int:
        chunks = _chunks(prompt)
        servers = self._servers
        matched = [server.matched(chunks) for server in servers]
        factors = [server.factor() for server in servers]
        by_load = sorted(range(len(servers)), key=lambda i: (factors[i], servers[i].running, i))
        hits = [i for i in by_load if matched[i]]
        chosen = by_load[0]
        if hits:
            limit = float(np.quantile([factors[i] for i in hits], HIT_QUANTILE))
            # Sorted by load, so that the first of the longest matches is the least loaded of them.
            chosen = max((i for i in hits if factors[i] <= limit), key=lambda i: matched[i])
        servers[chosen].take(chunks)
        return chosen

    def ended(self, server: int, prompt: Sequence[Token], latency_s: float) -> None:
        self._servers[server].give_back(len(_chunks(prompt)), latency_s)


class _Server:
    def __init__(self) -> None:
        self.running = 0
        self._queued_tokens = 0
        self._latency_ms = FIRST_LATENCY_MS
        self._prompts: deque[list[int]] = deque(maxlen=REMEMBERED_PROMPTS)

    def factor(self) -> float:
        return self._latency_ms * math.ceil(self._queued_tokens / QUEUE_UNIT_TOKENS)

    def matched(self, chunks: list[int]) -> int:
        """Leading chunks shared with the best of the remembered prompts; chunk hashes are cumulative."""
        best = 0
        for prompt in self._prompts:
            common = 0
            for ours, theirs in zip(chunks, prompt, strict=False):
                if ours != theirs:
                    break
                common += 1
            best = max(best, common)
        return best

    def take(self, chunks: list[int]) -> None:
        self.running += 1
        self._queued_tokens += len(chunks) * CHUNK_TOKENS
        self._prompts.append(chunks)

    def give_back(self, chunks: int, latency_s: float) -> None:
        self.running -= 1
        self._queued_tokens -= chunks * CHUNK_TOKENS
        self._latency_ms = OLD_SHARE * self._latency_ms + (1 - OLD_SHARE) * latency_s * 1e3


def _chunks(prompt: Sequence[Token]) -> list[int]:
    """Hashes of the prompt's full chunks, each over everything up to its end."""
    hashes: list[int] = []
    so_far = 0
    for at in range(0, len(prompt) - CHUNK_TOKENS + 1, CHUNK_TOKENS):
        so_far = hash((so_far, tuple(prompt[at : at + CHUNK_TOKENS])))
        hashes.append(so_far)
    return hashes
