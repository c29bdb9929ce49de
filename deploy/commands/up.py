"""`astrolabe up`: a whole local cluster in one command."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.config import GatewayConfig
from predictor.config import PredictorConfig
from protos.runtime.options import given_tables, options

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from deploy.fleet import NodeGroup
    from deploy.local_cluster import Child, LocalCluster

WATCH_S = 0.2
NODES_WATCH_S = 1.0
NODE_OPTIONS = (
    "profile",
    "time_scale",
    "model",
    "max_num_seqs",
    "max_num_batched_tokens",
    "block_size_tokens",
    "num_blocks",
    "max_model_len_tokens",
    "tokenizer",
)
SCALING_OPTIONS = (
    "scaling_tick_s",
    "scaling_objective_ttft_s",
    "scaling_objective_tpot_s",
    "scaling_objective_e2e_s",
    "scaling_objective_share",
)


@click.command(
    epilog="""\b
Example: four emulated A30 nodes and a gateway on port 8200; Ctrl-C stops all.
  astrolabe up --nodes 4

\b
Example: twelve nodes of four kinds, ten times slower than real ones; another fleet is a TOML file.
  astrolabe up --fleet mixed --time-scale 0.1

\b
Example: one node to six, as a rule says by the load; 'astrolabe scale' shows it.
  astrolabe up --scaler forecast --min 1 --max 6

\b
Example: in a script; one JSON line with the addresses when all is ready.
  astrolabe up --nodes 2 --port 0 --json
