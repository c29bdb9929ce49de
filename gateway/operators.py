"""What operators ask of a gateway, answered for all of its workers: a worker asks its siblings for what it lacks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import structlog

from gateway import wire
from gateway.core.events import DrainAsked, MoveAsked, PolicySet
from gateway.core.outcomes import Denial
from gateway.intake.checks import policy_of
from gateway.intake.denied import Denied, invalid
from gateway.intake.submission import Intake
from gateway.nodes.registry import NodeRegistry
from gateway.pump import Pump
from protos.v1 import astrolabe_dispatch_pb2 as pb

if TYPE_CHECKING:
    from gateway.scale.runtime import ScaleRuntime

log = structlog.get_logger("gateway.operators")

SIBLING_MARK = "x-astrolabe-sibling"
"""Metadata of a call between workers: answer for yourself alone."""
OWNER_MARK = "x-astrolabe-owner"
"""Metadata of a call between workers: the caller for whom it is made, who may only touch what is its own."""
SIBLING_S = 2.0
"""How long a sibling may take."""


class Operators:
    """One instance serves all fronts of a worker. `siblings` are `Dispatch` stubs of the other workers.

    With `alone` a call is answered from this worker's own knowledge: it comes from a sibling.
    """

    def __init__(
        self,
        *,
        pump: Pump,
        nodes: NodeRegistry,
        intake: Intake,
        siblings: Sequence[Any] = (),
        scaling: ScaleRuntime | None = None,
    ) -> None:
        self._scaling = scaling
        self._pump = pump
        self._intake = intake
        self._nodes = nodes
        self._siblings = siblings
        self._drains_to_adopt: set[str] = set()

    async def list_nodes(self, *, alone: bool = False) -> pb.NodeList:
        own = self._nodes.listing()
        if not alone:
            for listed in await self._ask("ListNodes", pb.ListNodesRequest()):
                wire.add_sibling(own, listed)
        return own

    async def explain(self, request_id: str, *, alone: bool = False) -> pb.Explanation:
        """Raises Denied when nobody knows the request."""
        explanation = self._pump.router.explain(request_id)
        if explanation is not None:
            return wire.explanation(explanation)
        if not alone:
            explanations: list[pb.Explanation] = await self._ask("Explain", pb.ExplainRequest(request_id=request_id))
            if explanations:
                return explanations[0]
        raise Denied(
            Denial.UNKNOWN, f"nothing is known of request {request_id!r}; the gateway remembers its latest ones only"
        )

    async def explain_scaling(self, latest: int, *, alone: bool = False) -> pb.ScalingExplanation:
        """With the latest decisions, so many of them; of several workers it is told by the one that leads. Raises
        Denied where nothing is scaled."""
        if self._scaling is None:
            raise Denied(Denial.UNKNOWN, "this gateway scales nothing; say [scaling] in its configuration")
        if self._scaling.status is None:
            raise Denied(Denial.UNKNOWN, "the scaler has not decided anything yet; ask again in a moment")
        if not alone and not self._scaling.status.leads:
            request = pb.ExplainScalingRequest(decisions=latest)
            others: list[pb.ScalingExplanation] = await self._ask("ExplainScaling", request)
            leader = next((said for said in others if said.leads), None)
            if leader is not None:
                return leader
        links = {link.node_id: link.entry.address for link in self._nodes.links.values()}
        return wire.scaling_explanation(self._scaling.status, links, now_s=self._pump.now_s(), latest=latest)

    async def cancel(self, request_id: str, owner: str | None, *, alone: bool = False) -> bool:
        """Whether it ran. With an `owner` only that caller's requests are touched; others are as if they were not."""
        may = owner is None or self._intake.owner_of(request_id) == owner
        found = may and self._pump.cancel(request_id)
        if not found and not alone:
            found = any(r.found for r in await self._ask("Cancel", pb.CancelRequest(request_id=request_id), owner))
        return found

    async def drain(self, request: pb.DrainRequest, *, alone: bool = False) -> int:
        """Requests still running there. Raises Denied for a node that is not known."""
        node_id = self._node(request.node_id)
        self._pump.post(DrainAsked(node_id=node_id, undo=request.undo, stay=request.stay))
        in_flight = self._nodes.in_flight(node_id)
        if not alone:
            in_flight += sum(reply.in_flight for reply in await self._ask("Drain", request))
        return in_flight

    async def move(self, request: pb.MoveRequest, *, alone: bool = False) -> pb.MoveReply:
        """The move that has begun. Raises Denied when the request does not run, or cannot move as it is."""
        reply = self._move(request)
        if alone:
            return reply
        if not reply.found:
            replies: list[pb.MoveReply] = await self._ask("Move", request)
            reply = next((theirs for theirs in replies if theirs.found), reply)
        if not reply.found:
            raise Denied(Denial.UNKNOWN, f"no request {request.request_id!r} is under way at this gateway")
        if reply.refusal:
            raise Denied(Denial.NOT_AS_IT_IS, f"request {request.request_id!r} stays where it is: {reply.refusal}")
        return reply

    def _move(self, request: pb.MoveRequest) -> pb.MoveReply:
        """Raises Denied for a node that is not known."""
        node_id, router = self._node(request.node), self._pump.router
        if not router.is_live(request.request_id):
            return wire.move_reply(found=False)
        if why := router.why_not_moved(request.request_id, node_id):
            return wire.move_reply(refusal=why)
        self._pump.post(MoveAsked(request_id=request.request_id, node_id=node_id, gently=request.gently))
        told = router.last_move(request.request_id)
        assert told is not None, "one that may move begins to, or it is told why not"
        if told.outcome in ("under_way", "moved"):
            return wire.move_reply(told)
        return wire.move_reply(refusal=told.detail)

    def _node(self, name: str) -> str:
        """The node of that name or address. Raises Denied for one that is not known."""
        link = self._nodes.find(name)
        if link is None or link.config is None:
            names = ", ".join(k.name for k in self._nodes.links.values()) or "none"
            reason = f"no node {name!r}" if link is None else f"node {link.name!r} has not been up yet"
            raise Denied(Denial.UNKNOWN, f"{reason}; configured nodes: {names}")
        return link.node_id

    async def set_policy(self, request: pb.SetPolicyRequest, *, alone: bool = False) -> str:
        """The policy before. Raises Denied."""
        if not request.policy:
            raise invalid("policy is empty; give a policy's name", param="policy")
        policy = policy_of(request.policy)
        previous = self._pump.router.policy_name
        self._pump.post(PolicySet(policy=policy))
        if not alone:
            await self._ask("SetPolicy", request)
        return previous

    async def adopt(self) -> None:
        """A worker that starts anew takes over what operators told its siblings."""
        for listed in await self._ask("ListNodes", pb.ListNodesRequest()):
            if listed.policy and listed.policy != self._pump.router.policy_name:
                self._pump.post(PolicySet(policy=listed.policy))
            self._drains_to_adopt = {n.node_id for n in listed.nodes if n.status == "draining"}
            self.nodes_changed()
            return

    def nodes_changed(self) -> None:
        """A node has come up or gone down."""
        for link in self._nodes.links.values():
            if link.status == "up" and link.node_id in self._drains_to_adopt:
                self._drains_to_adopt.discard(link.node_id)
                self._pump.post(DrainAsked(node_id=link.node_id))

    async def _ask(self, method: str, request: Any, owner: str | None = None) -> list[Any]:
        """The answers of the siblings that gave one; a sibling that is down or does not know has none."""
        metadata = [(SIBLING_MARK, "1")]
        if owner is not None:
            metadata.append((OWNER_MARK, owner))
        calls = [getattr(stub, method)(request, timeout=SIBLING_S, metadata=tuple(metadata)) for stub in self._siblings]
        replies = await asyncio.gather(*calls, return_exceptions=True)
        for reply in replies:
            if isinstance(reply, grpc.aio.AioRpcError) and reply.code() != grpc.StatusCode.NOT_FOUND:
                log.warning("a sibling worker did not answer", method=method, detail=reply.details())
        return [reply for reply in replies if not isinstance(reply, BaseException)]
