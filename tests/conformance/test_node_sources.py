"""Every source of nodes keeps the contract of `gateway.nodes.sources.base`, and what is kept when it fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path

import pytest

from gateway.config import NodeEntry
from gateway.nodes.discovery import Discovery
from gateway.nodes.sources import dns_srv, kubernetes, node_file
from gateway.nodes.sources.base import NodesUnknown
from tests.conformance.source_rigs import (
    DnsRig,
    EndpointSliceRig,
    FileRig,
    HostRig,
    JsonFileRig,
    SourceRig,
    TomlFileRig,
)

RIGS: dict[str, Callable[[Path], SourceRig]] = {
    "dns host": HostRig,
    "dns srv": DnsRig,
    "file of lines": FileRig,
    "file of prometheus": JsonFileRig,
    "file of toml": TomlFileRig,
    "kubernetes": EndpointSliceRig,
}
PATIENCE_S = 20.0


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_srv, "LEAST_S", 0.02)
    monkeypatch.setattr(node_file, "LOOK_S", 0.02)
    monkeypatch.setattr(kubernetes, "AGAIN_S", 0.02)


@pytest.fixture(params=RIGS)
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SourceRig]:
    made = RIGS[request.param](tmp_path)
    async with made.serving():
        yield made


class Followed:
    """A discovery of one source, and what it has told."""

    def __init__(self) -> None:
        self.told: list[list[str]] = []
        self.discovery = Discovery(interval_s=1.0, on_change=self._tell, first_pause_s=0.02)

    def _tell(self, entries: Sequence[NodeEntry]) -> None:
        self.told.append([entry.address for entry in entries])

    async def until(self, *hosts: str) -> None:
        wanted = [f"{host}:8100" for host in hosts]
        async with asyncio.timeout(PATIENCE_S):
            while not self.told or self.told[-1] != wanted:  # noqa: ASYNC110 - it has no event of its own
                await asyncio.sleep(0.005)


@pytest.fixture
async def followed(rig: SourceRig) -> AsyncIterator[Followed]:
    made = Followed()
    yield made
    await made.discovery.close()


async def test_what_is_there_is_told_and_what_changes(rig: SourceRig, followed: Followed) -> None:
    rig.set(["10.0.0.1", "10.0.0.2"])
    followed.discovery.set_entries([], [rig.make()])
    await followed.until("10.0.0.1", "10.0.0.2")
    rig.set(["10.0.0.2", "10.0.0.3"])
    await followed.until("10.0.0.2", "10.0.0.3")
    rig.set([])
    await followed.until()


async def test_unknown_is_not_gone(rig: SourceRig, followed: Followed) -> None:
    rig.set(["10.0.0.1"])
    followed.discovery.set_entries([], [rig.make()])
    await followed.until("10.0.0.1")
    rig.fail()
    with pytest.raises(NodesUnknown, match=r".+"):
        await first(rig)
    rig.set(["10.0.0.2"])
    await followed.until("10.0.0.2")
    assert followed.told == [[], ["10.0.0.1:8100"], ["10.0.0.2:8100"]]


async def first(rig: SourceRig) -> Sequence[NodeEntry]:
    async with asyncio.timeout(PATIENCE_S), aclosing(rig.make().lists()) as lists:
        return await anext(lists)


async def test_one_that_fails_at_the_start_is_asked_again(rig: SourceRig, followed: Followed) -> None:
    rig.fail()
    followed.discovery.set_entries([NodeEntry(address="10.0.0.1:8100")], [rig.make()])
    with pytest.raises(NodesUnknown):
        await first(rig)
    rig.set(["10.0.0.2"])
    await followed.until("10.0.0.1", "10.0.0.2")


async def test_what_is_not_asked_for_any_more_is_gone(rig: SourceRig, followed: Followed) -> None:
    rig.set(["10.0.0.1"])
    followed.discovery.set_entries([], [rig.make()])
    await followed.until("10.0.0.1")
    followed.discovery.set_entries([], [rig.make()])
    assert followed.told[-1] == ["10.0.0.1:8100"], "asked for again it goes on"
    followed.discovery.set_entries([])
    assert followed.told[-1] == []


# --- what one kind has alone ------------------------------------------------------------------------------------------


async def test_long_dns_answers_come_over_tcp(tmp_path: Path) -> None:
    rig, hosts = DnsRig(tmp_path), [f"10.0.1.{n}" for n in range(1, 60)]
    async with rig.serving():
        rig.set(hosts)
        found = await first(rig)
    assert {entry.address for entry in found} == {f"{host}:8100" for host in hosts}
    assert rig.over == ["udp", "tcp"]


async def test_dns_is_not_asked_again_while_its_answer_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig, slept = DnsRig(tmp_path), asyncio.Queue[float]()
    rig.ttl_s = 77

    async def sleep(seconds: float) -> None:
        slept.put_nowait(seconds)
        await asyncio.Event().wait()

    async with rig.serving():
        rig.set(["10.0.0.1"])
        async with aclosing(rig.make().lists()) as lists:
            await anext(lists)
            monkeypatch.setattr(asyncio, "sleep", sleep)
            waiting = asyncio.ensure_future(anext(lists))
            assert await slept.get() == 77
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
    assert rig.over == ["udp"]


async def test_a_watch_that_is_too_old_lists_anew(tmp_path: Path) -> None:
    rig, followed = EndpointSliceRig(tmp_path), Followed()
    async with rig.serving():
        rig.set(["10.0.0.1"])
        rig.forgets = True
        followed.discovery.set_entries([], [rig.make()])
        async with asyncio.timeout(PATIENCE_S):
            while (rig.lists, rig.watches) != (2, 2):  # noqa: ASYNC110 - the server has no event for it
                await asyncio.sleep(0.005)
        rig.set(["10.0.0.2"])
        await followed.until("10.0.0.2")
        assert rig.lists == 2, "changes come by the watch"
        await followed.discovery.close()
