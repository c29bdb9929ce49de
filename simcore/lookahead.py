"""What-if: the future of one node with and without a candidate, by simulation."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np

from simcore.cost.step_time import StepTimeModel
from simcore.node import SimNode
from simcore.reference import ReferenceRequest, ReferenceScheduler
from simcore.scenarios import final_lengths, longest_output
from simcore.trace import TraceSnapshot
from simcore.types import Candidate, EngineConfig, Forecast, LengthBelief, Quantiles, RequestState


class _Future:
    """What one simulated future says: finish time per request id, and how the candidate fared."""

    def __init__(self) -> None:
        self.finish_s: dict[str, float] = {}
        self.first_s = 0.0
        self.preemptions = 0
        self.headroom_blocks = 0


class WhatIf:
    """Forecasts from one base state. Reusable: `rebase`, then `forecast` as often as wanted."""

    def __init__(self, node_id: str, config: EngineConfig, step_time: StepTimeModel, *, scenarios: int = 8) -> None:
        if scenarios < 1:
            raise ValueError(f"scenarios must be >= 1, got {scenarios}")
        self.node_id = node_id
        self.config = config
        self.step_time = step_time
        self.scenarios = scenarios
        self._base = ReferenceScheduler(config)
        self._beliefs: dict[str, LengthBelief] = {}
        self._baseline: dict[tuple[int, int], _Future] = {}
        self._seq = 0
        self._age_s = 0.0
        self._start_s = 0.0

    def rebase(
        self,
        snapshot: TraceSnapshot,
        beliefs: Mapping[str, LengthBelief],
        reserved: Sequence[Candidate] = (),
        *,
        age_s: float = 0.0,
        step_remaining_s: float = 0.0,
    ) -> None:
        """Takes a new base state and forgets the memoised baseline.

        `beliefs` holds the total output length of every running and waiting request (ValueError if one is missing).
        `reserved` requests stand behind the waiting ones. `step_remaining_s`: seconds until the step in progress ends.
        """
        self._base = ReferenceScheduler(self.config)
        self._beliefs = {}
        for state in snapshot.running:
            request = self._take(state, beliefs)
            request.computed_tokens = 0
            self._base.running.append(request)
            self._base._grow(request, state.computed_tokens)
            request.computed_tokens = state.computed_tokens
        for state in snapshot.waiting:
            request = self._take(state, beliefs)
            request.computed_tokens = 0
            self._base.waiting.append(request)
        for candidate in reserved:
            self._beliefs[candidate.request_id] = candidate.belief
            self._base.add(_arriving(candidate))
        self._begin(snapshot.seq, age_s, step_remaining_s)

    def rebase_node(self, node: SimNode, beliefs: Mapping[str, LengthBelief], now_s: float) -> None:
        """Takes a simulated node as it stands at `now_s`; age 0."""
        self._base = copy.deepcopy(node._scheduler)
        self._beliefs = {}
        for request in (*self._base.running, *self._base.waiting):
            self._believe(request.request_id, beliefs)
        self._begin(node.seq, 0.0, max(0.0, node._free_at_s - now_s))

    def forecast(self, candidates: Sequence[Candidate]) -> list[Forecast]:
        """One forecast per candidate, each as if it came alone.

        Raises ValueError for a candidate that the engine can never run.
        """
        return [self._forecast(c) for c in candidates]

    def _begin(self, seq: int, age_s: float, step_remaining_s: float) -> None:
        self._seq = seq
        self._age_s = age_s
        self._start_s = step_remaining_s
        self._baseline = {}

    def _take(self, state: RequestState, beliefs: Mapping[str, LengthBelief]) -> ReferenceRequest:
        self._believe(state.request_id, beliefs)
        return ReferenceRequest(
            request_id=state.request_id,
            prompt_tokens=state.prompt_tokens,
            final_tokens=1,
            max_output_tokens=state.max_output_tokens,
            priority=state.priority,
            arrival_s=state.arrival_s,
            output_tokens=state.output_tokens,
            computed_tokens=state.computed_tokens,
            preemptions=state.preemptions,
        )

    def _believe(self, request_id: str, beliefs: Mapping[str, LengthBelief]) -> None:
        belief = beliefs.get(request_id)
        if belief is None:
            raise ValueError(f"{self.node_id}: no length belief for request {request_id!r}")
        self._beliefs[request_id] = belief

    def _lengths(self, request: ReferenceRequest, scenarios: int) -> list[int]:
        return final_lengths(
            self._beliefs[request.request_id],
            request.request_id,
            produced_tokens=request.output_tokens,
            longest_tokens=longest_output(self.config, request.prompt_tokens, request.max_output_tokens),
            scenarios=scenarios,
        )

    def _run(self, candidate: Candidate | None, scenario: int, scenarios: int) -> _Future:
        scheduler = copy.deepcopy(self._base)
        for request in (*scheduler.running, *scheduler.waiting):
            request.final_tokens = self._lengths(request, scenarios)[scenario]
        who = ""
        if candidate is not None:
            who = candidate.request_id
            mine = _arriving(candidate)
            self._beliefs[who] = candidate.belief
            mine.final_tokens = self._lengths(mine, scenarios)[scenario]
            scheduler.add(mine)
        future = _Future()
        future.headroom_blocks = scheduler.blocks.free
        now_s = self._start_s
        pending = True
        while scheduler.running or scheduler.waiting:
            step = scheduler.step()
            now_s += self.step_time.seconds(step.batch)
            if pending:
                future.preemptions += len(step.preempted)
                future.headroom_blocks = min(future.headroom_blocks, step.lowest_free_blocks)
            if who in step.first_tokens:
                future.first_s = now_s
            for request_id in step.finished:
                future.finish_s[request_id] = now_s
                pending = pending and request_id != who
        return future

    def _forecast(self, candidate: Candidate) -> Forecast:
        beliefs = dict(self._beliefs)
        known = candidate.belief.is_known and all(b.is_known for b in beliefs.values())
        scenarios = 1 if known else self.scenarios
        ttft, e2e, tpot, harm, preemptions = [], [], [], [], 0
        headroom = self.config.num_blocks
        for s in range(scenarios):
            if (s, scenarios) not in self._baseline:
                self._baseline[s, scenarios] = self._run(None, s, scenarios)
            without = self._baseline[s, scenarios].finish_s
            future = self._run(candidate, s, scenarios)
            finish = future.finish_s[candidate.request_id]
            tokens = self._lengths(_arriving(candidate), scenarios)[s]
            ttft.append(future.first_s)
            e2e.append(finish)
            tpot.append((finish - future.first_s) / (tokens - 1) if tokens > 1 else 0.0)
            harm.append(sum(future.finish_s[r] - t for r, t in without.items()))
            preemptions += future.preemptions
            headroom = min(headroom, future.headroom_blocks)
        self._beliefs = beliefs
        return Forecast(
            request_id=candidate.request_id,
            node_id=self.node_id,
            ttft_s=quantiles(ttft),
            tpot_s=quantiles(tpot),
            e2e_s=quantiles(e2e),
            preemptions=preemptions / scenarios,
            kv_headroom_blocks=headroom,
            harm_s=quantiles(harm),
            trace_seq=self._seq,
            state_age_s=self._age_s,
        )


def quantiles(values: Sequence[float]) -> Quantiles:
    """Mean, median and 90th percentile (linear between order statistics)."""
    if len(values) == 1:
        return Quantiles(values[0], values[0], values[0])
    return Quantiles(float(np.mean(values)), float(np.quantile(values, 0.5)), float(np.quantile(values, 0.9)))


def _arriving(candidate: Candidate) -> ReferenceRequest:
    return ReferenceRequest(
        request_id=candidate.request_id,
        prompt_tokens=candidate.prompt_tokens,
        final_tokens=1,
        max_output_tokens=candidate.max_output_tokens,
        priority=candidate.priority,
        arrival_s=float("inf"),
    )
