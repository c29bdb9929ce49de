"""Whether this gateway leads: the nodes' leases (`gateway.core.scale.lease`), asked for over their sessions."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import structlog

from gateway import wire
from gateway.core.scale.lease import LeaseQuestion, LeaseSeeker
from gateway.core.scale.news import ScalingNews
from gateway.nodes.news_wire import news_from_wire, news_to_wire
from protos.v1 import astrolabe_predict_pb2 as pb

if TYPE_CHECKING:
    from gateway.nodes.link import NodeLink

log = structlog.get_logger("gateway.nodes.leadership")

LEASE_S = 10.0
"""For how long a lease is asked for. A leader that dies is followed by another within about twice that."""
LOOKS = 10
"""Looks per duration at whether a lease has run out."""


class Leadership:
    """Runs from its making to `leave`. `links` is the registry's own table, by address."""

    def __init__(
        self,
        gateway_id: str,
        links: Mapping[str, NodeLink],
        on_change: Callable[[bool], None],
        on_news: Callable[[ScalingNews], None],
        *,
        ttl_s: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._links = links
        self._on_change = on_change
        self._on_news = on_news
        # Two gateways of one configured name, or two runs of one, must not hold each other's leases.
        self._seeker = LeaseSeeker(f"{gateway_id}/{uuid.uuid4().hex[:8]}", ttl_s, self._loop.time())
        self._sessions: dict[str, int] = {}
        """The session of each node that is up, by the link's count."""
        self._term = 0
        self._task: asyncio.Task[None] | None = asyncio.create_task(self._look_again(), name="leadership")

    @property
    def leads(self) -> bool:
        """At this very moment, even after a pause of the process: who was not told yet is told first."""
        self._tell()
        return self._term > 0

    @property
    def gateway(self) -> str:
        """This gateway's name among those that may lead."""
        return self._seeker.gateway

    @property
    def is_heard(self) -> bool:
        """Whether there is another gateway, and a node over which it hears of this one."""
        return self._messenger() is not None

    def tell(self, news: ScalingNews) -> None:
        """To all others; lost where nobody hears it."""
        link = self._messenger()
        if link is not None:
            link.tell_news(news_to_wire(news))

    def _messenger(self) -> NodeLink | None:
        node_id = self._seeker.messenger(self._loop.time())
        return next((link for link in self._links.values() if link.node_id == node_id and link.status == "up"), None)

    def heard(self, message: pb.ScalingNews) -> None:
        """A node has handed on what another gateway tells."""
        self._on_news(news_from_wire(message))

    def elsewhere(self) -> set[str]:
        """Nodes that other gateways have and this one does not reach."""
        return self._seeker.elsewhere(self._loop.time())

    def nodes_changed(self) -> None:
        """A node has come up or gone down."""
        if self._task is not None:
            self._look()

    def answered(self, link: NodeLink, answer: pb.LeaseAnswer) -> None:
        """A node has answered."""
        if self._sessions.get(link.node_id) != link.sessions:
            return
        self._seeker.heard(
            link.node_id,
            answer.number,
            granted=answer.granted,
            holder=answer.holder,
            waits_s=max(0.0, answer.waits_s),
            elsewhere=tuple(answer.elsewhere),
            others=answer.others,
            now_s=self._loop.time(),
        )
        self._tell()

    def leave(self) -> None:
        """Gives all leases back. Idempotent."""
        if self._task is None:
            return
        self._task.cancel()
        self._task = None
        self._send(self._seeker.questions(self._loop.time(), leaves=True))
        self._tell()

    async def _look_again(self) -> None:
        while True:
            self._look()
            await asyncio.sleep(self._seeker.ttl_s / LOOKS)

    def _look(self) -> None:
        now_s = self._loop.time()
        up = {link.node_id: link.sessions for link in self._links.values() if link.status == "up"}
        for node_id, session in list(self._sessions.items()):
            if up.get(node_id) != session:
                self._seeker.node_down(node_id, now_s)
        for node_id, session in up.items():
            if self._sessions.get(node_id) != session:
                self._seeker.node_up(node_id)
        self._sessions = up
        self._send(self._seeker.questions(now_s))
        self._tell()

    def _send(self, questions: list[LeaseQuestion]) -> None:
        links = {link.node_id: link for link in self._links.values() if link.status == "up"}
        for question in questions:
            if (link := links.get(question.node_id)) is not None:
                link.ask_lease(wire.lease_ask(question, self._seeker.gateway, self._seeker.ttl_s, list(links)))

    def _tell(self) -> None:
        term = self._seeker.term(self._loop.time()) if self._task is not None else 0
        if term == self._term:
            return
        before, self._term = self._term, term
        # One that has led anew since somebody looked has not led in between.
        if before:
            log.info("this gateway does not lead any more")
            self._on_change(False)
        if term:
            log.info("this gateway leads")
            self._on_change(True)
