"""`astrolabe nodes`: the nodes of a gateway, once or as they change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from deploy.gateway_client import dispatch_stub, gateway_option
from protos.runtime.options import json_option

if TYPE_CHECKING:
    from rich.console import Group

    from protos.v1 import astrolabe_dispatch_pb2 as pb

STYLES = {"up": "green", "draining": "yellow", "connecting": "yellow", "down": "red"}


@click.command(
    epilog="""\b
Example: a table that follows the nodes until Ctrl-C.
  astrolabe nodes --watch

\b
Example: names of the nodes that are down.
  astrolabe nodes --json | jq -r '.nodes[] | select(.status == "down") | .node_id'
"""
)
@click.option("--watch", is_flag=True, help="Go on showing them as they change.")
@click.option("--interval-s", type=click.FloatRange(min=0.05), default=1.0, show_default=True, help="Pause in --watch.")
@gateway_option
@json_option
def nodes(watch: bool, interval_s: float, gateway: str, as_json: bool) -> None:
    """Show the nodes of a gateway: state, load, requests in flight."""
    from protos.v1 import astrolabe_dispatch_pb2 as pb

    with dispatch_stub(gateway) as stub:
        if watch:
            _watch(stub.WatchNodes(pb.WatchNodesRequest(min_interval_s=interval_s)), as_json)
            return
        listed = stub.ListNodes(pb.ListNodesRequest(), timeout=5.0)
    if as_json:
        click.echo(_json(listed))
    else:
        from rich.console import Console

        Console().print(_table(listed))


def _watch(lists: Any, as_json: bool) -> None:
    try:
        if as_json:
            for listed in lists:
                click.echo(_json(listed))
            return
        from rich.live import Live

        with Live(auto_refresh=False) as live:
            for listed in lists:
                live.update(_table(listed), refresh=True)
    except KeyboardInterrupt:
        lists.cancel()


def _json(listed: pb.NodeList) -> bytes:
    import orjson
    from google.protobuf.json_format import MessageToDict

    document = MessageToDict(listed, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return orjson.dumps(document)


def _table(listed: pb.NodeList) -> Group:
    """The nodes, and below why those that are down are so, and what is wrong with those that are not."""
    from rich import box
    from rich.console import Group
    from rich.table import Table

    table = Table(
        title=f"policy {listed.policy}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("node", no_wrap=True)
    table.add_column("address", no_wrap=True)
    table.add_column("state", no_wrap=True)
    # Two lines a head: the table fits a terminal of 80 columns.
    for name in ("run-\nning", "wait-\ning", "free\nblocks", "in\nflight", "age\ns"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("profile", overflow="fold")
    for node in listed.nodes:
        style = STYLES.get(node.status, "")
        load = ("-", "-", "-")
        if node.HasField("load"):
            load = (str(node.load.running), str(node.load.waiting), str(node.load.free_blocks))
        table.add_row(
            node.node_id,
            node.address,
            (f"[{style}]{node.status}[/]" if style else node.status) + (" [bold red]![/]" if node.alarm else ""),
            *load,
            str(node.in_flight),
            f"{node.state_age_s:.1f}" if node.HasField("load") else "-",
            node.profile,
        )
    below = []
    if listed.held:
        wait = f"the next would wait {listed.predicted_wait_s:.1f} s"
        below.append(f"{listed.held} requests held until a node is free; {wait}")
    below += [f"{n.node_id} is {n.status}: {n.detail}" for n in listed.nodes if n.detail]
    below += [f"{n.node_id}: {n.alarm}" for n in listed.nodes if n.alarm]
    below += [
        f"{n.node_id}: forecasts are approximate: {'; '.join(n.config.outside_rules)}"
        for n in listed.nodes
        if n.config.outside_rules
    ]
    for node in listed.nodes:
        if node.config.engine == "vllm" and not node.config.outside_rules:
            below.append(f"{node.node_id}: vLLM {node.config.engine_version}, simulated step by step")
    below.append(f"[dim]rules proved against vLLM {listed.proved_vllm_version}[/]")
    return Group(table, *below)
