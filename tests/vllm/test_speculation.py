"""A daemon beside a real server that decodes speculatively (n-grams of the prompt and the answer so far)."""

from __future__ import annotations

import json
from pathlib import Path

from protos.v1 import astrolabe_types_pb2 as types_pb
from tests.vllm.chains import ask, chain, forecast, is_quiet, state, tokens_of
from tests.vllm.servers import real_server, until

NGRAMS = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}


def test_a_daemon_follows_a_server_that_decodes_speculatively(
    vllm_python: str, tiny_model: Path, tmp_path: Path
) -> None:
    extra = ["--speculative-config", json.dumps(NGRAMS)]
    server = real_server(vllm_python, tiny_model, tmp_path, extra=extra)
    try:
        server.start().wait_ready()
        with chain(server, tmp_path / "chain") as cluster, cluster.stub() as stub:
            config = state(cluster).config
            assert (config.num_speculative_tokens, config.num_lookahead_tokens) == (3, 0)
            assert not config.outside_rules
            for i in range(3):
                prompt = [(i + k) % 7 for k in range(60)]
                assert len(tokens_of(stub, ask(f"r{i}", prompt, max_tokens=40))) == 40
            until(lambda: is_quiet(cluster, server), what="an idle engine")
            assert server.metric("vllm:spec_decode_num_draft_tokens_total") > 0
            answer = forecast(cluster, prompt_tokens=60, output_tokens=40)
            assert answer.source == types_pb.FORECAST_SOURCE_SIMULATED
    finally:
        server.stop()
