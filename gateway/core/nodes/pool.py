"""The nodes that there are, by model and by health. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gateway.core.events import ExpectedNode, Lane, RequestShape
from gateway.core.nodes.health import Standing
from gateway.core.nodes.node import Node
from gateway.core.nodes.view import NodeView
from simcore.types import EngineConfig, NodePace

MOST_APART = 300.0
"""Times that a step of one sequence may take longer or shorter than that of the node in the middle: what lies between
a small model on the fastest device and a large one on a processor."""
LEAST_TO_JUDGE = 3
"""Of fewer nodes nobody can say which is odd."""


class ModelNodes(NamedTuple):
    """The nodes of one model. Rebuilt when membership changes, so that a request costs no search."""

    members: Sequence[Node]
    """All that are configured, down ones too, in the order in which they joined."""
    ready: Sequence[Node]
    """Members that may get new requests."""
    longest_tokens: int
    """Prompt and output limit of the most generous member."""
    shortest_ready_tokens: int
    """Prompt and output limit of the ready node that offers least."""
    some_pool: bool = False
    """Whether ready ones are among them whose engines give no text."""

    def states(self) -> str:
        """Why nobody is ready, for people."""
        return ", ".join(f"{node.node_id} is {node.state()}" for node in self.members)


class NodePool:
    """All nodes by name, in the order in which they joined."""

    def __init__(self, *, stale_after_s: float, weights: Mapping[str, float] | None = None) -> None:
        """A busy node silent for longer than `stale_after_s` is unknown. `weights`: by node or by profile."""
        self.nodes: dict[str, Node] = {}
        self._models: dict[str, ModelNodes] = {}
        self._all: ModelNodes | None = None
        """All nodes, whatever they serve; None while there are none."""
        self._only: ModelNodes | None = None
        """Those of the only model; None while there is none, or several."""
        self._ailing: set[str] = set()
        """Nodes whose standing must be asked for."""
        self._expected: tuple[ExpectedNode, ...] = ()
        self._expected_s = 0.0
        """When they were told of."""
        self.has_adapters = False
        """Whether a node may have told that it uses one: most fleets have none, and need not look."""
        self._stale_after_s = stale_after_s
        self._weights = weights or {}

    def join(self, node_id: str, config: EngineConfig, profile: str, now_s: float) -> None:
        node = self.nodes.get(node_id)
        if node is None:
            node = self.nodes[node_id] = Node(node_id, config, profile, now_s)
        else:
            node.rejoin(config, profile, now_s)
        self._believe_paces()
        node.weight = self._weights.get(node_id, self._weights.get(profile, 1.0))
        others = [other for name in config.names if (known := self._models.get(name)) for other in known.ready]
        if any(other is not node and other.delivered for other in others):
            node.health.start_slowly()
        self._regroup()
        self.health_changed(node)

    def rename(self, node_id: str, names: Sequence[str]) -> set[str]:
        """The node serves these names, its own first; the names that nobody serves any more."""
        before = self._models.keys()
        self.nodes[node_id].rename(names)
        self._regroup()
        return before - self._models.keys()

    def use_adapters(self, node: Node, names: Sequence[str] | None) -> None:
        """Requests at the node use these LoRA adapters; None: it does not tell."""
        node.adapters = None if names is None else frozenset(names)
        self.has_adapters = any(other.adapters for other in self.nodes.values())

    def set_pace(self, node: Node, pace: NodePace) -> None:
        """The node tells how fast it works."""
        node.told_pace = pace
        self._believe_paces()

    def expect(self, nodes: Sequence[ExpectedNode], now_s: float) -> None:
        """These nodes can be had, and no others, beside those that there are."""
        self._expected, self._expected_s = tuple(nodes), now_s

    def expected(self, model: str) -> ExpectedNode | None:
        """The first node that can be had for a model (empty: for any); None if there is none."""
        serving = [node for node in self._expected if not model or model in node.config.names]
        return min(serving, key=lambda node: node.ready_in_s, default=None)

    def expected_in_s(self, model: str, now_s: float) -> float:
        """How long until `expected` is there; 0 when it is late, or there is none."""
        node = self.expected(model)
        return 0.0 if node is None else max(0.0, self._expected_s + node.ready_in_s - now_s)

    def health_changed(self, node: Node) -> None:
        """To be called after anything that may have changed a node's `health`."""
        if node.health.is_healthy:
            self._ailing.discard(node.node_id)
        else:
            self._ailing.add(node.node_id)

    def best_standing(self, nodes: Sequence[Node], now_s: float) -> Sequence[Node]:
        """Those of `nodes` whose health is best: all but those ejected or backing off, unless there are no others."""
        if not self._ailing:
            return nodes
        standings = [
            node.health.standing(len(node.in_flight), now_s) if node.node_id in self._ailing else Standing.HEALTHY
            for node in nodes
        ]
        best = min(standings, default=Standing.HEALTHY)
        return [node for node, standing in zip(nodes, standings, strict=True) if standing is best]

    def views(self, nodes: Sequence[Node], shape: RequestShape, now_s: float) -> list[NodeView]:
        """What a policy sees of `nodes` when it prices this request; of a prompt whose blocks have names also how much
        of it each has cached."""
        stale_after_s, names, prompt_tokens = self._stale_after_s, shape.block_hashes, shape.prompt_tokens
        if not names:
            return [node.view(now_s, stale_after_s) for node in nodes]
        return [
            node.view(now_s, stale_after_s, cached_tokens=node.cached_tokens(names, prompt_tokens)) for node in nodes
        ]

    def lose(self, node_id: str, detail: str) -> None:
        self.nodes[node_id].lose(detail)
        self._regroup()

    def remove(self, node_id: str) -> None:
        del self.nodes[node_id]
        self._ailing.discard(node_id)
        self._regroup()

    def drain(self, node_id: str, draining: bool) -> None:
        self.nodes[node_id].drained = draining
        self._regroup()

    def retire(self, node_id: str, retiring: bool) -> None:
        self.nodes[node_id].retiring = retiring
        self._regroup()

    def models(self) -> list[str]:
        """Names of all models served, sorted."""
        return sorted(self._models)

    def serving(self, model: str, lane: Lane = "tokens") -> ModelNodes | str:
        """The nodes of a model (empty: of the only one there is; of a call that is handed on: all), or why there are
        none, for people."""
        nodes = self._models.get(model) if model else None
        if nodes is not None:
            return nodes
        if not model and lane != "tokens" and self._all is not None:
            return self._all
        if not model and self._only is not None:
            return self._only
        if not self._models:
            return "no node has joined yet; start one or check the gateway's `nodes`"
        known = ", ".join(repr(name) for name in self.models())
        if model:
            return f"no node serves model {model[:100]!r}; served are {known}"
        return f"several models are served; name one of {known}"

    def _believe_paces(self) -> None:
        """Gives each node the pace to reckon with: its own, or, of one that has not told or tells what cannot be, that
        of the node in the middle."""
        told = sorted(
            ((node.told_pace.step_s[0], node.told_pace) for node in self.nodes.values() if node.told_pace is not None),
            key=lambda pace: pace[0],
        )
        if not told:
            return
        middle_s, middle = told[len(told) // 2]
        for node in self.nodes.values():
            own = node.told_pace
            node.pace_doubt = ""
            if own is not None and len(told) >= LEAST_TO_JUDGE:
                apart = own.step_s[0] / middle_s
                if not 1.0 / MOST_APART <= apart <= MOST_APART:
                    own = None
                    node.pace_doubt = f"it tells step times {apart:.2g} times those of the node in the middle"
            node.reckon_with(own or middle)

    def _regroup(self) -> None:
        groups: dict[str, list[Node]] = {}
        for node in self.nodes.values():
            for name in dict.fromkeys(node.config.names):
                groups.setdefault(name, []).append(node)
        self._models = {model: _group(members) for model, members in groups.items()}
        self._all = _group(list(self.nodes.values())) if self.nodes else None
        own = {node.config.model for node in self.nodes.values()}
        self._only = self._models[own.pop()] if len(own) == 1 else None


def _group(members: Sequence[Node]) -> ModelNodes:
    ready = [node for node in members if node.up and not node.draining]
    return ModelNodes(
        members=members,
        ready=ready,
        longest_tokens=max(node.longest_tokens for node in members),
        shortest_ready_tokens=min((node.longest_tokens for node in ready), default=0),
        some_pool=any(node.config.pools for node in ready),
    )
