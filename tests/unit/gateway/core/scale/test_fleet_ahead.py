"""The fleet simulated ahead, against the simulated cluster and against itself."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest

from bench.simcluster import NodeSpec, SimCluster
from bench.workload.item import WorkloadItem
from engine_adapters.profile_file import load_any_profile
from gateway.core.nodes.pace import Pace
from gateway.core.router_config import RouterConfig
from gateway.core.scale.config import Objective
from gateway.core.scale.fleet_ahead import Demand, FleetAhead, Kind, NodeAhead
from simcore.compiled.fleet import run_fleet
from simcore.types import EngineConfig

PATHS = 3
OBJECTIVE = Objective(ttft_s=3.0, tpot_s=0.1)
PROFILE = load_any_profile("a30/llama-3.1-8b")
CONFIG = EngineConfig(
    model="m",
    max_num_seqs=128,
    max_num_batched_tokens=2048,
    num_blocks=PROFILE.kv.num_blocks,
    max_model_len_tokens=4096,
)
STEP_TIME = PROFILE.step_time_model()
KIND = Kind(Pace(STEP_TIME.pace(CONFIG), 128), 128, float(CONFIG.num_blocks * CONFIG.block_size_tokens))


def lengths(seed: int = 0, count: int = 512) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return 1.0 + rng.exponential(250.0, count).clip(0, 2000), 1.0 + rng.exponential(320.0, count).clip(0, 1500)


def demand(rate_per_s: float, held: int = 0) -> Demand:
    return Demand((rate_per_s,) * PATHS, 1.0, *lengths(), held)


def share(
    nodes: list[NodeAhead], rate_per_s: float, *, held: int = 0, window: tuple[float, float] = (60.0, 120.0)
) -> float:
    ahead = FleetAhead({"g": KIND}, OBJECTIVE, seed=1)
    return ahead.outcome(nodes, demand(rate_per_s, held), *window).share


def idle(count: int, ready_s: float = 0.0) -> list[NodeAhead]:
    return [NodeAhead("g", ready_s) for _ in range(count)]


def knee(count: int) -> float:
    """The rate per node at which half of the requests are served in time."""
    low, high = 0.1, 60.0
    while high - low > 0.05:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if share(idle(count), middle * count, window=(120.0, 240.0)) > 0.5 else (low, middle)
    return low


def served_in_time(count: int, rate_per_s: float) -> float:
    """The same of the simulated cluster: its own router, engines that run every step."""
    rng = np.random.default_rng(5)
    prompts, answers = lengths(1, 20_000)
    times = np.cumsum(rng.exponential(1.0 / rate_per_s, int(rate_per_s * 240.0)))
    items = [
        WorkloadItem(
            request_id=f"r{i}", arrival_s=float(at_s), prompt_tokens=int(prompts[i]), output_tokens=int(answers[i])
        )
        for i, at_s in enumerate(times)
    ]
    specs = [NodeSpec(node_id=f"g-{i}", config=CONFIG, step_time=STEP_TIME) for i in range(count)]
    results = SimCluster(specs, RouterConfig(policy="estimated_latency")).run(items).results
    late = [r for r in results if r.arrival_s > 120.0]
    good = [r.ttft_s is not None and r.ttft_s <= 3.0 and (r.tpot_s is None or r.tpot_s <= 0.1) for r in late]
    return float(np.mean(good))


def test_its_knee_is_that_of_the_simulated_cluster() -> None:
    """Within a seventh: below it nearly all are served in time, above it far fewer."""
    rate = knee(3)
    assert served_in_time(3, 3 * rate * 0.86) > 0.9
    assert served_in_time(3, 3 * rate * 1.16) < 0.7


def test_many_nodes_are_stood_for_by_few() -> None:
    """A hundred nodes have the knee of a dozen, and cost no more."""
    few, many = knee(12), knee(100)
    assert many == pytest.approx(few, rel=0.06)


def test_a_node_that_starts_counts_from_its_date() -> None:
    rate = 0.9 * 2 * knee(2)
    assert share(idle(2), rate) > 0.95
    late = [*idle(1), *idle(1, ready_s=500.0)]
    soon = [*idle(1), *idle(1, ready_s=20.0)]
    assert share(late, rate) < 0.5 < share(soon, rate, window=(100.0, 160.0))


def test_a_node_that_leaves_finishes_what_it_has_and_gets_nothing() -> None:
    rate = 0.9 * 2 * knee(2)
    leaving = msgspec.structs.replace(NodeAhead("g", 0.0, 60, 100.0), leaves=True)
    assert share([*idle(1), leaving], rate) < 0.5
    assert share([leaving], 1.0) == 0.0


def test_who_waits_already_and_what_runs_already_cost_time() -> None:
    rate = 0.8 * 2 * knee(2)
    window = (0.0, 30.0)
    empty = share(idle(2), rate, window=window)
    behind = share(idle(2), rate, held=2000, window=window)
    full = share([NodeAhead("g", 0.0, 128, 1500.0, 100_000.0)] * 2, rate, window=window)
    assert behind < empty
    assert full < empty


def test_a_fleet_in_its_balance_stays_in_it() -> None:
    """What runs when it begins gives back what it held: a load that is carried is carried from there on too."""
    rate, prompts, answers = 0.85 * 3 * knee(3), *lengths()
    running = int(rate / 3 * 12.0)
    held_tokens = running * float(prompts.mean() + 0.5 * answers.mean())
    busy = NodeAhead("g", 0.0, running, 0.5 * float(answers.mean()), held_tokens)
    for window in ((60.0, 120.0), (240.0, 300.0)):
        assert share([busy] * 3, rate, window=window) > 0.95


def test_without_nodes_nobody_is_served_and_without_requests_all_are() -> None:
    assert share([], 1.0) == 0.0
    assert share([], 0.0) == 1.0
    assert share(idle(1), 0.0) == 1.0


def test_equal_questions_have_equal_answers() -> None:
    first, second = (share(idle(4), 30.0) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("seed", range(5))
def test_more_nodes_never_serve_less(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rate = float(rng.uniform(5.0, 80.0))
    ahead = FleetAhead({"g": KIND}, OBJECTIVE, seed=seed)
    shares = [ahead.outcome(idle(count), demand(rate), 60.0, 120.0).share for count in range(1, 9)]
    assert all(more >= less - 0.03 for less, more in itertools.pairwise(shares)), (seed, rate, shares)


def test_arrivals_may_be_told_in_any_order() -> None:
    rng = np.random.default_rng(7)
    kinds = np.zeros(2, np.int64), np.zeros(2), np.full((1, 9), 0.02), np.zeros((1, 3)), np.array([[8.0, 1e6]])
    nothing = np.zeros(0), np.zeros(0, np.int64), np.zeros(2), np.zeros(2)
    even, clumped = rng.uniform(0.0, 60.0, 300), np.repeat(rng.uniform(0.0, 60.0, 30) ** 3 / 3600.0, 10)
    for times_s in (even, clumped, np.full(50, 5.0), np.array([3.0]), np.zeros(0)):
        coming_s = np.concatenate([times_s, np.full(3, -1e-3)])
        lengths = rng.uniform(1.0, 99.0, (2, len(coming_s)))
        rest = (*lengths, 50.0, 0.0, 60.0, 0.5, 1.0, 9.0)
        assert run_fleet(*kinds, *nothing, coming_s, *rest) == run_fleet(*kinds, *nothing, np.sort(coming_s), *rest), (
            "seed 7"
        )


def test_of_several_rates_the_mean_counts_by_requests_and_the_middle_is_typical() -> None:
    """Two nodes carry the low rates and not the highest, of which most are late."""
    rate = 0.7 * 2 * knee(2)
    rates = (0.5 * rate, rate, 3.0 * rate)
    ahead = FleetAhead({"g": KIND}, OBJECTIVE, seed=1)
    outcome = ahead.outcome(idle(2), msgspec.structs.replace(demand(rate), rates_per_s=rates), 60.0, 120.0)
    assert outcome.typical > 0.95
    assert outcome.missed == pytest.approx(3.0 * rate * 60.0 / 3, rel=0.3)
    assert outcome.came == pytest.approx(4.5 * rate * 60.0 / 3, rel=0.15)
