"""Clients that people use, unchanged, get from a gateway what they get from the server behind it.

They are taken from vLLM's environment, which has those of OpenAI and Anthropic; the others from an environment of
their own that ASTROLABE_CLIENTS_PYTHON names:

    python -m venv clients && clients/bin/pip install openai anthropic langchain-openai llama-index-llms-openai-like \\
        litellm instructor
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from typing import Any

import pytest

from tests.vllm.fronts import Fronts
from tests.vllm.parity_cases import MODEL
from tests.vllm.servers import ROOT

CLIENTS = ("openai", "anthropic", "langchain", "llama_index", "litellm", "instructor")


def answers(python: str, client: str, url: str) -> Mapping[str, Any]:
    done = subprocess.run(
        [python, "-W", "ignore", "-m", "tests.vllm.clients_driver", client, url, MODEL],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told: Mapping[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    if "missing" in told:
        pytest.skip(f"{python} has no {told['missing']}: see the head of {__file__}")
    return told


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_gets_the_same_answers(fronts: Fronts, vllm_python: str, client: str) -> None:
    python = os.environ.get("ASTROLABE_CLIENTS_PYTHON", "") or vllm_python
    plain = answers(python, client, fronts.plain)
    through = answers(python, client, fronts.gateway)
    assert plain.keys() == through.keys()
    differing = [f"{k}:\n  server  {plain[k]}\n  gateway {through[k]}" for k in plain if plain[k] != through[k]]
    if differing:
        pytest.fail("\n".join(differing), pytrace=False)
    assert any("error" not in str(answer)[:10] for answer in plain.values()), "the server answers something"


def test_vllm_s_own_benchmark_takes_the_gateway_for_a_server(fronts: Fronts, vllm_python: str) -> None:
    command = [vllm_python, "-m", "vllm.entrypoints.cli.main", "bench", "serve", "--backend", "openai-chat"]
    command += ["--base-url", fronts.gateway, "--endpoint", "/v1/chat/completions", "--model", MODEL]
    command += ["--tokenizer", str(fronts.model), "--dataset-name", "random", "--num-prompts", "12"]
    command += ["--random-input-len", "20", "--random-output-len", "10", "--ignore-eos", "--num-warmups", "1"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    words = done.stdout + done.stderr
    assert done.returncode == 0, words[-3000:]
    told = dict(line.rsplit(":", 1) for line in done.stdout.splitlines() if line.count(":") == 1)
    figures = {name.strip(): value.strip() for name, value in told.items()}
    assert figures["Successful requests"] == "12", words[-3000:]
    assert figures["Failed requests"] == "0", words[-3000:]
    assert figures["Total generated tokens"] == "120", words[-3000:]
