"""The page for the person on call over HTTP: who may have it, what its stream says, when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from gateway.intake.callers import KeyEntry, KeyFile, digest, write_keys
from gateway.main import Gateway
from gateway.ui import feed
from gateway.ui.feed import MOST_VIEWERS
from gateway.workers.slot import VARIABLE as SLOT
from protos import codec
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_predict_pb2 as predict_pb
from simcore.types import Outcome
from tests.e2e.cluster import MakeCluster
from tests.e2e.http_client import RawClient, Reply
from tests.e2e.in_process import ask, configured, dispatched, part, running, status, until
from tests.e2e.scripted_node import ScriptedNode, load

pytestmark = pytest.mark.e2e


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks come more often than people need them."""
    monkeypatch.setattr(feed, "LOOK_S", 0.05)
    monkeypatch.setattr(feed, "SAMPLE_S", 0.1)


@pytest.fixture
def keys(tmp_path: Path) -> str:
    entries = [
        KeyEntry(name=role, sha256=digest(f"key-of-{role}").hex(), role=role) for role in ("client", "metrics", "admin")
    ]
    write_keys(tmp_path / "keys.toml", KeyFile(keys=tuple(entries)))
    return str(tmp_path / "keys.toml")


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer key-of-{name}"}


async def get(gateway: Gateway, path: str, headers: dict[str, str] | None = None) -> Reply:
    async with RawClient(gateway.http_address) as client:
        client.get(path, {"host": gateway.http_address, **(headers or {})})
        return await client.reply()


class Viewer(RawClient):
    """Somebody who watches the page's stream, and keeps what it tells as the page does."""

    nodes: dict[str, dict[str, Any]]
    now: dict[str, Any]
    log: list[dict[str, Any]]
    timeline: dict[str, list[float]]

    async def watch(self, headers: dict[str, str] | None = None) -> dict[str, Any]:
        """Everything, as it is told first."""
        self.get("/ui/stream", {"host": "localhost", **(headers or {})})
        status, heads = await self.head()
        assert (status, heads["content-type"]) == (200, "text/event-stream")
        name, whole = await self.event()
        assert name == "whole"
        self._keep(whole)
        return whole

    def _keep(self, whole: dict[str, Any]) -> None:
        self.nodes, self.now, self.log = whole["nodes"], whole["now"], whole["log"]
        columns = whole["timeline"]["columns"]
        self.timeline = dict(zip(whole["timeline"]["fields"], columns, strict=True))

    async def event(self) -> tuple[str, Any]:
        async with asyncio.timeout(10):
            lines = (await self.chunk()).decode().split("\n")
        return lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))

    async def until(self, holds: Callable[[], bool]) -> None:
        """Reads on until it holds."""
        async with asyncio.timeout(20):
            while not holds():
                name, told = await self.event()
                if name == "whole":
                    self._keep(told)
                    continue
                assert name == "change"
                self.now |= told.get("now", {})
                self.log += told.get("log", [])
                for key, fields in told.get("nodes", {}).items():
                    self.nodes[key] = self.nodes.get(key, {}) | fields
                for sample in told.get("samples", []):
                    for column, value in zip(self.timeline.values(), sample, strict=True):
                        column.append(value)

    def in_flight(self) -> int:
        """Requests of the gateway at all nodes."""
        return sum(row["in_flight"] for row in self.nodes.values())

    def ended(self) -> set[str]:
        """Requests whose end is in the log."""
        return {line["request_id"] for line in self.log if line["event"] == "request finished"}

    def total(self, field: str) -> float:
        """Of all of the timeline."""
        return sum(self.timeline[field])


@contextlib.asynccontextmanager
async def viewer(gateway: Gateway) -> AsyncIterator[Viewer]:
    async with Viewer(gateway.http_address) as client:
        yield client


# --- files ------------------------------------------------------------------------------------------------------------


async def test_the_page_and_its_files_come_with_types_tags_and_a_strict_policy(http_front: Any) -> None:
    root = await get(http_front, "/")
    assert (root.status, root.headers["location"]) == (307, "ui/")
    moved = await get(http_front, "/ui")
    assert (moved.status, moved.headers["location"]) == (308, "ui/")
    page = await get(http_front, "/ui/")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    script = await get(http_front, "/ui/app.js?v=1")
    assert (script.status, script.headers["content-type"]) == (200, "text/javascript; charset=utf-8")
    async with RawClient(http_front.http_address) as client:
        client.get("/ui/app.js", {"host": "localhost", "if-none-match": script.headers["etag"]})
        code, headers = await client.head()
        assert (code, headers["etag"]) == (304, script.headers["etag"])
        # No body comes: what follows is the next answer.
        client.get("/health/live", {"connection": "close"})
        assert (await client.reply()).status == 200
        assert await client.is_closed()


