"""Calls that are handed on, gateway and node in this process: whatever clients do, no task and no record is left."""

from __future__ import annotations

import asyncio
import gc
import random
from collections import Counter
from pathlib import Path

import pytest

from engine_adapters.openai_metrics import OpenAiEngine
from engine_adapters.relay import _Exchange as RelayExchange
from gateway.http.calls import CallDelivery
from gateway.http.connection import Connection, Exchange
from gateway.intake.callers import KeyEntry, KeyFile, digest, new_key, write_keys
from gateway.intake.client_call import CallAnswer
from gateway.intake.client_stream import ClientStream
from predictor.config import EngineSource, PredictorConfig
from predictor.main import Predictor
from predictor.session import _Forwarding
from tests.chaos.call_clients import CallClient, Leaves, scripted_body, until
from tests.chaos.scripted_engines import ScriptedEngine, served
from tests.e2e.in_process import running, status

pytestmark = pytest.mark.e2e

KINDS = (ClientStream, CallAnswer, Exchange, Connection, CallDelivery, RelayExchange, _Forwarding)
MOMENTS: tuple[Leaves, ...] = ("never", "amid_upload", "once_sent", "at_head", "amid_body", "sometime")
FAULTS = ("none", "paced", "silent", "long", "half_a_body", "half_a_head", "garbage", "too_large_early", "status_429")


def records() -> Counter[str]:
    gc.collect()
    found = Counter(type(thing).__name__ for thing in gc.get_objects() if type(thing) in KINDS)
    return Counter({name: count for name, count in found.items() if count})


def tasks() -> Counter[str]:
    return Counter(getattr(task.get_coro(), "__qualname__", "?") for task in asyncio.all_tasks())


@pytest.mark.parametrize("seed", range(2))
async def test_no_task_no_record_and_no_quota_is_left_of_calls(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    key = new_key()
    entry = KeyEntry(name="many", sha256=digest(key).hex(), role="client", max_concurrent=500)
    write_keys(tmp_path / "keys.toml", KeyFile(keys=(entry,)))
    async with served(ScriptedEngine(0)) as engine:
        predictor = Predictor(
            PredictorConfig(
                node_id="n",
                listen="127.0.0.1:0",
                tokenizer="bytes",
                engine=EngineSource(dialect="openai_metrics", url=engine.url, wait_s=5.0),
            )
        )
        await predictor.bind()
        await predictor.start()
        node = predictor.node
        assert node is not None
        assert isinstance(node._client, OpenAiEngine)
        relay = node._client._relay
        async with running(str(predictor.address), keys=str(tmp_path / "keys.toml")) as (gateway, stub):
            await until("the node is up", lambda: status(gateway, "n") == "up")

            async def call(index: int, fault: str, leaves: Leaves) -> None:
                body = scripted_body(rng, rng.choice([0, 500, 300_000, 2_000_000]), stream=rng.random() < 0.5)
                headers = {"x-fault": fault}
                is_grpc = index % 4 == 0
                if not is_grpc:
                    headers["authorization"] = f"Bearer {key}"
                client = CallClient(f"{seed}-{index}", body, headers=headers)
                client.metadata = (("authorization", f"Bearer {key}"),)
                client.leaves = "sometime" if fault == "silent" else leaves
                client.leaves_after_s = rng.uniform(0.0, 1.0)
                await (client.over_grpc(stub) if is_grpc else client.over_http(gateway.http_address))

            # gRPC and aiohttp keep tasks of their own from the first call on.
            await asyncio.gather(*(call(-index, "none", "never") for index in range(1, 9)))
            await until("nothing runs", lambda: not records())
            tasks_before = tasks()
            # Not more at a time than one process does quickly.
            for start in range(0, 150, 30):
                await asyncio.gather(
                    *(call(index, rng.choice(FAULTS), rng.choice(MOMENTS)) for index in range(start, start + 30))
                )
            await until("no stream is left", lambda: not gateway.pump.streams and not gateway.pump._sent)
            account = gateway.intake._quotas._account("many")
            await until("no quota is held", lambda: sum(account.under_way) == 0)
            await until("the node has none", lambda: not len(node.requests) and not len(relay))
            await until("the engine has none", lambda: engine.running == 0)
            await until(f"no record is left: {records()}", lambda: not records())
            await until(f"no task is left: {tasks() - tasks_before}", lambda: not tasks() - tasks_before)
            assert gateway.intake.calls > 80, "or nothing was tried"
        await predictor.stop()
