"""What a forecast says of the prefix cache, against what vLLM itself then counts, through gateway and daemon."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from tests.vllm.chains import ask, chain, is_quiet, state
from tests.vllm.servers import Server, until

PATIENT = {"forecast_timeout_ms": 2000.0}
"""On a busy machine a forecast may come too late for the default."""


def cached(stub: Any, asked: pb.GenerateRequest) -> tuple[int, int]:
    """(tokens that the forecast at dispatch took to be cached, tokens that vLLM found in its cache)."""
    usage: types_pb.Usage | None = None
    for chunk in stub.Generate(asked, timeout=60.0):
        if chunk.HasField("usage"):
            usage = chunk.usage
    assert usage is not None
    decision = stub.Explain(pb.ExplainRequest(request_id=asked.request_id), timeout=10.0).decisions[-1]
    score = next(s for s in decision.scores if s.node_id == decision.node_id)
    assert score.HasField("forecast"), decision
    return score.forecast.cached_tokens, usage.cached_tokens


def test_a_forecast_knows_what_vllm_will_find_in_its_prefix_cache(real_server: Server, tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    print(f"seed {seed}")  # noqa: T201

    def words(count: int) -> list[int]:
        return [rng.randrange(256) for _ in range(count)]

    first = words(200)
    block = 0
    with chain(real_server, tmp_path / "one", gateway=PATIENT) as cluster, cluster.stub() as stub:
        config = state(cluster).config
        assert config.prefix_cache_traced
        block = config.block_size_tokens

        def seen(name: str, prompt: list[int]) -> tuple[int, int]:
            until(lambda: is_quiet(cluster, real_server), what="an idle engine")
            return cached(stub, ask(name, prompt, max_tokens=20))

        known = (len(first) - 1) // block * block
        assert seen("new", first) == (0, 0)
        assert seen("same", first) == (known, known)
        assert seen("longer", first + words(50)) == (known, known)
        assert seen("half", first[:100] + words(100)) == (100 // block * block,) * 2
        assert seen("other", words(200)) == (0, 0)
        for i in range(10):
            prompt = first[: rng.randrange(1, 200)] + words(rng.randrange(1, 100))
            forecast, found = seen(f"random-{i}", prompt)
            assert forecast == found, f"seed {seed}, prompt of {len(prompt)} tokens"
    # A daemon that starts later is told the whole content.
    with chain(real_server, tmp_path / "two", gateway=PATIENT) as cluster, cluster.stub() as stub:
        forecast, found = cached(stub, ask("again", first, max_tokens=5))
        assert forecast == found == (len(first) - 1) // block * block
