"""A measured run once more, through simulated nodes: how far the forecast of a whole run is from what happened.

No I/O: `bench.profile.measured_run` reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from bench.measure.results import Spread, spread, tpot_s
from bench.profile.measured_run import MeasuredRequest
from simcore.cost.profile import DenseCurve
from simcore.cost.step_time import StepTimeModel
from simcore.node import NodeEvent, SimNode
from simcore.trace import TraceDelta
from simcore.types import EngineConfig

METRICS = ("ttft_s", "tpot_s", "e2e_s")
STATISTICS = ("mean", "p50", "p90", "p99")


class Times(msgspec.Struct, frozen=True):
    """First and last token of one request, in seconds since it came."""

    first_s: float
    last_s: float


class Validation(msgspec.Struct, frozen=True, kw_only=True):
    """Measured beside simulated."""

    requests: int
    preemptions: int
    """Of the simulation."""
    measured: dict[str, Spread]
    """By metric: `ttft_s`, `tpot_s`, `e2e_s`."""
    simulated: dict[str, Spread]
    error: dict[str, dict[str, float]]
    """simulated / measured - 1, by metric and statistic."""


def validate(
    requests: Sequence[MeasuredRequest],
    config: EngineConfig,
    step_time: StepTimeModel,
    *,
    replicas: int = 1,
    in_step: bool = False,
    shared: DenseCurve | None = None,
) -> Validation:
    """Replays `requests` (in the order in which they came) on `replicas` nodes; each goes where the fewest are.

    `in_step`: the replicas exchange data within each step, as those that share experts do, so each step of all takes as
    long as that of the slowest; what `shared` says of it takes as long as the tokens of all together want. Raises
    ValueError when a request can never fit the node.
    """
    nodes = [SimNode(f"replica-{i}", config, step_time) for i in range(replicas)]
    start_s = requests[0].came_ts
    seen: list[NodeEvent] = []
    for request in requests:
        now_s = request.came_ts - start_s
        seen += _advanced(nodes, now_s, in_step, shared)
        least = min(nodes, key=lambda node: len(node.requests))
        least.add(request.simulated(), now_s)
    while any(node.has_work for node in nodes):
        seen += _advanced(nodes, min(node.next_step_s for node in nodes) + 3600.0, in_step, shared)
    for node in nodes:
        node.check()
    first = {e.request_id: e.at_s for e in reversed(seen) if e.kind == "first_token"}
    last = {e.request_id: e.at_s for e in seen if e.kind == "finished"}
    simulated = []
    for request in requests:
        came_s, last_s = request.came_ts - start_s, last[request.request_id]
        simulated.append(Times(first.get(request.request_id, last_s) - came_s, last_s - came_s))
    measured = [Times(r.first_token_ts - r.came_ts, r.last_token_ts - r.came_ts) for r in requests]
    ours, theirs = _spreads(requests, simulated), _spreads(requests, measured)
    return Validation(
        requests=len(requests),
        preemptions=sum(e.kind == "preempted" for e in seen),
        measured=theirs,
        simulated=ours,
        error={
            metric: {s: getattr(ours[metric], s) / getattr(theirs[metric], s) - 1.0 for s in STATISTICS}
            for metric in ours
        },
    )


def _advanced(nodes: Sequence[SimNode], until_s: float, in_step: bool, shared: DenseCurve | None) -> list[NodeEvent]:
    """What happens in all steps that begin before `until_s`."""
    seen: list[NodeEvent] = []
    if not in_step:
        for node in nodes:
            seen += node.advance(until_s)
        return seen
    while (began_s := max(min(n.next_step_s for n in nodes), *(n.free_at_s for n in nodes))) < until_s:
        deltas = [node.step(began_s) for node in nodes if node.next_step_s <= began_s]
        ended_s = began_s + _together_s(deltas, len(nodes), shared)
        for node in nodes:
            node.free_at_s = ended_s
            node.next_step_s = ended_s if node.has_work else math.inf
        for delta in deltas:
            seen += [NodeEvent("preempted", request_id, ended_s) for request_id in delta.preempted]
            # Of several tokens the first one counts.
            seen += [NodeEvent("first_token", part.request_id, ended_s) for part in delta.scheduled if part.produced]
            seen += [NodeEvent("finished", request_id, ended_s) for request_id in delta.finished]
    return seen


def _together_s(deltas: Sequence[TraceDelta], replicas: int, shared: DenseCurve | None) -> float:
    """Duration of a step of replicas that wait for each other.

    A profile prices what they do for each other as if all had as many tokens; together they have what they have.
    """
    if shared is None:
        return max(delta.duration_s for delta in deltas)
    tokens = [delta.batch.total_tokens for delta in deltas]
    equal_s = np.interp(tokens, shared.tokens, shared.seconds)
    mean_s = float(np.interp(sum(tokens) / replicas, shared.tokens, shared.seconds))
    return mean_s + max(delta.duration_s - s for delta, s in zip(deltas, equal_s.tolist(), strict=True))


def _spreads(requests: Sequence[MeasuredRequest], times: Sequence[Times]) -> dict[str, Spread]:
    per_token = (
        tpot_s(ttft_s=t.first_s, e2e_s=t.last_s, output_tokens=r.output_toks)
        for r, t in zip(requests, times, strict=True)
    )
    found = {
        "ttft_s": spread(t.first_s for t in times),
        "tpot_s": spread(x for x in per_token if x is not None),
        "e2e_s": spread(t.last_s for t in times),
    }
    return {metric: values for metric, values in found.items() if values is not None}
