"""The life of nodes under a scaler, step by step; what holds in every course is in `tests/property/test_scaler.py`."""

from __future__ import annotations

import itertools
import math

import pytest

from gateway.core.scale import events as ev
from gateway.core.scale.config import ScaleError
from gateway.core.scale.scaler import AGAIN_S, FIRST_WAIT_S, Scaler
from tests.helpers.scaling import COLD_S, TICK_S, Stage, group, seen


def test_nothing_is_started_before_a_list_says_what_runs() -> None:
    stage = Stage()
    assert stage.tick(g=2) == []
    stage.hears_list()
    assert stage.tick(g=2) == ["start g-0", "start g-1"]
    assert stage.tick(g=2) == [], "they are on their way"


def test_a_list_that_fails_holds_everything_back() -> None:
    stage = Stage()
    stage.hears_list()
    stage.hear(ev.ListFailed(detail="no route"))
    assert stage.tick(g=2) == []
    assert stage.scaler.latest is not None
    assert stage.scaler.latest.held_back == "no route"


def test_the_life_of_a_node() -> None:
    stage = Stage()
    stage.hears_list()
    assert stage.tick(g=1) == ["start g-0"]
    assert stage.round(listed=["g-0"], g=1) == []
    assert stage.round(seen("g-0"), g=1) == []
    assert stage.scaler.starts()["g"].quantile(0.0) < COLD_S, "what its start took is learned"
    assert stage.round(seen("g-0"), g=0) == ["retire g-0"]
    assert stage.round(seen("g-0", state="draining", retiring=True), g=0) == []
    assert stage.round(seen("g-0", state="draining", retiring=True, empty=True), g=0) == ["stop g-0 left"]
    assert stage.round(listed=[], g=0) == []
    assert stage.tick(g=1) == ["start g-0"]


def test_bounds_hold_whatever_is_wanted() -> None:
    stage = Stage(group(min=1, max=3))
    stage.hears_list()
    assert len(stage.tick(g=50)) == 3
    nodes = [seen(f"g-{i}") for i in range(3)]
    assert len(stage.round(*nodes, g=-7)) == 2
    assert stage.scaler.wanted() == {"g": 1}


def test_a_retire_that_is_not_confirmed_is_said_again_and_takes_no_second_node() -> None:
    stage = Stage()
    busy, idle = seen("g-0", in_flight=5), seen("g-1", in_flight=1)
    assert stage.round(busy, idle, g=1) == ["retire g-1"]
    # The other is the less loaded one meanwhile.
    now_busy = seen("g-1", in_flight=9)
    assert stage.round(busy, now_busy, g=1) == ["retire g-1"]
    assert stage.rule.fleet is not None
    assert [n.node_id for n in stage.rule.fleet.groups[0].draining] == ["g-1"]
    assert stage.round(busy, seen("g-1", state="draining", retiring=True), g=1) == []


def test_the_one_that_drains_is_taken_back_before_any_is_started() -> None:
    stage = Stage()
    leaving = seen("g-1", state="draining", retiring=True)
    assert stage.round(seen("g-0"), leaving, g=3) == ["start g-2", "undo g-1"]
    assert stage.round(seen("g-0"), leaving, listed=["g-0", "g-1", "g-2"], g=3) == ["undo g-1"], "until it has heard"
    assert stage.round(seen("g-0"), seen("g-1"), listed=["g-0", "g-1", "g-2"], g=3) == []


def test_one_that_has_left_is_not_taken_back() -> None:
    """The node would refuse: another leader may be stopping it."""
    stage = Stage()
    left = seen("g-1", state="draining", retiring=True, empty=True)
    assert stage.round(seen("g-0"), left, g=2) == ["stop g-1 left", "start g-2"]


def test_no_more_are_paid_for_than_may_be_while_some_are_drained_by_an_operator() -> None:
    stage = Stage(group(max=2))
    assert stage.round(seen("g-0"), seen("g-1", state="draining"), g=2) == []


def test_one_given_up_that_comes_up_all_the_same_serves() -> None:
    stage = Stage(group(max=2), start_limit_s=20.0)
    stage.hears_list()
    assert stage.tick(g=1) == ["start g-0"]
    stage.hear(ev.ListFailed(detail="no route"))
    for _ in range(6):
        assert stage.tick(g=1) == []
    assert stage.round(seen("g-0"), g=1) == []


