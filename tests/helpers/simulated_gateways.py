"""Several gateways over the same nodes of a simulated cluster: each is a router that knows nothing of the others. Pure.

Stands where one router stands. Each request comes in at one gateway, in turn; what nodes tell of a request goes to the
gateway that has it, what they tell of themselves goes to all; what the gateways tell a node of the work to come is
added, as a node does it. Questions, timers and dispatches are numbered anew, so
that the numbers of several routers do not meet.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection

import msgspec

from bench.simcluster import SimCluster
from gateway.core import events as ev
from gateway.core.moves.mover import MovesStatus
from gateway.core.router import Router, RouterConfig
from simcore.types import ExpectedWork


class Gateways:
    """`count` routers with the same configuration but seeds of their own."""

    def __init__(self, config: RouterConfig, count: int) -> None:
        self.config = config
        self.routers = [Router(msgspec.structs.replace(config, seed=config.seed + 7919 * i)) for i in range(count)]
        self._arrived = 0
        self._owner: dict[str, int] = {}
        self._asks: dict[int, tuple[int, int]] = {}
        self._expected: dict[str, dict[int, ExpectedWork]] = {}
        """What each node was told last of the work to come, by gateway."""
        self._timers: dict[int, tuple[int, int]] = {}
        self._last_id = 0
        self._sent: dict[str, list[list[int]]] = {}
        """Per node and gateway, the common number of each of its dispatches in this session; theirs count from 1."""
        self._sent_total: dict[str, int] = {}

    def handle(self, event: ev.AnyEvent, now_s: float) -> list[ev.AnyAction]:
        """As `Router.handle`."""
        match event:
            case ev.Arrived():
                owner = self._owner[event.request.request_id] = self._arrived % len(self.routers)
                self._arrived += 1
                return self._tell(owner, event, now_s)
            case ev.TokensSeen() | ev.StreamEnded() | ev.ClientGone():
                owner_of = self._owner.get(event.request_id)
                return [] if owner_of is None else self._tell(owner_of, event, now_s)
            case ev.ForecastArrived():
                owner, ask_id = self._asks.pop(event.ask_id)
                return self._tell(owner, msgspec.structs.replace(event, ask_id=ask_id), now_s)
            case ev.TimerFired():
                owner, timer_id = self._timers.pop(event.timer_id)
                return self._tell(owner, ev.TimerFired(timer_id=timer_id), now_s)
            case ev.LoadNoted():
                heard = [bisect_right(sent, event.dispatch_seq) for sent in self._sent_to(event.load.node_id)]
                notes = [msgspec.structs.replace(event, dispatch_seq=seq) for seq in heard]
                return [action for i, note in enumerate(notes) for action in self._tell(i, note, now_s)]
            case ev.NodeJoined():
                self._sent.pop(event.node_id, None)
                self._sent_total.pop(event.node_id, None)
        return [action for i in range(len(self.routers)) for action in self._tell(i, event, now_s)]

    @property
    def moving(self) -> list[str]:
        """As `Router.moving`."""
        return [request_id for router in self.routers for request_id in router.moving]

    def progress_due(self, timer_id: int) -> Collection[str]:
        """As `Router.progress_due`."""
        owner, own_id = self._timers[timer_id]
        return self.routers[owner].progress_due(own_id)

    def moves_status(self) -> MovesStatus:
        """As `Router.moves_status`, of all together."""
        told = [router.moves_status() for router in self.routers]
        return MovesStatus(
            under_way=sum(status.under_way for status in told),
            done_total=sum(status.done_total for status in told),
            given_up_total=sum(status.given_up_total for status in told),
            stages_total=sum(status.stages_total for status in told),
            stage_tokens_total=sum(status.stage_tokens_total for status in told),
        )

    def check_quiescent(self) -> None:
        for router in self.routers:
            router.check_quiescent()

    def _tell(self, gateway: int, event: ev.AnyEvent, now_s: float) -> list[ev.AnyAction]:
        return [self._renumbered(gateway, action) for action in self.routers[gateway].handle(event, now_s)]

    def _renumbered(self, gateway: int, action: ev.AnyAction) -> ev.AnyAction:
        match action:
            case ev.AskForecast():
                self._last_id += 1
                self._asks[self._last_id] = (gateway, action.ask_id)
                expected = action.expected and self._added(gateway, action.node_id, action.expected)
                return msgspec.structs.replace(action, ask_id=self._last_id, expected=expected)
            case ev.StartTimer():
                self._last_id += 1
                self._timers[self._last_id] = (gateway, action.timer_id)
                return msgspec.structs.replace(action, timer_id=self._last_id)
            case ev.Dispatch():
                number = self._sent_total[action.node_id] = self._sent_total.get(action.node_id, 0) + 1
                self._sent_to(action.node_id)[gateway].append(number)
                return msgspec.structs.replace(action, dispatch_seq=number)
        return action

    def _added(self, gateway: int, node_id: str, expected: ExpectedWork) -> ExpectedWork:
        of_all = self._expected.setdefault(node_id, {})
        of_all[gateway] = expected
        requests, tokens, tokens2 = (sum(rate) for rate in zip(*(work.rates for work in of_all.values()), strict=True))
        return ExpectedWork(requests_per_s=requests, new_tokens_per_s=tokens, new_tokens2_per_s=tokens2)

    def _sent_to(self, node_id: str) -> list[list[int]]:
        return self._sent.setdefault(node_id, [[] for _ in self.routers])


def with_gateways(cluster: SimCluster, count: int) -> Gateways:
    """Puts so many gateways where the cluster, which has not run yet, has one router."""
    gateways = Gateways(cluster.router.config, count)
    cluster.router = gateways  # type: ignore[assignment]
    return gateways
