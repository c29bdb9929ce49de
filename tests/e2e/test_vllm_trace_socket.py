"""The trace of a vLLM engine over its real socket, its steps made up: readers, rivals, garbage, floods."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from engine_adapters.base import EngineError
from engine_adapters.vllm import frames
from engine_adapters.vllm.account import Arrival, Truth
from engine_adapters.vllm.address import AddressError, TraceAddress, address_for_engine, listen, parse_address
from engine_adapters.vllm.probe import TraceProbe
from engine_adapters.vllm.publisher import MAX_QUEUED_STEPS, Publisher
from engine_adapters.vllm.recorder import RawStep, StepRecorder
from predictor.core.mirror import Applied, NodeMirror
from simcore.prefix import block_hashes
from simcore.trace import CacheDelta, TraceDelta, TraceSnapshot
from simcore.types import EngineConfig
from tests.helpers.kv_events import removed, stored

CONFIG = EngineConfig(model="m", num_blocks=100, engine="vllm", engine_version="0.32.0")
DEADLINE_S = 20.0
NOBODY = 65_534


def raw_step(
    scheduled: dict[str, int], *, events: Sequence[Any] = (), alive: int | None = None, **more: Any
) -> RawStep:
    plan = SimpleNamespace(
        num_scheduled_tokens=scheduled,
        scheduled_spec_decode_tokens={},
        scheduled_new_reqs=[],
        scheduled_cached_reqs=SimpleNamespace(resumed_req_ids=set()),
    )
    outputs = [SimpleNamespace(request_id=i, new_token_ids=[1], finish_reason=None) for i in scheduled]
    return RawStep(
        plan,
        {0: SimpleNamespace(outputs=outputs)},
        start_s=time.monotonic() - 0.01,
        end_s=time.monotonic(),
        free_blocks=90,
        alive=len(scheduled) if alive is None else alive,
        events=events,
        **more,
    )


def request(name: str) -> SimpleNamespace:
    """One of vLLM's."""
    return SimpleNamespace(
        request_id=name, num_prompt_tokens=10, max_tokens=100_000, priority=0, arrival_time=time.time()
    )


def arrival(name: str) -> Arrival:
    return Arrival(name, 10, 100_000, 0, 0.0)


@pytest.fixture
def address(tmp_path: Path) -> TraceAddress:
    return TraceAddress(path=str(tmp_path / "folder" / "t.sock"))


@pytest.fixture
def publisher(address: TraceAddress) -> Iterator[Publisher]:
    publisher = Publisher(config=CONFIG, address=address)
    publisher.start(listen(address))
    yield publisher
    publisher.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110  # the publisher is a thread: there is no event to wait for
            await asyncio.sleep(0.01)


async def following(probe: TraceProbe, mirrors: list[NodeMirror]) -> None:
    """Keeps one mirror per connection."""
    async for item in probe.watch():
        if isinstance(item, TraceSnapshot):
            mirrors.append(NodeMirror(item))
        else:
            assert isinstance(item, TraceDelta)
            mirrors[-1].apply(item)


async def test_a_snapshot_then_every_step(publisher: Publisher, address: TraceAddress) -> None:
    publisher.put(raw_step({"a": 10}, events=[request("a")]))
    mirrors: list[NodeMirror] = []
    task = asyncio.create_task(following(TraceProbe(address), mirrors))
    await until(lambda: bool(mirrors) and mirrors[0].running_count == 1)
    for _ in range(5):
        publisher.put(raw_step({"a": 1}))
    await until(lambda: next(mirrors[0].running()).output_tokens == 6)
    assert mirrors[0].synchronised
    task.cancel()


async def test_an_idle_engine_says_that_it_is_alive(publisher: Publisher, address: TraceAddress) -> None:
    seqs = []
    async with asyncio.timeout(DEADLINE_S):
        async for item in TraceProbe(address).watch():
            assert isinstance(item, TraceSnapshot | TraceDelta)
            seqs.append(item.seq)
            if len(seqs) == 3:
                break
    assert seqs == [0, 1, 2]


