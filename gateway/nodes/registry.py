"""The node registry: the configured nodes and their links, who holds which name, what people see of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

import msgspec

from gateway import wire
from gateway.config import GatewayConfig, NodeEntry
from gateway.core.events import DrainAsked
from gateway.core.scale.news import ScalingNews
from gateway.nodes.leadership import LEASE_S, Leadership
from gateway.nodes.link import NodeLink
from gateway.pump import Pump
from protos.runtime.tls import channel_credentials
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_predict_pb2 as predict_pb
from simcore.proved import PROVED_VLLM
from simcore.types import EngineConfig


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What the nodes of a model offer together. Made when they change, so that a request costs no look at each."""

    configs: Sequence[EngineConfig]
    own_names: frozenset[str]
    forwards: bool
    tells_logprobs: bool
    gives_no_text: bool
    words_chats: bool
    traced_block_size_tokens: int
    max_model_len_tokens: int | None


def _offer_of(configs: Sequence[EngineConfig]) -> Offer:
    traced = [config.block_size_tokens for config in configs if config.prefix_cache_traced]
    return Offer(
        configs=configs,
        own_names=frozenset(config.model for config in configs),
        forwards=any(config.forwards for config in configs),
        tells_logprobs=any(config.tells_logprobs for config in configs) or not configs,
        gives_no_text=bool(configs) and all(config.pools for config in configs),
        words_chats=any(config.own_chats for config in configs),
        traced_block_size_tokens=max(set(traced), key=traced.count, default=0),
        max_model_len_tokens=max((config.max_model_len_tokens for config in configs), default=None),
    )


_NO_OFFER = _offer_of(())


