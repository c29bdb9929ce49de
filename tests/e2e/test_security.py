"""Who gets in: TLS and mutual TLS on each hop, keys, roles, limits. Nothing secret in the logs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
import trustme

from deploy.cli import ASTROLABE
from deploy.local_cluster import Child, LocalCluster
from gateway.intake.callers import KeyEntry, KeyFile, digest, write_keys
from gateway.main import Gateway
from protos.runtime.config import ConfigError
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_predict_pb2 as predict_pb
from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchStub
from protos.v1.astrolabe_predict_pb2_grpc import PredictStub
from simcore.types import Outcome
from tests.e2e.cluster import MakeCluster
from tests.e2e.http_client import RawClient
from tests.e2e.in_process import ask, configured, detail, dispatched, part, running, status, until
from tests.e2e.predictor_daemon import DEADLINE_S, daemon
from tests.e2e.scripted_node import ScriptedNode

pytestmark = pytest.mark.e2e

SECRET = "correct-horse-battery-staple"
PROMPT = "the-patient-has-a-rash"


class Tls:
    """One authority and files of it."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self._folder = folder
        self.ca = str(folder / "ca.pem")
        self.authority.cert_pem.write_to_path(self.ca)

    def issue(self, name: str, authority: trustme.CA | None = None) -> tuple[str, str]:
        """Certificate and key of one party on this machine."""
        made = (authority or self.authority).issue_cert("localhost", "127.0.0.1")
        cert, key = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        made.private_key_pem.write_to_path(str(key))
        return str(cert), str(key)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return Tls(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def keys(tmp_path: Path) -> str:
    """alice and bob are clients, prom may read metrics, root is an admin; `limited` has limits, `urgent` may ask
    for priority."""
    entries = [KeyEntry(name=n, sha256=digest(f"{SECRET}-{n}").hex()) for n in ("alice", "bob")]
    entries.append(KeyEntry(name="prom", sha256=digest(f"{SECRET}-prom").hex(), role="metrics"))
    entries.append(KeyEntry(name="root", sha256=digest(f"{SECRET}-root").hex(), role="admin"))
    entries.append(KeyEntry(name="limited", sha256=digest(f"{SECRET}-limited").hex(), max_concurrent=1))
    entries.append(KeyEntry(name="urgent", sha256=digest(f"{SECRET}-urgent").hex(), best_priority=-2))
    write_keys(tmp_path / "keys.toml", KeyFile(keys=tuple(entries)))
    return str(tmp_path / "keys.toml")


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {SECRET}-{name}"}


def metadata(name: str) -> tuple[tuple[str, str], ...]:
    return tuple(bearer(name).items())


def read(path: str) -> str:
    return Path(path).read_text()


def write(path: str, text: str) -> None:
    Path(path).write_text(text)


CHAT = [{"role": "user", "content": "x"}]


async def code_of(call: Any) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_each_role_may_do_its_own(node: ScriptedNode, keys: str) -> None:
    ok, forbidden, unknown = (grpc.StatusCode[n] for n in ("OK", "PERMISSION_DENIED", "UNAUTHENTICATED"))
    async with running(node.address, keys=keys) as (gateway, stub):
        await until(lambda: status(gateway, "n") == "up")
        admin_calls: list[Callable[[Any], Any]] = [
            lambda m: stub.ListNodes(pb.ListNodesRequest(), metadata=m),
            lambda m: stub.SetPolicy(pb.SetPolicyRequest(policy="random"), metadata=m),
            lambda m: stub.Drain(pb.DrainRequest(node_id="n", undo=True), metadata=m),
            lambda m: stub.WatchNodes(pb.WatchNodesRequest(), metadata=m).read(),
        ]
        for call in admin_calls:
            assert await code_of(call(None)) == unknown
            assert await code_of(call(metadata("alice"))) == forbidden
            assert await code_of(call(metadata("prom"))) == forbidden
            assert await code_of(call(metadata("root"))) == ok
        assert await code_of(stub.Explain(pb.ExplainRequest(request_id="x"), metadata=metadata("alice"))) == forbidden
        assert await code_of(stub.Generate(ask()).read()) == unknown
        assert await code_of(stub.Generate(ask(), metadata=metadata("prom")).read()) == forbidden
        place = pb.PlaceRequest(prompt_tokens=5, max_output_tokens=5)
        assert await code_of(stub.Place(place)) == unknown
        assert await code_of(stub.Place(place, metadata=metadata("alice"))) == ok
        async with RawClient(gateway.http_address) as client:
            for path, expected in {
                "/metrics": {"": 401, "alice": 403, "prom": 200, "root": 200},
                "/v1/models": {"": 401, "alice": 200, "prom": 200, "root": 200},
                "/health": {"": 200, "alice": 200},
            }.items():
                for name, code in expected.items():
                    client.get(path, bearer(name) if name else {})
                    assert (await client.reply()).status == code, (path, name)
            client.post("/v1/completions", {"prompt": "x"}, {"authorization": "Bearer guess"})
            reply = await client.reply()
            assert (reply.status, reply.json()["error"]["type"]) == (401, "authentication_error")
            assert reply.headers["www-authenticate"] == "Bearer"
            # Who calls is asked first: a body that nobody may send is not looked at.
            for path in ("/v1/completions", "/v1/chat/completions"):
                for name, expected_code in (("", 401), ("prom", 403), ("alice", 400)):
                    client.post(path, {"prompt": 5, "messages": 5}, bearer(name) if name else {})
                    assert (await client.reply()).status == expected_code, (path, name)


async def test_clients_cancel_their_own_requests_and_admins_any(node: ScriptedNode, keys: str) -> None:
    async with running(node.address, keys=keys) as (gateway, stub):
        await until(lambda: status(gateway, "n") == "up")
        for owner, by, found in (("alice", "bob", False), ("alice", "alice", True), ("alice", "root", True)):
            call = stub.Generate(ask(request_id="r"), metadata=metadata(owner))
            await dispatched(node)
            reply = await stub.Cancel(pb.CancelRequest(request_id="r"), metadata=metadata(by))
            assert reply.found is found
            if not found:
                call.cancel()
            else:
                assert await call.code() == grpc.StatusCode.CANCELLED
            await until(lambda: not gateway.pump.streams)


async def test_a_callers_limit_is_its_own_and_ends_with_the_request(node: ScriptedNode, keys: str) -> None:
    async with running(node.address, keys=keys) as (gateway, _), RawClient(gateway.http_address) as client:
        await until(lambda: status(gateway, "n") == "up")
        async with RawClient(gateway.http_address) as other:
            client.post("/v1/completions", {"prompt": "x", "request_id": "r"}, bearer("limited"))
            await dispatched(node)
            other.post("/v1/completions", {"prompt": "x"}, bearer("limited"))
            reply = await other.reply()
            assert (reply.status, reply.json()["error"]["type"]) == (429, "rate_limit_error")
            assert int(reply.headers["retry-after"]) >= 1
            other.post("/v1/completions", {"prompt": "x", "request_id": "s"}, bearer("alice"))
            await dispatched(node)
            for name in ("r", "s"):
                node.say(part(name, b"k", Outcome.STOP))
            assert (await client.reply()).status == (await other.reply()).status == 200
            other.post("/v1/completions", {"prompt": "x", "request_id": "t"}, bearer("limited"))
            await dispatched(node)
            node.say(part("t", b"k", Outcome.STOP))
            assert (await other.reply()).status == 200
            # Several answers are one request, and leave one place when they have ended.
            for name in ("u", "v"):
                other.post("/v1/completions", {"prompt": "x", "request_id": name, "n": 3}, bearer("limited"))
                requests = [(await dispatched(node)).request.request_id for _ in range(3)]
                for one in requests:
                    node.say(part(one, b"k", Outcome.STOP))
                assert (await other.reply()).status == 200


async def test_a_key_says_how_far_a_caller_may_go_first(node: ScriptedNode, keys: str) -> None:
    async with running(node.address, keys=keys) as (gateway, stub), RawClient(gateway.http_address) as client:
        await until(lambda: status(gateway, "n") == "up")
        denied = [("alice", -1), ("urgent", -3), ("limited", -(2**31))]
        for name, priority in denied:
            for path, body in (("completions", {"prompt": "x"}), ("chat/completions", {"messages": CHAT})):
                client.post(f"/v1/{path}", {**body, "priority": priority}, bearer(name))
                reply = await client.reply()
                assert (reply.status, reply.json()["error"]["type"]) == (403, "permission_error")
                assert f"not {priority}" in reply.json()["error"]["message"]
                assert "best_priority" in reply.json()["error"]["message"]
            client.post("/v1/completions", {"prompt": "x"}, {**bearer(name), "x-vllm-priority": str(priority)})
            assert (await client.reply()).status == 403
            forbidden = grpc.StatusCode.PERMISSION_DENIED
            assert await code_of(stub.Generate(ask(priority=priority), metadata=metadata(name)).read()) == forbidden
            place = pb.PlaceRequest(prompt_tokens=5, max_output_tokens=5, priority=priority)
            assert await code_of(stub.Place(place, metadata=metadata(name))) == forbidden
        for number, (name, priority) in enumerate((("alice", 0), ("alice", 5), ("urgent", -2), ("root", -8))):
            client.post(
                "/v1/completions",
                {"prompt": "x", "request_id": f"p{number}", "priority": priority},
                bearer(name),
            )
            assert (await dispatched(node)).request.priority == priority
            node.say(part(f"p{number}", b"k", Outcome.STOP))
            assert (await client.reply()).status == 200


async def test_a_reload_takes_keys_away_and_a_bad_file_changes_nothing(node: ScriptedNode, keys: str) -> None:
    async with running(node.address, keys=keys) as (gateway, _), RawClient(gateway.http_address) as client:

        async def status_of(name: str) -> int:
            client.get("/v1/models", bearer(name))
            return (await client.reply()).status

        assert await status_of("alice") == 200
        whole = read(keys)
        write(keys, "keys = 5")
        with pytest.raises(ConfigError, match="keys"):
            gateway.reload(gateway.config)
        assert await status_of("alice") == 200
        write(keys, whole.replace('"alice"', '"carol"').replace(digest(f"{SECRET}-alice").hex(), "0" * 64))
        gateway.reload(gateway.config)
        assert await status_of("alice") == 401


async def test_sizes_are_limited(node: ScriptedNode) -> None:
    async with running(node.address, max_prompt_tokens=10, max_body_bytes=4096) as (gateway, stub):
        await until(lambda: status(gateway, "n") == "up")
        assert await code_of(stub.Generate(ask("x" * 11)).read()) == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await code_of(stub.Generate(ask("x" * 5000)).read()) == grpc.StatusCode.RESOURCE_EXHAUSTED
        async with RawClient(gateway.http_address) as client:
            client.post("/v1/completions", {"prompt": "x" * 11})
            reply = await client.reply()
            assert (reply.status, reply.json()["error"]["param"]) == (413, "prompt")


async def test_fronts_speak_tls_and_ask_for_certificates_and_reload_them(node: ScriptedNode, tls: Tls) -> None:
    cert, key = tls.issue("gateway")
    client_cert, client_key = tls.issue("client")
    stranger = trustme.CA()
    wrong_cert, wrong_key = tls.issue("wrong", stranger)
    gateway = Gateway(configured(node.address, tls_cert=cert, tls_key=key, tls_client_ca=tls.ca))
    await gateway.start()
    try:

        async def grpc_status(*pair: str) -> grpc.StatusCode:
            blobs = [read(path).encode() for path in (tls.ca, *reversed(pair))]
            credentials = grpc.ssl_channel_credentials(*blobs)
            async with grpc.aio.secure_channel(gateway.address, credentials) as channel:
                return await code_of(DispatchStub(channel).ListNodes(pb.ListNodesRequest(), timeout=5))

        async def http_status(*pair: str) -> int:
            context = ssl.create_default_context(cafile=tls.ca)
            if pair:
                context.load_cert_chain(*pair)
            try:
                async with (
                    aiohttp.ClientSession() as session,
                    session.get(f"https://{gateway.http_address}/v1/models", ssl=context) as reply,
                ):
                    return reply.status
            except (aiohttp.ClientError, OSError):
                return 0

        assert await grpc_status(client_cert, client_key) == grpc.StatusCode.OK
        assert await grpc_status() == grpc.StatusCode.UNAVAILABLE
        assert await grpc_status(wrong_cert, wrong_key) == grpc.StatusCode.UNAVAILABLE
        assert await http_status(client_cert, client_key) == 200
        assert await http_status() == 0
        assert await http_status(wrong_cert, wrong_key) == 0
        # A renewed certificate, of an authority that our client does not know: it must be the one shown now.
        tls.issue("gateway", stranger)
        gateway.reload(gateway.config)
        assert await http_status(client_cert, client_key) == 0
        assert await grpc_status(client_cert, client_key) == grpc.StatusCode.UNAVAILABLE
    finally:
        await gateway.stop()


def test_a_node_takes_new_certificates_when_told(tmp_path: Path, tls: Tls) -> None:
    cert, key = tls.issue("renewed")
    own = [Path(path).read_bytes() for path in (tls.ca, *reversed(tls.issue("gateway-of-it")))]

    def health(child: Child) -> grpc.StatusCode:
        with grpc.secure_channel(child.address, grpc.ssl_channel_credentials(*own)) as channel:
            try:
                PredictStub(channel).GetState(predict_pb.GetStateRequest(), timeout=5.0)
            except grpc.RpcError as error:
                return error.code()
        return grpc.StatusCode.OK

    with daemon(tmp_path, tls_cert=cert, tls_key=key, tls_client_ca=tls.ca) as child:
        assert health(child) == grpc.StatusCode.OK
        # Of an authority that we do not know: it must be the one shown now.
        tls.issue("renewed", trustme.CA())
        child.signal(signal.SIGHUP)
        end_s = time.monotonic() + DEADLINE_S
        while "certificates read again" not in child.log_path.read_text():
            assert time.monotonic() < end_s, child.last_words()
            time.sleep(0.02)
        assert health(child) == grpc.StatusCode.UNAVAILABLE


async def test_a_gateway_that_connects_again_shows_its_new_certificate(tmp_path: Path, tls: Tls) -> None:
    node_cert, node_key = tls.issue("node-of-it")
    cert, key = tls.issue("front-of-it")
    with daemon(tmp_path, node_id="node-0", tls_cert=node_cert, tls_key=node_key, tls_client_ca=tls.ca) as child:
        async with running(child.address, node_ca=tls.ca, node_cert=cert, node_key=key) as (gateway, stub):
            await until(lambda: status(gateway, "node-0") == "up")
            # The session that stands is not cut, whatever the new certificate is.
            tls.issue("front-of-it", trustme.CA())
            gateway.reload(gateway.config)
            answer = [chunk async for chunk in stub.Generate(ask(), timeout=10)]
            assert answer[-1].usage.output_tokens == 8
            child.signal(signal.SIGTERM)
            assert await asyncio.to_thread(child.wait, 10.0) == 0
            child.start()
            await asyncio.to_thread(child.wait_ready, time.monotonic() + DEADLINE_S)
            await until(lambda: "certificate" in detail(gateway).lower(), deadline_s=DEADLINE_S)
            assert status(gateway, "node-0") != "up"
            # One that the node knows again: from the next try on it is let in.
            tls.issue("front-of-it")
            gateway.reload(gateway.config)
            await until(lambda: status(gateway, "node-0") == "up", deadline_s=DEADLINE_S)
            answer = [chunk async for chunk in stub.Generate(ask(), timeout=10)]
            assert answer[-1].usage.output_tokens == 8


def test_a_cluster_with_mutual_tls_on_every_hop_keeps_secrets_out_of_its_logs(
    make_cluster: MakeCluster, tls: Tls, keys: str
) -> None:
    node_cert, node_key = tls.issue("node")
    cert, key = tls.issue("front")
    secure_node = {"tls_cert": node_cert, "tls_key": node_key, "tls_client_ca": tls.ca}
    secure_gateway = {"node_ca": tls.ca, "node_cert": cert, "node_key": key, "keys": keys}
    os.environ["ASTROLABE_API_KEY"] = f"{SECRET}-root"
    try:
        cluster = make_cluster(nodes=1, predictor=secure_node, gateway=secure_gateway)
    finally:
        del os.environ["ASTROLABE_API_KEY"]
    asyncio.run(_use(cluster))
    assert [c.name for c in cluster.children() if _mentions(c.log_path, SECRET, PROMPT, "sha256")] == []
    with grpc.insecure_channel(cluster.nodes[0].address) as channel, pytest.raises(grpc.RpcError):
        DispatchStub(channel).ListNodes(pb.ListNodesRequest(), timeout=2)


async def _use(cluster: LocalCluster) -> None:
    async with RawClient(cluster.gateway.http_address) as client:
        client.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 3, "stop": "zzz"}, bearer("alice"))
        assert (await client.reply()).status == 200
        client.post("/v1/completions", {"prompt": PROMPT, "max_tokens": -3}, bearer("alice"))
        assert (await client.reply()).status == 400
        client.post("/v1/completions", json.dumps({"prompt": PROMPT}).encode()[:-1], bearer("alice"))
        assert (await client.reply()).status == 400


