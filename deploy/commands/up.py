"""`astrolabe up`: a whole local cluster in one command."""

from __future__ import annotations

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
from protos.runtime.options import options

if TYPE_CHECKING:
    from deploy.local_cluster import Child, LocalCluster

WATCH_S = 0.2
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


@click.command(
    epilog="""\b
Example: four emulated A30 nodes and a gateway on port 8200; Ctrl-C stops all.
  astrolabe up --nodes 4

\b
Example: twelve nodes of four kinds, ten times slower than real ones; another fleet is a TOML file.
  astrolabe up --fleet mixed --time-scale 0.1

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
@options(GatewayConfig, only=("policy", "record"))
@options(PredictorConfig, only=NODE_OPTIONS)
@click.option("--log-dir", metavar="DIR", help="Where the processes' logs go. [default: a temporary folder]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line with the addresses when ready.")
def up(
    nodes: int,
    fleet: str,
    port: int,
    node_port: int,
    log_dir: str | None,
    as_json: bool,
    policy: str | None,
    record: str | None,
    **node: Any,
) -> None:
    """Start emulated nodes and a gateway as processes of their own; Ctrl-C or SIGTERM stops them all."""
    from deploy.local_cluster import ClusterError, ClusterSpec, LocalCluster

    per_node = _nodes_of(fleet) if fleet else ()
    stop = threading.Event()
    # SIGHUP: its terminal has gone.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    spec = ClusterSpec(
        nodes=len(per_node) or nodes,
        per_node=per_node,
        gateway_port=port,
        first_node_port=node_port if port else 0,
        predictor=node,
        gateway={"policy": policy, "record": record, "tokenizer": node["tokenizer"]},
    )
    folder = Path(log_dir or tempfile.mkdtemp(prefix="astrolabe-"))
    folder.mkdir(parents=True, exist_ok=True)
    cluster = LocalCluster(spec, folder)
    try:
        _start(cluster, stop, quiet=as_json)
        _announce(cluster, folder, as_json=as_json)
        while not stop.wait(WATCH_S):
            cluster.check()
    except ClusterError as error:
        if not stop.is_set():
            if error.log:
                click.echo(error.log, err=True)
            raise click.ClickException(error.summary) from None
    finally:
        if not as_json:
            click.echo("stopping", err=True)
        cluster.stop()
    # Kept after a failure: the log is what explains it.
    if not log_dir:
        shutil.rmtree(folder, ignore_errors=True)


def _nodes_of(text: str) -> tuple[dict[str, Any], ...]:
    """Options of each node of a fleet. Raises click.UsageError."""
    from deploy.fleet import FleetError, read_fleet

    source = click.get_current_context().get_parameter_source
    for name, what in (("nodes", "how many nodes there are"), ("profile", "their profiles")):
        if source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--fleet says {what}: leave --{name} out")
    try:
        groups = read_fleet(text).group
    except FleetError as error:
        raise click.UsageError(str(error)) from None
    return tuple({**group.node_options(), "node_id": name} for group in groups for name in group.node_ids())


def _start(cluster: LocalCluster, stop: threading.Event, *, quiet: bool) -> None:
    from rich.console import Console

    console = Console(stderr=True, quiet=quiet)
    started_s = time.monotonic()

    def ready(child: Child) -> None:
        console.print(f"[green]ready[/] {child.name} at {child.address} after {time.monotonic() - started_s:.1f} s")

    with console.status(f"starting {len(cluster.nodes)} nodes and the gateway (the first time, kernels are compiled)"):
        cluster.start(on_ready=ready, cancelled=stop.is_set)


def _announce(cluster: LocalCluster, folder: Path, *, as_json: bool) -> None:
    if as_json:
        import orjson

        document = {
            "gateway": cluster.address,
            "base_url": f"{cluster.url}/v1",
            "nodes": {n.name: n.address for n in cluster.nodes},
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
        f"OpenAI's clients: base_url {cluster.url}/v1, any api_key\n"
        f"  {_curl(cluster.url)}\n"
        "gRPC\n"
        f"  grpcurl -plaintext {cluster.address} list\n"
        "Ctrl-C stops all"
    )


def _curl(url: str) -> str:
    # Else curl would take the environment's proxy, also to this machine.
    body = '{"messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_tokens": 20}'
    return f"curl --noproxy '*' {url}/v1/chat/completions -H content-type:application/json -d '{body}'"