@pytest.mark.parametrize(
    "path",
    ["/ui/../main.py", "/ui/%2e%2e/main.py", "/ui//etc/passwd", "/ui/static/app.js", "/ui/nothing", "/ui/vendor/"],
)
async def test_there_are_no_other_files(http_front: Any, path: str) -> None:
    reply = await get(http_front, path)
    assert reply.status == 404
    assert reply.json()["error"]["code"] == "unknown"


async def test_only_looks_are_taken(http_front: Any) -> None:
    async with RawClient(http_front.http_address) as client:
        for path in ("/ui/", "/ui/stream", "/ui/requests/r"):
            client.post(path, {}, {"host": "localhost"})
            reply = await client.reply()
            assert (reply.status, reply.headers["allow"]) == (405, "GET")


# --- who may ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/ui/stream", "/ui/requests/r-1"])
async def test_only_an_admins_key_opens_what_the_page_shows(node: ScriptedNode, keys: str, path: str) -> None:
    async with running(node.address, keys=keys) as (gateway, _):
        assert (await get(gateway, path)).status == 401
        assert (await get(gateway, path, {"authorization": "Bearer nonsense"})).status == 401
        assert (await get(gateway, path, bearer("client"))).status == 403
        assert (await get(gateway, path, bearer("metrics"))).status == 403
        assert (await get(gateway, "/ui/requests/r-1", bearer("admin"))).status == 404
        async with viewer(gateway) as admin:
            assert (await admin.watch(bearer("admin")))["about"]["keys"] is True
        # The page itself says nothing, and asks for the key.
        assert (await get(gateway, "/ui/")).status == 200


async def test_a_key_that_is_taken_away_ends_what_it_opened(node: ScriptedNode, keys: str) -> None:
    async with running(node.address, keys=keys) as (gateway, _), viewer(gateway) as admin:
        await admin.watch(bearer("admin"))
        write_keys(Path(keys), KeyFile(keys=()))
        gateway.reload(configured(node.address, keys=keys))
        async with asyncio.timeout(10):
            while (await admin.event())[0] != "bye":
                pass
        assert await admin.chunk() == b""
        assert (await get(gateway, "/ui/stream", bearer("admin"))).status == 401


async def test_beyond_this_machine_there_is_no_page_unless_somebody_wants_one() -> None:
    beyond: dict[str, Any] = {"http_listen": "0.0.0.0:0", "insecure": True}
    for more, code in (({}, 404), ({"ui": True}, 200)):
        async with running(**beyond, **more) as (gateway, _):
            assert gateway.http_bound is not None
            async with RawClient(f"127.0.0.1:{gateway.http_bound.port}") as client:
                client.get("/ui/", {"host": "gateway.example"})
                reply = await client.reply()
            assert reply.status == code
            assert code == 200 or "--ui" in reply.json()["error"]["message"]


async def test_a_foreign_name_that_leads_to_this_machine_opens_nothing(http_front: Any) -> None:
    for path in ("/ui/", "/ui/stream", "/ui/requests/r"):
        reply = await get(http_front, path, {"host": "rebound.example"})
        assert reply.status == 403
        assert "localhost" in reply.json()["error"]["message"]


# --- the stream -------------------------------------------------------------------------------------------------------


async def test_a_viewer_gets_everything_once_and_then_what_changes(http_front: Any, node: ScriptedNode) -> None:
    async with viewer(http_front) as one, viewer(http_front) as two:
        whole = await one.watch()
        row = whole["nodes"][node.address]
        assert (row["name"], row["state"], row["running"], row["kv"]) == ("n", "up", 0, 0.0)
        assert whole["now"]["under_way"] == 0
        assert whole["scaling"] is whole["slo"] is None
        await two.watch()
        busy = codec.load_to_wire(load("n", waiting=7))
        node.say(predict_pb.NodeFrame(load=predict_pb.LoadNote(load=busy)))
        for watcher in (one, two):
            await watcher.until(lambda w=watcher: w.nodes[node.address]["waiting"] == 7)  # type: ignore[misc]
            assert watcher.nodes[node.address]["running"] == 0


