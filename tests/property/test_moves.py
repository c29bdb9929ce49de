"""Rules of moving in whole runs: nobody goes to and fro, stages keep to their share, answers are whole."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from typing import Any

import pytest

from bench.simcluster import SimCluster
from bench.workload.item import WorkloadItem
from gateway.core import events as ev
from gateway.core.moves.config import MovesConfig
from gateway.core.moves.rules.registry import move_rule_names
from gateway.core.router import RouterConfig
from simcore.types import Outcome
from tests.helpers.simulated import STEP_TIME, cluster_nodes

NODES = 3
EAGER: dict[str, dict[str, Any]] = {
    "llumnix": {"out_below": 8.0},
    "forecast": {"propose": 16, "patience_s": 0.1, "least_s": 0.1, "times_slower": 1.0},
}
"""Options with which a rule wants to move as many as it can; a new rule has them here too."""


def crowd(seed: int) -> list[WorkloadItem]:
    """Long answers in bursts: more KV than the nodes hold."""
    rng = random.Random(seed)
    arrivals_s = sorted(1.0 + 4.0 * (i // 12) + rng.random() for i in range(48))
    return [
        WorkloadItem(
            request_id=f"r{i}",
            arrival_s=at_s,
            prompt_tokens=rng.randint(20, 900),
            output_tokens=rng.choice([30, 200, 700]),
        )
        for i, at_s in enumerate(arrivals_s)
    ]


class Observed:
    """When each request went on elsewhere, and the tokens that stages had each node compute."""

    def __init__(self) -> None:
        self.cuts: dict[str, list[float]] = defaultdict(list)
        self.stage_tokens: dict[str, int] = defaultdict(int)
        self._ready: dict[str, int] = {}

    def __call__(self, at_s: float, event: ev.AnyEvent, actions: Any) -> None:
        for action in actions:
            if isinstance(action, ev.Dispatch) and action.attempt > 1 and not action.stage:
                self.cuts[action.request_id].append(at_s)
            elif isinstance(action, ev.Dispatch) and action.stage:
                assert action.resumed is not None
                tokens, ready = action.resumed.prompt_tokens, self._ready.get(action.request_id, 0)
                # One that does not go beyond what was ready is the first of another move.
                self.stage_tokens[action.node_id] += tokens - (ready if tokens > ready else 0)
                self._ready[action.request_id] = tokens // 16 * 16


@pytest.mark.parametrize("rule", move_rule_names())
@pytest.mark.parametrize("policy", ["round_robin", "min_total_latency"])
@pytest.mark.parametrize("seed", range(3))
def test_an_eager_rule_is_kept_within_bounds(rule: str, policy: str, seed: int) -> None:
    rng = random.Random(seed)
    rest_s, share = rng.choice([2.0, 5.0]), rng.choice([0.05, 0.2])
    moves = MovesConfig(
        rule=rule, options=EAGER[rule], every_s=0.2, rest_s=rest_s, share=share, gain_s=0.0, gain_share=0.0
    )
    observed = Observed()
    nodes = cluster_nodes(NODES, enable_prefix_caching=True, num_blocks=400)
    cluster = SimCluster(
        nodes,
        RouterConfig(policy=policy, moves=moves, seed=seed),
        observe=observed,
    )
    items = crowd(seed)
    result = cluster.run(items)

    cluster.router.check_quiescent()
    assert not cluster.busy_nodes()
    end_s = items[0].arrival_s
    for item, row in zip(items, result.results, strict=True):
        assert row.e2e_s is not None, (seed, row)
        end_s = max(end_s, row.arrival_s + row.e2e_s)
        assert (row.outcome, row.output_tokens) == (Outcome.STOP, item.output_tokens), (seed, row)
        cuts = observed.cuts[item.request_id]
        assert len(cuts) <= 1 + row.e2e_s / rest_s, (seed, row)
        assert all(after - before >= rest_s for before, after in itertools.pairwise(cuts)), (seed, cuts)
    if policy == "round_robin":
        assert result.moves is not None, f"seed {seed}: nobody moved, so this says nothing"
        assert result.moves.done > 0
    course_s = end_s - items[0].arrival_s
    s_per_token = STEP_TIME.pace(nodes[0].config).prefill_s_per_token
    staged_s = {node_id: tokens * s_per_token for node_id, tokens in observed.stage_tokens.items()}
    assert max(staged_s.values(), default=0.0) <= share * course_s, (seed, share, course_s, staged_s)
