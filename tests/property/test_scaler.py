"""What a scaler keeps in every course: starts that fail, come late or never, nodes that vanish, lists that are
old, leaders that change, clocks that jump, wishes at random."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Literal

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.core.scale import events as ev
from gateway.core.scale.fleet import SeenNode
from tests.helpers.scaling import TICK_S, Stage, group, seen

MAX = 4
GROUPS = ("a", "b")
PATIENCE_S = 30.0
"""What a connector may take."""


class Real(msgspec.Struct, kw_only=True):
    """What a node really is."""

    comes_s: float
    """When it comes up; infinite: never."""
    requests: int = 0
    retiring: bool = False
    up: bool = False
    drained: bool = False
    """By an operator."""
    reachable: bool = True
    """By this gateway; others reach it all the same."""


class World:
    """Nodes as they really are, a connector that lies and fails, and a scaler in between."""

    def __init__(self, seed: int, leaves: Literal["any", "last"]) -> None:
        self.dice = random.Random(seed)
        self.stage = Stage(
            *(group(name, min=self.dice.randint(0, 2), max=MAX, leaves=leaves, cold_start_s=20.0) for name in GROUPS),
            seed=seed,
        )
        self.leaves = leaves
        self.real: dict[str, Real] = {}
        self.late: list[tuple[Literal["start", "stop"], str, float]] = []
        """What the connector has been told when, and not done yet."""
        self.calm = False
        self.paid: set[str] = set()
        """Listed or asked for, and not asked to stop."""
        self.unlisted: set[str] = set()
        """Of those, asked for and in no list yet."""
        self.started: set[str] = set()
        """Since the last list, and without a stop since."""
        self.stopping: set[str] = set()
        """Asked to stop, and there as of the last list."""
        self.tick(after_s=0.0)

    # --- turns --------------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        turns: list[tuple[int, Callable[[], None]]] = [
            (10, self.tick),
            (6, self.wish),
            (6, self.connect),
            (5, self.come),
            (5, self.work),
            (2, self.vanish),
            (2, self.operator),
            (2, self.cut),
            (1, self.lead),
            (1, self.jump),
            (1, self.list_fails),
        ]
        self.dice.choices([t for _, t in turns], [w for w, _ in turns])[0]()

    def wish(self) -> None:
        self.stage.rule.wanted = {name: self.dice.randint(-1, MAX + 3) for name in GROUPS if self.dice.random() < 0.9}
        ids = list(self.real)
        self.stage.rule.leave = tuple(self.dice.sample(ids, min(len(ids), self.dice.randint(0, 3))))

    def connect(self) -> None:
        """The connector does some of what it was told, or fails."""
        self.dice.shuffle(self.late)
        overdue_s = self.stage.now_s - PATIENCE_S
        for told in [told for told in self.late if told[2] < overdue_s or self.dice.random() < 0.5]:
            self.late.remove(told)
            what, node_id, _ = told
            how = self.dice.random() if not self.calm else 1.0
            if what == "start":
                if how <= 0.1:
                    self.gone(node_id)
                else:
                    delay_s = self.dice.choice((10.0, 25.0, 200.0, float("inf"))) if not self.calm else 10.0
                    self.real.setdefault(node_id, Real(comes_s=self.stage.now_s + delay_s))
                if how < 0.25:
                    self.stage.hear(ev.StartFailed(node_id=node_id, detail="?"))
                    self.unlisted.discard(node_id)
                    if node_id not in self.listed:
                        self.paid.discard(node_id)
            elif how > 0.2:
                self.stop(node_id)
            else:
                self.stage.hear(ev.StopFailed(node_id=node_id, detail="?"))

    def stop(self, node_id: str) -> None:
        if self.leaves == "last":
            name, number = split(node_id)
            victims = [i for i in self.real if split(i)[0] == name and split(i)[1] >= number]
        else:
            victims = [node_id]
        for victim in victims:
            self.real.pop(victim, None)
            self.gone(victim)

    def gone(self, node_id: str) -> None:
        """It is not there. One that no list has had yet will be in none."""
        if node_id in self.unlisted:
            self.unlisted.discard(node_id)
            self.paid.discard(node_id)

    def come(self) -> None:
        for node in self.real.values():
            node.up = node.up or node.comes_s <= self.stage.now_s

    def work(self) -> None:
        for node in self.real.values():
            if self.calm or self.dice.random() < 0.5:
                node.requests = 0
            elif node.up and not node.retiring and not node.drained:
                node.requests += self.dice.randint(0, 3)

    def vanish(self) -> None:
        if self.real:
            node_id = self.dice.choice(list(self.real))
            if self.dice.random() < 0.5:
                del self.real[node_id]
                self.gone(node_id)
            else:
                # Its process is there, and somebody may start it anew.
                comes_s = self.stage.now_s + self.dice.choice((10.0, float("inf")))
                self.real[node_id] = Real(comes_s=comes_s)

    def operator(self) -> None:
        if self.real:
            node = self.dice.choice(list(self.real.values()))
            node.drained = not node.drained

    def cut(self) -> None:
        if self.real:
            node = self.dice.choice(list(self.real.values()))
            node.reachable = not node.reachable

    def lead(self) -> None:
        leads = self.dice.random() < 0.7
        self.stage.hear(ev.LeadershipSet(leads=leads))
        if not leads:
            self.paid -= self.unlisted
            self.unlisted.clear()

    def jump(self) -> None:
        self.stage.now_s += self.dice.choice((-1000.0, 300.0, 5000.0))

    def list_fails(self) -> None:
        self.stage.hear(ev.ListFailed(detail="?"))

    # --- a tick -------------------------------------------------------------------------------------------------------

    @property
    def listed(self) -> set[str]:
        return self.paid - self.unlisted

    def tell_list(self) -> None:
        ids = list(self.real)
        self.stage.hears_list(*ids)
        self.unlisted -= set(ids)
        # One asked to stop and listed is on its way out; who is asked for and not listed is on its way in.
        self.paid = {i for i in ids if i not in self.stopping} | self.unlisted
        self.stopping &= set(ids)
        self.started.clear()

    def tick(self, after_s: float = TICK_S) -> None:
        if any(told[2] < self.stage.now_s - PATIENCE_S for told in self.late):
            self.connect()
        if self.calm or self.dice.random() < 0.8:
            self.tell_list()
        self.stage.now_s += after_s
        self.come()
        nodes = {node_id: as_seen(node_id, node) for node_id, node in self.real.items()}
        elsewhere = tuple(node_id for node_id, node in self.real.items() if node.up)
        leads = self.stage.scaler.leads
        actions = self.stage.hear(ev.FleetSeen(nodes=tuple(nodes.values()), elsewhere=elsewhere))
        assert leads or not actions
        for node_id, node in nodes.items():
            if node.state != "down" and not (node.retiring and node.empty) and node_id in self.stopping:
                # It is up after all: the scaler lets it finish.
                self.stopping.discard(node_id)
                self.paid.add(node_id)
        for action in actions:
            self.carry_out(action, nodes)

    def carry_out(self, action: ev.AnyScaleAction, nodes: dict[str, SeenNode]) -> None:
        node_id = action.node_id
        match action:
            case ev.StartNode():
                assert node_id not in self.started, "started twice with neither a list nor a stop between"
                assert node_id not in nodes or nodes[node_id].state == "down"
                self.started.add(node_id)
                self.paid.add(node_id)
                self.unlisted.add(node_id)
                mine = [i for i in self.paid if split(i)[0] == action.group]
                assert len(mine) <= MAX, f"{sorted(mine)} are paid for"
                self.late.append(("start", node_id, self.stage.now_s))
            case ev.StopNode():
                node = nodes.get(node_id)
                if node is not None:
                    has_left = node.retiring and node.empty
                    assert has_left or (node.state == "down" and not self.real[node_id].up), f"{node_id} is in use"
                    if self.leaves == "last":
                        name, number = split(node_id)
                        above = [n for i, n in nodes.items() if split(i)[0] == name and split(i)[1] > number]
                        assert all(n.state == "down" or (n.retiring and n.empty) for n in above)
                self.paid.discard(node_id)
                self.unlisted.discard(node_id)
                self.started.discard(node_id)
                self.stopping.add(node_id)
                self.late.append(("stop", node_id, self.stage.now_s))
            case ev.RetireNode():
                real = self.real[node_id]
                assert nodes[node_id].state != "down"
                if self.calm or self.dice.random() < 0.8:
                    # As a node does it: once it is empty it has left.
                    real.retiring = not action.undo or (real.retiring and real.requests == 0)

    # --- the end ------------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Nothing goes wrong any more: in the end all is as wanted, and nothing is left over."""
        self.calm = True
        for node in self.real.values():
            node.drained, node.reachable = False, True
        self.stage.hear(ev.LeadershipSet(leads=True))
        wanted = {name: self.dice.randint(0, MAX) for name in GROUPS}
        self.stage.rule.wanted = wanted
        well = 0
        for _ in range(600):
            self.quiet_tick()
            complaint = self.complaint(wanted)
            well = 0 if complaint else well + 1
            if well == 10:
                return
        raise AssertionError(complaint)

    def quiet_tick(self) -> None:
        self.tick()
        self.work()
        while self.late:
            self.connect()

    def complaint(self, wanted: dict[str, int]) -> str:
        """What is not as it should be in the end; empty: all is well."""
        for config in self.stage.config.groups:
            mine = {i: n for i, n in self.real.items() if split(i)[0] == config.name}
            want = least = max(config.min, wanted[config.name])
            serving = [i for i, n in mine.items() if n.up and not n.retiring]
            stuck = [i for i in mine if i not in serving]
            if self.leaves == "last" and stuck:
                # A dud below others that serve cannot be stopped alone.
                if not all(any(split(s)[1] > split(i)[1] for s in serving) for i in stuck):
                    return f"left over: {stuck} of {mine}"
                least = min(want, MAX - len(stuck))
            elif stuck:
                return f"left over: {stuck} of {mine}"
            if not least <= len(serving) <= want:
                return f"{serving} serve, wanted {want}: {mine}"
        return ""


def split(node_id: str) -> tuple[str, int]:
    name, _, number = node_id.rpartition("-")
    return name, int(number)


def as_seen(node_id: str, node: Real) -> SeenNode:
    if not node.up or not node.reachable:
        return seen(node_id, state="down", in_flight=0)
    retires = node.retiring
    return seen(
        node_id,
        state="draining" if retires or node.drained else "up",
        retiring=retires,
        empty=retires and not node.requests,
        in_flight=node.requests,
    )


@pytest.mark.parametrize("leaves", ["any", "last"])
@given(seed=st.integers(0, 2**32 - 1), turns=st.integers(0, 120))
@example(seed=4028758, turns=74)  # The last of a group is up although no list has it: the one before is not the last.
def test_nothing_is_cut_off_paid_for_twice_or_forgotten(leaves: Literal["any", "last"], seed: int, turns: int) -> None:
    world = World(seed, leaves)
    for _ in range(turns):
        world.turn()
    world.settle()
