"""The router under any sequence of events, likely or not: its promises hold after each of them."""

from __future__ import annotations

from typing import Any, get_args

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.core import events as ev
from gateway.core.decision.policies.registry import policy_names
from gateway.core.queue.queue import HoldConfig, HoldOrder, HoldWhen
from gateway.core.recording import entry_line, header_line, replay
from simcore.types import Outcome, Quantiles
from tests.helpers.routing import CheckedRouter, forecast, shape

NODES = ["a", "b", "c", "d"]
nodes = st.sampled_from(NODES)


class RecordingRouter(CheckedRouter):
    """Keeps the recording that a gateway would keep."""

    def __init__(self, policy: str, **config: Any) -> None:
        super().__init__(policy, **config)
        self.lines = [header_line(self.router.config)]

    def tell(self, event: ev.AnyEvent) -> list[ev.AnyAction]:
        actions = super().tell(event)
        self.lines.append(entry_line(self.now_s, event, actions))
        return actions


class AnythingGoes(RuleBasedStateMachine):
    """What a shell, its nodes and its clients can do, in any order and with any delay.

    `CheckedRouter` holds every action against what a shell relies on; the invariants hold the accounts against the
    machine's own knowledge of who has what.
    """

    @initialize(
        policy=st.sampled_from(policy_names()),
        sample=st.integers(0, 3),
        seed=st.integers(0, 3),
        attempts=st.integers(1, 3),
        hold=st.sampled_from(["never", "forecast", "always"]),
        order=st.sampled_from(["fcfs", "shortest_forecast", "deadline"]),
        held=st.integers(1, 8),
    )
    def begin(
        self, policy: str, sample: int, seed: int, attempts: int, hold: HoldWhen, order: HoldOrder, held: int
    ) -> None:
        late = HoldConfig(when=hold, order=order, max_requests=held, max_s=7.0)
        self.world = RecordingRouter(policy, sample=sample, seed=seed, max_attempts=attempts, hold=late)
        self.names = 0
        self.world.join(*NODES[:2])

    def live(self) -> list[str]:
        world = self.world
        return sorted(world.arrived - set(world.finished) - set(world.placed))

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.04, 0.3, 7.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.now_s += seconds

    @rule(
        policy=st.sampled_from(["", "", *policy_names()]),
        prompt_tokens=st.sampled_from([1, 40, 3000, 4096]),
        deadline_s=st.sampled_from([None, None, 0.02, 5.0, -1.0]),
        place_only=st.sampled_from([False, False, False, True]),
        session=st.sampled_from(["", "s"]),
        priority=st.integers(-1, 1),
        resume=st.sampled_from(get_args(ev.Resume)),
        continuation=st.sampled_from(["exact", *get_args(ev.Continuation)]),
        model=st.sampled_from(["", "", "m", "adapter"]),
    )
    def arrive(
        self,
        model: str,
        policy: str,
        prompt_tokens: int,
        deadline_s: float | None,
        place_only: bool,
        session: str,
        priority: int,
        resume: ev.Resume,
        continuation: ev.Continuation,
    ) -> None:
        self.names += 1
        self.world.arrive(
            f"r{self.names}",
            model=model,
            policy=policy,
            prompt_tokens=prompt_tokens,
            slo=ev.Slo(deadline_s=deadline_s),
            place_only=place_only,
            session=session,
            priority=priority,
            resume=resume,
            continuation=continuation,
        )

    @rule(node_id=nodes, load=st.booleans())
    def join(self, node_id: str, load: bool) -> None:
        self.world.join(node_id, load=load)

    @rule(node_id=nodes, names=st.sampled_from([("m",), ("m", "adapter"), ("adapter",), ("other", "m")]))
    def rename(self, node_id: str, names: tuple[str, ...]) -> None:
        self.world.tell(ev.NodeServes(node_id=node_id, names=names))
        known = {name for status in self.world.router.nodes() for name in status.config.names}
        assert set(self.world.router.models()) == known

    @rule(node_id=nodes, names=st.sampled_from([None, (), ("adapter",), ("m", "other")]))
    def use_adapters(self, node_id: str, names: tuple[str, ...] | None) -> None:
        self.world.tell(ev.AdaptersUsed(node_id=node_id, names=names))

    @rule(node_id=nodes)
    def lose(self, node_id: str) -> None:
        self.world.tell(ev.NodeLost(node_id=node_id, detail="lost"))

    @rule(node_id=nodes)
    def remove(self, node_id: str) -> None:
        self.world.tell(ev.NodeRemoved(node_id=node_id))

    @rule(node_id=nodes, detail=st.sampled_from(["", "no word from it"]))
    def suspect(self, node_id: str, detail: str) -> None:
        self.world.tell(ev.NodeSuspected(node_id=node_id, detail=detail))

    @rule(node_id=nodes, undo=st.booleans())
    def drain(self, node_id: str, undo: bool) -> None:
        if node_id in {status.node_id for status in self.world.router.nodes()}:
            self.world.tell(ev.DrainAsked(node_id=node_id, undo=undo))

    @rule(node_id=nodes, retiring=st.booleans())
    def retire(self, node_id: str, retiring: bool) -> None:
        if node_id in self.world.up:
            self.world.tell(ev.RetirementTold(node_id=node_id, retiring=retiring))

    @rule(node_id=nodes, running=st.sampled_from([0, 7, 30, 48, 50]), behind=st.integers(0, 3))
    def note(self, node_id: str, running: int, behind: int) -> None:
        seq = max(0, self.world.seq.get(node_id, 0) - behind)
        self.world.note(node_id, dispatch_seq=seq, running=running, free_blocks=1052 - 20 * running)

    @precondition(lambda self: self.world.asks)
    @rule(
        data=st.data(),
        e2e_s=st.sampled_from([0.5, 2.0, float("nan")]),
        fails=st.booleans(),
        risk=st.sampled_from([0.0, 0.9]),
    )
    def answer(self, data: st.DataObject, e2e_s: float, fails: bool, risk: float) -> None:
        """Any question ever asked may be answered, also long after, but each once."""
        ask_id = data.draw(st.sampled_from(sorted(self.world.asks)))
        node_id = self.world.asks[ask_id].node_id
        said = (
            None
            if fails or e2e_s != e2e_s
            else forecast(node_id, e2e_s, preemption_probability=risk, clear_start_s=Quantiles(risk, risk, risk))
        )
        self.world.tell(ev.ForecastArrived(ask_id=ask_id, node_id=node_id, forecast=said, error="" if said else "no"))

    @rule()
    def timers_fire(self) -> None:
        self.world.fire_due()

    @precondition(lambda self: self.world.at)
    @rule(
        data=st.data(),
        node_id=nodes,
        tokens=st.sampled_from([0, 1, 3, 40]),
        elsewhere=st.booleans(),
        late=st.sampled_from([0, 0, 1]),
    )
    def tokens_come(self, data: st.DataObject, node_id: str, tokens: int, elsewhere: bool, late: int) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.world.at)))
        node_id = node_id if elsewhere else self.world.at[request_id]
        attempt = self.world.attempt[request_id] - late
        known = self.world.router.explain(request_id)
        counts = request_id in self.live() and node_id == self.world.at[request_id] and not late
        self.world.tell(ev.TokensSeen(request_id=request_id, node_id=node_id, tokens=tokens, attempt=attempt))
        after = self.world.router.explain(request_id)
        assert known is not None
        assert after is not None
        assert after.output_tokens - known.output_tokens in ((0, tokens) if counts else (0,))

    @precondition(lambda self: self.world.at)
    @rule(
        data=st.data(),
        node_id=nodes,
        outcome=st.sampled_from(list(Outcome)),
        elsewhere=st.booleans(),
        late=st.sampled_from([0, 0, 1]),
    )
    def stream_ends(self, data: st.DataObject, node_id: str, outcome: Outcome, elsewhere: bool, late: int) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.world.at)))
        node_id = node_id if elsewhere else self.world.at[request_id]
        self.world.tell(
            ev.StreamEnded(
                request_id=request_id, node_id=node_id, outcome=outcome, attempt=self.world.attempt[request_id] - late
            )
        )

    @precondition(lambda self: self.world.arrived)
    @rule(data=st.data(), outcome=st.sampled_from(list(Outcome)))
    def client_goes(self, data: st.DataObject, outcome: Outcome) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.world.arrived)))
        self.world.tell(ev.ClientGone(request_id=request_id, outcome=outcome))

    @precondition(lambda self: self.world.at)
    @rule(data=st.data(), node_id=nodes)
    def move(self, data: st.DataObject, node_id: str) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.world.at)))
        began = len(self.world.router.moving)
        refused = self.world.router.why_not_moved(request_id, node_id)
        self.world.tell(ev.MoveAsked(request_id=request_id, node_id=node_id))
        assert not refused or len(self.world.router.moving) == began

    @precondition(lambda self: self.world.stages)
    @rule(data=st.data(), outcome=st.sampled_from(list(Outcome)))
    def stage_ends(self, data: st.DataObject, outcome: Outcome) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.world.stages)))
        self.world.stage_done(request_id, outcome)

    @rule(policy=st.sampled_from(policy_names()))
    def set_policy(self, policy: str) -> None:
        self.world.tell(ev.PolicySet(policy=policy))

    @invariant()
    def kept_views_are_as_fresh_ones(self) -> None:
        router, now_s = self.world.router, self.world.now_s
        pool = router._pool
        nodes = list(pool.nodes.values())
        assert pool.views(nodes, shape(), now_s) == router.views(now_s)

    @invariant()
    def the_router_and_the_world_agree_on_who_is_live(self) -> None:
        for request_id in self.world.arrived:
            ended = request_id in self.world.finished or request_id in self.world.placed
            assert self.world.router.is_live(request_id) is not ended

    @invariant()
    def nothing_is_counted_twice_and_no_count_is_negative(self) -> None:
        in_flight = sum(status.in_flight for status in self.world.router.nodes())
        assert in_flight <= len(self.live()) + len(self.world.stages)
        for status in self.world.router.nodes():
            streams = sum(self.world.at.get(r) == status.node_id for r in self.live())
            assert status.in_flight <= streams + len(self.world.stages)
            assert status.in_flight == 0 or status.status != "down"

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        for request_id in self.live():
            self.world.tell(ev.ClientGone(request_id=request_id))
        assert not self.live()
        self.world.router.check_quiescent()
        for request_id, finish in self.world.finished.items():
            told = self.world.router.explain(request_id)
            assert told is not None
            assert told.outcome is finish.outcome
        assert replay(self.world.lines) == []


TestAnythingGoes = AnythingGoes.TestCase
TestAnythingGoes.settings = settings(
    max_examples=60,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
