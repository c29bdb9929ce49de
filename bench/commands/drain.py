"""`astrolabe drain`: take a node out of service, or back into it."""

from __future__ import annotations

import click

from bench.gateway_client import dispatch_stub, gateway_option, json_option


@click.command(
    epilog="""\b
Example: no new requests for node-2; those it runs go on to their end.
  astrolabe drain node-2

\b
Example: back into service.
  astrolabe drain node-2 --undo
"""
)
@click.argument("node")
@click.option("--undo", is_flag=True, help="Take it back into service.")
@gateway_option
@json_option
def drain(node: str, undo: bool, gateway: str, as_json: bool) -> None:
    """Take NODE (name or address) out of service, or back into it."""
    from protos.v1 import astrolabe_dispatch_pb2 as pb

    with dispatch_stub(gateway) as stub:
        reply = stub.Drain(pb.DrainRequest(node_id=node, undo=undo), timeout=5.0)
    if as_json:
        import orjson

        click.echo(orjson.dumps({"node": node, "draining": not undo, "in_flight": reply.in_flight}))
    elif undo:
        click.echo(f"{node} takes requests again")
    else:
        click.echo(f"{node} takes no new requests; {reply.in_flight} of this gateway still run there")