"""
)
@click.option("--nodes", type=click.IntRange(min=1), default=4, show_default=True, help="Emulated nodes.")
@click.option(
    "--fleet",
    default="",
    metavar="NAME|FILE|N*PROFILE,...",
    help="Nodes that differ, in place of equal ones: a shipped fleet (a30x12, mixed, h100-l40s), a TOML file, or "
    "2*a30/llama-3.1-8b,1*h100/llama-3.1-8b; what it leaves out is as for equal ones.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8200,
    show_default=True,
    help="Gateway's port; 0: free ones everywhere.",
)
@click.option(
    "--node-port",
    type=click.IntRange(0, 65535),
    default=8100,
    show_default=True,
    help="Port of the first node; the others follow.",
)
@click.option(
    "--scaler",
    default="",
    metavar="NAME|FILE",
    help="Rule that says how many nodes there are, from --min to --max of each kind; without it there are --nodes.",
)
@click.option(
    "--scaler-option",
    "scaler_options",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of that rule, with _ for -; repeat for more.",
)
@click.option(
    "--connector",
    default="local",
    metavar="NAME",
    help="Who starts and stops nodes for --scaler: local, emulated ones on this machine; command, a program of yours; "
    "advise, nobody: there are --nodes, and what is wanted is only said.  [default: local]",
)
@click.option("--connector-run", default="", metavar="'PROGRAM ...'", help="That program, for --connector command.")
@click.option("--min", "least", type=click.IntRange(min=0), default=1, show_default=True, help="Fewest nodes.")
@click.option("--max", "most", type=click.IntRange(min=1), help="Most nodes. [default: --nodes, or the fleet's]")
@options(GatewayConfig, only=("policy", "moves", "record", *SCALING_OPTIONS))
@options(PredictorConfig, only=NODE_OPTIONS)
@click.option("--log-dir", metavar="DIR", help="Where the processes' logs go. [default: a temporary folder]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line with the addresses when ready.")
def up(
    nodes: int,
    fleet: str,
    port: int,
    node_port: int,
    scaler: str,
    scaler_options: tuple[str, ...],
    connector: str,
    connector_run: str,
    least: int,
    most: int | None,
    log_dir: str | None,
    as_json: bool,
    policy: str | None,
    moves: str | None,
    record: str | None,
    **others: Any,
) -> None:
    """Start emulated nodes and a gateway as processes of their own; Ctrl-C or SIGTERM stops them all.

    A node that is killed or fails starts again after a moment; a gateway that does ends all.
    """
    from deploy.local_cluster import ClusterError, ClusterSpec, LocalCluster
    from deploy.node_keeper import NodeKeeper

    node = {name: others[name] for name in NODE_OPTIONS}
    scaling = given_tables(GatewayConfig, {name: others[name] for name in SCALING_OPTIONS}).get("scaling", {})
    if not scaler and (scaling or scaler_options or connector != "local" or connector_run or most is not None):
        raise click.UsageError("--connector, --max, --scaler-option and --scaling-... go with --scaler")
    _check_connector(connector, connector_run)
    folder = Path(log_dir or tempfile.mkdtemp(prefix="astrolabe-"))
    folder.mkdir(parents=True, exist_ok=True)
    gateway: dict[str, Any] = {"policy": policy, "moves": moves, "record": record, "tokenizer": node["tokenizer"]}
    if scaler:
        try:
            groups = _groups_of(fleet, nodes, node)
            tables = {**scaling, "rule": scaler, "options": dict(map(_option, scaler_options))}
            gateway["config"] = _write_scaled(
                folder, groups, node, tables, (connector, shlex.split(connector_run)), least=least, most=most
            )
        except click.UsageError:
            if not log_dir:
                shutil.rmtree(folder, ignore_errors=True)
            raise
    # Others are the connector's to start.
    has_nodes = not scaler or connector == "advise"
    per_node = _nodes_of(fleet) if fleet and has_nodes else ()
    stop = threading.Event()
    # SIGHUP: its terminal has gone.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    spec = ClusterSpec(
        nodes=(len(per_node) or nodes) if has_nodes else 0,
        per_node=per_node,
        gateway_port=port,
        first_node_port=node_port if port else 0,
        predictor={**node, "warm_tokenizer": True},
        gateway=gateway,
    )
    cluster = LocalCluster(spec, folder)
    try:
        _start(cluster, stop, quiet=as_json)
        stays = "; the nodes that your program has started go on" if connector == "command" else ""
        _announce(cluster, folder, stays, as_json=as_json)
        watch = NodesWatch(cluster, quiet=as_json) if scaler else None
        keeper = NodeKeeper(cluster.nodes, lambda said: click.echo(said, err=True))
        while not stop.wait(WATCH_S):
            cluster.gateway.check()
            keeper.look(time.monotonic())
            if watch is not None:
                watch.look()
    except ClusterError as error:
        if not stop.is_set():
            if error.log:
                click.echo(error.log, err=True)
            ports = "; the ports here are those from --node-port and --port on" if "cannot listen" in error.log else ""
            raise click.ClickException(error.summary + ports) from None
    finally:
        if not as_json:
            click.echo("stopping", err=True)
        cluster.stop()
        if "config" in gateway:
            # Of a gateway that was killed.
            _end_nodes(gateway["config"])
    # Kept after a failure: the log is what explains it.
    if not log_dir:
        shutil.rmtree(folder, ignore_errors=True)


def _check_connector(name: str, run: str) -> None:
    """Raises click.UsageError."""
    from gateway.scale.connectors.registry import connector_names

    if name in connector_names() and name not in ("local", "command", "advise"):
        raise click.UsageError(
            f"connector {name!r} starts nodes elsewhere, and 'up' is for this machine: give a gateway a table "
            f'[scaling] with connector = "{name}" (deploy/scaling.md) and '
            "start it with: astrolabe gateway --config gateway.toml"
        )
    if (name == "command") != bool(run):
        raise click.UsageError("--connector command and --connector-run 'PROGRAM ...' go together")


def _end_nodes(path: Path) -> None:
    """Ends what the gateway of this configuration has started and left behind."""
    import asyncio

    from gateway.config import load
    from gateway.scale.connectors.registry import make_connector

    asyncio.run(make_connector(load(path).scaling, list).close(ends=True))


class NodesWatch:
    """Says on standard error which nodes come and go."""

    def __init__(self, cluster: LocalCluster, *, quiet: bool) -> None:
        self._cluster = cluster
        self._quiet = quiet
        self._known: dict[str, str] = {}
        self._next_s = 0.0

    def look(self) -> None:
        """One line for each node whose state is another than at the last look."""
        import grpc

        from protos.v1 import astrolabe_dispatch_pb2 as pb

        if self._quiet or time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + NODES_WATCH_S
        try:
            with self._cluster.stub() as stub:
                said = stub.ExplainScaling(pb.ExplainScalingRequest(decisions=1), timeout=2.0)
        except grpc.RpcError:
            # It has not decided yet, or is about to end, which `check` tells.
            return
        states = {node.node_id: node.state for group in said.groups for node in group.nodes}
        for node_id in sorted({*states, *self._known}):
            state = states.get(node_id, "gone")
            if state != self._known.get(node_id, "gone"):
                click.echo(f"{node_id}: {state}", err=True)
        self._known = states


def _fleet_of(text: str) -> tuple[NodeGroup, ...]:
    """The groups of a fleet. Raises click.UsageError."""
    from deploy.fleet import FleetError, read_fleet

    source = click.get_current_context().get_parameter_source
    for name, what in (("nodes", "how many nodes there are"), ("profile", "their profiles")):
        if source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--fleet says {what}: leave --{name} out")
    try:
        return read_fleet(text).group
    except FleetError as error:
        raise click.UsageError(f"--fleet: {error}") from None


def _option(text: str) -> tuple[str, Any]:
    """A name and its value, which is a text unless it is written as a number, a list or the like. Raises
    click.UsageError."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.UsageError(f"{text!r} is not KEY=VALUE; write for example --scaler-option target=4")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _nodes_of(text: str) -> tuple[dict[str, Any], ...]:
    """Options of each node of a fleet. Raises click.UsageError."""
    return tuple({**group.node_options(), "node_id": name} for group in _fleet_of(text) for name in group.node_ids())


