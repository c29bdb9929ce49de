"""The HTTP front of a real cluster, through the client that everybody has: the `openai` package."""

from __future__ import annotations

import concurrent.futures
import threading
from typing import Any

import openai
import pytest

from deploy.local_cluster import LocalCluster
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from tests.e2e.cluster import MakeCluster, is_idle, listed, until

pytestmark = pytest.mark.e2e
MODEL = "llama-2-7b"


def test_the_openai_client_finds_what_it_knows(make_cluster: MakeCluster) -> None:
    """One cluster, many looks at it: starting processes is what costs."""
    cluster = make_cluster(nodes=2, gateway={"policy": "least_requests"})
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as client:
        assert [m.id for m in client.models.list()] == [MODEL]
        _answers_are_the_same_however_they_are_asked_for(cluster, client)
        _chats_stream_and_count(client)
        _what_the_gateway_does_not_understand_is_the_engines(client)
        _errors_are_of_the_clients_own_kinds(client)
        _extensions_pass(client)
        _clients_that_leave_leave_nothing_behind(cluster, client)


def _answers_are_the_same_however_they_are_asked_for(cluster: LocalCluster, client: openai.OpenAI) -> None:
    """The emulated engine answers a prompt always alike: plain, streamed, by token ids and over gRPC."""
    plain = client.completions.create(model=MODEL, prompt="hello there", max_tokens=20)
    assert plain.usage is not None
    assert plain.usage.completion_tokens == len(plain.choices[0].text) <= 20
    pieces = list(client.completions.create(model=MODEL, prompt="hello there", max_tokens=20, stream=True))
    assert "".join(p.choices[0].text for p in pieces) == plain.choices[0].text
    assert pieces[-1].choices[0].finish_reason == plain.choices[0].finish_reason
    by_ids = client.completions.create(model=MODEL, prompt=list(b"hello there"), max_tokens=20)
    assert by_ids.choices[0].text == plain.choices[0].text
    with cluster.stub() as stub:
        sampling = types_pb.SamplingParams(max_tokens=20)
        chunks = list(stub.Generate(pb.GenerateRequest(text="hello there", sampling=sampling), timeout=30))
    assert "".join(c.text for c in chunks) == plain.choices[0].text
    stop = plain.choices[0].text[3:5]
    stopped = client.completions.create(model=MODEL, prompt="hello there", max_tokens=20, stop=[stop, "never"])
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].text == plain.choices[0].text.partition(stop)[0]


def _chats_stream_and_count(client: openai.OpenAI) -> None:
    asked: Any = [{"role": "user", "content": "Why is the sky blue?"}]
    plain = client.chat.completions.create(model=MODEL, messages=asked, max_completion_tokens=12)
    assert plain.choices[0].message.role == "assistant"
    assert plain.usage is not None
    stream = client.chat.completions.create(
        model=MODEL,
        messages=asked,
        max_completion_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    pieces = list(stream)
    text = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
    assert text == plain.choices[0].message.content
    streamed = pieces[-1].usage
    assert streamed is not None
    assert plain.usage.prompt_tokens_details is not None
    assert streamed.prompt_tokens_details is not None
    # The same prompt again: whole blocks of it are cached.
    assert plain.usage.prompt_tokens_details.cached_tokens == 0
    assert streamed.prompt_tokens_details.cached_tokens == (plain.usage.prompt_tokens - 1) // 16 * 16
    assert streamed.total_tokens == plain.usage.total_tokens
    assert streamed.completion_tokens == plain.usage.completion_tokens


def _what_the_gateway_does_not_understand_is_the_engines(client: openai.OpenAI) -> None:
    several = client.completions.create(model=MODEL, prompt=["x", "y"], n=3, max_tokens=4, logprobs=1)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3, 4, 5]
    assert all(choice.logprobs is not None for choice in several.choices)
    vector = client.embeddings.create(model=MODEL, input="x", encoding_format="float").data[0].embedding
    assert len(vector) > 1


def _errors_are_of_the_clients_own_kinds(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature") as caught:
        client.completions.create(model=MODEL, prompt="x", temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="2048"):
        client.completions.create(model=MODEL, prompt="x" * 2048)
    with pytest.raises(openai.APIStatusError, match="gpt-9"):
        client.completions.create(model="gpt-9", prompt="x")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def _extensions_pass(client: openai.OpenAI) -> None:
    reply = client.completions.with_raw_response.create(
        model=MODEL,
        prompt="hello",
        max_tokens=5,
        extra_headers={"x-request-id": "mine", "x-session-id": "s"},
        extra_body={
            "ignore_eos": True,
            "policy": "session",
            "slo": {"ttft_s": 5, "deadline_s": 30},
            "priority": 2,
            "resume": "best_effort",
            "belief_tokens": [5],
            "return_token_ids": True,
        },
    )
    assert reply.headers["x-request-id"] == "mine"
    assert reply.headers["x-astrolabe-node"].startswith("node-")
    choice = reply.parse().choices[0]
    assert bytes(choice.token_ids).decode() == choice.text  # type: ignore[attr-defined]


def _clients_that_leave_leave_nothing_behind(cluster: LocalCluster, client: openai.OpenAI) -> None:
    """They leave in the middle of their answers, many at a time."""
    gate = threading.Semaphore(64)

    def leave(number: int) -> None:
        with gate:
            stream = client.completions.create(
                model=MODEL, prompt=f"number {number}", max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
            )
            for _ in range(number % 3):
                next(iter(stream))
            stream.close()

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        list(pool.map(leave, range(200)))
    with cluster.stub() as stub:
        until(lambda: is_idle(stub), what="no request in any account or engine")
        assert all(n.in_flight == 0 for n in listed(stub).values())
