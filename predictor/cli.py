"""`astrolabe predictor`: its options are the fields of `PredictorConfig`; everything else is `predictor.main`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from predictor.config import PredictorConfig, load
from protos.runtime.config import ConfigError
from protos.runtime.imports import without
from protos.runtime.options import CannotStart, by_option, given_tables, options


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

\b
Example: two engines of one host, two nodes in one process.
  astrolabe predictor --config gpu-0.toml --config gpu-1.toml
"""
)
@click.option(
    "--config",
    "paths",
    type=click.Path(path_type=Path),
    metavar="FILE",
    multiple=True,
    help="TOML file of the same settings, once for each node of this process; options given here win over it.",
)
@options(PredictorConfig)
def predictor(paths: tuple[Path, ...], **given: Any) -> None:
    """Run the daemon of a node: mirrors its engine, answers what-ifs, forwards requests.

    Stops on SIGTERM or Ctrl-C: what runs on the node is aborted.
    """
    import uvloop

    # structlog's colours, which it loads where they are installed, are 5 MB for nothing here.
    with without("rich"):
        from engine_adapters.base import EngineError
        from predictor.main import serve

    try:
        settings = given_tables(PredictorConfig, given)
        uvloop.run(serve([load(path, settings) for path in paths or (None,)]))
    except (ConfigError, EngineError) as bad:
        raise CannotStart(by_option(str(bad), PredictorConfig)) from None
