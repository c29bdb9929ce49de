"""`astrolabe predictor`: options and their words; everything else is `predictor.main`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command(
    epilog="""\b
Example: an emulated A30 with Llama-2-7B, ten times as fast as the real one.
  astrolabe predictor --listen 127.0.0.1:8100 --profile a30/llama-2-7b --max-num-seqs 48 --time-scale 10

\b
Example: everything from a file; options given here win over it.
  astrolabe predictor --config predictor.toml --log-level debug

\b
Example: beside a vLLM server that was started with the trace flag.
  astrolabe predictor --engine vllm --engine-url http://127.0.0.1:8000 --profile a30/llama-2-7b
"""
)
@click.option("--config", "config_path", metavar="FILE", help="TOML file; its keys are these options with _ for -.")
@click.option("--node-id", metavar="NAME", help="Name of the node, unique in its cluster. [default: its address]")
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help="Address of the gRPC services; port 0 takes a free one. [default: 127.0.0.1:8100]",
)
@click.option("--metrics-listen", metavar="HOST:PORT", help="Address of the page for Prometheus. [default: none]")
@click.option("--tls-cert", metavar="FILE", help="PEM certificate of the node. [default: no TLS]")
@click.option("--tls-key", metavar="FILE", help="Its key.")
@click.option("--tls-client-ca", metavar="FILE", help="Gateways must show a certificate of this authority.")
@click.option(
    "--insecure",
    is_flag=True,
    default=None,
    help="Listen beyond this machine although connections are not encrypted or gateways not known. [default: False]",
)
@click.option("--engine", metavar="NAME", help="Engine dialect. [default: emulated]")
@click.option("--engine-url", metavar="URL", help="Server of a vllm engine. [default: http://127.0.0.1:8000]")
@click.option("--engine-trace", metavar="ADDRESS", help="Its trace: unix:/path, tcp:127.0.0.1:port. [default: by URL]")
@click.option("--engine-ca", metavar="FILE", help="Authority of an https server's certificate. [default: the system's]")
@click.option("--engine-cert", metavar="FILE", help="Certificate that is shown to a server that asks for one.")
@click.option("--engine-key", metavar="FILE", help="Its key.")
@click.option("--engine-wait-s", type=float, metavar="S", help="How long to wait for it to come up. [default: 600]")
@click.option(
    "--profile", metavar="GPU/MODEL", help="Step-time profile, or a JSON file of your own. [default: a30/llama-2-7b]"
)
@click.option(
    "--calibrate/--no-calibrate", default=None, help="Learn step times from the engine's trace. [default: calibrate]"
)
@click.option(
    "--engine-profile", metavar="GPU/MODEL", help="What an emulated engine is, not told. [default: the profile]"
)
@click.option("--model", metavar="NAME", help="Model name that clients say. [default: the profile's]")
@click.option(
    "--tokenizer",
    metavar="NAME",
    help="Tokenizer: auto, qwen2, bytes, a model's folder. [default: auto]",
)
@click.option("--max-num-seqs", type=int, metavar="N", help="Requests in one batch. [default: 256]")
@click.option("--max-num-batched-tokens", type=int, metavar="N", help="Token budget of one step. [default: 2048]")
@click.option("--block-size-tokens", type=int, metavar="N", help="Tokens per KV block. [default: the profile's]")
@click.option("--num-blocks", type=int, metavar="N", help="KV blocks. [default: what the profile's memory gives]")
@click.option("--max-model-len-tokens", type=int, metavar="N", help="Prompt plus answer limit. [default: 4096]")
@click.option("--scheduling-policy", metavar="NAME", help="fcfs or priority. [default: fcfs]")
@click.option(
    "--time-scale", type=float, metavar="X", help="Speed of an emulated engine over its profile. [default: 1]"
)
@click.option(
    "--reservation-ttl-s", type=float, metavar="S", help="How long a dispatch counts before its trace. [default: 30]"
)
@click.option("--scenarios", type=int, metavar="N", help="Futures per what-if with unknown lengths. [default: 8]")
@click.option("--ready-file", metavar="FILE", help="Written with the bound address once the node serves.")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error. [default: info]")
def predictor(config_path: str | None, **options: Any) -> None:
    """Run the daemon of one node: mirrors its engine, answers what-ifs, forwards requests.

    Stops on SIGTERM or Ctrl-C: what runs on the node is aborted.
    """
    import uvloop

    from engine_adapters.base import EngineError
    from predictor.config import load
    from predictor.main import serve
    from protos.runtime.config import ConfigError

    overrides = {key: value for key, value in options.items() if value is not None}
    try:
        config = load(Path(config_path) if config_path else None, overrides)
        uvloop.run(serve(config))
    except (ConfigError, EngineError) as bad:
        raise CannotStart(str(bad)) from None


class CannotStart(click.ClickException):
    """The configuration, the address or the engine will not do."""

    exit_code = 2
