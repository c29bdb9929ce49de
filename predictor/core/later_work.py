"""What later arrivals cost those who are already there. Pure.

A what-if holds the requests of now. One that comes later puts its prompt into steps that would have only decoded, and
makes every step after that a little longer: on long prompts this is most of what a forecast misses, and none of it is
the forecast's fault. A node knows what came while a request ran, so it can tell the one from the other afterwards
(`WorkSoFar`); and what gateways say that will come tells something beforehand (`LaterWork`).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import NamedTuple

from simcore.cost.step_time import StepTimeModel
from simcore.types import EngineConfig, ExpectedWork

LARGEST_SHARE = 0.8
"""Of its time that a node can spend on prompts for long."""
LARGEST_GROWTH = 1.0
"""By which steps grow at most while a request decodes, as a share: others end meanwhile."""
Z90 = 1.2816
"""A normal variable is above it once in ten times."""


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


class LaterWork(NamedTuple):
    """What is going to come, as it slows down those who are there: prompts of one size at random moments, which have
    together the mean and the variance of what is expected."""

    requests_per_s: float = 0.0
    prompts_per_s: float = 0.0
    prompt_s: float = 0.0
    """By which each prolongs steps, once."""
    growth_per_s: float = 0.0
    """Seconds by which a step grows in each second that goes by."""

    def growths(self, decode_s: float, step_s: float) -> tuple[float, float]:
        """By how much a decoding of `decode_s` in steps of `step_s` takes longer: logarithms of the median's and the
        90th percentile's factor.

        The work of the prompts that come meanwhile is near enough a gamma variable; its quantiles by Wilson and
        Hilferty (1931). Of few long prompts the median is none at all, and the mean says little.
        """
        if decode_s <= 0.0 or step_s <= 0.0:
            return 0.0, 0.0
        slowed = min(0.5 * self.growth_per_s * decode_s / step_s, LARGEST_GROWTH)
        count = self.prompts_per_s * decode_s
        share = self.prompt_s / decode_s
        return math.log1p(share * _quantile(count, 0.0) + slowed), math.log1p(share * _quantile(count, Z90) + slowed)


NO_LATER_WORK = LaterWork()


def later_of(expected: ExpectedWork, step_time: StepTimeModel, config: EngineConfig) -> LaterWork:
    """What this costs on an engine with these step times."""
    requests_per_s, tokens_per_s, tokens2_per_s = expected.rates
    if requests_per_s <= 0.0:
        return NO_LATER_WORK
    mean_tokens = max(1, round(min(tokens_per_s / requests_per_s, config.max_model_len_tokens)))
    step_s = cost_of(step_time, config, prompt_tokens=mean_tokens, cached_tokens=0).step_s
    prompts_per_s = prompt_s = 0.0
    if tokens_per_s > 0.0:
        typical_tokens = min(max(tokens2_per_s / tokens_per_s, mean_tokens), config.max_model_len_tokens)
        prompt_s = cost_of(step_time, config, prompt_tokens=max(1, round(typical_tokens)), cached_tokens=0).prefill_s
        prompts_per_s = tokens_per_s / typical_tokens
        if prompts_per_s * prompt_s > LARGEST_SHARE:
            prompts_per_s = LARGEST_SHARE / prompt_s
    return LaterWork(requests_per_s, prompts_per_s, prompt_s, requests_per_s * step_s)


def _quantile(count: float, z: float) -> float:
    """Of a gamma variable of mean and variance `count`."""
    if count < 1e-9:
        return 0.0
    root = 1.0 - 1.0 / (9.0 * count) + z / (3.0 * math.sqrt(count))
    return count * max(0.0, root) ** 3
