"""What one node can do in a second, as measured and as its pace says. Pure."""

from __future__ import annotations

import functools
import math

import msgspec

from gateway.core.nodes.pace import Pace
from gateway.core.scale.config import Objective
from gateway.core.scale.events import RequestCame, RequestDone
from gateway.core.scale.fleet import FleetState
from simcore.types import EngineConfig, NodePace

SIZE_ALPHA = 0.02
"""Weight of the newest request in the mean sizes."""


class _Batch(msgspec.Struct, kw_only=True):
    """Of one node: what has ended there since the last sample."""

    end_s: float = -math.inf
    """The last moment at which requests ended."""
    before_s: float = -math.inf
    """The moment of ends before that."""
    began_s: float = 0.0
    """When those that ended at the last moment are taken to have been scheduled."""
    after_pause: bool = True
    """None of it was there when the one before it ended."""
    tokens: int = 0
    busy_s: float = 0.0
    quickest_s: float = math.inf


class MeasuredThroughput:
    """Tokens per second of one node: an exponential mean of a batch's tokens / (completed - scheduled).

    Of an engine's batches only ends are seen. Requests that end at one node at one moment are one batch; it was
    scheduled when it had come or, where that was later, when the one before it ended. Where requests overlap so that
    each ends alone, a batch is what ends until the node has worked on it as long as the quickest of them took; what
    ended first after a pause while others ran on says too little and is left out.
    """

    def __init__(self, *, alpha: float, initial: float) -> None:
        """`alpha` is the weight of the newest batch, `initial` the mean before the first."""
        self._alpha = alpha
        self.tokens_per_s = initial
        self._batches: dict[str, _Batch] = {}
        self.samples = 0

    def done(self, request: RequestDone, now_s: float) -> None:
        """An answer is whole."""
        took_s = request.e2e_s - request.waited_s
        if took_s <= 0:
            return
        batch = self._batches.setdefault(request.node_id, _Batch())
        if now_s > batch.end_s:
            self._next(batch, overlaps=now_s - took_s < batch.end_s)
            batch.before_s, batch.end_s = batch.end_s, now_s
            batch.began_s = now_s
        began_s = max(batch.before_s, now_s - took_s)
        if began_s < batch.began_s:
            batch.busy_s += batch.began_s - began_s
            batch.began_s = began_s
        batch.tokens += request.prompt_tokens + request.output_tokens
        batch.quickest_s = min(batch.quickest_s, took_s)

    def keep_only(self, fleet: FleetState) -> None:
        """Forgets nodes that are gone."""
        there = {node.node_id for state in fleet.groups for node in (*state.serving, *state.draining)}
        there.update(node.node_id for node in fleet.fixed)
        self._batches = {node_id: batch for node_id, batch in self._batches.items() if node_id in there}

    def _next(self, batch: _Batch, *, overlaps: bool) -> None:
        """More ends there, of which one was there already (`overlaps`) when the last ended."""
        if not overlaps:
            self._sample(batch)
            batch.after_pause = True
        elif batch.after_pause:
            _empty(batch)
            batch.after_pause = False
        elif batch.busy_s >= batch.quickest_s * (1.0 - 1e-9):
            self._sample(batch)

    def _sample(self, batch: _Batch) -> None:
        if batch.busy_s:
            self.tokens_per_s += self._alpha * (batch.tokens / batch.busy_s - self.tokens_per_s)
            self.samples += 1
        _empty(batch)


def _empty(batch: _Batch) -> None:
    batch.tokens, batch.busy_s, batch.quickest_s = 0, 0.0, math.inf


def profiled_requests_per_s(
    pace: Pace, engine: EngineConfig, *, prompt_tokens: float, output_tokens: float, objective: Objective
) -> float:
    """Requests of such a mean size that one node ends in a second when it is full, within the objective's time per
    token.

    In the steady state of n sequences each step makes a token of every one and computes the prompts of those that took
    the places of the ended ones; n is bounded by seats, KV blocks, the step's token budget, and the longest step that
    the objective allows.
    """
    prompt, output = max(1.0, prompt_tokens), max(1.0, output_tokens)
    limits_s = [limit for limit in (objective.tpot_s if output > 1 else None,) if limit is not None]
    if objective.e2e_s is not None:
        limits_s.append(objective.e2e_s / output)
    longest_s = min(limits_s, default=math.inf)
    seats = min(
        engine.max_num_seqs,
        len(pace.step_s) - 1,
        int(engine.num_blocks * engine.tokens_per_block / (prompt + output)),
        int(engine.max_num_batched_tokens / (1.0 + prompt / output)),
    )

    def step_s(sequences: int) -> float:
        new = sequences / output
        # The first token of an answer comes with its prompt and reads nothing.
        read = sequences * (prompt + output / 2.0) * (1.0 - 1.0 / output)
        prefill_s = pace.prefill_s_per_token * prompt + pace.prefill_s_per_token2 * prompt * prompt / 2.0
        return pace.step_s[sequences] + pace.kv_s_per_token * read + prefill_s * new

    low, high = 1, max(1, seats)
    while low < high:
        middle = (low + high + 1) // 2
        if step_s(middle) <= longest_s:
            low = middle
        else:
            high = middle - 1
    return low / (output * step_s(low))


class MeanSizes:
    """Mean sizes of requests, and what they take: plain means at first, then exponential ones."""

    def __init__(self) -> None:
        self.prompt = 0.0
        """Tokens."""
        self.output = 0.0
        """Tokens of whole answers."""
        self.took_s = 0.0
        """From the node's having it to the last token."""
        self.requests = 0
        self.answers = 0

    def came(self, request: RequestCame) -> None:
        """A request has come."""
        self.requests += 1
        self.prompt += max(SIZE_ALPHA, 1.0 / self.requests) * (request.prompt_tokens - self.prompt)

    def done(self, request: RequestDone) -> None:
        """Its answer is whole."""
        self.answers += 1
        alpha = max(SIZE_ALPHA, 1.0 / self.answers)
        self.output += alpha * (request.output_tokens - self.output)
        self.took_s += alpha * (max(0.0, request.e2e_s - request.waited_s) - self.took_s)


def profile_of(fleet: FleetState) -> tuple[Pace, EngineConfig] | None:
    """Pace and limits of the fleet's nodes, of the first that tells them; None where nobody does."""
    for node in fleet.serving:
        if node.view.pace is not None:
            return node.view.pace, node.view.config
    for state in fleet.groups:
        if state.group.pace is not None and state.group.engine is not None:
            return _pace(state.group.pace, state.group.engine.max_num_seqs), state.group.engine
    return None


@functools.lru_cache(maxsize=16)
def _pace(told: NodePace, seats: int) -> Pace:
    return Pace(told, seats)