def test_a_node_that_serves_another_model_is_sent_away() -> None:
    stage = Stage(group(max=2, model="other"))
    stage.hears_list()
    assert stage.tick(g=1) == ["start g-0"]
    assert stage.round(seen("g-0"), g=1) == ["retire g-0"]
    left = seen("g-0", state="draining", retiring=True, empty=True)
    assert stage.round(left, g=1) == ["stop g-0 left"]
    assert stage.scaler.starts()["g"].failures == 1


def test_one_that_was_to_be_stopped_and_has_requests_is_not_stopped_again() -> None:
    stage = Stage(start_limit_s=20.0)
    stage.hears_list()
    assert stage.tick(g=1) == ["start g-0"]
    for _ in range(4):
        assert stage.round(listed=["g-0"], g=1) == []
    assert stage.round(listed=["g-0"], g=1) == ["stop g-0 given_up"]
    # The stop hangs, the node comes up and is used.
    acts = [stage.round(seen("g-0", in_flight=3), g=1) for _ in range(int(3 * AGAIN_S / TICK_S))]
    assert not [a for act in acts for a in act if a.startswith("stop")]


def test_a_stop_that_does_not_happen_is_tried_again() -> None:
    stage = Stage()
    left = seen("g-0", state="draining", retiring=True, empty=True)
    assert stage.round(left, g=0) == ["stop g-0 left"]
    stage.hear(ev.StopFailed(node_id="g-0", detail="ssh: timeout"))
    acts = [stage.round(left, g=0) for _ in range(int(AGAIN_S / TICK_S))]
    assert acts[:-1] == [[]] * (len(acts) - 1)
    assert acts[-1] == ["stop g-0 left"]


def test_a_group_whose_starts_fail_waits_longer_each_time_and_others_go_on() -> None:
    stage = Stage(group("bad", max=4), group("good", max=4))
    stage.hears_list()
    assert len(stage.tick(bad=2, good=1)) == 3
    for name in ("bad-0", "bad-1"):
        stage.hear(ev.StartFailed(node_id=name, detail="no such image"))
    good = seen("good-0")
    starts: list[float] = []
    for _ in range(120):
        acts = stage.round(good, bad=2, good=1)
        assert len(acts) <= 1, "one is tried"
        if acts:
            assert acts == ["start bad-0"]
            starts.append(stage.now_s)
            stage.hear(ev.StartFailed(node_id="bad-0", detail="no such image"))
    waits_s = [b - a for a, b in itertools.pairwise(starts)]
    assert len(waits_s) >= 3
    assert all(longer >= 1.8 * shorter for shorter, longer in itertools.pairwise(waits_s))
    assert waits_s[0] >= 2 * FIRST_WAIT_S
    assert stage.round(good, bad=0, good=3) == ["start good-1", "start good-2"]


def test_a_node_that_comes_up_shows_that_starts_work_whoever_asked_for_it() -> None:
    stage = Stage()
    stage.hears_list()
    for _ in range(40):
        if stage.round(g=2):
            stage.hear(ev.StartFailed(node_id="g-0", detail="no word from there"))
    assert stage.scaler.starts()["g"].failures >= 2
    assert stage.round(seen("g-5"), g=2) == []
    acts = [stage.round(seen("g-5"), g=2) for _ in range(math.ceil(FIRST_WAIT_S / TICK_S) + 1)]
    assert ["start g-0"] in acts


def test_a_node_that_gets_a_name_of_its_own_is_the_one_that_was_asked_for() -> None:
    stage = Stage()
    stage.hears_list()
    assert stage.tick(g=2) == ["start g-0", "start g-1"]
    pods = [("g-7c9d4-x", "g-1"), ("g-7c9d4-y", "g-0")]
    listed = tuple(ev.ListedNode(node_id=pod, group="g", asked_as=name) for pod, name in pods)
    stage.hear(ev.NodesListed(nodes=listed))
    assert stage.tick(g=2) == []
    up = [seen(pod) for pod, _ in pods]
    stage.now_s += 20.0
    stage.hear(ev.NodesListed(nodes=listed))
    assert stage.tick(*up, g=2) == []
    assert stage.scaler.starts()["g"].failures == 0
    assert stage.scaler.starts()["g"].quantile(0.0) < COLD_S, "what they took was measured"
    stage.hear(ev.NodesListed(nodes=listed))
    assert stage.tick(*up, g=3) == ["start g-2"], "their names are taken"


