"""What a daemon makes of the trace of an engine that speculates, or whose layers attend to a sliding window."""

from __future__ import annotations

import msgspec
import pytest

from length_model.core.belief import known
from predictor.core.traced_engine import TracedEngine
from simcore.trace import TraceSnapshot
from simcore.types import Candidate, EngineConfig, RequestState
from tests.helpers.step_time import STEP_TIME

PLAIN = EngineConfig(
    model="m",
    max_num_seqs=8,
    max_num_batched_tokens=64,
    num_blocks=40,
    block_size_tokens=4,
    max_model_len_tokens=128,
    enable_prefix_caching=True,
    prefix_cache_traced=True,
)
DRAFTS = msgspec.structs.replace(PLAIN, num_speculative_tokens=2, num_lookahead_tokens=2)
ENGINES = {
    "drafts": DRAFTS,
    "the last cached block computed anew": msgspec.structs.replace(DRAFTS, drops_cached_block=True),
    "windows": msgspec.structs.replace(PLAIN, kv_windows_tokens=(20, 0), prefix_cache_traced=False),
}


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("rules", ENGINES)
def test_it_is_asked_while_others_run_on_blocks_that_they_share(rules: str, asynchronous: bool) -> None:
    """Those that run hold more blocks together than there are: a snapshot does not say which are the same."""
    config = msgspec.structs.replace(ENGINES[rules], async_scheduling=asynchronous)
    engine = TracedEngine("n", config, STEP_TIME, reservation_ttl_s=30.0)
    running = tuple(
        RequestState(
            request_id=f"r{i}",
            prompt_tokens=80,
            output_tokens=2,
            computed_tokens=81,
            max_output_tokens=20,
            arrival_s=0.0,
        )
        for i in range(4)
    )
    engine.on_snapshot(TraceSnapshot(seq=1, at_s=0.0, config=config, running=running, waiting=(), free_blocks=12), 0.0)
    candidate = Candidate(
        request_id="a", prompt_tokens=20, max_output_tokens=8, belief=known(4), block_hashes=(11, 12, 13, 14, 15)
    )
    for _ in range(2):
        what_if, _ = engine.what_if(0.001, 0.0)
        (forecast,) = what_if.forecast([candidate])
        assert 0 < forecast.ttft_s.p50 < forecast.e2e_s.p50
        # From now on it is a request of the node's that the trace does not show yet.
        engine.dispatched(candidate, 0.001)
        candidate = msgspec.structs.replace(candidate, request_id="b")
