"""The table of nodes, and who of them may take a request. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from gateway.core.events import RequestShape
from gateway.core.nodes.health import Standing
from gateway.core.nodes.node import Node
from simcore.types import EngineConfig, Outcome

NOBODY: Mapping[str, int] = MappingProxyType({})


class Refusal(NamedTuple):
    """Why a request cannot be placed."""

    outcome: Outcome
    detail: str


class Pool(NamedTuple):
    """The nodes of one model. Rebuilt when membership changes, so that a request costs no search."""

    members: Sequence[Node]
    """All that are configured, down ones too, in the order in which they joined."""
    ready: Sequence[Node]
    """Those that may get new requests."""
    longest_tokens: int
    """Prompt and output limit of the most generous member."""
    shortest_ready_tokens: int
    """The same of the meanest ready node."""


class NodeTable:
    """All nodes by name, in the order in which they joined."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self._pools: dict[str, Pool] = {}
        self._unwell: set[str] = set()
        """Nodes whose standing must be asked for."""

    def join(self, node_id: str, config: EngineConfig, profile: str) -> None:
        node = self.nodes.get(node_id)
        if node is None:
            node = self.nodes[node_id] = Node(node_id, config, profile)
        else:
            node.rejoin(config, profile)
        others = self._pools.get(config.model)
        if others is not None and any(other is not node and other.delivered for other in others.ready):
            node.health.start_slowly()
        self._regroup()
        self.health_changed(node)

    def health_changed(self, node: Node) -> None:
        """To be called after anything that may have changed a node's `health`."""
        if node.health.is_plain:
            self._unwell.discard(node.node_id)
        else:
            self._unwell.add(node.node_id)

    def best_standing(self, nodes: Sequence[Node], now_s: float) -> Sequence[Node]:
        """Those of `nodes` whose health is best: all but the shunned and the spared, unless there are no others."""
        if not self._unwell:
            return nodes
        standings = [
            node.health.standing(len(node.held), now_s) if node.node_id in self._unwell else Standing.WELL
            for node in nodes
        ]
        best = min(standings, default=Standing.WELL)
        return [node for node, standing in zip(nodes, standings, strict=True) if standing is best]

    def lose(self, node_id: str, detail: str) -> None:
        self.nodes[node_id].lose(detail)
        self._regroup()

    def remove(self, node_id: str) -> None:
        del self.nodes[node_id]
        self._unwell.discard(node_id)
        self._regroup()

    def drain(self, node_id: str, draining: bool) -> None:
        self.nodes[node_id].draining = draining
        self._regroup()

    def refusal(self, shape: RequestShape) -> Refusal | None:
        """Why nobody will ever, or can now, take this request; None when somebody can."""
        pool = self._pool(shape.model)
        if pool is None:
            return self._unknown_model(shape.model)
        if shape.prompt_tokens < 1:
            return Refusal(Outcome.INVALID, f"prompt_tokens is {shape.prompt_tokens}; send at least one token")
        if shape.max_output_tokens < 1:
            return Refusal(
                Outcome.INVALID, f"max_tokens is {shape.max_output_tokens}; ask for at least one output token"
            )
        if shape.prompt_tokens + 1 > pool.longest_tokens:
            return Refusal(
                Outcome.INVALID,
                f"a prompt of {shape.prompt_tokens} tokens and one of output exceed the limit of "
                f"{pool.longest_tokens} tokens per request; shorten the prompt",
            )
        return None if pool.ready else Refusal(Outcome.NO_NODE, self._why_none(pool))

    def eligible(self, shape: RequestShape, tried: Mapping[str, int] = NOBODY, *, now_s: float) -> Sequence[Node]:
        """Ready nodes that can hold the request, without those in `tried` (node and session in which it failed the
        request). May be empty.

        Nodes where the whole answer fits come before nodes that would cut it short, and among each of the two those in
        good health before the others.
        """
        pool = self._pool(shape.model)
        if pool is None:
            return ()
        nodes = pool.ready
        whole_tokens = shape.prompt_tokens + shape.max_output_tokens
        if whole_tokens > pool.shortest_ready_tokens:
            nodes = [node for node in nodes if node.longest_tokens >= whole_tokens] or [
                node for node in nodes if node.longest_tokens > shape.prompt_tokens
            ]
        if tried:
            nodes = [node for node in nodes if tried.get(node.node_id) != node.session]
        return self.best_standing(nodes, now_s)

    def models(self) -> list[str]:
        """Names of all models served, sorted."""
        return sorted(self._pools)

    def _pool(self, model: str) -> Pool | None:
        if model:
            return self._pools.get(model)
        return next(iter(self._pools.values())) if len(self._pools) == 1 else None

    def _unknown_model(self, model: str) -> Refusal:
        if not self._pools:
            return Refusal(Outcome.NO_NODE, "no node has joined yet; start one or check the gateway's `nodes`")
        known = ", ".join(repr(name) for name in self.models())
        if model:
            return Refusal(Outcome.INVALID, f"no node serves model {model!r}; served are {known}")
        return Refusal(Outcome.INVALID, f"several models are served; name one of {known}")

    def _why_none(self, pool: Pool) -> str:
        states = ", ".join(f"{node.node_id} is {_state_of(node)}" for node in pool.members)
        return f"no node can take new requests now: {states}"

    def _regroup(self) -> None:
        groups: dict[str, list[Node]] = {}
        for node in self.nodes.values():
            groups.setdefault(node.config.model, []).append(node)
        self._pools = {}
        for model, members in groups.items():
            ready = [node for node in members if node.up and not node.draining]
            self._pools[model] = Pool(
                members=members,
                ready=ready,
                longest_tokens=max(node.longest_tokens for node in members),
                shortest_ready_tokens=min((node.longest_tokens for node in ready), default=0),
            )


def _state_of(node: Node) -> str:
    if node.up:
        return "draining"
    return f"down ({node.detail})" if node.detail else "down"
