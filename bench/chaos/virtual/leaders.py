"""Several gateways scale one fleet in virtual time: leases, retirements, scalers as they are, all else imitated. Pure.

A scenario's faults befall gateways, nodes, the connector and the network between; what is broken by that is written
down as it happens, and at the end, when all is well again, the fleet must be what is wanted and one gateway lead it.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec

from gateway.core.nodes.view import NodeView
from gateway.core.scale import events as ev
from gateway.core.scale.config import ScaleConfig, ScaleGroup
from gateway.core.scale.fleet import FleetState, SeenNode
from gateway.core.scale.lease import LeaseSeeker
from gateway.core.scale.news import NEWS_S, HeldRequests, NewsListener, NewsTeller
from gateway.core.scale.rule import Deaf, Wish
from gateway.core.scale.scaler import Scaler
from predictor.core.lease import LeaseAnswer, LeaseAsk, LeaseKeeper
from predictor.core.leaving import Leaving
from simcore.types import EngineConfig

ENGINE = EngineConfig(model="m", max_model_len_tokens=4096, num_blocks=1000)
GROUP = "g"
SELDOM = "h"
"""A group that no rule wants a node of: requests of its model wake one, wherever they come."""
MAX = 5
NODES = tuple(f"{group}-{number}" for group in (GROUP, SELDOM) for number in range(20))
"""More than there can be."""
TTL_S = 10.0
TICK_S = 5.0
COLD_S = 30.0
STATUS_S = 1.0
"""Between two words of a node on itself."""
REQUEST_EVERY_S = 3.0
SELDOM_EVERY_S = 70.0
SELDOM_UNTIL_S = 300.0
"""Into the calm: then their nodes have time to leave."""
RECONNECT_S = 0.5
KEEPALIVE_S = 3.0
"""A session over a cut link lives for so long."""
LEADER_WITHIN_S = 2.5 * TTL_S
"""Of the last thing that befell anybody."""
CALM_S = 500.0
"""From the end of all faults to the last look."""


class WantsAsTold(Deaf):
    """A rule for all gateways of a world: so many nodes as its course says."""

    name: ClassVar[str] = "wants_as_told"
    source: ClassVar[str] = "chaos"
    options_type: ClassVar[type[msgspec.Struct]] = msgspec.Struct

    def __init__(self, config: ScaleConfig, options: Any, rng: random.Random) -> None:
        self.course: Callable[[float], int] = lambda _now_s: 1

    def tick(self, fleet: FleetState, now_s: float) -> Wish | None:
        return Wish(wanted={GROUP: self.course(now_s), SELDOM: 0})


class Instance(msgspec.Struct, kw_only=True, eq=False):
    """A node: what its connector started, and the daemon in it."""

    name: str
    born_s: float
    up: bool = False
    ends: bool = False
    """It has been told to stop."""
    keeper: LeaseKeeper
    leaving: Leaving
    requests: dict[str, str] = {}
    """Those that it has, and of which gateway."""
    run: int
    """Which start of its daemon, of all daemons."""


class HeardNode(msgspec.Struct, kw_only=True, eq=False):
    """One gateway's session with one node, and what the gateway has heard in it."""

    since_s: float
    run: int
    retiring: bool = False
    empty: bool = False
    running: int = 0
    last_s: dict[str, float] = {}
    """When the last message arrives, each way: none overtakes another."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a gateway wants of the connector."""

    action: ev.StartNode | ev.StopNode
    by: str
    listed_s: float
    """Of what moment the list was that it went by."""
    may_harm: bool
    """A stop of a node that is up, and that its gateway could know of."""
    run: int
    """Of the node's daemon: of what another one takes on while the order is under way nobody knows."""


class ScalingGateway:
    """One gateway between two starts of its process."""

    def __init__(self, name: str, run: int, now_s: float, rule: WantsAsTold) -> None:
        self.name = name
        self.alive = True
        self.paused_from_s = self.paused_until_s = 0.0
        self.seeker = LeaseSeeker(f"{name}/{run}", TTL_S, now_s)
        self.scaler = Scaler(CONFIG, leads=False, rule=rule)
        self.links: dict[str, HeardNode] = {}
        self.teller = NewsTeller(self.seeker.gateway)
        self.listener = NewsListener(TTL_S)
        self.held: list[tuple[str, float]] = []
        """Groups that requests wait for, and since when."""
        self.listed_s = -math.inf
        self.listed: set[str] = set()
        self.term = 0


