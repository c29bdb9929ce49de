"""What a simulated node's predictor knows of its engine: all of it, at once. Pure.

Read from the engine itself, which is what a trace without delay would say (`predictor.core.estimator.EngineState`).
"""

from __future__ import annotations

from bench.simcluster.world import NodeFaults
from simcore.cost.step_time import StepTimeModel
from simcore.lookahead import WhatIf
from simcore.tracing import TracingNode
from simcore.types import Candidate, EngineConfig, LengthBelief, NodeLoad


class ObservedEngine:
    """One simulated engine, as its predictor sees it."""

    def __init__(self, engine: TracingNode, faults: NodeFaults, *, scenarios: int) -> None:
        self.beliefs: dict[str, LengthBelief] = {}
        """What is believed of the length of each request there."""
        self._engine = engine
        self._faults = faults
        self._what_if = WhatIf(engine.node_id, engine.config, engine.step_time, scenarios=scenarios)
        self._based_on: tuple[float, int, int] | None = None

    is_known = True
    synchronised = True

    @property
    def node_id(self) -> str:
        return self._engine.node_id

    @property
    def config(self) -> EngineConfig:
        return self._engine.config

    @property
    def step_time(self) -> StepTimeModel:
        return self._engine.step_time

    @property
    def seq(self) -> int:
        return self._engine.seq

    @property
    def last_step_s(self) -> float:
        return self._engine.free_at_s - self._engine.began_s

    def age_s(self, now_s: float) -> float:
        """0 unless the trace stands still."""
        frozen_s = self._faults.frozen_s
        return 0.0 if frozen_s is None else now_s - frozen_s

    def what_if(self, now_s: float, overdue_s: float) -> tuple[WhatIf, float]:
        """What-ifs from the state as it is now; those made last while the trace stands still."""
        engine, based_on = self._engine, (now_s, self._engine.seq, self._engine.interventions)
        if self._based_on is None or (self._faults.frozen_s is None and self._based_on != based_on):
            if not self._what_if.reuse_baseline(engine, now_s):
                self._what_if.rebase_node(engine, self.beliefs, now_s)
            self._based_on = based_on
        return self._what_if, 0.0

    def cached_tokens(self, candidate: Candidate) -> int:
        return self._engine.cached_tokens(candidate.block_hashes, candidate.prompt_tokens)

    def name_here(self, request_id: str) -> str:
        return request_id

    def load(self, now_s: float) -> NodeLoad:
        return self._engine.load(now_s)

    def dispatched(self, candidate: Candidate, now_s: float) -> None:
        self.beliefs[candidate.request_id] = candidate.belief

    def ended(self, request_id: str) -> None:
        self.beliefs.pop(request_id, None)
