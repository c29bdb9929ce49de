"""Accounts that several policies keep of where their requests are. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from gateway.core.decision.policies.base import Served
from gateway.core.events import RequestShape
from gateway.core.nodes.view import NodeView


class PrefillAccount:
    """Prompt tokens per node that were sent there and of which no first token has come: those that were not cached, or,
    with `cached`, those that were."""

    def __init__(self, *, cached: bool = False) -> None:
        self._cached = cached
        self._requests: dict[tuple[str, str], int] = {}
        self.nodes: Counter[str] = Counter()
        """Those that have any."""

    def add(self, request: RequestShape, node: NodeView) -> None:
        """The request goes to the node."""
        self.remove(request, node.node_id)
        tokens = uncached_tokens(request, node.cached_tokens)
        if self._cached:
            tokens = request.prompt_tokens - tokens
        if tokens:
            self._requests[node.node_id, request.request_id] = tokens
            self.nodes[node.node_id] += tokens

    def remove(self, request: RequestShape, node_id: str) -> None:
        """Its prompt is computed, or it has left; nothing changes where it was not counted."""
        tokens = self._requests.pop((node_id, request.request_id), None)
        if tokens is None:
            return
        self.nodes[node_id] -= tokens
        if not self.nodes[node_id]:
            del self.nodes[node_id]

    def tokens(self, node_id: str) -> int:
        return self.nodes[node_id]


class KeepsPrefillAccount:
    """A policy that goes by an account of prompts under way (`PlacementWatcher`): `under_way`."""

    def __init__(self, *, cached: bool = False) -> None:
        self.under_way = PrefillAccount(cached=cached)

    def placed(self, request: RequestShape, node: NodeView) -> None:
        self.under_way.add(request, node)

    def began(self, request: RequestShape, node_id: str) -> None:
        self.under_way.remove(request, node_id)

    def left(self, request: RequestShape, node_id: str, served: Served | None) -> None:
        self.under_way.remove(request, node_id)


def uncached_tokens(request: RequestShape, cached_tokens: int) -> int:
    """Prompt tokens that a node with so many cached ones computes: at least the last."""
    return request.prompt_tokens - max(0, min(cached_tokens, request.prompt_tokens - 1))


def cached_share(request: RequestShape, cached_tokens: int, block_size_tokens: int) -> float:
    """Share of the prompt's full KV blocks that is cached, 0 to 1."""
    full_tokens = request.prompt_tokens // block_size_tokens * block_size_tokens
    return min(1.0, cached_tokens / full_tokens) if full_tokens else 0.0


def places(keys: Sequence[tuple[float, ...]]) -> list[float]:
    """Place of each key in their order, 0 first, equal ones sharing a place: a cost for rules that are an order."""
    place = {key: float(rank) for rank, key in enumerate(sorted(set(keys)))}
    return [place[key] for key in keys]