class NodeRegistry:
    """Starts, replaces and ends links. `on_change` is called when a node comes up or goes down."""

    def __init__(self, config: GatewayConfig, *, pump: Pump, gateway_id: str, on_change: Callable[[], None]) -> None:
        self.links: dict[str, NodeLink] = {}
        """By address, in the order of the configuration."""
        self.expected: Sequence[EngineConfig] = ()
        """Of nodes that a scaler can start."""
        self._offers: dict[str, Offer] | None = None
        """What `_offer` gives, by model; None: to be made anew."""
        self._config = config
        self._pump = pump
        self._gateway_id = gateway_id
        self._credentials = channel_credentials(config.node_tls) if config.node_tls.ca else None
        self._on_change = on_change
        self.leadership: Leadership | None = None
        self._candidates = wire.CandidateEncoder()
        self._holders: dict[str, str] = {}
        self._leaving: dict[NodeLink, asyncio.Task[None]] = {}
        self._draining: set[NodeLink] = set()
        """Those of them that have not been closed yet and may come back."""
        self._ended = asyncio.Event()

    def reload_tls(self) -> None:
        """Takes the certificate files anew, for sessions that begin from then on. Raises ConfigError."""
        if self._config.node_tls.ca:
            self._credentials = channel_credentials(self._config.node_tls)

    # --- Names --------------------------------------------------------------------------------------------------------

    def claim(self, node_id: str, address: str) -> str:
        holder = self._holders.setdefault(node_id, address)
        return "" if holder == address else holder

    def release(self, node_id: str, address: str) -> None:
        if self._holders.get(node_id) == address:
            del self._holders[node_id]

    # --- life ---------------------------------------------------------------------------------------------------------

    def set_entries(self, entries: Sequence[NodeEntry]) -> None:
        """Makes the links be these. New ones start; those no longer named take no more requests, get the drain grace to
        finish what they run, and go. One that is named again before it has gone stays."""
        wanted = {e.address: e for e in entries}
        for address in [a for a, link in self.links.items() if wanted.get(a) != link.entry]:
            self._send_off(self.links.pop(address))
        for address, entry in wanted.items():
            if address not in self.links:
                self.links[address] = self._called_back(entry) or self._new_link(entry)
                self._start_if_free(address)
        self.links = {a: self.links[a] for a in wanted}
        self._offers = None

    def expect(self, configs: Sequence[EngineConfig]) -> None:
        """A scaler can start nodes of these kinds, and no others."""
        self.expected = configs
        self._offers = None

    def seek_leadership(
        self,
        on_change: Callable[[bool], None],
        *,
        ttl_s: float = LEASE_S,
        on_news: Callable[[ScalingNews], None] = lambda _news: None,
    ) -> Leadership:
        """Asks the nodes for their leases from now on, to the end. `on_change` is called when this gateway begins or
        ceases to lead, `on_news` with what the others tell. All gateways that may lead over the same nodes have the
        same `ttl_s`."""
        assert self.leadership is None, "one per gateway"
        self.leadership = Leadership(self._gateway_id, self.links, on_change, on_news, ttl_s=ttl_s)
        return self.leadership

    def request_ended(self) -> None:
        """To be called when any request has ended: a leaving node may be free now."""
        self._ended.set()

    def leave(self) -> None:
        """To be called when this gateway stops, before anything that ends nodes with it."""
        for link in (*self.links.values(), *self._leaving):
            link.leave()

    async def close(self) -> None:
        self.leave()
        if self.leadership is not None:
            self.leadership.leave()
        links = {*self.links.values(), *self._leaving}
        self.links.clear()
        tasks = list(self._leaving.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(link.flush() for link in links))
        await asyncio.gather(*(link.close("the gateway stops") for link in links))

    def _new_link(self, entry: NodeEntry) -> NodeLink:
        return NodeLink(
            entry,
            pump=self._pump,
            names=self,
            gateway_id=self._gateway_id,
            keepalive_s=self._config.keepalive_s,
            reconnect_max_s=self._config.reconnect_max_s,
            on_change=self._link_changed,
            on_lease=self._lease_answered,
            on_news=self._news_told,
            candidates=self._candidates,
            credentials=lambda: self._credentials,
            server_name=self._config.node_tls.server_name,
        )

    def _link_changed(self) -> None:
        self._offers = None
        if self.leadership is not None:
            self.leadership.nodes_changed()
        self._on_change()

    def _lease_answered(self, link: NodeLink, answer: predict_pb.LeaseAnswer) -> None:
        if self.leadership is not None:
            self.leadership.answered(link, answer)

    def _news_told(self, news: predict_pb.ScalingNews) -> None:
        if self.leadership is not None:
            self.leadership.heard(news)

    def _start_if_free(self, address: str) -> None:
        """Two links to one address would take the node's name from each other, so the second waits for the first."""
        link = self.links.get(address)
        if link is not None and all(other.entry.address != address for other in self._leaving):
            link.start()

    def _send_off(self, link: NodeLink) -> None:
        self._pump.post(DrainAsked(node_id=link.node_id))
        self._draining.add(link)
        self._leaving[link] = task = asyncio.create_task(self._leave(link))

        def gone(_: object) -> None:
            if self._leaving.get(link) is task:
                del self._leaving[link]
                self._start_if_free(link.entry.address)

        task.add_done_callback(gone)

    def _called_back(self, entry: NodeEntry) -> NodeLink | None:
        """The link that was about to leave, if there is one."""
        link = next((k for k in self._draining if k.entry == entry), None)
        if link is not None:
            self._draining.discard(link)
            self._ended.set()
            self._pump.post(DrainAsked(node_id=link.node_id, undo=True))
        return link

    async def _leave(self, link: NodeLink) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.drain_grace_s):
                while link in self._draining and link.status == "up" and self.in_flight(link.node_id):
                    self._ended.clear()
                    await self._ended.wait()
        if link in self._draining:
            self._draining.discard(link)
            await link.close("taken out of the configuration")

    # --- views --------------------------------------------------------------------------------------------------------

    @property
    def any_up(self) -> bool:
        return any(link.status == "up" for link in self.links.values())

    def find(self, name: str) -> NodeLink | None:
        """The link of a node by its name or address."""
        return next((k for k in self.links.values() if name in (k.node_id, k.entry.address)), None)

    def engine_address(self, node_id: str) -> str:
        """host:port at which proxies reach a node's engine; empty: they do not."""
        link = self.find(node_id)
        return "" if link is None or link.config is None else link.config.address

    def in_flight(self, node_id: str) -> int:
        return next((n.in_flight for n in self._pump.router.nodes() if n.node_id == node_id), 0)

    def models(self) -> dict[str, int]:
        """Names of models that live nodes serve, engines' own before others, with the longest context offered, in
        tokens."""
        live = self._offer("").configs
        own = sorted({config.model for config in live})
        others = sorted({name for config in live for name in config.other_names})
        return {name: self.max_model_len_tokens(name) or 0 for name in dict.fromkeys((*own, *others))}

    def own_names(self, model: str) -> frozenset[str]:
        """What live nodes of the model (any, if it is empty) call their engines' own one."""
        return self._offer(model).own_names

    def forwards(self, model: str) -> bool:
        """Whether a live node hands calls for the model (any, if it is empty) on as they are."""
        return self._offer(model).forwards

    def tells_logprobs(self, model: str) -> bool:
        """Whether a live node tells logprobs for the model (any, if it is empty); true also while no node is live."""
        return self._offer(model).tells_logprobs

    def gives_no_text(self, model: str) -> bool:
        """Whether all live nodes of the model (of all, if it is empty) give embeddings, scores or classes alone."""
        return self._offer(model).gives_no_text

    def words_chats(self, model: str) -> bool:
        """Whether the server of any live node of the model (of all, if it is empty) words chats itself."""
        return self._offer(model).words_chats

    def forwarding(self) -> list[str]:
        """Names of the live nodes that hand calls on, in the order of the configuration."""
        return [k.node_id for k in self.links.values() if k.status == "up" and k.config and k.config.forwards]

    def traced_block_size_tokens(self, model: str) -> int:
        """Tokens per KV block at the live nodes that know what their prefix cache holds (at most of them, should they
        differ), for the model (any, if it is empty); 0 if no node knows."""
        return self._offer(model).traced_block_size_tokens

    def max_model_len_tokens(self, model: str) -> int | None:
        """The longest context that a live node offers for the model (any, if it is empty); None if there is none."""
        return self._offer(model).max_model_len_tokens

    def _offer(self, model: str) -> Offer:
        """Of the live nodes of the model (of all, if it is empty); where none is live, of those to be had."""
        if self._offers is None:
            live = [k.config for k in self.links.values() if k.status == "up" and k.config is not None]
            known = {name for config in live for name in config.names}
            live += [config for config in self.expected if not known.intersection(config.names)]
            serving: dict[str, list[EngineConfig]] = {"": live}
            for config in live:
                for name in dict.fromkeys(config.names):
                    serving.setdefault(name, []).append(config)
            self._offers = {name: _offer_of(configs) for name, configs in serving.items()}
        return self._offers.get(model, _NO_OFFER)

    def listing(self) -> pb.NodeList:
        """All nodes as `ListNodes` tells them."""
        now_s = self._pump.now_s()
        known = {n.node_id: n for n in self._pump.router.nodes()}
        holding = self._pump.router.queue_status(now_s)
        moves = self._pump.router.moves_status()
        return wire.node_list(
            [
                wire.node_info(
                    known.get(link.node_id),
                    name=link.name,
                    address=link.entry.address,
                    link_status=link.status,
                    config=link.config,
                    profile=link.profile,
                    detail=link.detail,
                    now_s=now_s,
                    moves=moves,
                )
                for link in self.links.values()
            ],
            policy=self._pump.router.policy_name,
            proved_vllm_version=PROVED_VLLM,
            held=holding.held,
            predicted_wait_s=holding.predicted_wait_s,
        )