async def test_what_runs_is_told_as_it_runs_and_counted_when_it_ends(node: ScriptedNode) -> None:
    async with running(node.address) as (gateway, stub):
        await until(lambda: status(gateway, "n") == "up")
        async with viewer(gateway) as watcher:
            await watcher.watch()
            request = ask(request_id="r-1", slo=pb.Slo(ttft_s=60.0))
            call = stub.Generate(request)
            work = await dispatched(node)
            await watcher.until(lambda: watcher.nodes[node.address]["in_flight"] == watcher.now["under_way"] == 1)
            running_story = (await get(gateway, "/ui/requests/r-1")).json()
            assert running_story["actual"]["outcome"] is None
            assert running_story["decisions"][0]["node"] == "n"
            node.say(part(work.request.request_id, b"12345678", Outcome.LENGTH))
            async for _ in call:
                pass
            await watcher.until(lambda: watcher.nodes[node.address]["in_flight"] == watcher.now["under_way"] == 0)
        story = (await get(gateway, "/ui/requests/r-1")).json()
        assert (story["actual"]["outcome"], story["actual"]["output_tokens"]) == ("length", 8)
        async with viewer(gateway) as late:
            await late.watch()
            await late.until(lambda: late.total("promised") > 0)
            assert (late.total("promised"), late.total("kept"), late.total("failed")) == (1, 1, 0)


async def test_a_request_nobody_knows_has_no_story(http_front: Any) -> None:
    reply = await get(http_front, "/ui/requests/no%2Fsuch%23one")
    assert reply.status == 404
    assert "no/such#one" in reply.json()["error"]["message"]


async def test_nothing_is_looked_at_while_nobody_looks(http_front: Any) -> None:
    page = http_front.page.feed
    async with viewer(http_front) as watcher:
        await watcher.watch()
        await until(lambda: page.viewers == 1)
        assert page.is_looking
    # It vanishes without a word.
    await until(lambda: page.viewers == 0)
    assert not page.is_looking


async def test_there_is_room_for_so_many_and_then_a_clear_word(http_front: Any) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(MOST_VIEWERS):
            await (await stack.enter_async_context(viewer(http_front))).watch()
        reply = await get(http_front, "/ui/stream")
        assert reply.status == 503
        assert str(MOST_VIEWERS) in reply.json()["error"]["message"]
        assert "retry-after" in reply.headers
    await until(lambda: http_front.page.feed.viewers == 0)
    async with viewer(http_front) as watcher:
        await watcher.watch()


async def test_a_viewer_that_does_not_read_is_dropped_and_the_others_go_on(
    http_front: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "MOST_UNREAD_BYTES", 100_000)
    page = http_front.page.feed
    async with viewer(http_front) as reads, viewer(http_front) as sleeps:
        await reads.watch()
        sleeps.get("/ui/stream", {"host": "localhost"})
        sleeps.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: page.viewers == 2)
        # What the kernel takes off our hands comes on top of the limit.
        monkeypatch.setattr(orjson, "dumps", lambda _data, **_: b'"%b"' % (b"x" * 1_000_000))
        async with asyncio.timeout(30):
            while page.viewers == 2:
                await reads.event()
        monkeypatch.undo()
        assert page.viewers == 1
        await reads.event()


async def test_a_gateway_that_stops_says_goodbye_to_its_viewers(node: ScriptedNode) -> None:
    gateway = Gateway(configured(node.address))
    await gateway.start()
    async with viewer(gateway) as watcher:
        await watcher.watch()
        stopping = asyncio.create_task(gateway.stop())
        async with asyncio.timeout(10):
            while (await watcher.event())[0] != "bye":
                pass
        assert await watcher.chunk() == b""
        assert await watcher.is_closed()
        async with asyncio.timeout(10):
            await stopping
    assert gateway.page is not None
    assert gateway.page.feed.viewers == 0


# --- real processes ---------------------------------------------------------------------------------------------------


