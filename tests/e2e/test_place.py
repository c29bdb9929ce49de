"""`Place`: decisions for people who send their requests themselves."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import pytest

from protos.v1 import astrolabe_dispatch_pb2 as pb
from tests.e2e.in_process import running, status, until
from tests.e2e.scripted_node import ScriptedNode

pytestmark = pytest.mark.e2e


async def test_a_prompt_is_counted_and_the_node_told_what_will_come(node: ScriptedNode) -> None:
    async with running(node.address) as (gateway, stub):
        await until(lambda: status(gateway, "n") == "up")
        request = pb.PlaceRequest(request_id="p", text="hello there", max_output_tokens=60, session="s")
        decision = await stub.Place(request)
        assert (decision.node_id, decision.request_id) == ("n", "p")
        async with asyncio.timeout(5):
            reserved = (await node.reserved.get()).candidate
        assert (reserved.request_id, reserved.prompt_tokens, reserved.max_output_tokens) == ("p", 11, 60)
        by_ids = pb.PlaceRequest(token_ids=pb.TokenIds(ids=range(7)), max_output_tokens=5)
        assert (await stub.Place(by_ids)).node_id == "n"
        async with asyncio.timeout(5):
            assert (await node.reserved.get()).candidate.prompt_tokens == 7


async def test_a_session_stays_where_it_was_placed(node: ScriptedNode, other: ScriptedNode) -> None:
    async with running(node.address, other.address) as (gateway, stub):
        await until(lambda: (status(gateway, "n"), status(gateway, "o")) == ("up", "up"))
        nodes = set()
        for _ in range(20):
            request = pb.PlaceRequest(prompt_tokens=5, max_output_tokens=5, session="alice", policy="session")
            nodes.add((await stub.Place(request)).node_id)
        assert len(nodes) == 1


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (pb.PlaceRequest(max_output_tokens=5), "prompt_tokens"),
        (pb.PlaceRequest(text="", max_output_tokens=5), "empty"),
        (pb.PlaceRequest(text="x"), "max_output_tokens"),
        (pb.PlaceRequest(text="x", max_output_tokens=5, slo=pb.Slo(ttft_s=-1)), "slo.ttft_s"),
    ],
)
async def test_placements_that_make_no_sense(node: ScriptedNode, request_: pb.PlaceRequest, words: str) -> None:
    async with running(node.address) as (_, stub):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Place(request_)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert words in (caught.value.details() or "")
