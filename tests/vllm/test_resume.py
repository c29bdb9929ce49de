"""Two real vLLM servers with one model: a daemon, then a whole server, is killed amid greedy answers, and every token
is the one of an undisturbed run."""

from __future__ import annotations

import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from deploy.local_cluster import LocalCluster
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from tests.vllm.servers import Server, until

TOKENS = 400
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"frequency_penalty": 0.5, "logit_bias": {7: -1.5}},
    {"repetition_penalty": 1.25, "logit_bias": {7: -1.5}},
    {"logprobs": 2},
)
"""Of requests in turn: what another node must take from the answer so far as well."""


class Reader(threading.Thread):
    def __init__(
        self, stub: Any, name: str, prompt: list[int] | str, options: dict[str, Any], tokens: int = TOKENS
    ) -> None:
        super().__init__(daemon=True)
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.node_id = ""
        self.usage = types_pb.Usage()
        self.prompt, self.options, self.wanted = prompt, options, tokens
        sampling = types_pb.SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True, **options)
        request = pb.GenerateRequest(request_id=name, sampling=sampling)
        if isinstance(prompt, str):
            request.text = prompt
        else:
            request.token_ids.ids.extend(prompt)
        self._call = stub.Generate(request, timeout=240.0)

    def run(self) -> None:
        for chunk in self._call:
            self.node_id = chunk.node_id or self.node_id
            self.tokens.extend(chunk.token_ids)
            self.logprobs.extend(one.logprob for one in chunk.logprobs)
            if chunk.HasField("usage"):
                self.usage = chunk.usage


def greedy(
    server: Server, model: str, prompt: list[int] | str, options: dict[str, Any], tokens: int = TOKENS
) -> tuple[list[int], list[float]]:
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, **options}
    choice = server.ask({**body, "return_token_ids": True}, timeout_s=240.0)["choices"][0]
    return choice["token_ids"], (choice["logprobs"] or {}).get("token_logprobs", [])


@pytest.mark.parametrize("victim", ["daemon", "server"])
def test_greedy_answers_go_on_token_for_token(
    pair: tuple[LocalCluster, Server], real_server: Server, tiny_model: Path, victim: str
) -> None:
    cluster, second = pair
    rng = random.Random(5)
    prompts = [[rng.randrange(256) for _ in range(rng.randrange(5, 80))] for _ in range(6)]
    with cluster.stub() as stub:
        # The first answers of a server that is new take a second longer than those of one that has run for a while.
        for server in (real_server, second):
            greedy(server, str(tiny_model), prompts[0], {})
        readers = [Reader(stub, f"{victim}-{i}", prompt, OPTIONS[i % len(OPTIONS)]) for i, prompt in enumerate(prompts)]
        for reader in readers:
            reader.start()

        def under_way() -> bool:
            # Only the victim's count: on a busy machine they are over before the last answer elsewhere has begun.
            mine = [r for r in readers if r.is_alive() and r.node_id == cluster.nodes[1].name]
            return sum(len(r.tokens) >= 20 for r in mine) >= 2

        until(under_way, deadline_s=60.0, what="two answers under way on the node that is killed")
        if victim == "daemon":
            cluster.nodes[1].signal(signal.SIGKILL)
        else:
            second.kill()
        end_s = time.monotonic() + 100.0
        for reader in readers:
            reader.join(max(0.0, end_s - time.monotonic()))
            assert not reader.is_alive(), "an answer did not end"
        told = [stub.Explain(pb.ExplainRequest(request_id=f"{victim}-{i}"), timeout=5.0) for i in range(len(prompts))]
        assert sum(len(t.decisions) > 1 for t in told) >= 2
        for reader in readers:
            tokens, logprobs = greedy(real_server, str(tiny_model), reader.prompt, reader.options)
            assert reader.tokens == tokens
            assert reader.logprobs == pytest.approx(logprobs, abs=1e-3)
            assert (reader.usage.prompt_tokens, reader.usage.output_tokens) == (len(reader.prompt), TOKENS)
