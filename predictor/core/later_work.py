"""What later arrivals cost those who are already there. Pure.

A what-if holds the requests of now. One that comes later puts its prompt into steps that would have only decoded, and
makes every step after that a little longer: on long prompts this is most of what a forecast misses, and none of it is
the forecast's fault. A node knows what came while a request ran, so it can tell the one from the other afterwards.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

from simcore.cost.step_time import StepTimeModel
from simcore.types import EngineConfig


class DelayCost(NamedTuple):
    """What one request costs each other one of its engine."""

    prefill_s: float = 0.0
    """Seconds by which its prompt prolongs steps, once."""
    step_s: float = 0.0
    """Seconds by which it prolongs every step in which it decodes."""


NO_COST = DelayCost()


def cost_of(step_time: StepTimeModel, config: EngineConfig, *, prompt_tokens: int, cached_tokens: int) -> DelayCost:
    """The cost of a prompt of which `cached_tokens` need not be computed, on an engine that decodes all the while."""
    fresh_tokens = max(prompt_tokens - cached_tokens, 1)
    whole, rest_tokens = divmod(fresh_tokens, config.max_num_batched_tokens)
    chunks_s = whole * _chunk_s(step_time, config.max_num_batched_tokens) + _chunk_s(step_time, rest_tokens)
    attention_s = step_time.prefill_work_s_per_token2 * fresh_tokens * (prompt_tokens - 0.5 * fresh_tokens)
    step_s = step_time.per_seq_s + step_time.decode_kv_s_per_token * prompt_tokens
    return DelayCost(max(0.0, chunks_s + attention_s), step_s)


def _chunk_s(step_time: StepTimeModel, tokens: int) -> float:
    """By how much more tokens in a step take than hardly any: `simcore.cost.step_time.dense_seconds` without the call
    into compiled code, which costs more than the bisection."""
    knots, seconds = step_time.dense_knots_tokens, step_time.dense_knots_s
    if tokens <= knots[0]:
        return 0.0
    i = min(bisect_left(knots, tokens), len(knots) - 1)
    share = (tokens - knots[i - 1]) / (knots[i] - knots[i - 1])
    return seconds[i - 1] + share * (seconds[i] - seconds[i - 1]) - seconds[0]


class WorkSoFar(NamedTuple):
    """The work of all that have come up to a moment. All start at 0."""

    prefill_s: float = 0.0
    step_s: float = 0.0
    step_moments_s2: float = 0.0
    """Sum of `step_s` times the moment of its arrival."""

    def and_of(self, cost: DelayCost, now_s: float) -> WorkSoFar:
        """With one more that comes now."""
        return WorkSoFar(
            self.prefill_s + cost.prefill_s, self.step_s + cost.step_s, self.step_moments_s2 + cost.step_s * now_s
        )

    def prefill_since_s(self, before: WorkSoFar) -> float:
        """Seconds that the prompts of those took that came after `before`."""
        return self.prefill_s - before.prefill_s

    def decode_since_s(self, before: WorkSoFar, now_s: float, step_s: float) -> float:
        """Seconds that they can have taken by decoding until now in steps of `step_s`, if none has ended."""
        overlap_s2 = (self.step_s - before.step_s) * now_s - (self.step_moments_s2 - before.step_moments_s2)
        return max(0.0, overlap_s2 / step_s)
