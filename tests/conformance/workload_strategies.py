"""Hypothesis strategies for workloads: small, so that a failure shrinks to something one can read."""

from __future__ import annotations

from hypothesis import strategies as st

from simcore.drafts import DraftOdds
from simcore.types import EngineConfig
from tests.conformance.scheduler_workloads import Actions, OracleRequest, Workload


@st.composite
def configs(draw: st.DrawFn) -> EngineConfig:
    seqs = draw(st.sampled_from((1, 2, 3, 8, 64)))
    # vLLM fails where its prefill threshold is below the tokens of a step with all drafts.
    drafts = draw(st.sampled_from((0, 0, 1, 2)))
    lookahead = draw(st.sampled_from((0, drafts)))
    return EngineConfig(
        model="m",
        max_num_seqs=seqs,
        max_num_batched_tokens=max(seqs, draw(st.sampled_from((4, 16, 64, 512)))),
        block_size_tokens=draw(st.sampled_from((1, 4, 16))),
        num_blocks=draw(st.integers(6, 60)) + 2 * drafts + lookahead,
        max_model_len_tokens=draw(st.sampled_from((40, 200, 1000))),
        long_prefill_token_threshold_tokens=draw(st.sampled_from((0, 0, 3, 20))),
        long_prefill_adaptive=draw(st.booleans()),
        enable_prefix_caching=draw(st.booleans()),
        scheduling_policy=draw(st.sampled_from(("fcfs", "fcfs", "priority"))),
        async_scheduling=draw(st.booleans()),
        max_loras=draw(st.sampled_from((0, 0, 1, 2))),
        kv_windows_tokens=(0,) if drafts else draw(st.sampled_from(((0,), (0,), (5,), (17, 0), (0, 30, 30)))),
        engine_version=draw(st.sampled_from(("", "0.32.0"))),
        num_speculative_tokens=drafts,
        num_lookahead_tokens=lookahead,
        drops_cached_block=lookahead > 0 and draw(st.booleans()),
    )


@st.composite
def workloads(draw: st.DrawFn, *, shared_prefixes: bool = False) -> Workload:
    config = draw(configs())
    drafts = config.num_speculative_tokens
    longest = config.longest_tokens
    actions: dict[int, Actions] = {}
    n = 0
    for step in draw(st.lists(st.integers(0, 30), max_size=12, unique=True)):
        arrivals = []
        for _ in range(draw(st.integers(0, 3))):
            prompt = draw(st.integers(1, longest - 1))
            output = draw(st.integers(1, min(60, longest - prompt)))
            shared = draw(st.sampled_from((0, 3, 17, 500))) if shared_prefixes else 0
            arrivals.append(
                OracleRequest(
                    request_id=f"r{n}",
                    prompt_tokens=prompt,
                    output_tokens=output,
                    max_output_tokens=draw(st.sampled_from((0, 0, output + 1, longest))),
                    priority=draw(st.integers(0, 2)),
                    shared_prefix=draw(st.sampled_from(("g1", "g2"))) if shared else "",
                    shared_tokens=shared,
                    adapter=draw(st.sampled_from(("", "a", "b", "c"))) if config.max_loras else "",
                )
            )
            n += 1
        aborts = draw(st.lists(st.integers(0, max(0, n - 1)), max_size=1))
        actions[step] = Actions(tuple(arrivals), tuple(f"r{i}" for i in aborts))
    odds = None
    if drafts:
        lines = [(n, right) for n in range(drafts + 1) for right in range(n + 1)]
        if config.async_scheduling:
            lines = lines[-drafts - 1 :]
        weights = draw(st.lists(st.integers(0, 3), min_size=len(lines), max_size=len(lines)).filter(any))
        odds = DraftOdds(tuple((*line, float(weight)) for line, weight in zip(lines, weights, strict=True)))
    return Workload(seed=0, config=config, actions=dict(sorted(actions.items())), draft_odds=odds)
