"""`astrolabe request`: one prompt, the answer as it comes, then a summary."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from deploy.gateway_client import dispatch_stub, gateway_option
from protos.runtime.options import json_option

if TYPE_CHECKING:
    from protos.v1 import astrolabe_dispatch_pb2 as pb


@click.command(
    epilog="""\b
Example: one question, at most 64 tokens of answer.
  astrolabe request "Why is the sky blue?" --max-tokens 64

\b
Example: the prompt from standard input, the answer for a machine.
  cat prompt.txt | astrolabe request - --json
"""
)
@click.argument("prompt")
@click.option("--max-tokens", type=int, metavar="N", help="Limit on the answer. [default: what the context leaves]")
@click.option("--model", default="", metavar="NAME", help="Model to serve it. [default: the only one]")
@click.option(
    "--policy", default="", metavar="NAME", help="Placement policy for this request. [default: the gateway's]"
)
@click.option("--priority", type=int, default=0, show_default=True, help="Smaller runs first.")
@click.option("--temperature", type=float, metavar="T", help="0 is greedy. [default: the engine's]")
@click.option("--deadline-s", type=click.FloatRange(min=0, min_open=True), metavar="S", help="Give up after that long.")
@click.option("--request-id", default="", metavar="ID", help="Id for logs and explain. [default: made up]")
@gateway_option
@json_option
def request(prompt: str, gateway: str, as_json: bool, deadline_s: float | None, **options: Any) -> None:
    """Send PROMPT (- reads standard input) and print the answer as it streams, then where and how fast it ran."""
    from protos.v1 import astrolabe_types_pb2 as types_pb

    message = _message(sys.stdin.read() if prompt == "-" else prompt, **options)
    text: list[str] = []
    first: pb.GenerateChunk | None = None
    last: pb.GenerateChunk | None = None
    ttft_s = None
    started_s = time.monotonic()
    with dispatch_stub(gateway, deadline_s=deadline_s) as stub:
        for chunk in stub.Generate(message, timeout=deadline_s):
            first = first or chunk
            last = chunk
            if ttft_s is None and chunk.token_ids:
                ttft_s = time.monotonic() - started_s
            text.append(chunk.text)
            if not as_json:
                click.echo(chunk.text, nl=False)
    e2e_s = time.monotonic() - started_s
    if first is None or last is None:
        raise click.ClickException(f"the gateway at {gateway} ended the answer without a word; see its log")
    outcome = types_pb.Outcome.Name(last.outcome).removeprefix("OUTCOME_").lower()
    summary = {
        "request_id": first.request_id,
        "node": first.node_id,
        "outcome": outcome,
        "ttft_s": ttft_s,
        "e2e_s": e2e_s,
        "prompt_tokens": last.usage.prompt_tokens,
        "output_tokens": last.usage.output_tokens,
    }
    if as_json:
        import orjson

        click.echo(orjson.dumps({**summary, "text": "".join(text)}))
        return
    click.echo()
    click.echo(
        f"-- begun at {first.node_id}: first token after {ttft_s or 0:.3f} s, {last.usage.output_tokens} tokens in "
        f"{e2e_s:.3f} s ({outcome}); prompt {last.usage.prompt_tokens} tokens; astrolabe explain {first.request_id}",
        err=True,
    )


def _message(
    text: str,
    *,
    max_tokens: int | None,
    temperature: float | None,
    model: str,
    policy: str,
    priority: int,
    request_id: str,
) -> pb.GenerateRequest:
    from protos.v1 import astrolabe_dispatch_pb2 as pb
    from protos.v1 import astrolabe_types_pb2 as types_pb

    return pb.GenerateRequest(
        request_id=request_id,
        model=model,
        text=text,
        policy=policy,
        priority=priority,
        sampling=types_pb.SamplingParams(max_tokens=max_tokens, temperature=temperature),
    )
