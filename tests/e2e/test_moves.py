"""Running answers go on at another node, between real processes: for an operator, off a node that leaves, and with
everybody killed on the way. Clients notice nothing."""

from __future__ import annotations

import json
import random
import re
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import click
import grpc
import pytest
from click.testing import CliRunner

from deploy.commands.drain import drain
from deploy.commands.explain import explain as explain_command
from deploy.commands.move import move as move_command
from deploy.commands.nodes import nodes as nodes_command
from deploy.local_cluster import Child
from protos.v1 import astrolabe_dispatch_pb2 as pb
from tests.e2e.cluster import MakeCluster, is_idle, listed, until
from tests.e2e.test_resume import Reader, ask

pytestmark = pytest.mark.e2e

LEFT_TOKENS = 800


def explained(stub: Any, request_id: str) -> list[pb.MoveInfo]:
    return list(stub.Explain(pb.ExplainRequest(request_id=request_id), timeout=5).moves)


def settled(stub: Any, request_id: str) -> pb.MoveInfo:
    """The last move of a request, once it is over."""
    until(lambda: explained(stub, request_id)[-1].outcome != "under_way", what=f"the move of {request_id} is over")
    return explained(stub, request_id)[-1]


def move(stub: Any, request_id: str, node_id: str) -> pb.MoveInfo:
    return stub.Move(pb.MoveRequest(request_id=request_id, node=node_id), timeout=5).move


def prompts_of(rng: random.Random, count: int, longest: int = 300) -> list[list[int]]:
    return [[rng.randrange(97, 123) for _ in range(rng.randrange(5, longest))] for _ in range(count)]


def started(stub: Any, requests: list[pb.GenerateRequest]) -> list[Reader]:
    readers = [Reader(stub, request) for request in requests]
    for reader in readers:
        reader.start()
    for reader in readers:
        until(reader.has_begun, what="every answer has begun")
    return readers


def undisturbed(stub: Any, requests: list[pb.GenerateRequest]) -> list[Reader]:
    """The same answers by nodes of which nobody moves anything."""
    readers = []
    for request in requests:
        again = pb.GenerateRequest()
        again.CopyFrom(request)
        again.request_id = f"{request.request_id}-undisturbed"
        readers.append(Reader(stub, again))
        readers[-1].start()
    for reader in readers:
        reader.join(50)
        assert reader.error is None
    return readers


def test_moved_answers_are_those_of_undisturbed_runs(make_cluster: MakeCluster) -> None:
    """Greedy answers go to the other node and back at random moments, those drawn without a seed too."""
    seed = random.SystemRandom().randrange(1 << 30)
    rng = random.Random(seed)
    prompts = prompts_of(rng, 8)
    asked = [{"temperature": 0.0, "ignore_eos": True}, {"temperature": 0.9, "ignore_eos": True}]
    cluster = make_cluster(nodes=2, predictor={"time_scale": 3.0}, gateway={"policy": "least_requests"})
    with cluster.stub() as stub:
        requests = [ask(f"r{i}", prompt, 500, sampling=dict(asked[i % 2])) for i, prompt in enumerate(prompts)]
        readers = started(stub, requests)
        moved = 0
        for _ in range(2):
            for i, reader in enumerate(readers):
                time.sleep(rng.uniform(0.0, 0.1))
                moves = explained(stub, f"r{i}")
                at = moves[-1].destination if moves else reader.node_id
                told = move(stub, f"r{i}", "node-1" if at == "node-0" else "node-0")
                assert (told.source, told.cause) == (at, "operator")
            for i in range(len(readers)):
                told = settled(stub, f"r{i}")
                moved += told.outcome == "moved"
                # On a machine that is busy an answer may end first.
                assert told.outcome in ("moved", "ended"), f"seed {seed}, request {i}: {told}"
                # One that is short yet is computed after the cut, with what comes until then.
                assert told.stages >= 1 or told.tokens < 64, f"seed {seed}, request {i}: {told}"
        assert moved >= len(readers), f"seed {seed}"
        for i, (reader, whole) in enumerate(zip(readers, undisturbed(stub, requests), strict=True)):
            reader.join(60)
            where = f"seed {seed}, request {i}"
            assert reader.error is None, where
            assert len(reader.tokens) == 500, where
            if i % 2 == 0:
                assert reader.tokens == whole.tokens, where
            assert reader.last is not None
            assert reader.last.usage.prompt_tokens == len(prompts[i]), where
            assert reader.last.usage.output_tokens == 500, where
            told = explained(stub, f"r{i}")[-1]
            if told.outcome == "moved":
                assert told.HasField("gap_s"), where
                # All but what a step computes was there already.
                assert told.tokens - told.found_tokens <= 256, where
        until(lambda: is_idle(stub), what="nothing is left anywhere")


