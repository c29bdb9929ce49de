"""Forecasts and step times on a real GPU: a stock vLLM server that computes a model of the right shape.

    python -m bench.vllm_checks.real_device --profile h200/qwen3-32b --output DIRECTORY

For an environment with vLLM, a GPU and this product, or two of them (`--python` names vLLM's). Weights are made up
(`--load-format dummy`), so nothing is downloaded: times depend on shapes alone, and each answer has the length that its
request asks for. A daemon follows the server and learns from its trace; a gateway sends ShareGPT requests at shares of
what the server completes when all wait from the start. `DIRECTORY` gets the forecasts beside what happened
(`rows.json`) and every step with its batch and duration (`steps-*.jsonl`).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
import msgspec

from bench.client.open_loop import ReplayPlan
from bench.client.session import connected
from bench.data.datasets import DatasetName, DatasetSpec
from bench.data.source import WorkloadSpec, load_source
from bench.vllm_checks.forecast_error import ErrorRun, PolicyErrors, live, table, with_ids_only
from bench.vllm_checks.server import Server, free_port
from bench.workload.item import WorkloadItem
from deploy.local_cluster import ClusterSpec, LocalCluster
from engine_adapters.vllm.address import address_for_url
from engine_adapters.vllm.launch import server_launch, write_model
from engine_adapters.vllm.probe import TraceProbe
from simcore.cost.model_shape import ModelShape, find_shape
from simcore.cost.shipped import load_shipped
from simcore.trace import TraceDelta, TraceSnapshot

CONTEXT_TOKENS = 2048
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def architecture_of(shape: ModelShape) -> Mapping[str, object]:
    """The keys of `config.json` that decide what is computed. Raises ValueError for a model that is not dense."""
    family = shape.short_name.partition("-")[0]
    if shape.experts > 1 or family not in ARCHITECTURES:
        raise ValueError(f"{shape.name}: only dense models of {', '.join(ARCHITECTURES)} can be made up")
    return {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.q_heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }


def made_up_server(python: str, folder: Path, profile: str, extra: Sequence[str]) -> Server:
    """A traced server of the profile's model, with weights that mean nothing."""
    shape = find_shape(profile.partition("/")[2])
    model = folder / "model"
    write_model(model, max_model_len_tokens=CONTEXT_TOKENS, vocabulary=shape.vocab, architecture=architecture_of(shape))
    port = free_port()
    flags = ["--load-format", "dummy", "--served-model-name", shape.short_name, "--generation-config", "vllm"]
    launch = server_launch(
        python,
        model=str(model),
        host="127.0.0.1",
        port=port,
        extra=[*flags, *extra],
        environ={"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", **os.environ},
    )
    return Server(launch.command, launch.environment, port=port, folder=folder)


@contextmanager
def recorded(server: Server, path: Path) -> Iterator[None]:
    """Every step of the engine as one line of JSON; to be entered within a running loop."""

    async def follow() -> None:
        with path.open("wb") as out:
            async for item in TraceProbe(address_for_url(server.url, {}), exclusive=False).watch():
                if isinstance(item, (TraceDelta, TraceSnapshot)):
                    out.write(msgspec.json.encode(item) + b"\n")

    task = asyncio.create_task(follow())
    try:
        yield
    finally:
        task.cancel()


async def flooded(address: str, server: Server, plan: ReplayPlan, path: Path) -> float:
    """Requests per second of the server when all wait from the start."""
    with recorded(server, path):
        async with connected(address) as session:
            done = await session.run(plan, policy="least_requests")
    ended_s = [r.arrival_s + r.e2e_s for r in done.results if r.e2e_s is not None]
    if not ended_s:
        raise click.ClickException(f"no request was answered; the server's log says why: {server.log_path}")
    click.echo(f"all at once: {len(ended_s)} of {len(plan.items)} answered in {max(ended_s):.1f} s", err=True)
    return len(ended_s) / max(ended_s)


async def loaded(
    address: str, server: Server, profile: str, plan: ReplayPlan, job: ErrorRun, path: Path
) -> PolicyErrors:
    with recorded(server, path):
        return await live(address, [server], load_shipped(profile), plan, job)


@click.command()
@click.option("--python", default=sys.executable, help="Interpreter of vLLM's environment.")
@click.option("--profile", default="h200/qwen3-32b", show_default=True, help="GPU and model; where learning begins.")
@click.option("--dataset", type=click.Choice(["sharegpt", "burstgpt"]), default="sharegpt", show_default=True)
@click.option("--dataset-path", default="", help="File of it.")
@click.option("--requests", default=600, show_default=True)
@click.option("--load", "loads", multiple=True, type=float, default=(0.5, 0.8, 0.95), show_default=True)
@click.option("--policy", default="min_total_latency", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Directory.")
@click.argument("extra", nargs=-1)
def main(
    python: str,
    profile: str,
    dataset: DatasetName,
    dataset_path: str,
    requests: int,
    loads: Sequence[float],
    policy: str,
    output: Path,
    extra: Sequence[str],
) -> None:
    """Print the table of forecast errors on this machine's GPU. EXTRA: options of the vLLM server, after --."""
    output = output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    source = load_source(WorkloadSpec(dataset=DatasetSpec(name=dataset, path=dataset_path), requests=requests))
    source.keep_fitting(CONTEXT_TOKENS)
    server = made_up_server(python, output, profile, extra)
    rows: list[PolicyErrors] = []
    try:
        server.start().wait_ready()
        node = {"engine": "vllm", "engine_url": server.url, "tokenizer": str(output / "model"), "profile": profile}
        spec = ClusterSpec(
            nodes=1,
            gateway_port=0,
            first_node_port=0,
            predictor=node,
            gateway={"tokenizer": node["tokenizer"]},
        )

        def plan_of(items: Sequence[WorkloadItem], run_id: str) -> ReplayPlan:
            return ReplayPlan(items=items, run_id=run_id, vocab_size=32_000, timeout_s=300.0)

        with LocalCluster(spec, output) as cluster:
            items = [msgspec.structs.replace(i, arrival_s=0.0) for i in with_ids_only(source, 1.0, requests)]
            path = output / "steps-all-at-once.jsonl"
            limit = asyncio.run(flooded(cluster.address, server, plan_of(items, "all-at-once"), path))
        for load in loads:
            rate = load * limit
            job = ErrorRun(policy=policy, load=load, rate_per_s=rate, items=with_ids_only(source, rate, requests))
            plan = plan_of(job.items, f"load-{load:g}")
            path = output / f"steps-{load:g}.jsonl"
            # A new daemon, which knows nothing yet of this GPU.
            with LocalCluster(spec, output) as cluster:
                rows.append(asyncio.run(loaded(cluster.address, server, profile, plan, job, path)))
            click.echo(table(rows[-1:]).splitlines()[-1], err=True)
            (output / "rows.json").write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=2))
            click.echo(json.dumps({"load_average": os.getloadavg()}), err=True)
    finally:
        server.stop()
    click.echo(table(rows))


if __name__ == "__main__":
    main()
