"""`astrolabe nodes`: the nodes of a gateway, once or as they change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from deploy.gateway_client import dispatch_stub, gateway_option
from protos.runtime.options import json_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, ConsoleOptions, Group
    from rich.table import Table

    from protos.v1 import astrolabe_dispatch_pb2 as pb

STYLES = {"up": "green", "draining": "yellow", "retiring": "yellow", "connecting": "yellow", "down": "red"}


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

        console = Console()
        console.print(overview(listed, console.width))


def _watch(lists: Any, as_json: bool) -> None:
    try:
        if as_json:
            for listed in lists:
                click.echo(_json(listed))
            return
        from rich.live import Live

        with Live(auto_refresh=False) as live:
            for listed in lists:
                live.update(overview(listed, live.console.width), refresh=True)
    except KeyboardInterrupt:
        lists.cancel()


def _json(listed: pb.NodeList) -> bytes:
    import orjson
    from google.protobuf.json_format import MessageToDict

    document = MessageToDict(listed, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return orjson.dumps(document)


def overview(listed: pb.NodeList, width: int) -> Group:
    """The nodes as a table of at most `width` columns. Below, in words that wrap: what would not fit, the step times
    that they go by, why those that are down are so, and what is wrong with those that are not."""
    from rich.console import Group
    from rich.text import Text

    table = _table(listed, addresses=True)
    notes: list[str] = []
    if table.__rich_measure__(*_unbounded()).maximum > width:
        table = _table(listed, addresses=False)
        notes += [f"{node.node_id} is at {node.address}" for node in listed.nodes]
    if listed.held:
        wait = f"the next would wait {listed.predicted_wait_s:.1f} s"
        notes.append(f"{listed.held} requests held until a node is free; {wait}")
    if moving := [_moves_of(node) for node in listed.nodes if node.moves_out or node.moves_in]:
        notes.append(f"requests on their way between nodes: {', '.join(moving)}")
    notes += [f"{n.node_id} is {n.status}: {n.detail}" for n in listed.nodes if n.detail]
    notes += [f"{n.node_id}: {n.alarm}" for n in listed.nodes if n.alarm]
    alike: dict[str, list[str]] = {}
    for node in listed.nodes:
        if about := "; ".join(_forecasts_of(node)):
            alike.setdefault(about, []).append(node.node_id)
    notes += [f"{', '.join(names)}: {about}" for about, names in alike.items()]
    proved = Text(f"rules proved against vLLM {listed.proved_vllm_version}", style="dim")
    # As plain text: what nodes say of themselves may look like markup.
    return Group(table, *map(Text, notes), proved)


def _moves_of(node: pb.NodeInfo) -> str:
    ways = ((node.moves_out, "from"), (node.moves_in, "to"))
    return " and ".join(f"{count} {way} {node.node_id}" for count, way in ways if count)


def _forecasts_of(node: pb.NodeInfo) -> Iterator[str]:
    """What its forecasts go by."""
    if node.profile:
        yield f"step times of {node.profile}"
    if node.config.outside_rules:
        yield f"forecasts are approximate: {'; '.join(node.config.outside_rules)}"
    elif node.config.engine == "vllm":
        yield f"vLLM {node.config.engine_version}, simulated step by step"


def _unbounded() -> tuple[Console, ConsoleOptions]:
    """To measure what a table would like to have."""
    from rich.console import Console

    console = Console(width=1000)
    return console, console.options


def _table(listed: pb.NodeList, *, addresses: bool) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=f"policy {listed.policy}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("node", overflow="fold")
    if addresses:
        table.add_column("address", no_wrap=True)
    table.add_column("state", no_wrap=True)
    # Two lines a head: the table fits a terminal of 80 columns.
    for name in ("run-\nning", "wait-\ning", "free\nblocks", "cached\nblocks", "in\nflight", "age\ns"):
        table.add_column(name, justify="right", no_wrap=True)
    for node in listed.nodes:
        style = STYLES.get(node.status, "")
        load = ("-", "-", "-")
        if node.HasField("load"):
            load = (str(node.load.running), str(node.load.waiting), str(node.load.free_blocks))
        table.add_row(
            escape(node.node_id),
            *([escape(node.address)] if addresses else []),
            (f"[{style}]{node.status}[/]" if style else node.status) + (" [bold red]![/]" if node.alarm else ""),
            *load,
            str(node.cached_blocks) if node.HasField("cached_blocks") else "-",
            str(node.in_flight),
            f"{node.state_age_s:.1f}" if node.HasField("load") else "-",
        )
    return table
