"""Prompts that are read and not answered: embeddings, pooling, classes, scores, ranks. One prefill each."""

from __future__ import annotations

import base64
import random
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from engine_adapters.emulated_answer import mix, rolling
from engine_adapters.emulated_api.api_call import ApiCall
from engine_adapters.emulated_api.bodies import PoolingCall, Prompts, RerankCall, ScoreCall, Text
from engine_adapters.emulated_api.chat import whole_usage
from engine_adapters.emulated_api.errors import ApiError, invalid, refused
from engine_adapters.emulated_api.prompts import content_text, conversation, fitting, prompt_list

DIMENSIONS = 64
"""Numbers of an embedding, where the call does not say."""
CLASSES = ("negative", "positive")

Prompt = tuple[int, ...]


def embed(call: ApiCall) -> None:
    """`/v1/embeddings`: vectors of length 1, the same for the same tokens. Raises ApiError."""
    body, model, prompts = _read(call)
    encode = _encoder(body.encoding_format)

    def entry(index: int, prompt: Prompt) -> dict[str, Any]:
        vector = _vector(prompt, body.dimensions or DIMENSIONS)
        return {"index": index, "object": "embedding", "embedding": encode(vector)}

    _list_of(call, "embeddings", call.answer_id("embd"), model, prompts, entry)


def pool(call: ApiCall) -> None:
    """`/pooling`: a vector for each token, or one for all (task `embed`, `classify`). Raises ApiError."""
    body, model, prompts = _read(call)
    encode = _encoder(body.encoding_format)
    per_token = body.task in (None, "token_embed", "token_classify")

    def entry(index: int, prompt: Prompt) -> dict[str, Any]:
        size = body.dimensions or DIMENSIONS
        if not per_token:
            return {"index": index, "object": "pooling", "data": encode(_vector(prompt, size))}
        vectors = [_vector((token,), size) for token in prompt]
        data = vectors if body.encoding_format == "float" else encode([x for vector in vectors for x in vector])
        return {"index": index, "object": "pooling", "data": data}

    _list_of(call, "pooling", call.answer_id("pool"), model, prompts, entry)


def classify(call: ApiCall) -> None:
    """`/classify`. Raises ApiError."""
    _, model, prompts = _read(call)

    def entry(index: int, prompt: Prompt) -> dict[str, Any]:
        second = _share(prompt)
        label = CLASSES[second > 0.5]
        return {"index": index, "label": label, "probs": [1.0 - second, second], "num_classes": len(CLASSES)}

    _list_of(call, "classes", call.answer_id("classify"), model, prompts, entry)


def score(call: ApiCall) -> None:
    """`/score`: one text with many, or pairs. Raises ApiError."""
    body = call.read(ScoreCall)
    model = call.model(body.model)
    sides = ((body.queries, body.documents), (body.queries, body.items), (body.data_1, body.data_2))
    pair = next(((a, b) for a, b in (*sides, (body.text_1, body.text_2)) if a is not None and b is not None), None)
    if pair is None:
        raise invalid("Field required", "body.queries", kind="missing")
    firsts, seconds = (_texts(side, model) for side in pair)
    if len(firsts) != 1 and len(firsts) != len(seconds):
        raise ApiError("Input lengths must be either 1:1, 1:N or N:N")
    if not seconds:
        raise ApiError("At least one text_pair element must be given")
    prompts = _pairs(call, firsts * len(seconds) if len(firsts) == 1 else firsts, seconds)

    def entry(index: int, prompt: Prompt) -> dict[str, Any]:
        return {"index": index, "object": "score", "score": _share(prompt)}

    _list_of(call, "scores", call.answer_id("score"), model, prompts, entry)


def rerank(call: ApiCall) -> None:
    """`/rerank`: the documents, best first. Raises ApiError."""
    body = call.read(RerankCall)
    model = call.model(body.model)
    documents = body.documents if isinstance(body.documents, list) else [body.documents]
    texts = _texts(body.documents, model)
    if not texts:
        raise ApiError("At least one document must be given")
    prompts = _pairs(call, _texts(body.query, model) * len(texts), texts)
    answer_id = call.answer_id("rerank")

    def done() -> None:
        results: list[dict[str, Any]] = [
            {"index": i, "document": _document(documents[i], text), "relevance_score": _share(prompts[i])}
            for i, text in enumerate(texts)
        ]
        results.sort(key=lambda result: -result["relevance_score"])
        taken = call.work.prompt_tokens
        call.answer(
            "ranks",
            {
                "id": answer_id,
                "model": model,
                "usage": {"prompt_tokens": taken, "total_tokens": taken},
                "results": results[: body.top_n or len(results)],
            },
        )

    call.compute(prompts, done)


def _read(call: ApiCall) -> tuple[PoolingCall, str, list[Prompt]]:
    body = call.read(PoolingCall)
    model = call.model(body.model)
    given = body.messages if body.messages is not None else body.input
    if given is None:
        raise invalid("Field required", "body.input", kind="missing")
    prompts: list[Prompt]
    if isinstance(given, list) and given and isinstance(given[0], dict):
        prompts = [conversation([m for m in given if isinstance(m, dict)], call.tokenizer, model)]
    else:
        plain: Prompts = given if isinstance(given, str) else [p for p in given if not isinstance(p, dict)]
        prompts = prompt_list(plain, call.tokenizer)
    cut = body.truncate_prompt_tokens
    return body, model, [fitting(p, call.config, max_tokens=None, truncate=cut)[0] for p in prompts]


def _list_of(
    call: ApiCall,
    kind: str,
    answer_id: str,
    model: str,
    prompts: Sequence[Prompt],
    entry: Callable[[int, Prompt], dict[str, Any]],
) -> None:
    def done() -> None:
        taken = call.work.prompt_tokens
        data = [entry(index, prompt) for index, prompt in enumerate(prompts)]
        usage = whole_usage(taken, 0)
        call.answer(
            kind,
            {
                "id": answer_id,
                "object": "list",
                "created": call.created,
                "model": model,
                "data": data,
                "usage": usage,
            },
        )

    call.compute(prompts, done)


def _texts(side: Text | list[Text], model: str) -> list[str]:
    texts = side if isinstance(side, list) else [side]
    return [t if isinstance(t, str) else content_text(t.get("content", t), model) for t in texts]


def _pairs(call: ApiCall, firsts: Sequence[str], seconds: Sequence[str]) -> list[Prompt]:
    encode = call.tokenizer.encode
    pairs = zip(firsts, seconds, strict=True)
    return [fitting((*encode(a), *encode(b)), call.config, max_tokens=None)[0] for a, b in pairs]


def _document(document: Text, text: str) -> dict[str, Any]:
    if isinstance(document, str):
        return {"text": text, "multi_modal": None}
    return {"text": None, "multi_modal": document.get("content", [])}


def _encoder(encoding: str) -> Callable[[list[float]], Any]:
    if encoding == "float":
        return list
    if encoding == "base64":
        return lambda vector: base64.b64encode(array("f", vector).tobytes()).decode()
    raise refused(f"encoding_format {encoding!r} is not one of an emulated engine: float, base64", "encoding_format")


def _vector(prompt: Sequence[int], size: int) -> list[float]:
    rng = random.Random(mix(rolling(prompt)))
    raw = [rng.gauss(0.0, 1.0) for _ in range(size)]
    length = sum(x * x for x in raw) ** 0.5
    return [x / length for x in raw]


def _share(prompt: Sequence[int]) -> float:
    """A number between 0 and 1, the same for the same tokens."""
    return (mix(rolling(prompt)) >> 11) / (1 << 53)
