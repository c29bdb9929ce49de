"""`astrolabe engine`: start an engine that a node's daemon can stand beside."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import click
import msgspec

from engine_adapters.tokenizer import default_tokenizer, tokenizer_info
from engine_adapters.vllm.launch import Launch, default_python, emulated_launch, server_launch
from simcore.cost.shipped import UnknownProfileError, load_profile
from simcore.types import EngineConfig

DEFAULT_PORT = 8000


@click.group()
def engine() -> None:
    """Start an engine with Astrolabe's trace switched on."""


@engine.command(
    short_help="A stock vLLM server with the trace flag.", context_settings={"ignore_unknown_options": True}
)
@click.option("--model", default="", help="Model directory or hub name; for the emulated device the name to serve.")
@click.option("--device", type=click.Choice(["real", "emulated"]), default="real", show_default=True)
@click.option("--profile", default="a30/llama-2-7b", show_default=True, help="Emulated: step times, as gpu/model.")
@click.option(
    "--noise", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Emulated: spread of a step."
)
@click.option("--time-scale", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Emulated: of the noise.")
@click.option(
    "--tokenizer", default="auto", show_default=True, help="Emulated: whose text ids the answers are made of."
)
@click.option("--max-num-seqs", type=click.IntRange(1), default=256, show_default=True, help="Emulated.")
@click.option("--max-num-batched-tokens", type=click.IntRange(1), default=2048, show_default=True, help="Emulated.")
@click.option("--max-model-len", type=click.IntRange(2), default=4096, show_default=True, help="Emulated.")
@click.option("--block-size", type=click.IntRange(1), default=16, show_default=True, help="Emulated.")
@click.option("--num-blocks", type=click.IntRange(0), default=0, help="Emulated: KV blocks; 0 takes the profile's.")
@click.option("--scheduling-policy", type=click.Choice(["fcfs", "priority"]), default="fcfs", help="Emulated.")
@click.option("--async-scheduling/--no-async-scheduling", default=True, show_default=True, help="Emulated.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), default=DEFAULT_PORT, show_default=True)
@click.option("--python", "python", default="", help="Interpreter that has vLLM (or set ASTROLABE_VLLM_PYTHON).")
@click.option("--print", "show", is_flag=True, help="Print the command instead of running it.")
@click.argument("extra", nargs=-1, type=click.UNPROCESSED)
def vllm(show: bool, extra: tuple[str, ...], python: str, **options: object) -> None:
    """Start a stock vLLM server with the trace flag; what follows `--` is passed on to it.

    \b
    Examples:
      astrolabe engine vllm --model /models/Qwen2-7B --port 8000 -- --tensor-parallel-size 2
      astrolabe engine vllm --device emulated --profile a30/llama-2-7b
    """
    python = python or default_python(os.environ)
    if not python:
        raise click.ClickException(
            "vLLM is not installed beside this interpreter: name one that has it with --python or ASTROLABE_VLLM_PYTHON"
        )
    launch = _emulated(python, extra, options) if options["device"] == "emulated" else _real(python, extra, options)
    if show:
        click.echo(" ".join(launch.command))
        return
    try:
        os.execve(launch.command[0], launch.command, launch.environment)
    except OSError as error:
        raise click.ClickException(f"cannot run {launch.command[0]}: {error.strerror}") from None


def _real(python: str, extra: tuple[str, ...], options: dict[str, object]) -> Launch:
    if not options["model"]:
        raise click.UsageError("--model is missing: a model directory or hub name")
    return server_launch(
        python,
        model=str(options["model"]),
        host=str(options["host"]),
        port=int(str(options["port"])),
        extra=extra,
        environ=os.environ,
    )


def _emulated(python: str, extra: tuple[str, ...], options: dict[str, object]) -> Launch:
    try:
        profile = load_profile(str(options["profile"]))
    except UnknownProfileError as unknown:
        raise click.ClickException(str(unknown)) from None
    name = str(options["tokenizer"])
    text_ids = tokenizer_info(default_tokenizer() if name == "auto" else name).text_ids
    block_size = int(str(options["block_size"]))
    blocks = int(str(options["num_blocks"])) or profile.kv.num_blocks * profile.kv.block_size_tokens // block_size
    config = msgspec.convert(
        {
            "model": options["model"] or profile.served_name,
            "max_num_seqs": options["max_num_seqs"],
            "max_num_batched_tokens": options["max_num_batched_tokens"],
            "max_model_len_tokens": options["max_model_len"],
            "block_size_tokens": block_size,
            "num_blocks": max(1, blocks),
            "scheduling_policy": options["scheduling_policy"],
            "async_scheduling": options["async_scheduling"],
        },
        EngineConfig,
    )
    return emulated_launch(
        python,
        folder=Path(tempfile.gettempdir()) / f"astrolabe-{os.getuid()}" / f"model-{options['port']}",
        config=config,
        device={
            "profile": profile.name,
            "noise": options["noise"],
            "time_scale": options["time_scale"],
            "seed": options["seed"],
            "first_text_id": text_ids.start,
            "last_text_id": text_ids.stop - 1,
        },
        host=str(options["host"]),
        port=int(str(options["port"])),
        extra=extra,
        environ=os.environ,
    )
