"""`astrolabe drain`: take nodes out of service, or back into it."""

from __future__ import annotations

import time
from collections.abc import Sequence
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
Example: three nodes that are to go. Nothing moves from one of them to another, and all get empty at the same time.
  astrolabe drain node-1 node-2 node-3 --wait

\b
Example: back into service.
  astrolabe drain node-2 --undo
"""
)
@click.argument("nodes", metavar="NODE...", nargs=-1, required=True)
@click.option("--undo", is_flag=True, help="Take it back into service.")
@click.option("--stay", is_flag=True, help="Let all that it runs end there.")
@click.option("--wait", is_flag=True, help="Return when nothing runs there any more: at none of several.")
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
    nodes: tuple[str, ...],
    undo: bool,
    stay: bool,
    wait: bool,
    grace: float,
    timeout: float,
    gateway: str,
    as_json: bool,
) -> None:
    """Take NODE (name or address) out of service, or back into it; or several.

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
    # Of several none gets what another one moves away, so all are told before anything moves.
    firsts = [True, False] if len(nodes) > 1 and not (undo or stay or grace) else [stay or grace > 0]
    left: dict[str, int] = {}
    with dispatch_stub(gateway) as stub:
        for stays in firsts:
            for node in nodes:
                asked = pb.DrainRequest(node_id=node, undo=undo, stay=stays)
                left[node] = stub.Drain(asked, timeout=5.0).in_flight
        if wait:
            left = _until_empty(stub, nodes, grace_s=None if stay else grace, timeout_s=timeout)
    for node in left:
        if as_json:
            import orjson

            click.echo(orjson.dumps({"node": node, "draining": not undo, "in_flight": left[node]}))
        elif undo:
            click.echo(f"{node} takes requests again")
        elif wait and not left[node]:
            click.echo(f"{node} is empty: it can be stopped")
        else:
            click.echo(f"{node} takes no new requests; {left[node]} of this gateway still run there")
    if wait and any(left.values()):
        raise SystemExit(1)


def _until_empty(stub: Any, nodes: Sequence[str], *, grace_s: float | None, timeout_s: float) -> dict[str, int]:
    """Requests still at each node in the end: 0 unless the time is up."""
    from rich.console import Console

    from protos.v1 import astrolabe_dispatch_pb2 as pb

    begun_s = time.monotonic()
    with Console(stderr=True).status("") as status:
        while True:
            listed = stub.ListNodes(pb.ListNodesRequest(), timeout=5.0).nodes
            left = {name: sum(n.in_flight for n in listed if name in (n.node_id, n.address)) for name in nodes}
            waited_s = time.monotonic() - begun_s
            if not any(left.values()) or waited_s >= timeout_s:
                return left
            if grace_s and waited_s >= grace_s:
                for node in nodes:
                    stub.Drain(pb.DrainRequest(node_id=node), timeout=5.0)
                grace_s = None
            busy = [node for node in nodes if left[node]]
            status.update(f"{', '.join(busy)}: {sum(left.values())} requests still run, {waited_s:.0f} s")
            time.sleep(POLL_S)
