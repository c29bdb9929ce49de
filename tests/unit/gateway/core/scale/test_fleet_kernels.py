"""What is compiled beforehand is what the rule `forecast` runs."""

from __future__ import annotations

import numpy as np

from gateway.core.nodes.pace import Pace
from gateway.core.scale.config import Objective
from gateway.core.scale.fleet_ahead import Demand, FleetAhead, Kind, NodeAhead
from simcore.compiled.fleet import run_fleet
from simcore.types import NodePace
from simcore.warmup import warm_fleet


def test_a_decision_compiles_nothing_after_the_warm_up() -> None:
    warm_fleet()
    compiled = list(run_fleet.signatures)  # type: ignore[attr-defined]
    pace = Pace(NodePace(batches=(1, 4), step_s=(0.02, 0.03), kv_s_per_token=1e-8, prefill_s_per_token=1e-4), 4)
    ahead = FleetAhead({"g": Kind(pace, 4, 1000.0)}, Objective(ttft_s=3), seed=0)
    demand = Demand((2.0, 3.0), 1.5, np.array([10.0, 20.0]), np.array([3.0, 4.0]), held=2)
    nodes = [NodeAhead("g", 0.0, running=2, left_tokens=5.0), NodeAhead("g", 3.0), NodeAhead("g", 0.0, leaves=True)]
    assert 0.0 <= ahead.outcome(nodes, demand, 0, 10.0).share <= 1.0
    assert list(run_fleet.signatures) == compiled  # type: ignore[attr-defined]