def _groups_of(fleet: str, nodes: int, node: Mapping[str, Any]) -> tuple[NodeGroup, ...]:
    """The kinds of nodes that may be started. Raises click.UsageError."""
    if fleet:
        return _fleet_of(fleet)
    from deploy.fleet import Fleet, FleetError, NodeGroup, checked

    equal = NodeGroup(count=nodes, profile=node["profile"] or PredictorConfig().profile)
    try:
        return checked(Fleet(group=(equal,)), where="").group
    except FleetError as error:
        raise click.UsageError(str(error)) from None


def _write_scaled(
    folder: Path,
    groups: Iterable[NodeGroup],
    node: Mapping[str, Any],
    tables: Mapping[str, Any],
    connector: tuple[str, list[str]],
    *,
    least: int,
    most: int | None,
) -> Path:
    """The gateway's configuration. `connector`: its name and its program, if it has one. Raises click.UsageError."""
    from deploy.scaled_cluster import scaling_groups, write_gateway_file
    from gateway.config import load
    from protos.runtime.config import ConfigError

    path = folder / "gateway.toml"
    own = ("model", "max_num_seqs", "max_num_batched_tokens", "block_size_tokens", "num_blocks", "max_model_len_tokens")
    name, run = connector
    others = {key: node[key] for key in ("time_scale", "tokenizer") if node[key] is not None} | {"warm_tokenizer": True}
    own_tables: dict[str, dict[str, Any]] = {
        "local": {"folder": str(folder / "nodes"), "options": others},
        "command": {"run": run},
    }
    try:
        made = scaling_groups(groups, least=least, most=most, defaults={key: node[key] for key in own})
        write_gateway_file(path, made, scaling=tables, connector=name, options=own_tables.get(name, {}))
        load(path)
    except (ValueError, ConfigError) as bad:
        raise click.UsageError(str(bad)) from None
    return path


def _start(cluster: LocalCluster, stop: threading.Event, *, quiet: bool) -> None:
    from rich.console import Console

    console = Console(stderr=True, quiet=quiet)
    started_s = time.monotonic()

    def ready(child: Child) -> None:
        console.print(f"[green]ready[/] {child.name} at {child.address} after {time.monotonic() - started_s:.1f} s")

    count = len(cluster.nodes)
    nodes = f"{count} node{'' if count == 1 else 's'}"
    said = f"starting {nodes} and the gateway"
    if not console.is_terminal:
        # No spinner shows there.
        console.print(said)
    with console.status(said):
        cluster.start(on_ready=ready, cancelled=stop.is_set)


def _announce(cluster: LocalCluster, folder: Path, stays: str, *, as_json: bool) -> None:
    if as_json:
        import orjson

        document = {
            "gateway": cluster.address,
            "base_url": f"{cluster.url}/v1",
            "nodes": {n.name: n.address for n in cluster.nodes if n.address},
            "pids": {c.name: c.pid for c in cluster.children()},
            "logs": str(folder),
        }
        click.echo(orjson.dumps(document))
        return
    where = "" if cluster.address == "127.0.0.1:8200" else f" --gateway {cluster.address}"
    click.echo(
        f"cluster is up; logs in {folder}\n"
        f'  astrolabe request "Why is the sky blue?"{where}\n'
        f"  astrolabe nodes --watch{where}\n"
        f"the same and more in a browser: {cluster.url}/ui\n"
        f"OpenAI's clients: base_url {cluster.url}/v1, any api_key\n"
        f"  {_curl(cluster.url)}\n"
        "gRPC\n"
        f"  grpcurl -plaintext {cluster.address} list\n"
        f"Ctrl-C stops all{stays}"
    )


def _curl(url: str) -> str:
    # Else curl would take the environment's proxy, also to this machine.
    body = '{"messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_tokens": 20}'
    return f"curl --noproxy '*' {url}/v1/chat/completions -H content-type:application/json -d '{body}'"
