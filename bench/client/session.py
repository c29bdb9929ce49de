"""What a replay needs from a gateway besides sending: which nodes there are, which policy holds, what was preempted."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import grpc.aio
import msgspec

from bench.client.open_loop import CHANNEL_OPTIONS, Progress, ReplayPlan, replay
from bench.measure.results import RequestResult, Summary, summarise
from deploy.gateway_channel import async_channel
from deploy.gateway_client import explain
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchStub

if TYPE_CHECKING:
    from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchAsyncStub

CALL_S = 5.0
SETTLE_S = 3.0
"""How long to wait, after the last answer, for the nodes' notes to show what was preempted."""
EXPLAINED = 500
"""Requests per run of which the gateway is asked for its own account."""
_POLL_S = 0.1


class GatewayError(Exception):
    """The gateway cannot be used for a replay. The message says how to mend it."""


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """One replay."""

    results: list[RequestResult]
    summary: Summary


class ReplaySession:
    """A connection to one gateway. All calls raise GatewayError when it does not answer or refuses."""

    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        self.address = address
        self._channel = channel
        self._stub: DispatchAsyncStub = DispatchStub(channel)

    async def nodes(self) -> pb.NodeList:
        """All nodes and the policy in force."""
        try:
            return await self._stub.ListNodes(pb.ListNodesRequest(), timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            raise self._refused(error) from None

    async def usable_nodes(self) -> pb.NodeList:
        """The same, with at least one node up. Raises GatewayError when there is none."""
        listed = await self.nodes()
        if not any(node.status == "up" for node in listed.nodes):
            raise GatewayError(
                f"the gateway at {self.address} has no node up; see: astrolabe nodes --gateway {self.address}"
            )
        return listed

    async def set_policy(self, policy: str) -> str:
        """The policy before."""
        try:
            return (await self._stub.SetPolicy(pb.SetPolicyRequest(policy=policy), timeout=CALL_S)).previous
        except grpc.aio.AioRpcError as error:
            raise self._refused(error) from None

    async def run(self, plan: ReplayPlan, *, policy: str = "", progress: Progress | None = None) -> Finished:
        """Replays under `policy` (empty: the one in force), which is put back afterwards."""
        before = _preempted(await self.usable_nodes())
        previous = await self.set_policy(policy) if policy else ""
        try:
            results = await replay(self._channel, plan, progress=progress)
        finally:
            if previous:
                with contextlib.suppress(GatewayError):
                    await self.set_policy(previous)
        after = _preempted(await self._settled())
        results = await self._with_delivery(results, plan)
        return Finished(results=results, summary=summarise(results, preemptions=_difference(before, after)))

    async def _with_delivery(self, results: list[RequestResult], plan: ReplayPlan) -> list[RequestResult]:
        """Adds what the gateway's own account of the first token leaves of each TTFT, for an even sample of requests.

        A client (or machine) that is too slow for the tokens that come shows here and nowhere else: requests leave in
        time, tokens come at their pace, and all of them wait equally long on the way.
        """
        answered = [index for index, result in enumerate(results) if result.ttft_s is not None]
        sample = answered[:: max(1, math.ceil(len(answered) / EXPLAINED))]
        request_ids = [f"{plan.run_id}-{results[index].request_id}" for index in sample]
        ttfts_s = await asyncio.gather(*map(self._gateway_ttft_s, request_ids))
        for index, gateway_ttft_s in zip(sample, ttfts_s, strict=True):
            ttft_s = results[index].ttft_s
            if gateway_ttft_s is not None and ttft_s is not None:
                outside_s = ttft_s - gateway_ttft_s * plan.time_scale
                results[index] = msgspec.structs.replace(results[index], delivery_s=outside_s)
        return results

    async def _gateway_ttft_s(self, request_id: str) -> float | None:
        """The gateway's own seconds from arrival to first token; None when it no longer knows the request."""
        try:
            explained = await self._stub.Explain(pb.ExplainRequest(request_id=request_id), timeout=CALL_S)
        except grpc.aio.AioRpcError:
            return None
        return explained.actual.ttft_s if explained.actual.HasField("ttft_s") else None

    async def _settled(self) -> pb.NodeList:
        """The nodes once they report that nothing runs, or after SETTLE_S."""
        deadline_s = time.monotonic() + SETTLE_S
        while True:
            listed = await self.nodes()
            busy = any(n.in_flight or n.load.running or n.load.waiting for n in listed.nodes if n.status == "up")
            if not busy or time.monotonic() > deadline_s:
                return listed
            await asyncio.sleep(_POLL_S)

    def _refused(self, error: grpc.aio.AioRpcError) -> GatewayError:
        return GatewayError(explain(error, self.address))


@contextlib.asynccontextmanager
async def connected(address: str) -> AsyncIterator[ReplaySession]:
    """A session that closes its channel at the end."""
    async with async_channel(address, CHANNEL_OPTIONS) as channel:
        yield ReplaySession(address, channel)


def _preempted(listed: pb.NodeList) -> dict[str, int]:
    return {node.node_id: node.load.preemptions_total for node in listed.nodes if node.HasField("load")}


def _difference(before: dict[str, int], after: dict[str, int]) -> int | None:
    """Preemptions in between; None when a node came, went or started anew, since then nobody knows."""
    if before.keys() != after.keys() or any(after[node] < count for node, count in before.items()):
        return None
    return sum(after.values()) - sum(before.values())
