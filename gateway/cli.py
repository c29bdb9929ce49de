"""`astrolabe gateway`: options and their words; everything else is `gateway.main`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from gateway.core.decision.policies.registry import policy_names


@click.command(
    epilog="""\b
Example: two nodes on other hosts, our own policy, every decision recorded.
  astrolabe gateway --node 10.0.0.11:8100 --node 10.0.0.12:8100 --record decisions.jsonl

\b
Example: everything from a file, read again (nodes, policy) on SIGHUP.
  astrolabe gateway --config gateway.toml
"""
)
@click.option("--config", "config_path", metavar="FILE", help="TOML file; its keys are these options with _ for -.")
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help="Address of the gRPC service; port 0 takes a free one. [default: 127.0.0.1:8200]",
)
@click.option(
    "--http-listen",
    metavar="HOST:PORT",
    help="Address of the OpenAI-compatible HTTP front; '' for none. [default: 127.0.0.1:8201]",
)
@click.option("--workers", type=int, metavar="N", help="Processes behind these ports. [default: 1]")
@click.option("--keys", metavar="FILE", help="File of API keys, see 'astrolabe key'. [default: none are asked for]")
@click.option("--tls-cert", metavar="FILE", help="PEM certificate of both fronts. [default: no TLS]")
@click.option("--tls-key", metavar="FILE", help="Its key.")
@click.option("--tls-client-ca", metavar="FILE", help="Clients must show a certificate of this authority.")
@click.option("--node-ca", metavar="FILE", help="Authority of the nodes' certificates. [default: no TLS to nodes]")
@click.option("--node-server-name", metavar="NAME", help="Name in the nodes' certificates. [default: each node's host]")
@click.option("--node-cert", metavar="FILE", help="Certificate that the gateway shows to nodes.")
@click.option("--node-key", metavar="FILE", help="Its key.")
@click.option(
    "--insecure",
    is_flag=True,
    default=None,
    help="Listen beyond this machine although connections are not encrypted or callers not known. [default: False]",
)
@click.option("--max-body-bytes", type=int, metavar="N", help="Longest request body. [default: 8388608]")
@click.option("--max-prompt-tokens", type=int, metavar="N", help="Longest prompt. [default: 1048576]")
@click.option(
    "--node",
    "nodes",
    metavar="HOST:PORT",
    multiple=True,
    help="Address of a node's predictor; dns:HOST:PORT for all that a name resolves to; repeat for each.",
)
@click.option("--dns-interval-s", type=float, metavar="S", help="Pause between lookups of names. [default: 5]")
@click.option(
    "--policy",
    metavar="NAME",
    help=f"Placement policy: {', '.join(policy_names())}, or a policy file. [default: min_total_latency]",
)
@click.option(
    "--policy-file",
    "policy_files",
    metavar="FILE",
    multiple=True,
    help="Python file with a policy of your own, to choose by name later; repeat for more. It is run: trust it.",
)
@click.option(
    "--sample", type=int, metavar="K", help="Nodes drawn at random per decision; 0: the policy's own. [default: 0]"
)
@click.option("--ask", type=int, metavar="K", help="Nodes asked for forecasts per decision; 0: all. [default: 4]")
@click.option("--hold", metavar="WHEN", help="Hold what no node can take: never, forecast, always. [default: forecast]")
@click.option("--hold-order", metavar="ORDER", help="fcfs, shortest_forecast or deadline. [default: fcfs]")
@click.option("--hold-aging-s", type=float, metavar="S", help="Head start that a higher class has. [default: 10]")
@click.option("--hold-max-requests", type=int, metavar="N", help="Requests that can be held. [default: 4096]")
@click.option("--hold-max-tokens", type=int, metavar="N", help="Their tokens. [default: 4000000]")
@click.option("--hold-max-s", type=float, metavar="S", help="Longest time that one is held. [default: 60]")
@click.option(
    "--infeasible", metavar="WHAT", help="Service level out of reach: serve, hold or refuse. [default: serve]"
)
@click.option("--seed", type=int, help="Seed of the router's random choices. [default: 0]")
@click.option("--forecast-timeout-ms", type=float, metavar="MS", help="How long to wait for forecasts. [default: 50]")
@click.option("--fallback", metavar="NAME", help="Policy when no forecast came. [default: least_requests]")
@click.option(
    "--max-attempts", type=int, metavar="N", help="Placements of one request, the first included. [default: 3]"
)
@click.option(
    "--retry-share", type=float, metavar="R", help="Further attempts of all, as a share of arrivals. [default: 0.2]"
)
@click.option(
    "--retry-burst", type=int, metavar="N", help="Further attempts that all may make at once. [default: 1000]"
)
@click.option(
    "--stall-s", type=float, metavar="S", help="When a busy node without a sign of life is given up. [default: 30]"
)
@click.option(
    "--state-stale-s", type=float, metavar="S", help="When a node's state is no longer believed. [default: 5]"
)
@click.option(
    "--tokenizer",
    metavar="NAME",
    help="Tokenizer: auto, qwen2, bytes, a model's folder. [default: auto]",
)
@click.option(
    "--lengths",
    metavar="NAME|FILE",
    help="Length model for requests that bring no belief: hashed, histogram, none, or a file. [default: hashed]",
)
@click.option("--lengths-deadline-ms", type=float, metavar="MS", help="How long to wait for it. [default: 20]")
@click.option(
    "--max-buffered-tokens", type=int, metavar="N", help="Tokens that may wait for a slow client. [default: 16384]"
)
@click.option("--keepalive-s", type=float, metavar="S", help="Pause between probes of a silent node. [default: 2]")
@click.option("--reconnect-max-s", type=float, metavar="S", help="Longest pause before another attempt. [default: 3]")
@click.option("--lame-duck-s", type=float, metavar="S", help="Requests still taken at shutdown, at most. [default: 1]")
@click.option("--drain-grace-s", type=float, metavar="S", help="What running requests get at shutdown. [default: 10]")
@click.option("--gateway-id", metavar="NAME", help="Name in the nodes' logs. [default: host:pid]")
@click.option("--otlp-endpoint", metavar="URL", help="OpenTelemetry collector (OTLP/HTTP) for spans. [default: none]")
@click.option("--record", metavar="FILE", help="Decision log to write (JSON lines).")
@click.option("--ready-file", metavar="FILE", help="Written with the bound address once the gateway serves.")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error. [default: info]")
def gateway(config_path: str | None, **options: Any) -> None:
    """Run the gateway: takes requests, places each on the node where it is predicted to do best.

    Stops on SIGTERM or Ctrl-C: says so by its health and serves on until clients have left or for --lame-duck-s, then
    running requests get --drain-grace-s to finish.
    """
    # Must stand before gRPC is loaded. Its newer socket layer hands each message of a node session to a thread of its
    # own; without it the gateway takes a fifth less CPU (12 nodes, 100 requests/s: 4.6 s instead of 5.8 s in 14 s).
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client")
    import uvloop

    from gateway.config import load
    from gateway.workers.slot import own_slot
    from protos.runtime.config import ConfigError

    overrides = {key: value for key, value in options.items() if value not in (None, ())}
    path = Path(config_path) if config_path else None
    try:
        config = load(path, overrides)
        place = own_slot()
        if config.workers > 1 and place is None:
            from gateway.workers.supervisor import supervise

            uvloop.run(supervise(config))
        else:
            from gateway.main import serve

            uvloop.run(serve(config, lambda: load(path, overrides), place))
    except ConfigError as bad:
        raise CannotStart(str(bad)) from None


class CannotStart(click.ClickException):
    """The configuration or the address will not do."""

    exit_code = 2
