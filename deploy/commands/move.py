"""`astrolabe move`: have a running request go on at another node."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from deploy.gateway_client import dispatch_stub, gateway_option
from protos.runtime.options import json_option

if TYPE_CHECKING:
    from protos.v1 import astrolabe_dispatch_pb2 as pb

POLL_S = 0.1


@click.command(
    epilog="""\b
Example: a long answer goes on at node-2; its client notices nothing.
  astrolabe move r-6f1a2b3c4d5e6f70 node-2 --wait
"""
)
@click.argument("request_id")
@click.argument("node")
@click.option("--gently", is_flag=True, help="Take longer, so that those at NODE hardly notice.")
@click.option("--wait", is_flag=True, help="Return when it has moved, or stays after all (exit code 1).")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=120.0,
    show_default=True,
    metavar="S",
    help="With --wait: stop waiting after so long; the move goes on.",
)
@gateway_option
@json_option
def move(request_id: str, node: str, gently: bool, wait: bool, timeout: float, gateway: str, as_json: bool) -> None:
    """Have REQUEST_ID go on at NODE (name or address) in the middle of its answer.

    NODE computes what has come so far while the answer goes on, then takes over. Whatever fails before that leaves the
    request where it is.
    """
    from protos.v1 import astrolabe_dispatch_pb2 as pb

    with dispatch_stub(gateway) as stub:
        told = stub.Move(pb.MoveRequest(request_id=request_id, node=node, gently=gently), timeout=10.0).move
        if wait:
            told = _settled(stub, request_id, told, timeout_s=timeout)
    if as_json:
        import orjson
        from google.protobuf.json_format import MessageToDict

        document = MessageToDict(told, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        click.echo(orjson.dumps({"request_id": request_id, **document}))
    else:
        click.echo(f"{request_id} {sentence(told)}")
    if wait and told.outcome != "moved":
        raise SystemExit(1)


def sentence(told: pb.MoveInfo) -> str:
    """What became of a move, to be put behind a request's name."""
    if told.outcome == "under_way":
        return f"is on its way from {told.source} to {told.destination or 'another node'}"
    work = f"{told.stages} {'stage' if told.stages == 1 else 'stages'} of {told.stage_tokens} tokens"
    if told.outcome != "moved":
        return f"stays at {told.source} ({told.outcome}): {told.detail}; {work} for nothing"
    said = f"moved from {told.source} to {told.destination} in {told.took_s:.2f} s: {work}"
    if told.HasField("found_tokens"):
        said += f", {told.found_tokens} of {told.tokens} tokens found there"
    return said + (f"; its client waited {told.gap_s:.3f} s" if told.HasField("gap_s") else "")


def _settled(stub: Any, request_id: str, told: pb.MoveInfo, *, timeout_s: float) -> pb.MoveInfo:
    """The move when it is over and its client has got the next token, or as it is when the time is up."""
    from protos.v1 import astrolabe_dispatch_pb2 as pb

    end_s = time.monotonic() + timeout_s
    while True:
        said = stub.Explain(pb.ExplainRequest(request_id=request_id), timeout=5.0)
        # Of several the one that has begun then; one of the rule that comes after it is another.
        told = next((m for m in said.moves if m.after_s == told.after_s), told)
        is_over = told.outcome not in ("under_way", "moved") or told.HasField("gap_s") or said.actual.outcome
        if is_over or time.monotonic() >= end_s:
            return told
        time.sleep(POLL_S)