CONFIG = ScaleConfig(
    rule="static",
    groups=tuple(ScaleGroup(name=name, model=name, min=0, max=MAX, cold_start_s=COLD_S) for name in (GROUP, SELDOM)),
    tick_s=TICK_S,
)


class ScalingWorld:
    """Made for one scenario, then `run`. Faults are methods and fields that a scenario calls and sets at its times."""

    def __init__(self, seed: int, gateways: int = 3) -> None:
        self.rng = random.Random(seed)
        self.now_s = 0.0
        self.broken: list[str] = []
        self.instances: dict[str, Instance] = {}
        self.gateways: dict[str, ScalingGateway] = {}
        self.orders: list[Order] = []
        """Of those that are not carried out yet."""
        self.cut: set[tuple[str, str]] = set()
        """Pairs of a gateway and a node between which nothing goes."""
        self.delay_s = (0.001, 0.05)
        self.lose = self.double = 0.0
        """Shares of messages."""
        self.fail = 0.0
        """Share of orders that fail, half of them after they were carried out, and of lists."""
        self.order_s = (0.1, 2.0)
        self.list_s = (0.01, 0.5)
        self.start_s = (10.0, 40.0)
        self.never = 0.0
        """Share of nodes that do not come up."""
        self.leaderless_s = 0.0
        """The longest time without a leader while one could be: nothing happened, a gateway ran, no link was cut."""
        self.calm_from_s = math.inf
        self.starts = self.stops = self.changes = self.woken = 0
        self._leaderless_from_s: float | None = None
        self._wants = [(0.0, self.rng.randint(1, MAX))]
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = itertools.count()
        self._numbers = itertools.count()
        self._runs = itertools.count(1)
        self._daemons = itertools.count(1)
        for i in range(gateways):
            self.start_gateway(f"gw{i}")
        self._every(0.25, self._look)

    # --- time ---------------------------------------------------------------------------------------------------------

    def at(self, at_s: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (max(at_s, self.now_s), next(self._sequence), do))

    def later(self, between_s: tuple[float, float], do: Callable[[], None]) -> None:
        self.at(self.now_s + self.rng.uniform(*between_s), do)

    def _every(self, pause_s: float, do: Callable[[], None]) -> None:
        def again() -> None:
            do()
            self.at(self.now_s + pause_s, again)

        self.at(self.now_s, again)

    def run(self, faults_s: float) -> None:
        """Faults come until `faults_s`; then all is mended, and after `CALM_S` all must be well."""
        at_s = 0.0
        while at_s < faults_s:
            at_s += self.rng.uniform(20.0, 90.0)
            self._wants.append((at_s, self.rng.randint(0, MAX + 1)))
        self._wants.append((faults_s, self.rng.randint(1, MAX)))
        self.at(faults_s, self._mend)
        end_s = faults_s + CALM_S
        while self._heap and self._heap[0][0] <= end_s:
            self.now_s, _, do = heapq.heappop(self._heap)
            do()
        self._check_end()

    def wanted(self, now_s: float) -> int:
        return [count for at_s, count in self._wants if at_s <= now_s][-1]

    # --- faults -------------------------------------------------------------------------------------------------------

    def leader(self) -> ScalingGateway | None:
        """Any that leads, the first by name."""
        return next((g for g in self.gateways.values() if g.alive and g.seeker.leads(self.now_s)), None)

    def start_gateway(self, name: str) -> None:
        self._leaderless_from_s = None
        rule = WantsAsTold(CONFIG, None, self.rng)
        rule.course = self.wanted
        gateway = self.gateways[name] = ScalingGateway(name, next(self._runs), self.now_s, rule)
        self._alive_every(gateway, TICK_S, lambda: self._tick(gateway))
        self._alive_every(gateway, 1.0, lambda: self._connect(gateway))
        self._alive_every(gateway, TTL_S / 10, lambda: self._seek(gateway))
        self._alive_every(gateway, NEWS_S, lambda: self._tell(gateway))
        self._alive_every(gateway, REQUEST_EVERY_S, lambda: self._request(gateway, GROUP))
        self._alive_every(gateway, SELDOM_EVERY_S, lambda: self._request(gateway, SELDOM))

    def kill_gateway(self, gateway: ScalingGateway) -> None:
        """Its requests go with it."""
        self._leaderless_from_s = None
        gateway.alive = False
        for instance in self.instances.values():
            for request, owner in list(instance.requests.items()):
                if owner == gateway.name:
                    del instance.requests[request]
            instance.leaving.look(is_empty=not instance.requests)

    def pause(self, gateway: ScalingGateway, pause_s: float) -> None:
        if self.now_s >= gateway.paused_until_s:
            gateway.paused_from_s = self.now_s
        gateway.paused_until_s = self.now_s + pause_s

    def restart_daemon(self, instance: Instance) -> None:
        """Its state is as new; its requests go on elsewhere."""
        self._leaderless_from_s = None
        instance.run = next(self._daemons)
        instance.keeper, instance.leaving = LeaseKeeper(self.now_s), Leaving()
        instance.requests = {}

    def vanish(self, instance: Instance) -> None:
        self.instances.pop(instance.name, None)

    def _mend(self) -> None:
        self.calm_from_s = self.now_s
        self.cut.clear()
        self.lose = self.double = self.fail = self.never = 0.0
        self.delay_s, self.order_s, self.list_s = (0.001, 0.05), (0.1, 2.0), (0.01, 0.5)
        for name, gateway in list(self.gateways.items()):
            gateway.paused_until_s = self.now_s
            if not gateway.alive:
                self.start_gateway(name)

    # --- a gateway ----------------------------------------------------------------------------------------------------

    def _alive_every(self, gateway: ScalingGateway, pause_s: float, do: Callable[[], None]) -> None:
        def again() -> None:
            if not gateway.alive:
                return
            if self.now_s < gateway.paused_until_s:
                self.at(gateway.paused_until_s, again)
                return
            do()
            self.at(self.now_s + pause_s * self.rng.uniform(0.95, 1.05), again)

        self.at(self.now_s + self.rng.uniform(0.0, pause_s), again)

    def _connect(self, gateway: ScalingGateway) -> None:
        """Sessions with the nodes that there are, as far as they can be had."""
        for name, link in list(gateway.links.items()):
            there = self.instances.get(name)
            if there is None or not there.up or there.run != link.run or self._silent(gateway, name, link):
                del gateway.links[name]
                gateway.seeker.node_down(name, self.now_s)
        for name, instance in self.instances.items():
            if name not in gateway.links and instance.up and (gateway.name, name) not in self.cut:
                gateway.links[name] = HeardNode(since_s=self.now_s, run=instance.run)
                gateway.seeker.node_up(name)
                self._speak(instance)
        self._place(gateway)

    def _silent(self, gateway: ScalingGateway, name: str, link: HeardNode) -> bool:
        if (gateway.name, name) not in self.cut:
            link.last_s["heard"] = self.now_s
        return self.now_s - link.last_s.get("heard", link.since_s) > KEEPALIVE_S

    def _seek(self, gateway: ScalingGateway) -> None:
        up_nodes = tuple(gateway.links)
        for question in gateway.seeker.questions(self.now_s):
            ask = LeaseAsk(
                gateway=gateway.seeker.gateway,
                number=question.number,
                ttl_s=TTL_S,
                wants=question.wants,
                leads=question.leads,
                up_nodes=up_nodes,
            )
            name = question.node_id
            self._to_node(gateway, name, lambda node, name=name, ask=ask: self._lease(gateway, node, ask))  # type: ignore[misc]

    def _lease(self, gateway: ScalingGateway, instance: Instance, ask: LeaseAsk) -> None:
        answer = instance.keeper.ask(ask, self.now_s)
        if answer is not None:
            self._to_gateway(gateway, instance, lambda _link: self._answered(gateway, instance.name, ask, answer))

    def _answered(self, gateway: ScalingGateway, name: str, ask: LeaseAsk, answer: LeaseAnswer) -> None:
        gateway.seeker.heard(
            name,
            ask.number,
            granted=answer.granted,
            holder=answer.holder,
            waits_s=answer.waits_s,
            elsewhere=answer.elsewhere,
            others=answer.others,
            now_s=self.now_s,
        )

    def _request(self, gateway: ScalingGateway, group: str) -> None:
        if group == GROUP or self.now_s < self.calm_from_s + SELDOM_UNTIL_S:
            gateway.held.append((group, self.now_s))
            self._place(gateway)

    def _place(self, gateway: ScalingGateway) -> None:
        """What is held and has a node goes there."""
        held, gateway.held = gateway.held, []
        for group, since_s in held:
            open_to_it = _open_nodes(gateway, group)
            if not open_to_it:
                gateway.held.append((group, since_s))
                continue
            self.woken += group == SELDOM
            name, request = self.rng.choice(open_to_it), f"r{next(self._numbers)}"
            self._to_node(gateway, name, lambda node, request=request: self._begin(gateway, node, request))  # type: ignore[misc]

    def _tell(self, gateway: ScalingGateway) -> None:
        """The other gateways hear what is held."""
        name = gateway.seeker.messenger(self.now_s)
        if not name:
            return
        held = HeldRequests(held=len(gateway.held), waiting_models=_waiting_groups(gateway))
        news = gateway.teller.news(held, self.now_s)

        def hand_on(instance: Instance) -> None:
            for other in self.gateways.values():
                if other is not gateway:
                    self._to_gateway(
                        other,
                        instance,
                        lambda _link, other=other: other.listener.heard(news, self.now_s),  # type: ignore[misc]
                    )

        self._to_node(gateway, name, hand_on)

    def _begin(self, gateway: ScalingGateway, instance: Instance, request: str) -> None:
        if not gateway.alive:
            return
        if instance.leaving.retiring:
            gateway.held.append((_group_of(instance.name), self.now_s))
            return
        instance.requests[request] = gateway.name
        self.later((1.0, 40.0), lambda: self._end(instance, request))

    def _end(self, instance: Instance, request: str) -> None:
        if instance.requests.pop(request, None) is not None:
            instance.leaving.look(is_empty=not instance.requests)
            self._speak(instance)

    def _tick(self, gateway: ScalingGateway) -> None:
        """A list is asked for; when it comes, the scaler decides."""
        snapshot, of_s = list(self.instances.values()), self.now_s
        fails = self.rng.random() < self.fail
        nodes = tuple(ev.ListedNode(node_id=i.name, group=_group_of(i.name)) for i in snapshot)
        listed = ev.NodesListed(nodes=nodes)
        self.later(self.list_s, lambda: self._decide(gateway, None if fails else listed, of_s))

    def _decide(self, gateway: ScalingGateway, listed: ev.NodesListed | None, of_s: float) -> None:
        if not gateway.alive:
            return
        if self.now_s < gateway.paused_until_s:
            self.at(gateway.paused_until_s, lambda: self._decide(gateway, listed, of_s))
            return
        term = gateway.seeker.term(self.now_s)
        if term != gateway.term:
            gateway.term = term
            self.changes += term > 0
            # What was known of an earlier term is old.
            for leads in (False, term > 0):
                gateway.scaler.handle(ev.LeadershipSet(leads=leads, alone=False), self.now_s)
        if listed is None:
            gateway.scaler.handle(ev.ListFailed(detail="?"), self.now_s)
        elif of_s >= gateway.listed_s:
            gateway.listed_s, gateway.listed = of_s, {node.node_id for node in listed.nodes}
            gateway.scaler.handle(listed, self.now_s)
        elsewhere = tuple(sorted(gateway.seeker.elsewhere(self.now_s)))
        seen = tuple(_seen(name, gateway.links.get(name)) for name in sorted({*gateway.links, *gateway.listed}))
        fleet = ev.FleetSeen(
            nodes=seen, elsewhere=elsewhere, held=len(gateway.held), waiting_models=_waiting_groups(gateway)
        )
        for action in gateway.scaler.handle(gateway.listener.with_held(fleet, self.now_s), self.now_s):
            if isinstance(action, ev.RetireNode):
                self._retire(gateway, action)
            else:
                self._order(gateway, action)

    def _retire(self, gateway: ScalingGateway, action: ev.RetireNode) -> None:
        def heard(instance: Instance) -> None:
            is_empty = not instance.requests
            leaving = instance.leaving
            _ = leaving.undo(is_empty=is_empty) if action.undo else leaving.retire(is_empty=is_empty)
            self._speak(instance)

        self._to_node(gateway, action.node_id, heard)

    # --- the connector ------------------------------------------------------------------------------------------------

    def _order(self, gateway: ScalingGateway, action: ev.StartNode | ev.StopNode) -> None:
        link, there = gateway.links.get(action.node_id), self.instances.get(action.node_id)
        order = Order(
            action=action,
            by=gateway.name,
            listed_s=gateway.listed_s,
            may_harm=self._could_know(gateway, action.node_id),
            run=link.run if link is not None else there.run if there is not None else 0,
        )
        self.orders.append(order)
        fails, happens = self.rng.random() < self.fail, self.rng.random() < 0.5

        def carry_out() -> None:
            self.orders.remove(order)
            if not fails or happens:
                refused = self._start(order) if isinstance(action, ev.StartNode) else self._stop(order)
            else:
                refused = "it failed"
            if (fails or refused) and gateway.alive:
                failed = ev.StartFailed if isinstance(action, ev.StartNode) else ev.StopFailed
                gateway.scaler.handle(failed(node_id=action.node_id, detail=refused or "no answer"), self.now_s)

        self.later(self.order_s, carry_out)
        if self.rng.random() < self.double:
            self.orders.append(order)
            self.later(self.order_s, carry_out)

    def _could_know(self, gateway: ScalingGateway, name: str) -> bool:
        """Whether a stop of this node could harm somebody and its gateway could know: it has a session with it, or a
        gateway that has one shares another node with it."""
        instance = self.instances.get(name)
        if instance is None or not instance.up:
            return False
        long_ago_s = self.now_s - 2 * TTL_S

        def has(whose: ScalingGateway, node: str) -> bool:
            link = whose.links.get(node)
            return link is not None and link.since_s < long_ago_s and (whose.name, node) not in self.cut

        def tells(whose: ScalingGateway) -> bool:
            stands_still = self.now_s < whose.paused_until_s
            return whose.alive and not (stands_still and self.now_s - whose.paused_from_s > TTL_S)

        others = [g for g in self.gateways.values() if tells(g) and g is not gateway and has(g, name)]
        return name in gateway.links or any(
            has(gateway, shared) and has(other, shared) for other in others for shared in self.instances
        )

    def _start(self, order: Order) -> str:
        name = order.action.node_id
        there = self.instances.get(name)
        if there is not None:
            return "it is being stopped" if there.ends else ""
        stopping = {o.action.node_id for o in self.orders if isinstance(o.action, ev.StopNode)}
        # Not what was under way: its gateway may have forgotten its own starts with its leadership.
        paid = [
            i.name
            for i in self.instances.values()
            if _group_of(i.name) == order.action.group
            and not i.ends
            and i.name not in stopping
            and i.born_s < order.listed_s
        ]
        if len(paid) + 1 > MAX:
            self._complain(f"{order.by} started {name} beside {sorted(paid)}")
        self.starts += 1
        instance = self.instances[name] = Instance(
            name=name,
            born_s=self.now_s,
            keeper=LeaseKeeper(self.now_s),
            leaving=Leaving(),
            run=next(self._daemons),
        )
        if self.rng.random() >= self.never:
            self.later(self.start_s, lambda: self._up(instance))
        return ""

    def _up(self, instance: Instance) -> None:
        if self.instances.get(instance.name) is instance and not instance.ends:
            instance.up = True
            instance.keeper = LeaseKeeper(self.now_s)

            def word() -> None:
                if self.instances.get(instance.name) is instance:
                    self._speak(instance)
                    self.at(self.now_s + STATUS_S, word)

            word()

    def _stop(self, order: Order) -> str:
        instance = self.instances.get(order.action.node_id)
        if instance is None or instance.ends:
            return ""
        self.stops += 1
        if instance.requests and order.may_harm and order.run == instance.run:
            whose = sorted(set(instance.requests.values()))
            self._complain(f"{order.by} stopped {instance.name} ({order.action}), in use by {whose}")
        instance.ends, instance.up, instance.requests = True, False, {}
        self.later((0.5, 5.0), lambda: self._gone(instance))
        return ""

    def _gone(self, instance: Instance) -> None:
        if self.instances.get(instance.name) is instance:
            del self.instances[instance.name]

    # --- the network --------------------------------------------------------------------------------------------------

    def _speak(self, instance: Instance) -> None:
        """A node tells all gateways how it is."""
        retiring, empty, running = instance.leaving.retiring, instance.leaving.has_left, len(instance.requests)

        def heard(link: HeardNode) -> None:
            link.retiring, link.empty, link.running = retiring, empty, running

        for gateway in self.gateways.values():
            self._to_gateway(gateway, instance, heard)

    def _to_node(self, gateway: ScalingGateway, name: str, do: Callable[[Instance], None]) -> None:
        link, instance = gateway.links.get(name), self.instances.get(name)
        if link is None or instance is None:
            return

        def arrive() -> None:
            same = self.instances.get(name) is instance and instance.run == link.run
            if same and instance.up and gateway.links.get(name) is link:
                do(instance)

        self._send(gateway, instance, link, "there", arrive)

    def _to_gateway(self, gateway: ScalingGateway, instance: Instance, do: Callable[[HeardNode], None]) -> None:
        link = gateway.links.get(instance.name)
        if link is None or link.run != instance.run:
            return

        def arrive() -> None:
            if not gateway.alive or gateway.links.get(instance.name) is not link:
                return
            if self.now_s < gateway.paused_until_s:
                self.at(gateway.paused_until_s, arrive)
                return
            do(link)

        self._send(gateway, instance, link, "back", arrive)

    def _send(
        self, gateway: ScalingGateway, instance: Instance, link: HeardNode, way: str, arrive: Callable[[], None]
    ) -> None:
        if (gateway.name, instance.name) in self.cut or self.rng.random() < self.lose:
            return
        at_s = max(self.now_s + self.rng.uniform(*self.delay_s), link.last_s.get(way, 0.0))
        link.last_s[way] = at_s
        self.at(at_s, arrive)
        if self.rng.random() < self.double:
            self.at(at_s, arrive)

    # --- what must hold -----------------------------------------------------------------------------------------------

    def _complain(self, what: str) -> None:
        self.broken.append(f"{self.now_s:.2f} s: {what}")

    def _look(self) -> None:
        whole = (
            not self.cut
            and self.lose == 0.0
            and all(self.now_s >= g.paused_until_s for g in self.gateways.values() if g.alive)
        )
        any_alive = any(g.alive for g in self.gateways.values())
        if self.leader() is not None or not whole or not any_alive:
            self._leaderless_from_s = None
            return
        if self._leaderless_from_s is None:
            self._leaderless_from_s = self.now_s
        self.leaderless_s = max(self.leaderless_s, self.now_s - self._leaderless_from_s)

    def _check_end(self) -> None:
        if self.leaderless_s > LEADER_WITHIN_S:
            self._complain(f"nobody led for {self.leaderless_s:.1f} s")
        leaders = [g.name for g in self.gateways.values() if g.alive and g.seeker.leads(self.now_s)]
        if len(leaders) != 1:
            self._complain(f"in the end {leaders or 'nobody'} leads")
        want = min(MAX, self.wanted(self.now_s))
        serving = [i.name for i in self.instances.values() if i.up and not i.leaving.retiring]
        if len(serving) != want or len(self.instances) != want:
            self._complain(f"in the end {serving} of {list(self.instances)} serve, wanted are {want}")
        for gateway in self.gateways.values():
            if gateway.held:
                self._complain(f"in the end {gateway.name} holds {gateway.held}")


def _group_of(node_id: str) -> str:
    return node_id.rpartition("-")[0]


def _open_nodes(gateway: ScalingGateway, group: str) -> list[str]:
    return [name for name, link in gateway.links.items() if _group_of(name) == group and not link.retiring]


def _waiting_groups(gateway: ScalingGateway) -> tuple[str, ...]:
    """Of which requests wait though no node takes any; each group's model is called like it."""
    return tuple(sorted({group for group, _ in gateway.held if not _open_nodes(gateway, group)}))


def _seen(name: str, link: HeardNode | None) -> SeenNode:
    running = 0 if link is None else link.running
    config = msgspec.structs.replace(ENGINE, model=_group_of(name))
    view = NodeView(node_id=name, config=config, load=None, in_flight=running, dispatches_60s=0)
    if link is None:
        return SeenNode(node_id=name, state="down", view=view, empty=False)
    return SeenNode(
        node_id=name,
        state="draining" if link.retiring else "up",
        view=view,
        empty=link.empty,
        retiring=link.retiring,
    )
