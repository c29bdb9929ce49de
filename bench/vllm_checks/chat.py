"""A conversation with a real small model: SmolLM2 on stock vLLM on the CPU, a daemon beside it, a gateway in front.

    python -m bench.vllm_checks.chat [QUESTION ...]

Questions come from the command line, else from the keyboard until its end. Each goes, with what was said before, to the
gateway's `/v1/chat/completions`; the answer is printed as it streams. `make chat` sets up what this needs.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from bench.vllm_checks.server import NO_PROXY, ROOT, Server, free_port
from deploy.local_cluster import ClusterSpec, LocalCluster
from engine_adapters.vllm.launch import server_launch

MODEL = "smollm2"
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}


def server_of(python: str, model: Path, folder: Path) -> Server:
    """Stock vLLM with the trace flag."""
    port = free_port()
    options = ["--served-model-name", MODEL, "--max-model-len", "2048", "--max-num-seqs", "8", "--enforce-eager"]
    launch = server_launch(
        python, model=str(model), host="127.0.0.1", port=port, extra=options, environ={**os.environ, **ENVIRONMENT}
    )
    return Server(launch.command, launch.environment, port=port, folder=folder)


def answer(url: str, messages: Sequence[Mapping[str, str]], max_tokens: int) -> Iterator[str]:
    """The pieces of one streamed answer."""
    body: dict[str, Any] = {"model": MODEL, "messages": messages, "max_tokens": max_tokens, "stream": True}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps({**body, "temperature": 0}).encode(),
        {"Content-Type": "application/json"},
    )
    with NO_PROXY.open(request, timeout=300.0) as stream:
        for line in stream:
            data = line.removeprefix(b"data:").strip()
            if not line.startswith(b"data:") or data == b"[DONE]":
                continue
            for choice in json.loads(data)["choices"]:
                yield choice["delta"].get("content") or ""


@click.command()
@click.argument("questions", nargs=-1)
@click.option("--python", default=lambda: os.environ.get("ASTROLABE_VLLM_PYTHON", ".venv-vllm/bin/python"))
@click.option("--model", type=click.Path(path_type=Path), default=Path("results/smollm2"), show_default=True)
@click.option("--max-tokens", default=200, show_default=True)
def main(questions: tuple[str, ...], python: str, model: Path, max_tokens: int) -> None:
    """Chat with SmolLM2 through the gateway."""
    if not (model / "config.json").exists():
        click.echo(f"writing the model to {model} ...", err=True)
        subprocess.run([python, "-m", "bench.vllm_checks.smollm2", str(model.resolve())], cwd=ROOT, check=True)
    folder = Path(tempfile.mkdtemp(prefix="astrolabe-chat-"))
    server = server_of(python, model.resolve(), folder)
    click.echo(f"starting vLLM (half a minute), a daemon and a gateway; logs: {folder}", err=True)
    server.start()
    tokenizer = str(model.resolve())
    spec = ClusterSpec(
        nodes=1,
        gateway_port=0,
        first_node_port=0,
        predictor={"engine": "vllm", "engine_url": server.url, "tokenizer": tokenizer},
        gateway={"tokenizer": tokenizer},
    )
    try:
        server.wait_ready()
        with LocalCluster(spec, folder) as cluster:
            talk(cluster.url, questions or typed(), max_tokens)
    finally:
        server.stop()


def typed() -> Iterator[str]:
    """Lines from the keyboard, until its end."""
    while True:
        try:
            yield click.prompt("you", prompt_suffix="> ")
        except click.Abort:
            return


def talk(url: str, questions: Sequence[str] | Iterator[str], max_tokens: int) -> None:
    messages: list[dict[str, str]] = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        click.echo(f"\nuser: {question}\nassistant: ", nl=False)
        began_s = time.monotonic()
        pieces: list[str] = []
        for piece in answer(url, messages, max_tokens):
            click.echo(piece, nl=False)
            pieces.append(piece)
        click.echo(f"\n({time.monotonic() - began_s:.1f} s)", err=True)
        messages.append({"role": "assistant", "content": "".join(pieces)})


if __name__ == "__main__":
    main()
