"""The official client libraries' own types take what the emulated engine answers."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from pydantic import TypeAdapter

from tests.helpers.emulated_calls import emulated_caller
from tests.helpers.emulated_samples import SAMPLES, Sample

TYPES = {
    "chat": ("openai.types.chat", "ChatCompletion"),
    "chat chunk": ("openai.types.chat", "ChatCompletionChunk"),
    "completion": ("openai.types", "Completion"),
    "completion chunk": ("openai.types", "Completion"),
    "response": ("openai.types.responses", "Response"),
    "response event": ("openai.types.responses", "ResponseStreamEvent"),
    "embeddings": ("openai.types", "CreateEmbeddingResponse"),
    "message": ("anthropic.types", "Message"),
    "message event": ("anthropic.types", "RawMessageStreamEvent"),
    "message count": ("anthropic.types", "MessageTokensCount"),
}


def adapter_of(answer: str) -> TypeAdapter[Any]:
    module, name = TYPES[answer]
    package = module.partition(".")[0]
    pytest.importorskip(package, reason=f"the client library {package} is not in this environment")
    return TypeAdapter(getattr(importlib.import_module(module), name))


def without_what_only_vllm_leaves_out(sample: Sample, tree: dict[str, Any]) -> dict[str, Any]:
    """vLLM leaves fields open that the libraries' types want; their clients do not mind."""
    for choice in tree.get("choices", ()):
        if sample.answer.startswith("completion"):
            # null before the end; the library's type has no null.
            choice["finish_reason"] = choice["finish_reason"] or "stop"
            if choice["logprobs"]:
                # The first token of all has no probability.
                choice["logprobs"] = None
    if sample.answer == "message":
        tree.setdefault("stop_sequence", None)
    return tree


@pytest.mark.parametrize("answer", TYPES)
async def test_the_types_of_the_libraries_take_the_answers(answer: str) -> None:
    adapter = adapter_of(answer)
    samples = [s for s in SAMPLES if s.answer == answer and s.body.get("encoding_format") != "base64"]
    assert samples
    async with emulated_caller() as caller:
        for sample in samples:
            answered = await caller.call(sample.path, sample.body)
            trees = answered.events() if sample.body.get("stream") else [answered.json()]
            for tree in trees:
                if tree != "[DONE]":
                    adapter.validate_python(without_what_only_vllm_leaves_out(sample, tree))
