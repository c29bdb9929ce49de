"""`astrolabe drain` of several nodes: told together, waited for together."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from deploy.commands import drain as command
from protos.v1 import astrolabe_dispatch_pb2 as pb


class FakeGateway:
    """Says what was asked; at each look, nodes that are told to move their requests have one less."""

    def __init__(self, **in_flight: int) -> None:
        self.asked: list[str] = []
        self.looks = 0
        self._left = {name.replace("_", "-"): count for name, count in in_flight.items()}
        self._moves: set[str] = set()

    def Drain(self, request: pb.DrainRequest, timeout: float) -> pb.DrainReply:
        how = "undo" if request.undo else "stay" if request.stay else "move"
        self.asked.append(f"{request.node_id} {how}")
        if how == "move":
            self._moves.add(request.node_id)
        return pb.DrainReply(in_flight=self._left[request.node_id])

    def ListNodes(self, _: pb.ListNodesRequest, timeout: float) -> pb.NodeList:
        self.looks += 1
        listed = pb.NodeList(nodes=[pb.NodeInfo(node_id=n, in_flight=count) for n, count in self._left.items()])
        for node in self._moves:
            self._left[node] = max(0, self._left[node] - 1)
        return listed


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "POLL_S", 0.001)


def drained(monkeypatch: pytest.MonkeyPatch, gateway: FakeGateway, *words: str) -> Result:
    @contextlib.contextmanager
    def stub(_: str) -> Iterator[Any]:
        yield gateway

    monkeypatch.setattr(command, "dispatch_stub", stub)
    return CliRunner().invoke(command.drain, words)


def test_all_are_told_before_anything_moves_and_get_empty_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = FakeGateway(n_0=4, n_1=4, n_2=4)
    result = drained(monkeypatch, gateway, "n-0", "n-1", "n-2", "--wait")
    assert gateway.asked == [f"n-{i} {how}" for how in ("stay", "move") for i in range(3)]
    assert gateway.looks == 5, "one look at all of them, not one each"
    assert result.stdout.splitlines() == [f"n-{i} is empty: it can be stopped" for i in range(3)]
    assert result.exit_code == 0


def test_what_is_left_after_the_grace_moves_from_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = FakeGateway(n_0=2, n_1=1)
    assert drained(monkeypatch, gateway, "n-0", "n-1", "--wait", "--grace", "0.01").exit_code == 0
    assert gateway.asked == ["n-0 stay", "n-1 stay", "n-0 move", "n-1 move"]


def test_one_that_does_not_get_empty_in_time_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = FakeGateway(n_0=0, n_1=2)
    result = drained(monkeypatch, gateway, "n-0", "n-1", "--wait", "--stay", "--timeout", "0.01", "--json")
    assert [json.loads(line)["in_flight"] for line in result.stdout.splitlines()] == [0, 2]
    assert result.exit_code == 1
    assert gateway.asked == ["n-0 stay", "n-1 stay"]


@pytest.mark.parametrize(
    ("words", "asked"), [((), ["n-0 move"]), (("--stay",), ["n-0 stay"]), (("--undo",), ["n-0 undo"])]
)
def test_a_single_one_is_told_once(monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], asked: list[str]) -> None:
    gateway = FakeGateway(n_0=1)
    assert drained(monkeypatch, gateway, "n-0", *words).exit_code == 0
    assert gateway.asked == asked
