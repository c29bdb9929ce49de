"""Replay against plain servers: what is measured, which files are written, and how broken servers show."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from bench.client.endpoints import EndpointError, EndpointPlan, run_endpoints, served_models
from bench.client.outputs import FIGURES, RESULTS_FILE, SUMMARY_FILE, THROUGHPUT_FILE, write_outputs
from bench.commands.endpoint_options import RESULTS_FOLDER, output_places, urls_of, with_aliases
from bench.run.provenance import header
from bench.workload.item import WorkloadItem
from simcore.types import Outcome

pytestmark = pytest.mark.e2e


class Server:
    """An OpenAI-compatible server that does what the prompt says: `ok`, `full`, `bad`, `cut`, `hang`, `garbage`."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.left = asyncio.Event()

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "m", "max_model_len": 64}]})

    async def metrics(self, request: web.Request) -> web.Response:
        done = len(self.bodies)
        return web.Response(text=f"vllm:request_success_total {done}\nvllm:generation_tokens_total {done * 3}\n")

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        kind = body["prompt"]
        if kind in ("full", "bad"):
            return web.json_response({"error": {"message": kind}}, status=429 if kind == "full" else 400)
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        for index in range(3):
            await self._send(stream, {"choices": [{"text": f"t{index}", "finish_reason": None}]})
        if kind == "garbage":
            await stream.write(b"data: {nonsense\n\n")
        elif kind == "hang":
            try:
                await asyncio.sleep(3600)
            finally:
                self.left.set()
        elif kind == "ok":
            await self._send(stream, {"choices": [{"text": "", "finish_reason": "length"}]})
            await self._send(stream, {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})
            await stream.write(b"data: [DONE]\n\n")
        return stream

    async def _send(self, stream: web.StreamResponse, event: dict[str, Any]) -> None:
        await stream.write(b"data: " + json.dumps(event).encode() + b"\n\n")


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[tuple[Server, str]]:
    server = Server()
    app = web.Application()
    app.add_routes(
        [
            web.get("/v1/models", server.models),
            web.get("/metrics", server.metrics),
            web.post("/v1/completions", server.completions),
        ]
    )
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield server, f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


def item(index: int, prompt: str) -> WorkloadItem:
    return WorkloadItem(request_id=f"r{index}", arrival_s=0.02 * index, prompt_tokens=1, output_tokens=3, prompt=prompt)


async def test_two_servers_take_turns_and_all_files_are_written(tmp_path: Path) -> None:
    async with serving() as (one, first), serving() as (two, second):
        items = [item(index, "ok") for index in range(10)]
        plan = EndpointPlan(urls=[first, second], items=items, model="m", poll_interval_s=0.02)
        run = await run_endpoints(plan)
    assert [r.node_id for r in run.results] == [first, second] * 5
    assert all(r.outcome is Outcome.LENGTH and (r.output_tokens, r.prompt_tokens) == (3, 7) for r in run.results)
    assert all(r.ttft_s is not None and r.e2e_s is not None and r.ttft_s <= r.e2e_s for r in run.results)
    assert one.bodies[0]["max_tokens"] == 3
    assert one.bodies[0]["ignore_eos"] is True
    assert len(two.bodies) == 5
    summary, paths = write_outputs(tmp_path, header({}, seed=0), run)
    assert summary.completed == 10
    assert {path.name for path in paths} == {
        RESULTS_FILE, THROUGHPUT_FILE, SUMMARY_FILE, "latency.png", *(f"{name}.png" for name, _, _ in FIGURES)
    }  # fmt: skip
    assert all(path.stat().st_size > 0 for path in paths)
    records = json.loads((tmp_path / THROUGHPUT_FILE).read_bytes())["servers"]
    counted = sum(row["requests_per_s"] is not None and row["requests_per_s"] > 0 for row in records[first])
    assert counted > 0
    assert len(json.loads((tmp_path / RESULTS_FILE).read_bytes())["requests"]) == 10
    assert first in (tmp_path / SUMMARY_FILE).read_text()


async def test_each_way_to_fail_has_its_outcome() -> None:
    async with serving() as (server, url):
        kinds = ["full", "bad", "cut", "hang", "garbage", "ok"]
        plan = EndpointPlan(urls=[url], items=[item(i, k) for i, k in enumerate(kinds)], model="m", timeout_s=1.0)
        run = await run_endpoints(plan)
        async with asyncio.timeout(10):
            await server.left.wait()
    assert [r.outcome for r in run.results] == [
        Outcome.OVERLOADED, Outcome.INVALID, Outcome.NODE_LOST, Outcome.DEADLINE, Outcome.NODE_LOST, Outcome.LENGTH
    ]  # fmt: skip
    assert "HTTP 429" in run.results[0].detail
    assert run.results[2].output_tokens == 3, "what came before the cut is counted"