def test_a_rule_is_asked_for_nothing_before_its_code_is_compiled() -> None:
    stage = Stage(group(min=1))
    stage.hears_list()
    stage.hear(ev.RuleReadySet(ready=False))
    assert stage.tick(g=2) == ["start g-0"], "the minimum needs no rule"
    latest = stage.scaler.latest
    assert latest is not None
    assert "compiled" in latest.why
    stage.hear(ev.RuleReadySet(ready=True))
    assert stage.tick(g=2) == ["start g-1"]


def test_a_failed_start_may_have_happened_so_a_list_is_waited_for() -> None:
    stage = Stage()
    stage.hears_list()
    assert stage.tick(g=1) == ["start g-0"]
    stage.hear(ev.StartFailed(node_id="g-0", detail="no answer in time"))
    for _ in range(5):
        assert stage.tick(g=1) == []
    assert stage.round(listed=["g-0"], g=1) == [], "it runs"


def test_one_that_is_lost_is_expected_back_then_replaced() -> None:
    stage = Stage(start_limit_s=20.0)
    assert stage.round(seen("g-0"), g=1) == []
    down = seen("g-0", state="down")
    acts = [stage.round(down, g=1) for _ in range(6)]
    assert acts == [[]] * 5 + [["stop g-0 given_up", "start g-1"]]
    assert stage.scaler.starts()["g"].failures == 0, "it had served"


def test_a_spot_node_that_vanishes_is_replaced_at_once() -> None:
    stage = Stage()
    assert stage.round(seen("g-0"), seen("g-1"), g=2) == []
    gone = seen("g-1", state="down")
    assert stage.round(seen("g-0"), gone, listed=["g-0"], g=2) == ["start g-1"]


def test_a_list_that_leaves_out_a_node_that_serves_is_not_believed() -> None:
    stage = Stage()
    assert stage.round(seen("g-0"), seen("g-1"), g=2) == []
    assert stage.round(seen("g-0"), seen("g-1"), listed=[], g=2) == []


def test_a_name_that_is_up_though_nobody_listed_it_is_not_started_again() -> None:
    stage = Stage()
    stage.hears_list()
    assert stage.tick(seen("g-0"), g=1) == ["start g-1"]


def test_a_node_that_only_this_gateway_has_lost_is_left_alone() -> None:
    stage = Stage(start_limit_s=20.0)
    assert stage.round(seen("g-0"), seen("g-1"), g=2) == []
    cut = seen("g-0", state="down")
    stage.elsewhere = ("g-0",)
    for wanted in (2, 1):
        for _ in range(20):
            acts = stage.round(cut, seen("g-1"), g=wanted)
            assert not [a for a in acts if "g-0" in a]


def test_beside_other_gateways_one_that_has_served_is_not_stopped_for_not_being_reached() -> None:
    stage = Stage(leads=False, start_limit_s=20.0)
    stage.hear(ev.LeadershipSet(leads=True, alone=False))
    assert stage.round(seen("g-0"), seen("g-1"), g=2) == []
    down = seen("g-0", state="down")
    acts = [act for _ in range(6) for act in stage.round(down, seen("g-1"), g=2)]
    assert acts == ["start g-2"], "it is replaced"
    acts = [act for _ in range(30) for act in stage.round(down, seen("g-1"), seen("g-2"), g=2)]
    assert acts == [], "and left alone"
    stage.hears_list("g-0", "g-1", "g-2", details={"g-0": "exit code 1"})
    assert "stop g-0 given_up" in stage.tick(down, seen("g-1"), seen("g-2"), g=2)