async def test_the_page_shows_all_workers_whichever_it_is_connected_to(make_cluster: MakeCluster) -> None:
    workers = 3
    # Slow enough for all to run at once while somebody looks.
    slow = {"time_scale": 1.0}
    cluster = await asyncio.to_thread(make_cluster, nodes=2, predictor=slow, gateway={"workers": workers})
    address = cluster.gateway.http_address
    async with contextlib.AsyncExitStack() as stack:
        # New connections fall on all workers.
        clients = [await stack.enter_async_context(RawClient(address)) for _ in range(12)]
        watchers = await one_at_each_worker(stack, address, workers)
        for number, client in enumerate(clients):
            body = {"prompt": "hello", "max_tokens": 600, "ignore_eos": True}
            client.post("/v1/completions", body, {"x-request-id": f"r-{number}"})
        for watcher in watchers.values():
            await watcher.until(lambda w=watcher: w.now["under_way"] == w.in_flight() == 12)  # type: ignore[misc]
        for client in clients:
            assert (await client.reply(60)).status == 200
        ids = {f"r-{number}" for number in range(12)}
        for watcher in watchers.values():
            await watcher.until(lambda w=watcher: w.now["under_way"] == w.in_flight() == 0)  # type: ignore[misc]
            await watcher.until(lambda w=watcher: ids <= w.ended())  # type: ignore[misc]
        by_worker = {line["worker"] for line in watchers[0].log if line["event"] == "request finished"}
        assert len(by_worker) > 1, "the kernel gave all connections to one worker; then this test shows nothing"
        # What was before is there for those who come later, and a request's story is told by every worker.
        late = await one_at_each_worker(stack, address, workers)
        for watcher in late.values():
            await watcher.until(lambda w=watcher: w.now["workers"] == workers and ids <= w.ended())  # type: ignore[misc]
            for request_id in ids:
                async with RawClient(address) as client:
                    client.get(f"/ui/requests/{request_id}", {"host": "localhost"})
                    assert (await client.reply()).json()["actual"]["outcome"] == "length"


async def test_the_timeline_adds_all_workers_up(make_cluster: MakeCluster) -> None:
    cluster = await asyncio.to_thread(make_cluster, nodes=1, gateway={"workers": 2})
    address = cluster.gateway.http_address
    for _ in range(10):
        async with RawClient(address) as client:
            body = {"prompt": "hello", "max_tokens": 3, "slo": {"ttft_s": 60.0}}
            client.post("/v1/completions", body)
            assert (await client.reply(60)).status == 200
    async with contextlib.AsyncExitStack() as stack:
        for watcher in (await one_at_each_worker(stack, address, 2)).values():
            await watcher.until(lambda w=watcher: w.total("promised") == w.total("kept") == 10)  # type: ignore[misc]


async def test_a_worker_that_dies_is_missed_and_counted_again_when_it_is_back(make_cluster: MakeCluster) -> None:
    cluster = await asyncio.to_thread(make_cluster, nodes=1, gateway={"workers": 2})
    async with contextlib.AsyncExitStack() as stack:
        watchers = await one_at_each_worker(stack, cluster.gateway.http_address, 2)
        children = psutil.Process(cluster.gateway.pid).children()
        slots = {json.loads(child.environ()[SLOT])["index"]: child for child in children}
        slots[1].kill()
        await watchers[0].until(lambda: watchers[0].now["workers"] == 1)
        await watchers[0].until(lambda: watchers[0].now["workers"] == 2)


async def one_at_each_worker(stack: contextlib.AsyncExitStack, address: str, workers: int) -> dict[int, Viewer]:
    """Somebody who watches, by the worker that the kernel has given the connection to."""
    watchers: dict[int, Viewer] = {}
    async with asyncio.timeout(60):
        while len(watchers) < workers:
            watcher = await stack.enter_async_context(Viewer(address))
            about = (await watcher.watch())["about"]
            assert about["workers"] == workers
            watchers.setdefault(about["worker"], watcher)
    return watchers


async def test_the_tail_has_the_very_lines_of_the_log(make_cluster: MakeCluster) -> None:
    cluster = await asyncio.to_thread(make_cluster, nodes=1)
    address = cluster.gateway.http_address
    async with Viewer(address) as watcher, RawClient(address) as client:
        before = (await watcher.watch())["log"]
        assert "gateway is listening" in {line["event"] for line in before}
        client.post("/v1/completions", {"prompt": "hello", "max_tokens": 3}, {"x-request-id": "r-tail"})
        assert (await client.reply(60)).status == 200
        async with asyncio.timeout(30):
            fresh: list[dict[str, Any]] = []
            while not fresh:
                fresh = (await watcher.event())[1].get("log", [])
    written = [json.loads(line) for line in (await asyncio.to_thread(cluster.gateway.log_path.read_text)).splitlines()]
    assert fresh[0]["request_id"] == "r-tail"
    assert all(line in written for line in [*before, *fresh])
