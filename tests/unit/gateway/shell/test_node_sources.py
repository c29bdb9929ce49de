"""What files and slices are read as, and what settings of sources are refused."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.config import NodeEntry, load
from gateway.nodes.sources.base import NodesUnknown
from gateway.nodes.sources.kubernetes import nodes_of
from gateway.nodes.sources.node_file import nodes_in
from gateway.nodes.sources.registry import make_sources
from protos.runtime.config import ConfigError

A, B = NodeEntry(address="10.0.0.1:8100"), NodeEntry(address="10.0.0.2:8100")


@pytest.mark.parametrize(
    ("name", "text", "nodes"),
    [
        ("n.json", '["10.0.0.1:8100", "10.0.0.2:8100"]', [A, B]),
        ("n.json", '[{"targets": ["10.0.0.1:8100", "10.0.0.2:8100"], "labels": {"node_id": "a"}}]', [A, B]),
        (
            "n.json",
            '[{"targets": ["10.0.0.1:8100"], "labels": {"node_id": "a"}}]',
            [NodeEntry(address=A.address, name="a")],
        ),
        ("n.json", "[]", []),
        (
            "n.toml",
            'nodes = ["10.0.0.1:8100", {address = "10.0.0.2:8100", name = "b"}]',
            [A, NodeEntry(address=B.address, name="b")],
        ),
        ("n.toml", "nodes = []", []),
        ("nodes", "# all\n10.0.0.1:8100\n\n  10.0.0.2:8100 # the other\n", [A, B]),
        ("nodes", "# none", []),
    ],
)
def test_files_of_nodes(name: str, text: str, nodes: list[NodeEntry]) -> None:
    assert nodes_in(name, text.encode()) == nodes


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("n.json", b"", "is empty"),
        ("nodes", b" \n", "is empty"),
        ("n.json", b'[{"targets": ["10.0', "n.json"),
        ("n.json", b'{"targets": []}', "n.json"),
        ("n.toml", b'nodes = ["10.0.0.1:8100"]\nmore = 1', "more"),
        ("nodes", b"10.0.0.1\n", "is not host:port"),
        ("nodes", b"dns:gpu:8100\n", "name to be resolved"),
        ("nodes", b"\xff\xfe", "nodes"),
    ],
)
def test_files_that_say_nothing(name: str, data: bytes, words: str) -> None:
    with pytest.raises(NodesUnknown, match=words):
        nodes_in(name, data)


def slice_of(name: str, kind: str, *endpoints: dict[str, Any], **fields: Any) -> dict[str, Any]:
    ports = [{"name": "engine", "port": 8000}, {"name": "predictor", "port": 8100}]
    return {"metadata": {"name": name}, "addressType": kind, "ports": ports, "endpoints": list(endpoints), **fields}


def endpoint(address: str, uid: str = "", **conditions: bool) -> dict[str, Any]:
    return {"addresses": [address], "conditions": conditions, "targetRef": {"uid": uid} if uid else None}


def test_ready_endpoints_are_nodes() -> None:
    slices = [
        slice_of("s", "IPv4", endpoint("10.0.0.2"), endpoint("10.0.0.1", ready=True), endpoint("10.0.0.3", ready=False))
    ]
    assert nodes_of(slices, "predictor") == [A, B]
    assert [entry.address for entry in nodes_of(slices, "")] == ["10.0.0.1:8000", "10.0.0.2:8000"]
    assert nodes_of(slices, "nope") == []


def test_a_pod_with_two_addresses_is_one_node() -> None:
    slices = [slice_of("a6", "IPv6", endpoint("fd00::1", "u")), slice_of("z4", "IPv4", endpoint("10.0.0.1", "u"))]
    assert nodes_of(slices, "predictor") == [A]
    assert [entry.address for entry in nodes_of(slices[:1], "predictor")] == ["[fd00::1]:8100"]


def test_slices_may_have_nothing() -> None:
    assert nodes_of([slice_of("s", "IPv4", ports=None), slice_of("t", "IPv4", endpoints=None)], "") == []


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"dns_srv": ["not a name"]}, "dns_srv"),
        ({"dns_srv": ["_a._tcp.b", "_a._tcp.b"]}, "listed twice"),
        ({"files": ["a", "a"]}, "listed twice"),
        ({"dns_server": "1.2.3.4:x"}, "dns_server"),
        ({"dns_srw": ["_a._tcp.b"]}, "dns_srv"),
    ],
)
def test_settings_that_are_refused(table: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(None, {"discovery": table})


def test_each_setting_is_a_source() -> None:
    table = {"dns_srv": ["_a._tcp.b"], "dns_server": "10.0.0.53", "files": ["n.json"], "kubernetes": {"service": "s"}}
    sources = make_sources(load(None, {"discovery": table}).discovery)
    assert [source.where for source in sources] == [
        "dns_srv _a._tcp.b at 10.0.0.53:53",
        "file n.json",
        "kubernetes //s",
    ]
