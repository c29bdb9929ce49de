"""`astrolabe scale`: how many nodes a gateway has, wants and starts, group by group."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from deploy.gateway_client import dispatch_stub, gateway_option
from protos.runtime.options import json_option

if TYPE_CHECKING:
    from rich.console import Console

    from protos.v1 import astrolabe_dispatch_pb2 as pb

STATES = ("serving", "starting", "draining", "stopping")


@click.command(
    epilog="""\b
Example: what the groups have, and why.
  astrolabe scale

\b
Example: what every decision of late went by.
  astrolabe explain --scaling
"""
)
@gateway_option
@json_option
def scale(gateway: str, as_json: bool) -> None:
    """Show how many nodes of which group there are, are wanted, start and leave."""
    said = scaling_of(gateway)
    if as_json:
        click.echo(as_document(said))
        return
    from rich.console import Console

    print_groups(Console(), said)


def scaling_of(gateway: str, *, decisions: int = 0) -> pb.ScalingExplanation:
    """What a gateway says of its scaling. A gateway that cannot say ends the command with one line."""
    from protos.v1 import astrolabe_dispatch_pb2 as pb

    with dispatch_stub(gateway) as stub:
        said: pb.ScalingExplanation = stub.ExplainScaling(pb.ExplainScalingRequest(decisions=decisions), timeout=5.0)
    return said


def as_document(said: pb.ScalingExplanation) -> bytes:
    """As one line of JSON."""
    import orjson
    from google.protobuf.json_format import MessageToDict

    document: dict[str, Any] = MessageToDict(
        said, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return orjson.dumps(document)


def print_groups(console: Console, said: pb.ScalingExplanation) -> None:
    """A table of the groups, and below it what is not as it should be."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from protos.runtime.terminal import print_table

    who = "this gateway leads" if said.leads else f"{said.leader or 'another gateway'} leads"
    table = Table(
        title=f"rule {said.rule}, connector {said.connector}, a decision every {said.tick_s:g} s; {who}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("group", overflow="fold")
    for name in ("min", "max", "wanted", *STATES, "start\nuntil ready s"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in said.groups:
        counts = [str(sum(node.state == state for node in group.nodes)) for state in STATES]
        times = f"{group.start_p50_s:.0f} / {group.start_p90_s:.0f}"
        table.add_row(group.name, str(group.min), str(group.max), str(group.wanted), *counts, times)
    print_table(console, table)
    # As plain text: what connectors say may look like markup.
    for line in _notes(said):
        console.print(Text(line))


def _notes(said: pb.ScalingExplanation) -> Iterator[str]:
    if not said.executes:
        yield "advice only: nothing is started or stopped here"
    if said.problem:
        yield f"nothing is started or stopped now: the connector does not say what runs ({said.problem})"
    for group in said.groups:
        if group.blocked_s:
            yield f"{group.name}: starts have failed, the next is tried in {group.blocked_s:.0f} s"
        for node in group.nodes:
            if node.state == "starting" and node.HasField("ready_in_s"):
                due = f"expected in {node.ready_in_s:.0f} s" if node.ready_in_s else "later than starts usually are"
                yield f"{node.node_id} starts, {due}"
            elif node.state == "stopping":
                yield f"{node.node_id} is stopped: {node.detail}"
    if said.latest.shortfall:
        yield said.latest.shortfall
    if said.latest.why:
        yield f"now: {said.latest.why}"


def print_decisions(console: Console, said: pb.ScalingExplanation) -> None:
    """What was seen, wanted and done, the latest last."""
    from rich.text import Text

    bounds = {group.name: (group.min, group.max) for group in said.groups}

    def within(name: str, wanted: int) -> int:
        # What is done keeps to the bounds, whatever the rule would like.
        least, most = bounds.get(name, (wanted, wanted))
        return min(max(wanted, least), most)

    for decision in reversed(said.decisions):
        moves = ", ".join(f"{w.group} {w.had} → {within(w.group, w.wanted)}" for w in decision.groups)
        console.print(Text(f"{decision.age_s:.0f} s ago: {moves}"), style="bold")
        seen = ", ".join(f"{figure.name} {figure.value:.4g}" for figure in decision.seen)
        for label, words in (
            ("why", decision.why),
            ("seen", seen),
            ("done", ", ".join(decision.actions)),
            ("not done", decision.held_back),
            ("falls short", decision.shortfall),
        ):
            if words:
                console.print(Text(f"  {label}: {words}"))
    if not said.decisions:
        console.print("nothing has been decided yet that changes anything")
