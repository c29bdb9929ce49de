"""What a fault is: a world to run in, what happens there, and which ends its requests may have. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import msgspec

from bench.measure.scaling import ScalingResult
from bench.simcluster import Delays, NodeSpec
from bench.simcluster.scaling import ConnectorFails, ScaledFleet
from bench.simcluster.world import Fault
from bench.workload.item import WorkloadItem
from gateway.core import events as ev
from gateway.core.moves.config import MovesConfig
from simcore.cost.step_time import StepTimeModel
from simcore.types import EngineConfig, Outcome

SUSPECT_S = 1.0
"""What the gateway's link makes of silence (`gateway.nodes.link`): suspicion, and the end of the session."""
CUT_OFF_S = 5.0
MOST_PROMPT_TOKENS, MOST_OUTPUT_TOKENS = 1500, 600
"""Of a request, unless a scenario says otherwise."""

STEP_TIME = StepTimeModel(
    name="chaos/small",
    constant_s=0.005,
    prefill_work_s_per_token2=1e-8,
    decode_kv_s_per_token=4e-7,
    per_seq_s=1e-5,
    dense_knots_tokens=(64, 128, 512, 1024),
    dense_knots_s=(0.018, 0.023, 0.09, 0.18),
)
"""Of the order of a 7B model on an A30."""

WHOLE = frozenset({Outcome.STOP, Outcome.LENGTH})
World = list[tuple[float, ev.AnyEvent | Fault | ConnectorFails]]


class Scenario(msgspec.Struct, kw_only=True):
    """One run. Times in seconds of the simulation."""

    nodes: list[NodeSpec]
    items: list[WorkloadItem]
    world: World = []
    scaled: ScaledFleet | None = None
    """Nodes beside `nodes` that a scaler starts and stops."""
    dress: Mapping[str, Mapping[str, object]] = {}
    """Per request id, fields of its `RequestShape` that are not as usual."""
    may_end: frozenset[Outcome] = WHOLE
    """How requests may end to which nothing was done on purpose."""
    must_end: Mapping[str, frozenset[Outcome]] = {}
    """Per request id, where something was."""
    unheard: Mapping[str, tuple[tuple[float, float], ...]] = {}
    """Per node, from when to when it could not be reached though nobody was told."""
    policy: str = ""
    """Empty: any."""
    moves: MovesConfig = MovesConfig()
    delays: Delays | None = None
    check: Callable[[ChaosRun], str] | None = None
    """What must hold besides; the complaint, or empty."""


class ChaosRun(msgspec.Struct, kw_only=True):
    """What came of a scenario, as far as checks look at it."""

    nodes: Mapping[str, int]
    """Answers completed per node."""
    answers: Sequence[tuple[float, str]]
    """When the request of each of them arrived, and at which node it ended."""
    alarms: Mapping[str, str]
    """The last alarm of each node."""
    seen_alarms: Mapping[str, tuple[tuple[float, str], ...]]
    """When each node's alarm changed, and to what."""
    scaling: ScalingResult | None = None
    moves: int = 0


class Dice:
    """What scenarios draw from, all from one seed. With `nodes` the fleet is not drawn: it is these."""

    def __init__(self, seed: int, nodes: Sequence[NodeSpec] = ()) -> None:
        self.rng = random.Random(seed)
        self._nodes = nodes

    def fleet(self, least: int = 2) -> list[NodeSpec]:
        """At least so many nodes. Raises ValueError: those that were given are too few, or too small for requests."""
        if not self._nodes:
            return self.equal(least)
        if len(self._nodes) < least:
            raise ValueError(f"this fault needs {least} nodes, the fleet has {len(self._nodes)}")
        return list(self._nodes)

    def equal(self, least: int, most: int = 5, **config: object) -> list[NodeSpec]:
        """Equal nodes, least to most of them, whatever fleet was given."""
        engine = EngineConfig(
            model="m",
            max_num_seqs=self.rng.choice((4, 16, 48)),
            max_num_batched_tokens=512,
            num_blocks=self.rng.choice((200, 1052)),
            enable_prefix_caching=False,
        )
        engine = msgspec.structs.replace(engine, **config)
        return [
            NodeSpec(node_id=f"n{i}", config=engine, step_time=STEP_TIME) for i in range(self.rng.randint(least, most))
        ]

    def requests(
        self,
        count: int,
        rate_per_s: float,
        *,
        prompt_tokens: tuple[int, int] = (200, MOST_PROMPT_TOKENS),
        output_tokens: tuple[int, int] = (120, MOST_OUTPUT_TOKENS),
    ) -> list[WorkloadItem]:
        """Poisson arrivals. Lengths are exponential: mean and most, in tokens."""
        items, at_s = [], 0.0
        for i in range(count):
            at_s += self.rng.expovariate(rate_per_s)
            items.append(
                WorkloadItem(
                    request_id=f"r{i}",
                    arrival_s=at_s,
                    prompt_tokens=min(prompt_tokens[1], 1 + int(self.rng.expovariate(1 / prompt_tokens[0]))),
                    output_tokens=min(output_tokens[1], 1 + int(self.rng.expovariate(1 / output_tokens[0]))),
                )
            )
        return items

    def burst(self, count: int, at_s: float) -> list[WorkloadItem]:
        """So many short requests at one moment."""
        return [
            WorkloadItem(request_id=f"b{i}", arrival_s=at_s, prompt_tokens=200, output_tokens=self.rng.randint(20, 60))
            for i in range(count)
        ]

    def moment(self, items: Sequence[WorkloadItem]) -> float:
        """Any time while requests come."""
        return self.rng.uniform(items[0].arrival_s, items[-1].arrival_s)


def alike(nodes: Sequence[NodeSpec]) -> bool:
    """Whether each of them must get its share: of unequal ones the slow may rightly get nothing."""
    return all((node.config, node.step_time) == (nodes[0].config, nodes[0].step_time) for node in nodes)


def joined(spec: NodeSpec) -> ev.NodeJoined:
    return ev.NodeJoined(node_id=spec.node_id, config=spec.config, profile=spec.step_time.name)
