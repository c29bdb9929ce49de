"""Scheduling delay, preemption loss and errors put on purpose, in small simulated clusters."""

from __future__ import annotations

import pytest

from bench.measure.results import RequestResult
from bench.simcluster import SimCluster
from bench.simcluster.noise import Noise, NoiseSource
from bench.workload.item import WorkloadItem
from gateway.core.router import RouterConfig
from simcore.types import LengthBelief
from tests.helpers.simulated import burst, cluster_nodes, poisson


def run(
    items: list[WorkloadItem], *, noise: Noise | None = None, policy: str = "random", **config: int
) -> list[RequestResult]:
    return SimCluster(cluster_nodes(1, **config), RouterConfig(policy=policy), noise=noise).run(items).results


def test_a_request_alone_starts_at_once_and_loses_nothing() -> None:
    found = run(burst([(100, 20)]), num_blocks=200)[0]
    # Gateway and network only.
    assert found.scheduling_delay_s == pytest.approx(0.0005, abs=1e-6)
    assert found.preemption_loss_s == 0.0


def test_who_does_not_fit_the_batch_starts_when_a_place_is_free() -> None:
    first, second = run(burst([(10, 50), (10, 5)]), num_blocks=200, max_num_seqs=1)
    assert first.scheduling_delay_s is not None
    assert second.scheduling_delay_s is not None
    assert first.e2e_s is not None
    # It begins in the step after the other's last one.
    assert first.scheduling_delay_s < 0.001
    assert second.scheduling_delay_s == pytest.approx(first.e2e_s, abs=0.002)


def test_preemptions_cost_those_that_had_them_and_nobody_else() -> None:
    results = run(poisson(60, 30.0), num_blocks=260, max_model_len_tokens=4096)
    preempted = [r for r in results if r.preemptions]
    assert preempted, "the cluster is tight enough"
    for r in results:
        assert r.preemption_loss_s is not None
        assert r.ttft_s is not None
        assert r.scheduling_delay_s is not None
        assert (r.preemption_loss_s > 0) == bool(r.preemptions), r
        assert 0 < r.scheduling_delay_s < r.ttft_s
        if r.e2e_s is not None:
            assert r.preemption_loss_s < r.e2e_s


def test_what_is_lost_to_preemption_is_what_decoding_takes_longer() -> None:
    """Two requests that outgrow the memory together: one is put back until the other has ended."""
    # 40 blocks of 16 tokens: both prompts fit, both answers do not.
    results = run(burst([(200, 200), (200, 200)]), num_blocks=40, max_model_len_tokens=640)
    victim = max(results, key=lambda r: r.preemptions or 0)
    other = min(results, key=lambda r: r.preemptions or 0)
    assert (victim.preemptions, other.preemptions) == (1, 0)
    assert victim.e2e_s is not None
    assert victim.ttft_s is not None
    assert other.e2e_s is not None
    assert other.tpot_s is not None
    decode_s = victim.e2e_s - victim.ttft_s
    assert victim.preemption_loss_s == pytest.approx(decode_s - 199 * other.tpot_s, rel=0.1)


def test_noise_is_a_fixed_function_of_seed_and_node() -> None:
    belief = LengthBelief((100, 200))
    a, again, b = (NoiseSource(Noise(length=0.5), 1, node) for node in ("x", "x", "y"))
    assert a.believed("r", belief) == again.believed("r", belief)
    assert a.believed("r", belief) == a.believed("r", belief), "asked twice, it believes the same"
    assert a.believed("r", belief) != b.believed("r", belief), "each node errs on its own"
    assert NoiseSource(Noise(), 1, "x").believed("r", belief) == belief


def test_noise_has_the_spread_that_was_asked_for_within_the_limits() -> None:
    source = NoiseSource(Noise(length=0.25), 3, "n")
    atoms = [source.believed(f"r{i}", LengthBelief((10_000,))).atoms_tokens[0] / 10_000 for i in range(4000)]
    mean = sum(atoms) / len(atoms)
    assert mean == pytest.approx(1.0, abs=0.02)
    assert (sum((a - mean) ** 2 for a in atoms) / len(atoms)) ** 0.5 == pytest.approx(0.25, abs=0.02)
    wild = NoiseSource(Noise(length=9.0), 3, "n")
    factors = [wild.believed(f"r{i}", LengthBelief((10_000,))).atoms_tokens[0] / 10_000 for i in range(500)]
    assert (min(factors), max(factors)) == (0.1, 5.0)


def test_errors_change_decisions_but_not_answers() -> None:
    items = poisson(80, 20.0)
    nodes = cluster_nodes(3, num_blocks=400)
    config = RouterConfig(policy="min_new_request_latency")
    plain = SimCluster(nodes, config).run(items)
    noisy = SimCluster(nodes, config, noise=Noise(length=1.0, latency=1.0)).run(items)
    assert [r.output_tokens for r in plain.results] == [r.output_tokens for r in noisy.results]
    assert [r.node_id for r in plain.results] != [r.node_id for r in noisy.results]


def test_errors_below_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="share >= 0"):
        Noise(latency=-0.1)