async def test_a_server_that_is_not_there_fails_its_requests_and_not_the_run() -> None:
    async with serving() as (_, url):
        plan = EndpointPlan(urls=[url, "http://127.0.0.1:9"], items=[item(i, "ok") for i in range(4)], model="m")
        run = await run_endpoints(plan)
    assert [r.outcome for r in run.results] == [Outcome.LENGTH, Outcome.NO_NODE] * 2
    assert run.samples["http://127.0.0.1:9"] == []
    assert run.polls_failed > 0


async def test_models_are_looked_up_before_anything_is_sent() -> None:
    async with serving() as (_, url):
        assert [(model.id, model.max_model_len) for model in await served_models([url], "")] == [("m", 64)]
        with pytest.raises(EndpointError, match="does not serve 'other'; its models are m"):
            await served_models([url], "other")
        with pytest.raises(EndpointError, match="is an OpenAI-compatible server there"):
            await served_models([f"{url}/nowhere"], "")


def options(**given: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "endpoint": (), "num_nodes": None, "base_port": 8000, "average_interval": None, "maxq": None,
        "max_new_tokens": None, "dataset_file": "", "dataset_path": "", "dataset": "sharegpt", "rate": None,
        "requests": None, "output_tokens": 128, "results_folder": "",
    }  # fmt: skip
    return {**base, **given}


def test_the_measurers_own_flags_are_understood() -> None:
    given = with_aliases(options(average_interval=0.16, maxq=50, max_new_tokens=50, dataset_file="p.jsonl"))
    assert (given["rate"], given["requests"], given["output_tokens"]) == (pytest.approx(6.25), 50, 50)
    assert (given["dataset"], given["dataset_path"]) == ("jsonl", "p.jsonl")
    assert urls_of(options(num_nodes=2, base_port=9000)) == ["http://127.0.0.1:9000", "http://127.0.0.1:9001"]
    assert urls_of(options(endpoint=("http://a:1/v1/", "https://b"))) == ["http://a:1", "https://b"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"average_interval": 0.1, "rate": 3.0}, "say the same thing"),
        ({"average_interval": 0.0}, "must be above 0"),
        ({"maxq": 3, "requests": 3}, "say the same thing"),
        ({"dataset_file": "a", "dataset_path": "b"}, "name the same thing"),
        ({"endpoint": ("ftp://a:1",)}, "is not a URL"),
        ({"endpoint": ("a:1", "http://a:1/v1")}, "named twice"),
        ({"endpoint": ("http://a", "http://a/")}, "named twice"),
        ({"endpoint": ("http://a",), "num_nodes": 2}, "give one of them"),
        ({"num_nodes": 10, "base_port": 65_530}, "last port would be 65539"),
    ],
)
def test_contradictions_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(Exception, match=says):
        urls_of(with_aliases(options(**given)))


async def test_the_measurers_flags_put_the_files_where_it_puts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = with_aliases(options(average_interval=0.16, dataset_file="data/mixed.jsonl"))
    async with serving() as (_, url):
        run = await run_endpoints(EndpointPlan(urls=[url], items=[item(i, "ok") for i in range(3)], model="m"))
    places = output_places(given)
    _, paths = write_outputs(places.files, header({}, seed=0), run, places=places)
    assert {path.name for path in (tmp_path / "log_mixed_0.16").iterdir()} == {
        "experiment_results.json", "throughput_records.json", "mixed_summary.txt"
    }  # fmt: skip
    theirs = (
        "latency_stats prefix_hit_rate arrival_distribution token_throughput request_throughput tpot_stats ttft_stats"
    )
    assert {path.stem for path in (tmp_path / "fig_mixed_0.16").iterdir()} == {*theirs.split(), "kv_cache_use"}
    assert all(path.stat().st_size for path in paths)


def test_a_folder_that_is_named_goes_before_and_other_runs_have_ours() -> None:
    flags = {"average_interval": 1.0, "dataset_file": "a.jsonl"}
    for given, files in (
        (flags, "log_a_1.0"),
        ({"average_interval": 0.5}, "log_sharegpt_0.5"),
        ({"dataset_file": "a.jsonl", "rate": 4.0}, "log_a_0.25"),
        ({**flags, "results_folder": "mine"}, "mine"),
        ({}, RESULTS_FOLDER),
        ({"rate": 4.0}, RESULTS_FOLDER),
        ({"dataset_file": "a.jsonl"}, RESULTS_FOLDER),
    ):
        places = output_places(with_aliases(options(**given)))
        assert places.files == Path(files)
        assert places.figures == Path(files.replace("log_", "fig_"))
