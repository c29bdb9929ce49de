"""The emulated engine's bodies and answers against vLLM's own protocol models."""

from __future__ import annotations

import json
import random
import subprocess
from typing import Any

import pytest

from engine_adapters.emulated_api.json_values import made_up
from tests.helpers.emulated_calls import emulated_caller
from tests.helpers.emulated_samples import REFUSED, SAMPLES, SCHEMAS
from tests.vllm.servers import ROOT

WHOLE = {"chat", "completion", "embeddings", "pooling", "classes", "scores", "ranks", "tokens", "detokenized", "models"}
"""Answers that vLLM writes with every field of its model."""

LIBRARY = {
    "message": "anthropic.Message",
    "message event": "anthropic.RawMessageStreamEvent",
    "message count": "anthropic.MessageTokensCount",
}


def judged(python: str, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [python, "-m", "tests.vllm.protocol_driver"],
        cwd=ROOT,
        input="".join(json.dumps(line) + "\n" for line in lines),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"error"')]


@pytest.mark.timeout(600)
async def test_bodies_and_answers_are_those_of_vllm(vllm_python: str) -> None:
    asked: list[tuple[str, bool, dict[str, Any]]] = []
    async with emulated_caller() as caller:
        for sample in SAMPLES:
            what = f"{sample.path} {json.dumps(sample.body)}"
            answered = await caller.call(sample.path, sample.body)
            assert answered.status == 200, (what, answered.body)
            if sample.request != "PoolingCall":
                asked.append((what, True, {"kind": sample.request, "tree": sample.body, "body": True}))
            trees = answered.events() if sample.body.get("stream") else [answered.json()]
            whole = sample.answer in WHOLE
            heard = [tree for tree in trees if tree != "[DONE]"]
            asked += [(what, True, {"kind": sample.answer, "tree": tree, "whole": whole}) for tree in heard]
            if library := LIBRARY.get(sample.answer):
                asked += [(what, True, {"kind": library, "tree": {"stop_sequence": None, **tree}}) for tree in heard]
        models = (await caller.get("/v1/models")).json()
        asked.append(("/v1/models", True, {"kind": "models", "tree": models, "whole": True}))
        for sample in REFUSED:
            what = f"{sample.path} {json.dumps(sample.body)}"
            answered = await caller.call(sample.path, sample.body)
            assert answered.status in (400, 404), (what, answered.body)
            asked.append((what, True, {"kind": sample.answer, "tree": answered.json(), "whole": True}))
            if sample.request:
                asked.append((what, False, {"kind": sample.request, "tree": sample.body, "body": True}))
    seed = 11
    for schema in SCHEMAS:
        rng = random.Random(seed)
        asked += [(f"seed {seed}", True, {"kind": "schema", "tree": [schema, made_up(schema, rng)]}) for _ in range(30)]
    said = judged(vllm_python, [line for _, _, line in asked])
    assert len(said) == len(asked)
    wrong = [
        (what, line["kind"], answer)
        for (what, good, line), answer in zip(asked, said, strict=True)
        if good != (not answer["error"]) or answer["lost"]
    ]
    assert wrong == [], json.dumps(wrong[:10], indent=1)
