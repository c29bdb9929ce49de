"""Runs the simulated cluster over policies, rates and seeds, on as many processes as there are cores."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

import msgspec

from bench.measure.results import RequestResult, Run
from bench.profile.step_time_file import load_any_profile
from bench.simcluster import Delays, NodeSpec, SimCluster
from bench.workload.item import LengthKnowledge, WorkloadItem
from gateway.core.queue.queue import HoldConfig, HoldOrder, HoldWhen
from gateway.core.router import RouterConfig
from gateway.policy_files import policy_names_of
from simcore.types import EngineConfig

MAX_OUTPUT_TOKENS = 2048
"""Limit on the answer that simulated requests carry, if none of the workload is longer. It is not the true length: who
knows nothing of the length must not learn it from the limit."""


class ClusterShape(msgspec.Struct, frozen=True, kw_only=True):
    """Equal nodes. Limits default to those of Block's A30 experiments (48 sequences, 512 tokens, 1,052 blocks)."""

    nodes: int = 12
    profile: str = "a30/llama-2-7b"
    max_num_seqs: int = 48
    max_num_batched_tokens: int = 512
    block_size_tokens: int = 16
    num_blocks: int = 1052
    max_model_len_tokens: int = 4096

    def engine(self) -> EngineConfig:
        return EngineConfig(
            model=self.profile.rpartition("/")[2],
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            block_size_tokens=self.block_size_tokens,
            num_blocks=self.num_blocks,
            max_model_len_tokens=self.max_model_len_tokens,
        )

    @property
    def longest_tokens(self) -> int:
        """Prompt plus answer that a node can run."""
        return min(self.max_model_len_tokens, self.num_blocks * self.block_size_tokens)

    def specs(self) -> list[NodeSpec]:
        """Raises ValueError for a profile that is neither shipped nor a profile file."""
        config, step_time = self.engine(), load_any_profile(self.profile).step_time_model()
        return [NodeSpec(node_id=f"node-{index}", config=config, step_time=step_time) for index in range(self.nodes)]


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One simulation to run."""

    policy: str
    rate_per_s: float | None
    seed: int
    items: Sequence[WorkloadItem]


class Simulated(msgspec.Struct, frozen=True, kw_only=True):
    """One simulation, run."""

    run: Run
    results: list[RequestResult]
    forecasts: int
    wall_s: float


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What all points share."""

    shape: ClusterShape = ClusterShape()
    lengths: LengthKnowledge = "known"
    sample: int = 0
    """Nodes drawn at random per decision; 0: the policy's own default."""
    ask: int = 4
    """Nodes asked for a forecast per decision; 0: all."""
    hold: HoldWhen = "forecast"
    hold_order: HoldOrder = "fcfs"
    delays: Delays = Delays()
    keep_results: bool = False
    policy_files: tuple[str, ...] = ()
    """Files of policies that are not part of the product; each process runs them for itself."""


def simulate_point(settings: Settings, point: Point) -> Simulated:
    """One cluster, one workload. Raises ValueError."""
    started_s = time.perf_counter()
    policy_names_of(settings.policy_files)
    cluster = SimCluster(
        settings.shape.specs(),
        RouterConfig(
            policy=point.policy,
            sample=settings.sample,
            ask=settings.ask,
            hold=HoldConfig(when=settings.hold, order=settings.hold_order),
            seed=point.seed,
            explain_keep=0,
        ),
        settings.delays,
        lengths=settings.lengths,
        max_output_tokens=max(MAX_OUTPUT_TOKENS, *(item.output_tokens for item in point.items)),
    )
    found = cluster.run(point.items)
    run = Run(policy=point.policy, rate_per_s=point.rate_per_s, seed=point.seed, summary=found.summary())
    return Simulated(
        run=run,
        results=found.results if settings.keep_results else [],
        forecasts=found.forecasts,
        wall_s=time.perf_counter() - started_s,
    )


def simulate_points(
    settings: Settings, points: Sequence[Point], *, jobs: int = 0, on_done: Callable[[Simulated], None] = lambda _: None
) -> list[Simulated]:
    """All points, in their order. `jobs` processes; 0: one per core. Raises ValueError."""
    workers = min(jobs or os.cpu_count() or 1, len(points))
    if workers <= 1:
        return [_told(simulate_point(settings, point), on_done) for point in points]
    done: dict[int, Simulated] = {}
    # Started afresh, not forked: the parent may have threads of its own.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(simulate_point, settings, point): index for index, point in enumerate(points)}
        for future in as_completed(futures):
            done[futures[future]] = _told(future.result(), on_done)
    return [done[index] for index in range(len(points))]


def _told(simulated: Simulated, on_done: Callable[[Simulated], None]) -> Simulated:
    on_done(simulated)
    return simulated


def grid(
    workload: Callable[[float | None, int], Sequence[WorkloadItem]],
    *,
    policies: Sequence[str],
    rates: Sequence[float | None],
    seeds: Sequence[int],
) -> Iterator[Point]:
    """Every policy at every rate and seed; policies of one rate and seed share their requests."""
    for rate in rates:
        for seed in seeds:
            # Simulated nodes read lengths only; texts would travel to every process for nothing.
            items = [msgspec.structs.replace(item, prompt="") for item in workload(rate, seed)]
            for policy in policies:
                yield Point(policy=policy, rate_per_s=rate, seed=seed, items=items)
