"""A vLLM server with all that its API can do, and a gateway before it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.vllm import servers
from tests.vllm.chains import chain
from tests.vllm.parity_cases import ADAPTER, ALIAS, MODEL


@dataclass(frozen=True)
class Fronts:
    """URLs of the server as its clients see it and of the gateway before the same server, and the model's folder."""

    plain: str
    gateway: str
    model: Path


@contextmanager
def fronts(python: str, tiny_model: Path, folder: Path) -> Iterator[Fronts]:
    """The tiny model as one to chat with, an alias and an adapter. With ASTROLABE_PARITY=plain there
    is no gateway: the server stands for it. ASTROLABE_PARITY_MODEL: folder of a real model instead of the tiny one."""
    named = os.environ.get("ASTROLABE_PARITY_MODEL", "")
    model = Path(named).resolve() if named else servers.make_chat_model(python, tiny_model, folder / "model")
    adapter = servers.make_adapter(python, model, folder / "adapter")
    flags = [
        *("--served-model-name", MODEL, ALIAS, "--max-model-len", "2048"),
        *("--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"{ADAPTER}={adapter}"),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        # What the cache holds would tell the second of two equal requests from the first.
        "--no-enable-prefix-caching",
    ]
    # The mode of developers has the routes that must not be reached through a gateway.
    more = {"VLLM_ENABLE_RESPONSES_API_STORE": "1", "VLLM_SERVER_DEV_MODE": "1"}
    server = servers.real_server(python, model, folder, extra=flags, environ=more)
    try:
        server.start().wait_ready()
        if os.environ.get("ASTROLABE_PARITY") == "plain":
            yield Fronts(server.url, server.url, model)
            return
        with chain(server, folder / "chain", gateway={"tokenizer": str(model)}, tokenizer=str(model)) as cluster:
            yield Fronts(server.url, cluster.url, model)
    finally:
        server.stop()
