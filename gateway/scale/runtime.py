"""Drives the scaler of a live gateway: what requests do and what runs goes in, starts and stops come out. Shell.

Everything but the rule's own thinking happens on the event loop, and nothing here is waited for by a request. A tick
runs in a thread, one at a time; what requests do meanwhile reaches the scaler after it, in order.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import structlog

from gateway.config import NodeEntry
from gateway.core.events import AnyAction, AnyEvent, DrainAsked, NodesExpected
from gateway.core.scale import events as ev
from gateway.core.scale import recording
from gateway.core.scale.news import NEWS_S, NewsListener, NewsTeller, ScalingNews
from gateway.core.scale.scaler import ScaleDecision, Scaler
from gateway.core.scale.seen import fleet_seen, held_requests
from gateway.core.scale.watch import RequestEvent, RequestWatch
from gateway.nodes.discovery import Discovery
from gateway.nodes.leadership import Leadership
from gateway.nodes.registry import NodeRegistry
from gateway.observe.recorder import FileRecorder
from gateway.pump import Pump
from gateway.scale.calls import patiently
from gateway.scale.config import ScalingConfig, is_address
from gateway.scale.connectors.base import Connector, ConnectorError, ConnectorNode
from gateway.scale.connectors.registry import make_connector
from gateway.scale.status import ScaleStatus, status_of
from protos.runtime.kernels import KernelError, kernels_ready

log = structlog.get_logger("gateway.scale")

LIST_PATIENCE_S = 2.0
"""How long a tick waits for the list of what runs; one that comes later is of the next tick."""
FINISH_S = 3.0
"""What calls of the connector that are under way get to end when the gateway stops."""


class ScaleRuntime:
    """One instance per gateway. `start`, then `stop`.

    `on_change` is called after each tick. Raises ScaleError for a configuration that cannot be.
    """

    def __init__(
        self,
        config: ScalingConfig,
        *,
        pump: Pump,
        nodes: NodeRegistry,
        discovery: Discovery,
        on_change: Callable[[], None] = lambda: None,
        record: str = "",
        connector: Connector | None = None,
    ) -> None:
        """`record`: the decision log of the router, beside which the scaler's ends in `.scaling`; empty: none.
        `connector` None: the one that the configuration names."""
        self.config = config
        self.status: ScaleStatus | None = None
        """After the last tick; None before the first."""
        self.failures: Counter[tuple[str, str]] = Counter()
        """Calls of the connector that failed, by call and group (empty for a list)."""
        self.actions: Counter[tuple[str, str]] = Counter()
        """What was done, by what and group."""
        self.defects = 0
        """Errors of the rule's own."""
        self._pump = pump
        self._nodes = nodes
        self._discovery = discovery
        self._on_change = on_change
        core = config.core()
        self._models = {group.name: group.model for group in core.groups}
        self.connector = connector or make_connector(config, self._seen_of_groups)
        self._acts = self.connector.executes and not config.dry_run
        self._shares = config.is_shared
        self._leadership: Leadership | None = None
        self._teller: NewsTeller | None = None
        self._listener = NewsListener(config.lease_s)
        self._telling: asyncio.Task[None] | None = None
        self._warming: asyncio.Task[None] | None = None
        self.scaler = Scaler(core, leads=not self._shares, advises=not self._acts, on_defect=self._rule_failed)
        self._recorder: FileRecorder[recording.ScalerSetup, ev.AnyScaleEvent, ev.AnyScaleAction] | None = None
        if record:
            setup = recording.ScalerSetup(config=core, leads=not self._shares, advises=not self._acts)
            path = Path(f"{record}.scaling")
            self._recorder = FileRecorder(path, setup, recording.SCALERS)
        self._watch = RequestWatch(self._request_told)
        self._thinks = False
        self._unheard: deque[tuple[ev.AnyScaleEvent, float]] = deque()
        self._listing: asyncio.Task[list[ConnectorNode]] | None = None
        self._started: set[str] = set()
        """Nodes whose start has gone through since the present list was asked for."""
        self._owed: set[str] = set()
        """Those that must be in it: their start had gone through before."""
        self._problem = ""
        self._groups_of: dict[str, str] = {}
        """Of the nodes of the last list."""
        self._misled: set[str] = set()
        """Nodes that serve another model than their group."""
        self._doing: dict[str, asyncio.Task[None]] = {}
        self._ticking: asyncio.Task[None] | None = None

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Takes over what runs, and decides from then on."""
        self._pump.watch = self._saw
        if self._shares:
            self._leadership = self._nodes.seek_leadership(
                self.set_leads, ttl_s=self.config.lease_s, on_news=self._news_told
            )
            self._teller = NewsTeller(self._leadership.gateway)
            self._telling = asyncio.create_task(
                self._tell_others_for_ever(self._leadership, self._teller), name="scaling news"
            )
        if self.scaler.kernels:
            self._tell(ev.RuleReadySet(ready=False), self._pump.now_s())
            self._warming = asyncio.create_task(self._warm(self.scaler.kernels), name="scaling kernels")
        self._expect()
        self._ticking = asyncio.create_task(self._tick_for_ever(), name="scaling")
        log.info(
            "scaling",
            rule=self.config.rule,
            connector=self.connector.name,
            executes=self._acts,
            groups={group.name: [group.min, group.max] for group in self.config.group},
        )

    async def stop(self) -> None:
        """Decides no more. What runs goes on, or ends with us: as the connector's nature is."""
        self._pump.watch = None
        for clock in (self._ticking, self._telling, self._warming):
            if clock is not None:
                clock.cancel()
        if self._doing:
            # A start that is broken off may have begun: better that it is known.
            await asyncio.wait(self._doing.values(), timeout=FINISH_S)
        tasks = [
            task
            for task in (self._ticking, self._telling, self._warming, self._listing, *self._doing.values())
            if task is not None
        ]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(ConnectorError, TimeoutError):
            async with asyncio.timeout(self.config.call_limit_s):
                # What another gateway may use stays.
                await self.connector.close(ends=self._acts and not self._shares)
        if self._recorder is not None:
            self._recorder.close()

    async def _warm(self, kernels: str) -> None:
        """Compiling takes longer than a tick may, and would make requests wait if this process did it."""
        try:
            await kernels_ready(kernels)
        except KernelError as bad:
            # It is then compiled at the first tick, or that says what is wrong.
            log.warning("the rule's code could not be compiled beforehand", rule=self.config.rule, detail=str(bad))
        self._tell(ev.RuleReadySet(ready=True), self._pump.now_s())

    def set_leads(self, leads: bool) -> None:
        """Whether this gateway decides for the fleet."""
        self._tell(ev.LeadershipSet(leads=leads, alone=not self._shares), self._pump.now_s())

    def _still_leads(self) -> bool:
        """At this very moment: a process that stood still may have lost it before anybody could tell."""
        if self._leadership is None:
            return self.scaler.leads
        leads = self._leadership.leads
        if leads != self.scaler.leads:
            self.set_leads(leads)
        return leads

    # --- what is heard ------------------------------------------------------------------------------------------------

    def _saw(self, event: AnyEvent, actions: Sequence[AnyAction], now_s: float) -> None:
        try:
            self._watch.saw(event, actions, now_s)
        except Exception as defect:
            # A rule's mistake is no request's.
            self._rule_failed(defect)

    def _request_told(self, event: RequestEvent, now_s: float) -> None:
        if self._teller is not None:
            self._teller.add(event, now_s)
        self._tell(event, now_s)

    def _news_told(self, news: ScalingNews) -> None:
        self._listener.heard(news, self._pump.now_s())

    async def _tell_others_for_ever(self, leadership: Leadership, teller: NewsTeller) -> None:
        while True:
            await asyncio.sleep(NEWS_S)
            if not leadership.is_heard:
                teller.forget()
                continue
            now_s = self._pump.now_s()
            try:
                leadership.tell(teller.news(held_requests(self._pump.router, now_s), now_s))
            except Exception as defect:
                log.error("the other gateways could not be told of requests", exc_info=defect)

    def _tell(self, event: ev.AnyScaleEvent, now_s: float) -> None:
        """What the scaler must hear; while it thinks, it hears it afterwards."""
        if self._thinks:
            self._unheard.append((event, now_s))
        else:
            self._hear(event, now_s)

    def _hear(self, event: ev.AnyScaleEvent, now_s: float) -> None:
        self._catch_up(now_s)
        self._take_in(event, now_s)

    def _catch_up(self, now_s: float) -> None:
        """What requests of other gateways have done by then."""
        for event, then_s in self._listener.due(now_s):
            try:
                self._take_in(event, then_s)
            except Exception as defect:
                self._rule_failed(defect)

    def _take_in(self, event: ev.AnyScaleEvent, now_s: float) -> None:
        actions = self.scaler.handle(event, now_s)
        assert not actions, "only a tick wants anything done"
        self._record(event, now_s, ())

    def _record(self, event: ev.AnyScaleEvent, now_s: float, actions: Sequence[ev.AnyScaleAction]) -> None:
        if self._recorder is not None:
            self._recorder.record(now_s, event, actions)

    def _rule_failed(self, defect: Exception) -> None:
        self.defects += 1
        if self.defects.bit_count() == 1:
            # The first, second, fourth, ... time: a rule that always fails fills no disk.
            log.error("the scaling rule has failed", rule=self.config.rule, times=self.defects, exc_info=defect)

    def _seen_of_groups(self) -> list[ConnectorNode]:
        """The groups' nodes that the gateway has found by itself: called as the group's nodes, or the only group's
        that serves that model."""
        found = []
        for status in self._pump.router.nodes():
            named = [name for name in self._models if status.node_id.rpartition("-")[0] == name]
            serving = [name for name, model in self._models.items() if not model or model in status.config.names]
            of = named or (serving if len(serving) == 1 else [])
            if of:
                found.append(ConnectorNode(node_id=status.node_id, group=of[0]))
        return found

    # --- a tick -------------------------------------------------------------------------------------------------------

    async def _tick_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            try:
                await self._tick()
            except Exception as defect:
                log.error("a tick of scaling has failed", exc_info=defect)
            due_s = max(due_s + self.config.tick_s, loop.time())
            await asyncio.sleep(due_s - loop.time())

    async def _tick(self) -> None:
        await self._look()
        self._still_leads()
        now_s = self._pump.now_s()
        self._catch_up(now_s)
        seen = self._listener.with_held(self._fleet_seen(now_s), now_s)
        self._thinks = True
        try:
            actions = await asyncio.to_thread(self.scaler.handle, seen, now_s)
            self._record(seen, now_s, actions)
        finally:
            self._thinks = False
            while self._unheard:
                event, then_s = self._unheard.popleft()
                try:
                    self._hear(event, then_s)
                except Exception as defect:
                    self._rule_failed(defect)
        self._report(self.scaler.latest, actions)
        if actions and self._still_leads():
            for action in actions:
                self._do(action)
        self._refresh()
        self._expect()

    def _refresh(self) -> None:
        self.status = status_of(
            self.scaler,
            self._pump.now_s(),
            connector=self.connector.name,
            executes=self._acts,
            problem=self._problem,
        )
        self._on_change()

    async def _look(self) -> None:
        """The connector's list, if there is one by now."""
        if self._listing is None:
            self._owed, self._started = self._owed | self._started, set()
            self._listing = asyncio.create_task(
                patiently(self.connector.list_nodes, limit_s=self.config.call_limit_s, tries=self.config.call_tries)
            )
        # A connector that hangs must not hold up decisions: it is asked once at a time, and waited for a little.
        await asyncio.wait((self._listing,), timeout=min(LIST_PATIENCE_S, self.config.tick_s))
        if not self._listing.done():
            if not self._problem:
                self._list_failed("it has not said yet what runs")
            return
        listing, self._listing = self._listing, None
        try:
            listed = listing.result()
        except ConnectorError as bad:
            self._list_failed(str(bad))
            return
        if self._problem:
            log.info("the connector says again what runs", connector=self.connector.name)
        self._problem = ""
        self._listed(listed)

    def _list_failed(self, detail: str) -> None:
        self.failures["list", ""] += 1
        if detail != self._problem:
            log.warning("the connector does not say what runs", connector=self.connector.name, detail=detail)
        self._problem = detail
        self._tell(ev.ListFailed(detail=detail), self._pump.now_s())

    def _listed(self, listed: Sequence[ConnectorNode]) -> None:
        known, entries = [], []
        for node in {node.node_id: node for node in listed}.values():
            if node.group not in self._models:
                continue
            detail = node.detail
            if node.address and is_address(node.address):
                entries.append(NodeEntry(address=node.address, name=node.node_id))
            elif node.address:
                detail = detail or f"its address {node.address!r} is not host:port"
            detail = detail or self._why_not(node)
            listed_as = ev.ListedNode(node_id=node.node_id, group=node.group, detail=detail, asked_as=node.asked_as)
            known.append(listed_as)
        self._misled = {node.node_id for node in known if self._why_not(node)}
        for node_id in self._misled:
            # Those who ask for that model by name would get the wrong answer's price and place.
            self._pump.post(DrainAsked(node_id=node_id))
        self._discovery.set_started(entries)
        self._groups_of = {node.node_id: node.group for node in known}
        for node_id in self._owed - {name for node in known for name in (node.node_id, node.asked_as)}:
            self._tell(ev.StartFailed(node_id=node_id, detail="it has ended again"), self._pump.now_s())
        self._owed.clear()
        self._tell(ev.NodesListed(nodes=tuple(known)), self._pump.now_s())

    def _why_not(self, node: ConnectorNode | ev.ListedNode) -> str:
        """What is wrong with a node although it is up: it serves another model than its group. Else empty."""
        link = self._nodes.find(node.node_id)
        model = self._models[node.group]
        if not model or link is None or link.status != "up" or link.config is None or model in link.config.names:
            return ""
        return f"it serves {link.config.model!r} and its group {model!r}"

    def _fleet_seen(self, now_s: float) -> ev.FleetSeen:
        # What the nodes say themselves, whichever gateway has asked them to leave.
        leaving = {link.node_id: link.empty for link in self._nodes.links.values() if link.retiring}
        seen = fleet_seen(self._pump.router, now_s, retiring=leaving, is_empty=leaving.__getitem__)
        if self._leadership is not None:
            seen = msgspec.structs.replace(seen, elsewhere=tuple(sorted(self._leadership.elsewhere())))
        if not self._misled:
            return seen
        nodes = (
            msgspec.structs.replace(node, state="down") if node.node_id in self._misled else node for node in seen.nodes
        )
        return msgspec.structs.replace(seen, nodes=tuple(nodes))

    def _expect(self) -> None:
        """Tells the router which nodes can be had, so that requests wait for them where none runs."""
        if self.config.dry_run:
            return
        # Where nobody leads because no node is up, this gateway will after one lease.
        heard_in_s = 0.0 if self.scaler.leads else self.config.lease_s
        expected = self.scaler.expected(self._pump.now_s(), heard_in_s=heard_in_s)
        self._nodes.expect([node.config for node in expected])
        self._pump.post(NodesExpected(nodes=expected))

    def _report(self, decision: ScaleDecision | None, actions: Sequence[ev.AnyScaleAction]) -> None:
        if decision is None:
            return
        before = self.status.latest if self.status is not None else None
        said = {
            "rule": decision.rule,
            "had": decision.had,
            "wanted": decision.wanted,
            "seen": {name: round(value, 4) for name, value in decision.seen.items()},
            "why": decision.why,
        }
        if actions:
            log.info("scaling decision", **said, actions=[ev.action_words(action) for action in actions])
        elif decision.held_back and (before is None or before.wanted != decision.wanted):
            log.info("scaling held back", **said, because=decision.held_back)
        if decision.shortfall and (before is None or before.shortfall != decision.shortfall):
            log.warning("no fleet within the bounds keeps the objective", detail=decision.shortfall)

    # --- doing it -----------------------------------------------------------------------------------------------------

    def _do(self, action: ev.AnyScaleAction) -> None:
        match action:
            case ev.StartNode():
                self._call("start", action)
            case ev.StopNode():
                self._call("stop", action)
            case ev.RetireNode():
                self._retire(action)

    def _retire(self, action: ev.RetireNode) -> None:
        self.actions["undo retire" if action.undo else "retire", self._groups_of.get(action.node_id, "")] += 1
        link = self._nodes.find(action.node_id)
        if link is not None:
            link.retire(action.undo)

    def _call(self, what: str, action: ev.StartNode | ev.StopNode) -> None:
        """Beside all else, but one call after the other for one node."""
        node_id = action.node_id
        before = self._doing.get(node_id)
        task = asyncio.create_task(self._carry_out(what, action, before), name=f"{what} {node_id}")
        self._doing[node_id] = task

        def over(_: object) -> None:
            if self._doing.get(node_id) is task:
                del self._doing[node_id]

        task.add_done_callback(over)

    async def _carry_out(
        self, what: str, action: ev.StartNode | ev.StopNode, before: asyncio.Task[None] | None
    ) -> None:
        if before is not None:
            await asyncio.wait((before,))
        if not self._still_leads():
            return
        node_id, group = action.node_id, action.group
        call = self.connector.start if isinstance(action, ev.StartNode) else self.connector.stop
        self.actions[what, group] += 1
        try:
            await patiently(
                lambda: call(node_id, group), limit_s=self.config.call_limit_s, tries=self.config.call_tries
            )
            if isinstance(action, ev.StartNode):
                self._started.add(node_id)
            else:
                self._started.discard(node_id)
                self._owed.discard(node_id)
        except ConnectorError as bad:
            self.failures[what, group] += 1
            log.warning(f"the connector cannot {what} a node", node=node_id, group=group, detail=str(bad))
            failed = ev.StartFailed if isinstance(action, ev.StartNode) else ev.StopFailed
            self._tell(failed(node_id=node_id, detail=str(bad)), self._pump.now_s())