def test_a_drained_node_is_empty_long_before_its_answers_would_have_ended(make_cluster: MakeCluster) -> None:
    seed = random.SystemRandom().randrange(1 << 30)
    prompts = prompts_of(random.Random(seed), 12)
    cluster = make_cluster(nodes=2, predictor={"time_scale": 1.0}, gateway={"policy": "least_requests"})
    with cluster.stub() as stub:
        greedy = {"temperature": 0.0, "ignore_eos": True}
        requests = [ask(f"r{i}", prompt, 600, sampling=dict(greedy)) for i, prompt in enumerate(prompts)]
        readers = started(stub, requests)
        leaving = [i for i, reader in enumerate(readers) if reader.node_id == "node-0"]
        assert leaving
        stub.Drain(pb.DrainRequest(node_id="node-0"), timeout=5)
        until(lambda: listed(stub)["node-0"].in_flight == 0, what="node-0 is empty")
        assert all(readers[i].is_alive() for i in leaving), "answers ended by themselves"
        for i in leaving:
            told = settled(stub, f"r{i}")
            assert (told.source, told.destination, told.cause, told.outcome) == ("node-0", "node-1", "leaving", "moved")
        stub.Drain(pb.DrainRequest(node_id="node-0", undo=True), timeout=5)
        for i, (reader, whole) in enumerate(zip(readers, undisturbed(stub, requests), strict=True)):
            reader.join(60)
            assert reader.error is None, f"seed {seed}, request {i}"
            assert reader.tokens == whole.tokens, f"seed {seed}, request {i}"
        until(lambda: is_idle(stub), what="nothing is left anywhere")


def test_of_nodes_that_leave_together_none_gets_what_another_one_had(make_cluster: MakeCluster) -> None:
    prompts = prompts_of(random.Random(5), 9)
    cluster = make_cluster(nodes=3, predictor={"time_scale": 1.0}, gateway={"policy": "round_robin"})
    with cluster.stub() as stub:
        greedy = {"temperature": 0.0, "ignore_eos": True}
        readers = started(stub, [ask(f"r{i}", prompt, 400, sampling=dict(greedy)) for i, prompt in enumerate(prompts)])
        leaving = {i: reader.node_id for i, reader in enumerate(readers) if reader.node_id != "node-2"}
        assert set(leaving.values()) == {"node-0", "node-1"}
        asked = ["node-0", "node-1", "--wait", "--timeout", "60", "--gateway", cluster.address]
        result = CliRunner().invoke(drain, asked)
        assert result.output.count("is empty: it can be stopped") == 2, result.output
        for i, source in leaving.items():
            told = settled(stub, f"r{i}")
            assert (told.source, told.destination, told.outcome) == (source, "node-2", "moved")
            assert {move.destination for move in explained(stub, f"r{i}")} <= {"node-2", ""}
        for reader in readers:
            reader.join(60)
            assert reader.error is None
            assert len(reader.tokens) == 400


class Moves:
    """Has requests moved to a node, one after the other, while something else happens to the nodes."""

    def __init__(self, stub: Any, request_ids: list[str], node_id: str, rng: random.Random) -> None:
        self.begun = 0
        self.refused: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._stub, self._request_ids, self._node_id, self._rng = stub, request_ids, node_id, rng

    def __enter__(self) -> Moves:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        for request_id in self._request_ids:
            time.sleep(self._rng.uniform(0.0, 0.04))
            try:
                move(self._stub, request_id, self._node_id)
                self.begun += 1
            except grpc.RpcError as error:
                self.refused.append(str(error))


def kill(node: Child) -> Iterator[None]:
    node.kill()
    yield
    node.start()
    node.wait_ready(time.monotonic() + 60.0)


def stop_for_a_while(node: Child) -> Iterator[None]:
    """Its sessions are cut off meanwhile, and what it says afterwards comes too late."""
    node.signal(signal.SIGSTOP)
    time.sleep(3.0)
    node.signal(signal.SIGCONT)
    yield