async def test_a_reader_that_does_not_read_loses_steps_and_the_engine_does_not_wait(
    publisher: Publisher, address: TraceAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffered = 1 << 18
    monkeypatch.setattr("engine_adapters.vllm.publisher.MAX_BUFFERED_BYTES", buffered)
    watching = TraceProbe(address).watch()
    first = await anext(watching)
    assert isinstance(first, TraceSnapshot)
    mirror = NodeMirror(first)
    names = [f"request-{i}-{'x' * 200}" for i in range(500)]
    count = 0
    # Much more than sockets and our buffer hold: each round brings 120 kB of arrivals and takes them away. Nothing is
    # read meanwhile, so an engine that waited for its reader would wait for ever.
    while count * 120_000 < 8_000_000:
        publisher.put(raw_step({}, events=[request(f"{count}-{n}") for n in names], alive=len(names)))
        publisher.put(raw_step({}, events=[f"{count}-{n}" for n in names], alive=0))
        count += 1
        await until(lambda: publisher.backlog() < 10)
    publisher.put(raw_step({"last": 10}, events=[request("last")]))
    await until(lambda: publisher.backlog() == 0)
    lost = False
    async with asyncio.timeout(DEADLINE_S):
        async for item in watching:
            assert isinstance(item, TraceDelta)
            if mirror.apply(item) is Applied.GAP:
                lost = True
                break
    await watching.aclose()
    assert lost
    async for item in TraceProbe(address).watch():
        assert isinstance(item, TraceSnapshot)
        assert [r.request_id for r in item.running] == ["last"], "a new connection begins with the truth"
        break


async def test_one_daemon_and_any_number_of_onlookers(
    publisher: Publisher, address: TraceAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = TraceProbe(address).watch()
    await anext(first)
    monkeypatch.setattr("engine_adapters.vllm.probe.os.getpid", lambda: 1)
    with pytest.raises(EngineError, match=r"already has a daemon \(pid \d+\)"):
        await anext(TraceProbe(address).watch())
    onlooker = TraceProbe(address, exclusive=False).watch()
    assert isinstance(await anext(onlooker), TraceSnapshot)
    await onlooker.aclose()
    await first.aclose()
    second = TraceProbe(address).watch()

    async def taken_over() -> AsyncIterator[Any]:
        yield await anext(second)

    async for item in taken_over():
        assert isinstance(item, TraceSnapshot), "the first has left"
    await second.aclose()


@pytest.mark.parametrize(
    "sent",
    [b"GET / HTTP/1.1\r\n\r\n", b"", os.urandom(64), frames.HEADER.pack(b"ASTR", 9, 0)],
    ids=["HTTP", "nothing", "random", "version 9"],
)
async def test_a_stranger_on_the_socket_disturbs_nobody(
    publisher: Publisher, address: TraceAddress, sent: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(address.path)
        stranger.sendall(sent)
    publisher.put(raw_step({"a": 10}, events=[request("a")]))
    await until(lambda: publisher.backlog() == 0)
    watching = TraceProbe(address).watch()
    async with asyncio.timeout(DEADLINE_S):
        item = await anext(watching)
    assert isinstance(item, TraceSnapshot)
    await watching.aclose()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "trace socket"),
        (frames.frame(frames.Hello(9, CONFIG, 1)), "schema 9"),
        (frames.frame(frames.Hello(frames.SCHEMA, CONFIG, 1))[:-3], "in the middle of a frame"),
        (b"", "closed its trace"),
    ],
)
async def test_what_is_no_trace_is_one_clear_error(tmp_path: Path, answer: bytes, words: str) -> None:
    path = str(tmp_path / "t.sock")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(frames.HEADER.size)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    with pytest.raises(EngineError, match=words):
        await anext(TraceProbe(TraceAddress(path=path)).watch())
    server.close()


async def test_no_engine_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="--scheduler-cls"):
        await anext(TraceProbe(TraceAddress(path=str(tmp_path / "none.sock"))).watch())


async def test_a_socket_of_another_user_says_what_to_do(publisher: Publisher, address: TraceAddress) -> None:
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    else:
        os.chmod(address.path, 0)
    try:
        with pytest.raises(
            EngineError, match=r"no permission for the trace socket .* run the daemon as the engine's user"
        ):
            await anext(TraceProbe(address).watch())
    finally:
        if is_root:
            os.seteuid(0)


def test_a_dead_socket_is_replaced_a_live_one_and_a_file_are_not(address: TraceAddress, tmp_path: Path) -> None:
    first = listen(address)
    assert stat.S_IMODE(os.stat(address.path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(address.path)).st_mode) == 0o700
    with pytest.raises(OSError, match="another engine already serves"):
        listen(address)
    first.close()
    listen(address).close()
    plain = tmp_path / "file"
    plain.write_text("")
    with pytest.raises(FileExistsError, match="not a socket"):
        listen(TraceAddress(path=str(plain)))


