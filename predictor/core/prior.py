"""What is forecast for a node of which nothing is known. Pure."""

from __future__ import annotations

import math

from length_model.core.belief import DEFAULT_PRIOR, truncated
from simcore.cost.step_time import StepTimeModel
from simcore.scenarios import longest_output
from simcore.trace import StepBatch
from simcore.types import Candidate, EngineConfig, Forecast, Quantiles


def unknown_node(node_id: str, config: EngineConfig, step_time: StepTimeModel, candidate: Candidate) -> Forecast:
    """A node of which nothing is known is taken for a full one with as much again in its queue."""
    batch = StepBatch(
        prefill_tokens=max(0, config.max_num_batched_tokens - config.max_num_seqs),
        prefill_seqs=1,
        decode_seqs=config.max_num_seqs,
        decode_kv_tokens=int(config.num_blocks * config.tokens_per_block),
    )
    step_s = step_time.seconds(batch)
    ttft = Quantiles(*(step_s * DEFAULT_PRIOR.mean_tokens * k for k in (1.0, 1.0, 2.0)))
    longest = longest_output(config, candidate.prompt_tokens, candidate.max_output_tokens)
    belief = truncated(candidate.belief, longest)
    return Forecast(
        request_id=candidate.request_id,
        node_id=node_id,
        ttft_s=ttft,
        tpot_s=Quantiles(step_s, step_s, step_s),
        e2e_s=Quantiles(
            ttft.mean + step_s * belief.mean_tokens,
            ttft.p50 + step_s * belief.quantile_tokens(0.5),
            ttft.p90 + step_s * belief.quantile_tokens(0.9),
        ),
        preemptions=1.0,
        kv_headroom_blocks=0,
        harm_s=Quantiles(*(config.max_num_seqs * step_s * k for k in (1.0, 1.0, 2.0))),
        preemption_probability=1.0,
        clear_start_s=ttft,
        trace_seq=0,
        state_age_s=math.inf,
        source="prior",
    )