@pytest.mark.parametrize("victim", ["source", "destination"])
@pytest.mark.parametrize("what", [kill, stop_for_a_while])
def test_whoever_goes_while_requests_move_no_token_is_lost_doubled_or_changed(
    make_cluster: MakeCluster, victim: str, what: Any
) -> None:
    """Prompts take several steps to compute, so moves are in every phase when the node goes."""
    seed = random.SystemRandom().randrange(1 << 30)
    rng = random.Random(seed)
    prompts = prompts_of(rng, 10, longest=900)
    cluster = make_cluster(
        nodes=3,
        predictor={"time_scale": 3.0, "max_num_batched_tokens": 256, "num_blocks": 1500},
        gateway={"policy": "least_requests"},
        expect_deaths=True,
    )
    source, destination, other = cluster.nodes
    with cluster.stub() as stub:
        for node in (destination, other):
            stub.Drain(pb.DrainRequest(node_id=node.name, stay=True), timeout=5)
        greedy = {"temperature": 0.0, "ignore_eos": True}
        requests = [ask(f"r{i}", prompt, LEFT_TOKENS, sampling=dict(greedy)) for i, prompt in enumerate(prompts)]
        readers = started(stub, requests)
        assert {reader.node_id for reader in readers} == {source.name}
        for node in (destination, other):
            stub.Drain(pb.DrainRequest(node_id=node.name, undo=True), timeout=5)
        with Moves(stub, [f"r{i}" for i in range(len(readers))], destination.name, rng) as moves:
            until(lambda: moves.begun >= len(readers) // 2, what="half of the requests are moving")
            outage = what(source if victim == "source" else destination)
            next(outage)
        next(outage, None)
        told = {f"r{i}": explained(stub, f"r{i}") for i in range(len(readers))}
        for i, reader in enumerate(readers):
            reader.join(60)
            where = f"seed {seed}, request {i}: {told[f'r{i}']}, refused {moves.refused}"
            assert reader.error is None, where
            assert len(reader.tokens) == LEFT_TOKENS, where
        cluster.wait_nodes_up(time.monotonic() + 30.0)
        for i, (reader, whole) in enumerate(zip(readers, undisturbed(stub, requests), strict=True)):
            assert reader.tokens == whole.tokens, f"seed {seed}, request {i}: {told[f'r{i}']}"
        until(lambda: is_idle(stub), what="nothing is left anywhere")


def test_a_gateway_that_dies_while_requests_move_leaves_nothing_at_the_nodes(make_cluster: MakeCluster) -> None:
    seed = random.SystemRandom().randrange(1 << 30)
    cluster = make_cluster(
        nodes=2,
        predictor={"time_scale": 1.0, "max_num_batched_tokens": 256, "num_blocks": 1500},
        gateway={"policy": "least_requests"},
        expect_deaths=True,
    )
    with cluster.stub() as stub:
        prompts = prompts_of(random.Random(seed), 6, longest=900)
        readers = started(stub, [ask(f"r{i}", prompt, 900) for i, prompt in enumerate(prompts)])
        for i, reader in enumerate(readers):
            move(stub, f"r{i}", "node-1" if reader.node_id == "node-0" else "node-0")
        cluster.gateway.kill()
    for reader in readers:
        reader.join(20)
        assert not reader.is_alive(), f"seed {seed}"
    cluster.gateway.start()
    cluster.gateway.wait_ready(time.monotonic() + 30.0)
    with cluster.stub() as stub:
        until(lambda: len(listed(stub)) == 2 and is_idle(stub), what=f"nothing is left at the nodes, seed {seed}")


def test_what_operators_see_and_what_cannot_move_gets_one_clear_answer(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(nodes=2, predictor={"time_scale": 0.5}, gateway={"policy": "least_requests"})

    def said(command: click.Command, *args: str, code: int = 0) -> str:
        done = CliRunner().invoke(command, [*args, "--gateway", cluster.address])
        assert done.exit_code == code, done.output
        return " ".join(done.output.split())

    with cluster.stub() as stub:
        greedy = {"temperature": 0.0, "ignore_eos": True}
        seeded = {"temperature": 0.8, "seed": 7, "ignore_eos": True}
        asked = [ask("r", [5] * 1500, 300, sampling=greedy), ask("seeded", [5] * 9, 300, sampling=seeded)]
        readers = started(stub, asked)
        at = [reader.node_id for reader in readers]
        elsewhere = ["node-1" if node_id == "node-0" else "node-0" for node_id in at]
        for request_id, node_id, says in (
            ("nobody", "node-0", "no request 'nobody' is under way at this gateway (NOT_FOUND"),
            ("r", "node-7", "no node 'node-7'; configured nodes: node-0, node-1 (NOT_FOUND"),
            ("r", at[0], f"request 'r' stays where it is: it is at {at[0]} already (FAILED_PRECONDITION"),
            ("seeded", elsewhere[1], "best_effort"),
        ):
            assert says in said(move_command, request_id, node_id, code=1)
        assert move(stub, "r", elsewhere[0]).outcome == "under_way"
        assert f"it is on its way to {elsewhere[0]} already" in said(move_command, "r", elsewhere[0], code=1)
        assert f"from {at[0]}" in said(nodes_command)
        assert settled(stub, "r").outcome == "moved"
        back = said(move_command, "r", at[0], "--wait")
        assert re.match(rf"r moved from {elsewhere[0]} to {at[0]} in \S+ s: 1 stage of \d+ tokens; its client", back)
        told = said(explain_command, "r")
        assert told.count("as an operator wants it there, it moved from") == 2
        for reader in readers:
            reader.join(50)
            assert reader.error is None
            assert len(reader.tokens) == 300
        document = json.loads(said(explain_command, "r", "--json"))
        assert [one["destination"] for one in document["moves"]] == [elsewhere[0], at[0]]
        page = urllib.request.urlopen(f"{cluster.url}/metrics", timeout=5).read().decode()
        assert 'astrolabe_moves_total{cause="operator",outcome="moved"} 2.0' in page
        assert "astrolabe_move_gap_seconds_count 2.0" in page