def test_a_folder_that_others_can_fill_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "everybodys"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(PermissionError, match=r"everybodys .* set ASTROLABE_TRACE to a place of your own"):
        listen(TraceAddress(path=str(folder / "t.sock")))
    folder.chmod(0o1777)
    listen(TraceAddress(path=str(folder / "t.sock"))).close()


@pytest.mark.parametrize("bad", ["", "unix:", "tcp:10.0.0.1:8000", "tcp:127.0.0.1:x", "http://x", "unix:/" + "x" * 120])
def test_addresses_that_cannot_be(bad: str) -> None:
    with pytest.raises(AddressError):
        parse_address(bad)


def test_the_engines_address_follows_its_port() -> None:
    folder = f"/tmp/astrolabe-{os.getuid()}"
    assert str(address_for_engine(["x", "--port", "9001"], {})) == f"unix:{folder}/engine-9001.sock"
    assert str(address_for_engine(["x", "--port=9002"], {})) == f"unix:{folder}/engine-9002.sock"
    assert str(address_for_engine(["x"], {"ASTROLABE_TRACE": "tcp:127.0.0.1:9"})) == "tcp:127.0.0.1:9"
    assert str(address_for_engine(["x"], {}).for_rank(2)) == f"unix:{folder}/engine-8000.sock.dp2"


def test_a_defect_in_our_hooks_ends_the_trace_not_the_engine(caplog: pytest.LogCaptureFixture) -> None:
    pool = SimpleNamespace(get_num_free_blocks=lambda: 1)
    scheduler = SimpleNamespace(kv_cache_manager=SimpleNamespace(block_pool=pool), running=[], requests={})
    recorder = StepRecorder(scheduler, SimpleNamespace(wants_truth=False))
    recorder.guarded(recorder.preempting, "not a request")
    assert not recorder.on
    recorder.guarded(recorder.preempting, "not a request")
    assert sum("the engine goes on" in r.message for r in caplog.records) == 1


async def test_what_the_prefix_cache_stores_and_evicts_comes_along(address: TraceAddress) -> None:
    config = msgspec.structs.replace(CONFIG, block_size_tokens=4, prefix_cache_traced=True)
    publisher = Publisher(config=config, address=address)
    publisher.start(listen(address))
    names = block_hashes(range(8), 4)
    watching = TraceProbe(address).watch()
    assert isinstance(await anext(watching), TraceSnapshot)
    assert await anext(watching) == CacheDelta(0, True, (), ())
    publisher.put(raw_step({"a": 10}, events=[request("a")], kv_events=[stored([b"x", b"y"], None, range(8))]))
    assert isinstance(await anext(watching), TraceDelta)
    assert await anext(watching) == CacheDelta(1, False, names, ())
    publisher.put(raw_step({"a": 1}, kv_events=[removed(b"y")]))
    assert isinstance(await anext(watching), TraceDelta)
    assert await anext(watching) == CacheDelta(2, False, (), names[1:])
    await watching.aclose()
    # Whoever comes later is told all of it at once.
    watching = TraceProbe(address).watch()
    assert isinstance(await anext(watching), TraceSnapshot)
    assert await anext(watching) == CacheDelta(2, True, names[:1], ())
    # Steps were lost, and with them what they told of the cache.
    publisher.put(Truth(at_s=0.0, running=[], waiting=[], free_blocks=9, preemptions_total=0))
    publisher.put(raw_step({}, kv_events=[stored([b"z"], b"x", range(4))], alive=0))
    assert await anext(watching) == CacheDelta(3, True, (), ())
    assert await anext(watching) == CacheDelta(4, False, (), ())
    await watching.aclose()
    publisher.close()


async def test_ten_thousand_steps_a_second_are_followed_or_lost_openly(
    publisher: Publisher, address: TraceAddress
) -> None:
    mirrors: list[NodeMirror] = []
    task = asyncio.create_task(following(TraceProbe(address), mirrors))
    await until(lambda: bool(mirrors))
    publisher.put(raw_step({"a": 10}, events=[request("a")]))
    await until(lambda: mirrors[0].running_count == 1)
    for _ in range(3000):
        publisher.put(raw_step({"a": 1}))
        if publisher.wants_truth:
            # As the recorder does after its publisher had to drop steps.
            await until(lambda: publisher.backlog() < MAX_QUEUED_STEPS)
            publisher.wants_truth = False
            publisher.put(
                Truth(at_s=0.0, running=[(arrival("a"), 9, 19, 0)], waiting=[], free_blocks=9, preemptions_total=0)
            )
    await until(lambda: not mirrors[0].synchronised or [r.output_tokens for r in mirrors[0].running()] == [3001])
    task.cancel()
