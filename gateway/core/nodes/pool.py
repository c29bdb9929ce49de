"""The nodes that there are, by model and by health. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gateway.core.events import ExpectedNode, Lane, RequestShape
from gateway.core.nodes.health import Standing
from gateway.core.nodes.node import Node
from gateway.core.nodes.view import Moment, NodeView
from simcore.types import EngineConfig, NodePace

MOST_APART = 300.0
"""Times that a step of one sequence may take longer or shorter than that of the node in the middle: what lies between
a small model on the fastest device and a large one on a processor."""
LEAST_TO_JUDGE = 3
"""Of fewer nodes nobody can say which is odd."""


class ModelNodes(NamedTuple):
    """The nodes of one model. Made anew after membership has changed, so that a request costs no search."""

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


class _Groups(NamedTuple):
    """The nodes by what they serve."""

    models: dict[str, ModelNodes]
    all: ModelNodes | None
    """All nodes, whatever they serve; None while there are none."""
    only: ModelNodes | None
    """Those of the only model; None while there is none, or several."""


class NodePool:
    """All nodes by name, in the order in which they joined."""

    def __init__(self, *, stale_after_s: float, weights: Mapping[str, float] | None = None) -> None:
        """A busy node silent for longer than `stale_after_s` is unknown. `weights`: by node or by profile."""
        self.nodes: dict[str, Node] = {}
        self._kept_groups: _Groups | None = None
        """None: something has changed since they were last asked for."""
        self._told: list[tuple[float, int, Node]] = []
        """Nodes that have told their pace: seconds of a step, place in the order of joining, node; in order."""
        self._untold: dict[str, Node] = {}
        """Nodes that have not."""
        self._doubted: list[Node] = []
        """Nodes whose pace is not believed."""
        self._joined = 0
        self._ailing: set[str] = set()
        """Nodes whose standing must be asked for."""
        self._expected: tuple[ExpectedNode, ...] = ()
        self._expected_s = 0.0
        """When they were told of."""
        self.has_adapters = False
        """Whether a node may have told that it uses one: most fleets have none, and need not look."""
        self._stale_after_s = stale_after_s
        self._moment = Moment()
        """Of the views that are kept."""
        self._weights = weights or {}

    def join(self, node_id: str, config: EngineConfig, profile: str, now_s: float) -> None:
        node = self.nodes.get(node_id)
        if node is None:
            self._joined += 1
            node = self.nodes[node_id] = Node(node_id, config, profile, now_s, number=self._joined)
        else:
            self._untell(node)
            node.rejoin(config, profile, now_s)
        self._untold[node_id] = node
        self._believe_pace(node)
        node.weight = self._weights.get(node_id, self._weights.get(profile, 1.0))
        if any(
            other.delivered and other is not node and other.is_ready and not other.names.isdisjoint(node.names)
            for other in self.nodes.values()
        ):
            node.health.start_slowly()
        self._kept_groups = None
        self.health_changed(node)

    def rename(self, node_id: str, names: Sequence[str]) -> set[str]:
        """The node serves these names, its own first; the names that nobody serves any more."""
        before = self._groups.models.keys()
        self.nodes[node_id].rename(names)
        self._kept_groups = None
        return before - self._groups.models.keys()

    def use_adapters(self, node: Node, names: Sequence[str] | None) -> None:
        """Requests at the node use these LoRA adapters; None: it does not tell."""
        node.adapters = None if names is None else frozenset(names)
        self.has_adapters = any(other.adapters for other in self.nodes.values())

    def set_pace(self, node: Node, pace: NodePace) -> None:
        """The node tells how fast it works."""
        self._untell(node)
        node.told_pace = pace
        insort(self._told, (pace.step_s[0], node.number, node))
        del self._untold[node.node_id]
        self._believe_pace(node)

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
        stale_after_s, moment = self._stale_after_s, self._moment
        moment.now_s = now_s
        if not (names := shape.block_hashes):
            return [
                kept
                if now_s < node.kept_until_s and (kept := node.kept_view) is not None
                else node.view(now_s, stale_after_s, moment=moment)
                for node in nodes
            ]
        cached = [node.cached_tokens(names, shape.prompt_tokens) for node in nodes]
        return [
            kept
            if not tokens and now_s < node.kept_until_s and (kept := node.kept_view) is not None
            else node.view(now_s, stale_after_s, cached_tokens=tokens, moment=moment)
            for node, tokens in zip(nodes, cached, strict=True)
        ]

    def lose(self, node_id: str, detail: str) -> None:
        node = self.nodes[node_id]
        self._untell(node)
        node.lose(detail)
        self._kept_groups = None

    def remove(self, node_id: str) -> None:
        self.lose(node_id, "removed")
        del self.nodes[node_id], self._untold[node_id]
        self._ailing.discard(node_id)
        self._kept_groups = None

    def drain(self, node_id: str, draining: bool) -> None:
        self.nodes[node_id].drained = draining
        self._kept_groups = None

    def retire(self, node_id: str, retiring: bool) -> None:
        self.nodes[node_id].retiring = retiring
        self._kept_groups = None

    def models(self) -> list[str]:
        """Names of all models served, sorted."""
        return sorted(self._groups.models)

    def serving(self, model: str, lane: Lane = "tokens") -> ModelNodes | str:
        """The nodes of a model (empty: of the only one there is; of a call that is handed on: all), or why there are
        none, for people."""
        groups = self._kept_groups or self._groups
        nodes = groups.models.get(model) if model else None
        if nodes is not None:
            return nodes
        if not model and lane != "tokens" and groups.all is not None:
            return groups.all
        if not model and groups.only is not None:
            return groups.only
        if not groups.models:
            return "no node has joined yet; start one or check the gateway's `nodes`"
        known = ", ".join(repr(name) for name in self.models())
        if model:
            return f"no node serves model {model[:100]!r}; served are {known}"
        return f"several models are served; name one of {known}"

    def _untell(self, node: Node) -> None:
        """What the node has told of its pace, if anything, counts no more."""
        if node.told_pace is not None:
            del self._told[bisect_left(self._told, (node.told_pace.step_s[0], node.number), key=lambda told: told[:2])]
        self._untold[node.node_id] = node

    def _believe_pace(self, node: Node) -> None:
        """Gives the node, which has told its pace or has not yet, the one to reckon with: its own, or, of one that has
        not told or tells what cannot be, that of the node in the middle. The middle may be another now: then those who
        depend on it get that."""
        told = self._told
        if not told:
            return
        middle_s, _, middle = told[len(told) // 2]
        odd: list[Node] = []
        if len(told) >= LEAST_TO_JUDGE:
            first = bisect_left(told, 1.0 / MOST_APART, key=lambda told: told[0] / middle_s)
            last = bisect_right(told, MOST_APART, key=lambda told: told[0] / middle_s)
            odd = [node for _, _, node in (*told[:first], *told[last:])]
        for other in (*self._doubted, node):
            other.pace_doubt = ""
            if other.told_pace is not None:
                other.reckon_with(other.told_pace)
        assert middle.told_pace is not None, "who is in the middle has told"
        for other in (*odd, *self._untold.values()):
            other.reckon_with(middle.told_pace)
        for other in odd:
            assert other.told_pace is not None, "who is judged has told"
            apart = other.told_pace.step_s[0] / middle_s
            other.pace_doubt = f"it tells step times {apart:.2g} times those of the node in the middle"
        self._doubted = odd

    @property
    def _groups(self) -> _Groups:
        """Made when somebody asks for the first time after a change: nodes come many at once."""
        groups = self._kept_groups
        if groups is None:
            nodes = list(self.nodes.values())
            members: dict[str, list[Node]] = {}
            for node in nodes:
                for name in dict.fromkeys(node.config.names):
                    members.setdefault(name, []).append(node)
            models = {model: _group(found) for model, found in members.items()}
            own = {node.config.model for node in nodes}
            groups = self._kept_groups = _Groups(
                models=models,
                all=_group(nodes) if nodes else None,
                only=models[own.pop()] if len(own) == 1 else None,
            )
        return groups


def _group(members: Sequence[Node]) -> ModelNodes:
    ready = [node for node in members if node.is_ready]
    return ModelNodes(
        members=members,
        ready=ready,
        longest_tokens=max(node.longest_tokens for node in members),
        shortest_ready_tokens=min((node.longest_tokens for node in ready), default=0),
        some_pool=any(node.config.pools for node in ready),
    )
