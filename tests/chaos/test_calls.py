"""Calls that are handed on, on real processes, while nodes die, engines misbehave and clients leave."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator

import pytest

from protos.runtime.channels import open_channel
from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchStub
from tests.chaos.call_clients import CallClient, Leaves, is_long_answer, scripted_body, until
from tests.chaos.call_stage import PROMPTS, CallCluster, CallStage, call_cluster, resident_bytes
from tests.chaos.scripted_engines import AMID, BEFORE_THE_FIRST_BYTE, LONG_BYTES, NO_END

pytestmark = pytest.mark.e2e

SEEDS = int(os.environ.get("ASTROLABE_CHAOS_LIVE_SEEDS", "1"))
IS_LONG = SEEDS > 1
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CallCluster]:
    with call_cluster(tmp_path_factory.mktemp("calls")) as running:
        yield running


@contextlib.asynccontextmanager
async def staged(made: CallCluster, seed: int, *, same_gateway: bool = True) -> AsyncIterator[CallStage]:
    async with open_channel(made.cluster.address) as channel:
        stage = CallStage(made, DispatchStub(channel), seed)
        await stage.begin()
        yield stage
        await stage.check(same_gateway=same_gateway)


def complaints(found: Iterator[str]) -> None:
    bad = [complaint for complaint in found if complaint]
    assert not bad, bad


# --- engines ----------------------------------------------------------------------------------------------------------


async def test_what_one_engine_spoils_before_the_first_byte_another_one_answers(made: CallCluster) -> None:
    async with staged(made, 0) as stage:
        for fault in (*BEFORE_THE_FIRST_BYTE, "more_than_asked"):
            for index in range(6):
                body = scripted_body(stage.rng, stage.rng.choice([0, 2000, 600_000]), stream=index % 2 == 0)
                client = stage.client(body, x_fault=fault, x_fault_at=str(stage.rng.randrange(3)))
                stage.send(client, grpc=index == 0)
            await stage.ended()
        complaints(client.scripted_complaint() for client in stage.clients)


async def test_what_all_engines_spoil_ends_once_and_never_looks_whole(made: CallCluster) -> None:
    async with staged(made, 1) as stage:
        for fault in (*BEFORE_THE_FIRST_BYTE, *AMID):
            for index in range(4):
                stage.send(stage.client(scripted_body(stage.rng), x_fault=fault), grpc=index == 0)
            await stage.ended()
        for client in stage.clients:
            fault = client.headers["x-fault"]
            if fault.startswith("status_"):
                assert client.ended.status == int(fault.removeprefix("status_")), client.ended
                assert client.ended.is_whole
            elif fault in BEFORE_THE_FIRST_BYTE:
                assert client.ended.status in (502, 503) or client.ended.code in ("INTERNAL", "UNAVAILABLE"), (
                    client.ended
                )
            else:
                assert not client.scripted_complaint(may_break=True), client.scripted_complaint(may_break=True)
                assert not client.ended.is_whole or b'"error"' in client.ended.body, (fault, client.ended)
        stage.send(stage.client(scripted_body(stage.rng)))
        await stage.ended()
        complaints(iter([stage.clients[-1].scripted_complaint()]))


async def test_engines_that_never_answer_hold_a_call_until_its_deadline(made: CallCluster) -> None:
    async with staged(made, 2) as stage:
        for fault in NO_END:
            for index in range(4):
                client = stage.client(scripted_body(stage.rng, 300_000), x_fault=fault, x_astrolabe_deadline_s="1.0")
                stage.send(client, grpc=index == 0)
        await stage.ended()
        for client in stage.clients:
            assert not client.ended.is_whole or client.ended.status == 504, client.ended
            assert client.ended.status in (504, 200) or client.ended.code == "DEADLINE_EXCEEDED", client.ended


async def test_an_answer_before_the_body_has_come_is_the_answer(made: CallCluster) -> None:
    async with staged(made, 3) as stage:
        for index in range(6):
            client = stage.client(scripted_body(stage.rng, 4 * MIB), x_fault="too_large_early")
            stage.send(client, grpc=index == 0)
        await stage.ended()
        # A reset that overtakes the answer hides it from the relay, which then reports a broken connection.
        complaints(
            c.scripted_complaint(statuses=(413, 502), may_break=c.ended.code == "INTERNAL") for c in stage.clients
        )


# --- nodes ------------------------------------------------------------------------------------------------------------


async def chats(stage: CallStage, count: int, rate_per_s: float) -> list[tuple[CallClient, str, bool]]:
    sent = []
    for index in range(count):
        prompt, stream = stage.rng.choice(PROMPTS), stage.rng.random() < 0.5
        sent.append((stage.send(stage.chat(prompt, stream=stream), grpc=index % 5 == 0), prompt, stream))
        await asyncio.sleep(stage.rng.expovariate(rate_per_s))
    return sent


def check_chats(stage: CallStage, sent: list[tuple[CallClient, str, bool]]) -> None:
    """An answer that comes whole costs nobody anything: until its first byte another node takes over."""
    complaints(stage.chat_complaint(c, prompt, stream=s, must_be_whole=not s) for c, prompt, s in sent)


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_killed_nodes_cost_begun_streams_only(made: CallCluster, seed: int) -> None:
    async with staged(made, seed) as stage:
        await stage.learn_texts()
        load = asyncio.create_task(chats(stage, 60, 30.0))
        await asyncio.sleep(stage.rng.uniform(0.3, 1.5))
        victim = stage.rng.choice(stage.emulated)
        victim.kill()
        await stage.again(victim)
        sent = await load
        await stage.ended()
        check_chats(stage, sent)


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_a_node_that_hangs_is_left(made: CallCluster, seed: int) -> None:
    async with staged(made, seed) as stage:
        await stage.learn_texts()
        load = asyncio.create_task(chats(stage, 60, 30.0))
        await asyncio.sleep(stage.rng.uniform(0.3, 1.0))
        victim = stage.rng.choice(stage.emulated)
        victim.signal(signal.SIGSTOP)
        try:
            sent = await load
            await stage.ended()
        finally:
            victim.signal(signal.SIGCONT)
        check_chats(stage, sent)


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_a_node_dies_while_long_bodies_go_to_it(made: CallCluster, seed: int) -> None:
    async with staged(made, seed) as stage:
        began = [engine.began for engine in stage.engines]
        for index in range(4):
            client = stage.client(scripted_body(stage.rng, 32 * MIB), x_fault="reads_slowly")
            stage.send(client, grpc=index == 0)
        await until(
            "an engine reads a long body",
            lambda: any(e.began > b for e, b in zip(stage.engines, began, strict=True)),
        )
        await asyncio.sleep(stage.rng.uniform(0.0, 0.5))
        busy = [n for n, e, b in zip(stage.scripted, stage.engines, began, strict=True) if e.began > b]
        victim = stage.rng.choice(busy)
        victim.kill()
        await stage.again(victim)
        await stage.ended()
        complaints(client.scripted_complaint() for client in stage.clients)


# --- the gateway ------------------------------------------------------------------------------------------------------


async def test_a_gateway_told_to_stop_lets_calls_end_within_its_grace(made: CallCluster) -> None:
    async with staged(made, 4, same_gateway=False) as stage:
        short = [stage.send(stage.client(scripted_body(stage.rng), x_fault="paced"), grpc=i == 0) for i in range(8)]
        endless = [stage.send(stage.client(scripted_body(stage.rng), x_fault="silent"), grpc=i == 0) for i in range(4)]
        long = [stage.client(scripted_body(stage.rng), x_fault="long") for _ in range(2)]
        for client in long:
            client.waits_s = 30.0
            stage.send(client)
        await until("all calls are at engines", lambda: sum(e.running for e in stage.engines) == 14)
        gateway = stage.cluster.gateway
        gateway.signal(signal.SIGTERM)
        code = await asyncio.to_thread(gateway.wait, 20.0)
        for client in long:
            client.waits_s = 0.0
        await stage.again(gateway)
        assert code == 0, gateway.last_words()
        complaints(client.scripted_complaint() for client in short)
        await until("the other clients are told", lambda: all(client.done for client in endless))
        for client in endless:
            assert client.ended.status != 200, client.ended
        for task in stage._tasks[-2:]:
            task.cancel()
        await asyncio.gather(*stage._tasks, return_exceptions=True)
        stage._tasks.clear()


# --- clients ----------------------------------------------------------------------------------------------------------

MOMENTS: tuple[Leaves, ...] = ("never", "amid_upload", "once_sent", "at_head", "amid_body", "sometime")


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_clients_that_leave_leave_nothing_behind(made: CallCluster, seed: int) -> None:
    """A thousand of them in the long half."""
    async with staged(made, seed) as stage:
        await stage.learn_texts()
        rng = stage.rng
        for index in range(1000 if IS_LONG else 250):
            if index % 3:
                fault = rng.choice(["none", "paced", "silent", "long", "half_a_body", "half_a_head", "status_500"])
                client = stage.client(scripted_body(rng, rng.choice([0, 500, 300_000]), stream=True), x_fault=fault)
                is_endless = fault == "silent"
            else:
                client = stage.chat(rng.choice(PROMPTS), stream=rng.random() < 0.7)
                is_endless = False
            client.leaves = "sometime" if is_endless else rng.choice(MOMENTS)
            client.leaves_after_s = rng.uniform(0.0, 2.0)
            stage.send(client, grpc=index % 4 == 0)
            await asyncio.sleep(rng.expovariate(150.0))
        await stage.ended()
        complaints(
            client.scripted_complaint(statuses=(200, 500, 502, 503), may_break=True)
            for client in stage.clients
            if "x-fault" in client.headers
        )


async def test_slow_readers_hold_back_their_engines_and_not_the_gateways_memory(made: CallCluster) -> None:
    count = 12
    async with staged(made, 5) as stage:
        pids = [stage.cluster.gateway.pid, *(node.pid for node in stage.scripted)]
        before = [resident_bytes(pid) for pid in pids]
        for index in range(count):
            client = stage.client(scripted_body(stage.rng), x_fault="long")
            client.waits_s = 4.0
            client.leaves = "amid_body" if index % 3 else "never"
            stage.send(client, grpc=index % 4 == 0)
        await until("all answers have begun", lambda: sum(e.running for e in stage.engines) == count)
        for _ in range(30):
            grown = [resident_bytes(pid) - b for pid, b in zip(pids, before, strict=True)]
            # Without flow control: 384 MiB.
            assert max(grown) < 128 * MIB, [g // MIB for g in grown]
            others = [stage.send(stage.client(scripted_body(stage.rng))) for _ in range(2)]
            await asyncio.sleep(0.1)
        await stage.ended()
        complaints(client.scripted_complaint() for client in stage.clients)
        whole = [c for c in stage.clients if is_long_answer(c.ended.body)]
        assert len(whole) == count // 3
        assert all(client.ended.status == 200 for client in others)
        assert LONG_BYTES * count > 128 * MIB, "or the bound above says nothing"


async def test_slow_uploaders_wait_for_themselves_only(made: CallCluster) -> None:
    async with staged(made, 6) as stage:
        slow = []
        for index in range(12):
            client = stage.client(scripted_body(stage.rng, 2 * MIB))
            client.upload_bytes_per_s = 1.0 * MIB
            slow.append(stage.send(client, grpc=index % 4 == 0))
        quick = [stage.send(stage.client(scripted_body(stage.rng))) for _ in range(20)]
        await until("others are served meanwhile", lambda: all(client.done for client in quick))
        assert not any(client.done for client in slow)
        await stage.ended()
        complaints(client.scripted_complaint() for client in stage.clients)
