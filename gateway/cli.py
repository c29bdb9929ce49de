"""`astrolabe gateway`: its options are the fields of `GatewayConfig`; everything else is `gateway.main`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from gateway.config import GatewayConfig, load
from gateway.core.decision.policies.registry import policy_names
from protos.runtime.config import ConfigError
from protos.runtime.options import CannotStart, by_option, config_option, given_tables, options


@click.command(
    epilog="""\b
Example: two nodes on other hosts, our own policy, every decision recorded.
  astrolabe gateway --node 10.0.0.11:8100 --node 10.0.0.12:8100 --record decisions.jsonl

\b
Example: everything from a file, read again (nodes, policy) on SIGHUP.
  astrolabe gateway --config gateway.toml
"""
)
@config_option
@options(GatewayConfig, help_of={"policy": f"Placement policy: {', '.join(policy_names())}, or a policy file."})
def gateway(path: Path | None, **given: Any) -> None:
    """Run the gateway: takes requests, places each on the node where it is predicted to do best.

    Stops on SIGTERM or Ctrl-C: says so by its health and serves on until clients have left or for --lame-duck-s, then
    running requests get --drain-grace-s to finish.
    """
    # Must stand before gRPC is loaded. Its newer socket layer hands each message of a node session to a thread of its
    # own; without it the gateway takes a fifth less CPU (12 nodes, 100 requests/s: 4.6 s instead of 5.8 s in 14 s).
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client")
    import uvloop

    from gateway.workers.slot import own_slot

    overrides = given_tables(GatewayConfig, given)
    try:
        config = load(path, overrides)
        slot = own_slot()
        if config.workers > 1 and slot is None:
            from gateway.workers.supervisor import supervise

            uvloop.run(supervise(config))
        else:
            from gateway.main import serve

            uvloop.run(serve(config, lambda: load(path, overrides), slot))
    except ConfigError as bad:
        raise CannotStart(by_option(str(bad), GatewayConfig)) from None