def _mentions(path: Path, *words: str) -> bool:
    text = path.read_text()
    return any(word in text for word in words)


@pytest.mark.parametrize(
    ("process", "options", "words"),
    [
        ("gateway", ["--listen", "0.0.0.0:0"], "insecure"),
        ("gateway", ["--http-listen", "10.0.0.1:8201"], "--http-listen"),
        ("gateway", ["--tls-cert", "x.crt"], "[tls]: key is missing"),
        ("gateway", ["--tls-cert", "x.crt", "--tls-key", "x.key"], "x.crt: cannot be read"),
        ("gateway", ["--keys", "absent.toml"], "absent.toml: no such file"),
        ("gateway", ["--node-ca", "absent.pem"], "absent.pem: cannot be read"),
        ("predictor", ["--listen", "0.0.0.0:0"], "insecure"),
        ("predictor", ["--tls-client-ca", "ca.pem"], "[tls]: client_ca needs"),
    ],
)
def test_what_is_not_safe_or_not_there_stops_the_process_with_one_line(
    process: str, options: list[str], words: str
) -> None:
    free = ["--listen", "127.0.0.1:0", *(["--http-listen", "127.0.0.1:0"] if process == "gateway" else [])]
    done = subprocess.run(
        [sys.executable, "-m", "deploy.cli", process, *free, *options], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    path = str(tmp_path / "keys.toml")

    def key(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "deploy.cli", "key", *arguments, "--file", path],
            capture_output=True,
            text=True,
            timeout=50,
        )

    assert "key" in ASTROLABE.list_commands(None)  # type: ignore[arg-type]
    made = key("create", "alice", "--requests-per-s", "5", "--burst", "10").stdout.strip()
    assert made.startswith("astro-")
    assert made not in Path(path).read_text()
    assert digest(made).hex() in Path(path).read_text()
    again = key("create", "alice")
    assert (again.returncode, "already" in again.stderr) == (1, True)
    assert "5 requests/s, bursts of 10" in key("list").stdout
    assert key("create", "carol", "--best-priority", "-1").returncode == 0
    assert "priority -1 or larger" in key("list").stdout
    assert key("revoke", "alice").returncode == 0
    assert key("revoke", "alice").returncode == 1
