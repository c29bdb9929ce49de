"""The gRPC front before a scripted node: limits that it names."""

from __future__ import annotations

import grpc
import pytest

from deploy.gateway_client import explain
from protos.v1 import astrolabe_dispatch_pb2 as pb
from tests.e2e.in_process import running
from tests.e2e.scripted_node import ScriptedNode

pytestmark = pytest.mark.e2e


async def test_a_message_that_is_too_long_is_told_the_limit_and_its_option(node: ScriptedNode) -> None:
    async with running(node.address, max_body_bytes=100_000) as (_, stub):
        for call in (
            stub.Generate(pb.GenerateRequest(text="x" * 120_000)).read(),
            stub.Place(pb.PlaceRequest(text="x" * 120_000, max_output_tokens=1)),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            told = caught.value.details() or ""
            assert "the gateway takes 100000 (max_body_bytes); send less" in told
            assert "the message has 1200" in told
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Generate(pb.GenerateRequest(text="x" * 1_000_000)).read()
        assert "max_body_bytes" in explain(caught.value, "g:8200"), "one that gRPC itself did not let in"
