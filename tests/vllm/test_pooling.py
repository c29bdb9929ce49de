"""Embeddings, scores, ranks and classes through a gateway are those of the server behind it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.vllm import servers
from tests.vllm.chains import chain
from tests.vllm.fronts import Fronts
from tests.vllm.parity import Call, differences_from_the_server, send

MODEL = "small"
HELLO = [{"role": "user", "content": "Say hello."}]
TEXTS = ["One.", "Two two two.", "Grüße 🦊"]
KINDS = ("embedder", "judge")
"""A decoder whose last state is the embedding; an encoder with one class, which judges pairs."""


def embedding(**fields: Any) -> Call:
    return Call("/v1/embeddings", {"model": MODEL, "input": "Hello.", **fields})


def pooling(**fields: Any) -> Call:
    return Call("/pooling", {"model": MODEL, "input": "Hello.", **fields})


def ranking(path: str = "/v1/rerank", **fields: Any) -> Call:
    return Call(path, {"model": MODEL, "query": "What is one?", "documents": TEXTS, **fields})


def score(path: str = "/v1/score", **fields: Any) -> Call:
    return Call(path, {"model": MODEL, "text_1": "What is one?", "text_2": TEXTS, **fields})


def classes(**fields: Any) -> Call:
    return Call("/classify", {"model": MODEL, "input": TEXTS, **fields})


CALLS = {
    "embedding of a text": embedding(),
    "embeddings of texts": embedding(input=TEXTS),
    "embedding of ids": embedding(input=[1, 2, 3]),
    "embeddings of lists of ids": embedding(input=[[1, 2, 3], [4, 5]]),
    "embedding of messages": Call("/v1/embeddings", {"model": MODEL, "messages": HELLO}),
    "embedding, base64": embedding(encoding_format="base64"),
    "embedding, bytes": embedding(encoding_format="bytes", embed_dtype="float16", endianness="big"),
    "embedding, bytes alone": embedding(encoding_format="bytes_only"),
    "embedding of an unknown kind": embedding(encoding_format="smell"),
    "embedding of fewer dimensions": embedding(dimensions=32),
    "embedding, cut": embedding(input="word " * 500, truncate_prompt_tokens=16),
    "embedding, without norm": embedding(use_activation=False),
    "embedding of nothing": embedding(input=""),
    "embeddings of no texts": embedding(input=[]),
    "embedding without input": Call("/v1/embeddings", {"model": MODEL}),
    "embedding of too much": embedding(input="word " * 500),
    "embedding without a model": Call("/v1/embeddings", {"input": "Hello."}),
    "embedding by an unknown model": embedding(model="nobody"),
    "embedding with a user and more": embedding(user="ann", priority=0, flavour="vanilla"),
    "embedding with an id": embedding(request_id="mine"),
    "embedding as Cohere has it": Call(
        "/v2/embed",
        {"model": MODEL, "texts": TEXTS, "input_type": "search_document", "embedding_types": ["float"]},
    ),
    "pooling": pooling(),
    "pooling of texts": pooling(input=TEXTS),
    "pooling, embed": pooling(task="embed"),
    "pooling, token_embed": pooling(task="token_embed"),
    "pooling, classify": pooling(task="classify"),
    "pooling, token_classify": pooling(task="token_classify"),
    "pooling of messages": Call("/pooling", {"model": MODEL, "messages": HELLO}),
    "pooling, base64": pooling(encoding_format="base64"),
    "score of texts": score(),
    "score of pairs": score(text_1=TEXTS, text_2=TEXTS),
    "score, older path": score("/score"),
    "score of lists that do not fit": score(text_1=TEXTS[:2]),
    "score as queries and documents": Call("/v1/score", {"model": MODEL, "queries": "a", "documents": TEXTS}),
    "score of too much": score(text_2="word " * 500),
    "ranks": ranking(),
    "ranks, first alone": ranking(top_n=1),
    "ranks, older path": ranking("/rerank"),
    "ranks, newer path": ranking("/v2/rerank"),
    "ranks of nothing": ranking(documents=[]),
    "ranks, cut": ranking(documents=["word " * 500], truncate_prompt_tokens=32),
    "classes": classes(),
    "class of a text": classes(input="One."),
    "class of messages": Call("/classify", {"model": MODEL, "messages": HELLO}),
    "classes, raw": classes(use_activation=False),
    "models": Call("/v1/models", method="GET"),
    "tokens": Call("/tokenize", {"model": MODEL, "prompt": "Hello."}),
    "a chat": Call("/v1/chat/completions", {"model": MODEL, "messages": HELLO, "max_tokens": 3}),
    "a completion": Call("/v1/completions", {"model": MODEL, "prompt": "Once", "max_tokens": 3}),
}
BY_DESIGN = {
    "models": "models belong to the cluster: no paths and permissions of one node",
    "embedding with an id": "the id of an answer that is handed on is the one by which its node knows the request",
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pooled(kind: str, vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fronts]:
    folder = tmp_path_factory.mktemp(kind)
    if kind == "embedder":
        tiny = servers.make_tiny_model(vllm_python, folder / "tiny")
        model = servers.make_chat_model(vllm_python, tiny, folder / "model")
        flags = ["--convert", "embed", "--max-model-len", "512"]
    else:
        model = servers.make_tiny_judge(vllm_python, folder / "model")
        flags = ["--max-model-len", "512", "--max-num-batched-tokens", "1024"]
    flags += ["--runner", "pooling", "--served-model-name", MODEL]
    server = servers.real_server(vllm_python, model, folder, extra=flags)
    try:
        server.start().wait_ready()
        with chain(server, folder / "chain", gateway={"tokenizer": str(model)}, tokenizer=str(model)) as cluster:
            yield Fronts(server.url, cluster.url, model)
    finally:
        server.stop()


@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_text_is_the_server_s_too(pooled: Fronts, kind: str, name: str) -> None:
    plain, through = send(pooled.plain, CALLS[name]), send(pooled.gateway, CALLS[name])
    found = differences_from_the_server(plain, through)
    if name in BY_DESIGN and plain.status == 200:
        assert found, f"take it off the list of what differs: {BY_DESIGN[name]}"
    elif found:
        pytest.fail("\n".join(found), pytrace=False)


def test_each_kind_does_its_own_and_refuses_the_other(pooled: Fronts, kind: str) -> None:
    answered = {name for name in CALLS if send(pooled.gateway, CALLS[name]).status == 200}
    own = {"embedder": {"embedding of a text", "embedding, base64"}, "judge": {"classes", "class of a text"}}
    assert own[kind] <= answered
    assert {"score of texts", "ranks", "tokens"} <= answered
    assert not answered & {"a chat", "a completion", *(n for k, names in own.items() if k != kind for n in names)}
