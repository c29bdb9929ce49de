"""Nodes by name: what the table is told when answers come, change and fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from gateway.config import GatewayConfig, NodeEntry
from gateway.nodes.discovery import Discovery
from gateway.nodes.sources.dns_host import resolve_by_dns


class Names:
    """A name service with answers to be set; None: it fails."""

    def __init__(self) -> None:
        self.answers: dict[str, list[str] | None] = {}
        self.told: list[list[str]] = []
        self.asked = 0

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        answer = self.answers[host]
        self.asked += 1
        if answer is None:
            raise OSError("no such name")
        return [f"{address}:{port}" for address in answer]

    def tell(self, entries: Sequence[NodeEntry]) -> None:
        self.told.append([entry.address for entry in entries])

    def discovery(self, interval_s: float = 3600.0) -> Discovery:
        return Discovery(interval_s=interval_s, on_change=self.tell, resolve=self.resolve, first_pause_s=0.001)


@pytest.fixture
def names() -> Names:
    return Names()


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(100_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to be")


async def test_addresses_are_told_at_once_and_names_when_resolved(names: Names) -> None:
    names.answers["gpu"] = ["10.0.0.3", "10.0.0.2", "10.0.0.3"]
    discovery = names.discovery()
    discovery.set_entries([NodeEntry(address="10.0.0.1:8100"), NodeEntry(address="dns:gpu:8100")])
    assert names.told == [["10.0.0.1:8100"]]
    await until(lambda: len(names.told) == 2)
    assert names.told[1] == ["10.0.0.1:8100", "10.0.0.2:8100", "10.0.0.3:8100"]
    await discovery.close()


async def test_what_changes_is_told_and_what_does_not_is_not(names: Names) -> None:
    names.answers["gpu"] = ["10.0.0.2"]
    discovery = names.discovery(interval_s=0.001)
    discovery.set_entries([NodeEntry(address="dns:gpu:1")])
    await until(lambda: names.told[-1] == ["10.0.0.2:1"])
    names.answers["gpu"] = ["10.0.0.4"]
    await until(lambda: names.told[-1] == ["10.0.0.4:1"])
    assert names.told == [[], ["10.0.0.2:1"], ["10.0.0.4:1"]]
    await discovery.close()


async def test_an_outage_of_the_name_service_takes_no_node_away(names: Names) -> None:
    names.answers["gpu"] = ["10.0.0.2"]
    discovery = names.discovery(interval_s=0.001)
    discovery.set_entries([NodeEntry(address="dns:gpu:1")])
    await until(lambda: names.told[-1] == ["10.0.0.2:1"])
    names.answers["gpu"] = None
    asked = names.asked
    await until(lambda: names.asked > asked + 2)
    assert names.told[-1] == ["10.0.0.2:1"]
    names.answers["gpu"] = []
    await until(lambda: names.told[-1] == [])
    assert names.told == [[], ["10.0.0.2:1"], []], "an answer without addresses is an answer"
    await discovery.close()


async def test_an_address_named_twice_is_one_node(names: Names) -> None:
    names.answers["gpu"] = ["10.0.0.1"]
    discovery = names.discovery()
    discovery.set_entries([NodeEntry(address="10.0.0.1:1", name="a"), NodeEntry(address="dns:gpu:1")])
    await until(lambda: names.asked == 1)
    await asyncio.sleep(0)
    assert names.told == [["10.0.0.1:1"]]
    await discovery.close()


async def test_the_systems_resolver_knows_this_machine() -> None:
    assert "127.0.0.1:8100" in await resolve_by_dns("localhost", 8100)
    with pytest.raises(OSError, match=r".+"):
        await resolve_by_dns("no-such-host.invalid", 1)


def test_entries_are_checked() -> None:
    config = GatewayConfig(nodes=("dns:gpu.internal:8100", "10.0.0.1:8100"))
    assert [entry.is_name for entry in config.entries()] == [True, False]
    with pytest.raises(ValueError, match="several nodes"):
        NodeEntry(address="dns:gpu:1", name="a")
    with pytest.raises(ValueError, match="is not host:port"):
        GatewayConfig(nodes=("dns:gpu",))
    with pytest.raises(ValueError, match="listed twice"):
        GatewayConfig(nodes=("10.0.0.1:8100", "http://10.0.0.1:8100/"))
    written = GatewayConfig(nodes=("dns:///gpu.internal:8100", "http://10.0.0.1:8100/", "gpu-2:8100"))
    assert [entry.address for entry in written.entries()] == ["dns:gpu.internal:8100", "10.0.0.1:8100", "gpu-2:8100"]


def test_nodes_that_were_started_stand_beside_the_configured_ones() -> None:
    announced: list[list[NodeEntry]] = []
    discovery = Discovery(interval_s=1.0, on_change=lambda entries: announced.append(list(entries)))
    fixed, started = NodeEntry(address="10.0.0.1:8100"), NodeEntry(address="10.0.0.2:8100", name="g-0")
    discovery.set_entries([fixed])
    discovery.set_started([started, NodeEntry(address="10.0.0.1:8100", name="g-1")])
    discovery.set_started([started])
    discovery.set_started([])
    # A node of the configuration stays as that says, and what has not changed is not said again.
    assert announced == [[fixed], [fixed, started], [fixed]]
