"""`astrolabe nodes` in terminals of any width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from deploy.commands.nodes import overview
from deploy.gateway_channel import target_of
from protos.runtime.config import ConfigError
from protos.v1 import astrolabe_dispatch_pb2 as pb

PROFILE = "h100/llama-3.1-8b (learned, 3.1 % error, 2,140 steps)"
NOTE = "its vllm metrics tell sums only: it has no trace; it decodes speculatively [eagle]"


def shown(width: int) -> str:
    listed = pb.NodeList(policy="min_total_latency", proved_vllm_version="0.32")
    for i in range(3):
        node = listed.nodes.add(node_id=f"gpu-node-{i}", address=f"192.168.100.{10 + i}:8100", status="draining")
        node.in_flight, node.state_age_s, node.profile = 1024, 12.3, PROFILE
        node.load.running, node.load.waiting, node.load.free_blocks = 1024, 4096, 123456
    listed.nodes[0].moves_out, listed.nodes[1].moves_in, listed.nodes[1].moves_out = 3, 2, 1
    listed.nodes[2].config.outside_rules.extend(NOTE.split("; "))
    listed.nodes.add(node_id="gpu-node-9", address="[fd00::9]:8100", status="down", detail="[Errno 111] refused")
    console = Console(width=width, file=io.StringIO())
    console.print(overview(listed, width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_nothing_is_cut_and_words_stay_whole(width: int) -> None:
    text = shown(width)
    assert "…" not in text
    assert all(len(line) <= width for line in text.splitlines())
    words = text.split()
    for whole in ("draining", "192.168.100.10:8100", "[fd00::9]:8100", "123456", "4096", "h100/llama-3.1-8b", "12.3"):
        assert whole in words, whole
    joined = " ".join(words)
    assert f"forecasts are approximate: {NOTE}" in joined
    assert f"step times of {PROFILE}" in joined
    assert "gpu-node-9 is down: [Errno 111] refused" in joined
    on_their_way = "3 from gpu-node-0, 1 from gpu-node-1 and 2 to gpu-node-1"
    assert f"requests on their way between nodes: {on_their_way}" in joined


def test_nodes_that_are_alike_share_a_note() -> None:
    assert "gpu-node-0, gpu-node-1: step times" in shown(200)


@pytest.mark.parametrize(
    ("written", "target"),
    [
        ("127.0.0.1:8200", "127.0.0.1:8200"),
        ("http://gateway.example:8200/", "gateway.example:8200"),
        ("gateway.example", "gateway.example:8200"),
        ("dns:///gateways.example:8200", "dns:///gateways.example:8200"),
        ("ipv4:10.0.0.1:8200,10.0.0.2:8200", "ipv4:10.0.0.1:8200,10.0.0.2:8200"),
        ("unix:/run/gateway.sock", "unix:/run/gateway.sock"),
    ],
)
def test_a_gateway_as_people_name_it(written: str, target: str) -> None:
    assert target_of(written) == target


def test_what_is_no_gateway_s_address() -> None:
    with pytest.raises(ConfigError, match="the gateway's address 'http://g:8200/v1' is not host:port"):
        target_of("http://g:8200/v1")