def test_a_leader_that_reaches_no_node_stops_none() -> None:
    stage = Stage(leads=False, start_limit_s=20.0)
    stage.hear(ev.LeadershipSet(leads=True, alone=False))
    for wanted in (2, 0):
        acts = [act for _ in range(20) for act in stage.round(listed=["g-0", "g-1"], g=wanted)]
        assert not [act for act in acts if act.startswith("stop")]


def test_a_node_is_paid_for_until_a_list_lacks_it() -> None:
    stage = Stage(group(max=1))
    left = seen("g-0", state="draining", retiring=True, empty=True)
    assert stage.round(left, g=0) == ["stop g-0 left"]
    stage.hear(ev.StopFailed(node_id="g-0", detail="ssh: timeout"))
    assert stage.round(left, g=1) == []
    assert stage.round(listed=[], g=1) == ["start g-0"]


def test_a_new_leader_waits_for_a_list_of_its_own_time() -> None:
    stage = Stage(leads=False)
    stage.hears_list()
    assert stage.tick(g=1) == []
    stage.hear(ev.LeadershipSet(leads=True))
    assert stage.tick(g=1) == []
    assert stage.round(listed=["g-0"], g=1) == [], "the leader before had started it"


def test_what_another_leader_stops_is_no_failed_start() -> None:
    stage = Stage(leads=False)
    stage.hears_list("g-0", "g-1")
    stage.tick(g=1)
    stage.hears_list()
    stage.hear(ev.LeadershipSet(leads=True))
    assert stage.round(g=2) == ["start g-0", "start g-1"]


def test_who_does_not_lead_any_more_forgets_what_it_was_about_to_do() -> None:
    stage = Stage()
    assert stage.round(seen("g-0"), seen("g-1"), g=1) == ["retire g-0"]
    stage.hear(ev.LeadershipSet(leads=False))
    assert stage.round(seen("g-0"), seen("g-1"), g=0) == []
    stage.hear(ev.LeadershipSet(leads=True))
    assert stage.round(seen("g-0"), seen("g-1"), g=2) == []


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_clock_that_jumps_gives_nobody_up(jump_s: float) -> None:
    stage = Stage(start_limit_s=30.0)
    stage.hears_list()
    assert stage.tick(g=1) == ["start g-0"]
    stage.now_s += jump_s
    assert stage.round(listed=["g-0"], g=3) == [], "what was seen is old"
    assert stage.round(listed=["g-0"], g=3) == ["start g-1", "start g-2"]
    later = [stage.round(listed=["g-0", "g-1", "g-2"], g=3) for _ in range(7)]
    assert ["stop g-0 given_up"] in later, "and time goes on after that"


def test_a_stateful_set_loses_its_last_node_only() -> None:
    stage = Stage(group(leaves="last"))
    idle = [seen(f"g-{i}", in_flight=i) for i in range(4)]
    assert stage.round(*idle, g=2) == ["retire g-2", "retire g-3"]
    empty = seen("g-2", state="draining", retiring=True, empty=True)
    busy = seen("g-3", state="draining", retiring=True)
    ids = [f"g-{i}" for i in range(4)]
    assert stage.round(*idle[:2], empty, busy, listed=ids, g=2) == [], "stopping g-2 would stop g-3"
    last = seen("g-3", state="draining", retiring=True, empty=True)
    assert stage.round(*idle[:2], empty, last, listed=ids, g=2) == ["stop g-3 left", "stop g-2 left"]


def test_of_a_stateful_set_the_first_is_taken_back_first() -> None:
    stage = Stage(group(leaves="last"))
    nodes = [seen("g-0"), *(seen(f"g-{i}", in_flight=i, state="draining", retiring=True) for i in (1, 2))]
    assert stage.round(*nodes, g=2) == ["undo g-1"]


def test_a_fixed_node_is_counted_to_no_group() -> None:
    stage = Stage()
    stage.hears_list()
    assert stage.tick(seen("mine"), g=1) == ["start g-0"]
    assert stage.rule.fleet is not None
    assert [n.node_id for n in stage.rule.fleet.fixed] == ["mine"]


def test_min_above_max_is_told() -> None:
    with pytest.raises(ScaleError, match="min 3 is above max 2"):
        Scaler(Stage(group()).config.__class__(rule="static", groups=(group(min=3, max=2),)))
