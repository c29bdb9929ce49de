"""With known lengths and nobody coming later, a forecast is what then happens, to the nanosecond.

It is told what a daemon is told: deltas when their steps have ended, dispatches when they are made. It is asked at
any moment, also in the middle of a step.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from length_model.core.belief import known
from predictor.core.estimator import Estimator
from predictor.core.traced_engine import TracedEngine
from simcore.node import SimNode, SimRequest
from simcore.trace import TraceDelta
from simcore.types import Candidate, EngineConfig, Forecast
from tests.property.test_mirror import STEP_TIME

CONFIG = EngineConfig(
    model="m",
    max_num_seqs=6,
    max_num_batched_tokens=32,
    block_size_tokens=4,
    num_blocks=40,
    max_model_len_tokens=120,
    enable_prefix_caching=False,
)
"""So small that there are queues and preemptions. Without prefix caching: a trace does not show which free blocks still
hold tokens of preempted requests."""


class World:
    """An engine on a clock, and what is known of it from its trace."""

    def __init__(self) -> None:
        self.engine = SimNode("n", CONFIG, STEP_TIME)
        self.traced = TracedEngine("n", CONFIG, STEP_TIME)
        self.traced.on_snapshot(self.engine.snapshot(0.0), 0.0)
        self.in_progress: TraceDelta | None = None
        self.first_s: dict[str, float] = {}
        self.finished_s: dict[str, float] = {}

    def run(self, until_s: float) -> None:
        while True:
            step = self.in_progress
            if step is not None:
                if step.end_s > until_s:
                    return
                self.traced.on_delta(step, step.end_s)
                for entry in step.scheduled:
                    if entry.produced:
                        self.first_s.setdefault(entry.request_id, step.end_s)
                self.finished_s.update(dict.fromkeys(step.finished, step.end_s))
                self.in_progress = None
            if self.engine.next_step_s >= until_s:
                return
            self.in_progress = self.engine.step(self.engine.next_step_s)

    def dispatch(self, what: Candidate, now_s: float) -> None:
        self.engine.add(
            SimRequest(
                request_id=what.request_id,
                prompt_tokens=what.prompt_tokens,
                output_tokens=what.belief.atoms_tokens[0],
                max_output_tokens=what.max_output_tokens,
            ),
            now_s,
        )
        self.traced.reserve(what, now_s=now_s, ttl_s=1e6, sent=True)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), before=st.integers(0, 30), gap_s=st.sampled_from([0.002, 0.01, 0.05]))
def test_the_forecast_is_what_happens(seed: int, before: int, gap_s: float) -> None:
    rng = random.Random(seed)
    world = World()

    def request(name: str) -> Candidate:
        return Candidate(
            request_id=name,
            prompt_tokens=rng.randint(1, 60),
            max_output_tokens=60,
            belief=known(rng.randint(1, 40)),
        )

    now_s = 0.0
    for i in range(before):
        # Never within the moment in which an idle engine still lets others join its step.
        now_s += 0.0011 + rng.expovariate(1 / gap_s)
        world.run(now_s)
        world.dispatch(request(f"r{i}"), now_s)
    now_s += 0.0011 + rng.expovariate(1 / gap_s)
    world.run(now_s)
    candidate = request("candidate")
    (foreseen,) = Estimator(world.traced).forecast([candidate], now_s)
    assert isinstance(foreseen, Forecast)
    world.dispatch(candidate, now_s)
    world.run(1e6)
    assert foreseen.ttft_s.p50 == pytest.approx(world.first_s["candidate"] - now_s, abs=1e-9)
    assert foreseen.e2e_s.p50 == pytest.approx(world.finished_s["candidate"] - now_s, abs=1e-9)
