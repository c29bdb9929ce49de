"""`astrolabe drain`: take a node out of service, or back into it."""

from __future__ import annotations

import time
from typing import Any

import click

from deploy.gateway_client import dispatch_stub, gateway_option
from protos.runtime.options import json_option

POLL_S = 0.2


@click.command(
    epilog="""\b
Example: no new requests for node-2; what it runs goes on at other nodes.
  astrolabe drain node-2

\b
Example: what it runs runs on to its end.
  astrolabe drain node-2 --stay

\b
Example: empty node-2 for a restart. Requests get 30 s to end, the rest goes on at other nodes in the middle.
  astrolabe drain node-2 --wait --grace 30

\b
Example: back into service.
  astrolabe drain node-2 --undo
"""
)
@click.argument("node")
@click.option("--undo", is_flag=True, help="Take it back into service.")
@click.option("--stay", is_flag=True, help="Let all that it runs end there.")
@click.option("--wait", is_flag=True, help="Return when nothing runs there any more.")
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    metavar="S",
    default=0.0,
    help="With --wait: let what runs there end for so many seconds before the rest moves. [default: 0]",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    metavar="S",
    help="With --wait: give up after so long.",
)
@gateway_option
@json_option
def drain(
    node: str, undo: bool, stay: bool, wait: bool, grace: float, timeout: float, gateway: str, as_json: bool
) -> None:
    """Take NODE (name or address) out of service, or back into it.

    It gets no new requests, and what it runs goes on at other nodes in the middle of its answers, where that may be
    and where there is room; the rest ends there.
    """
    from protos.v1 import astrolabe_dispatch_pb2 as pb

    if undo and wait:
        raise click.UsageError("--wait goes with taking a node out, not with --undo")
    if grace and not wait:
        raise click.UsageError("--grace goes with --wait")
    if grace and stay:
        raise click.UsageError("--grace says when what is left moves, --stay that nothing does: give one of them")
    with dispatch_stub(gateway) as stub:
        reply = stub.Drain(pb.DrainRequest(node_id=node, undo=undo, stay=stay or grace > 0), timeout=5.0)
        left = _until_empty(stub, node, grace_s=None if stay else grace, timeout_s=timeout) if wait else reply.in_flight
    if as_json:
        import orjson

        click.echo(orjson.dumps({"node": node, "draining": not undo, "in_flight": left}))
    elif undo:
        click.echo(f"{node} takes requests again")
    elif wait and not left:
        click.echo(f"{node} is empty: it can be stopped")
    else:
        click.echo(f"{node} takes no new requests; {left} of this gateway still run there")
    if wait and left:
        raise SystemExit(1)


def _until_empty(stub: Any, node: str, *, grace_s: float | None, timeout_s: float) -> int:
    """Requests still there in the end: 0 unless the time is up."""
    from rich.console import Console

    from protos.v1 import astrolabe_dispatch_pb2 as pb

    begun_s = time.monotonic()
    with Console(stderr=True).status("") as status:
        while True:
            listed = stub.ListNodes(pb.ListNodesRequest(), timeout=5.0).nodes
            left: int = sum(n.in_flight for n in listed if node in (n.node_id, n.address))
            waited_s = time.monotonic() - begun_s
            if not left or waited_s >= timeout_s:
                return left
            if grace_s and waited_s >= grace_s:
                stub.Drain(pb.DrainRequest(node_id=node), timeout=5.0)
                grace_s = None
            status.update(f"{node}: {left} requests still run, {waited_s:.0f} s")
            time.sleep(POLL_S)
