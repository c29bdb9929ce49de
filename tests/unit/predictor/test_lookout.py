"""When a node looks ahead, and what its loads say of it."""

from __future__ import annotations

import msgspec
import pytest

from predictor.core.calibration import Calibration
from predictor.core.lookout import EVERY_S, LASTS_S, SHARE, Lookout
from predictor.core.node_predictor import NodePredictor
from simcore.types import NodeLoad, NodeOutlook
from tests.helpers.routing import node_load
from tests.unit.predictor.test_estimator import CONFIG, Rig, candidate

QUIET = node_load("n", running=4, waiting=0, free_blocks=100, unprocessed_tokens=400)
"""400 tokens are 100 blocks."""


def changed(**fields: int) -> NodeLoad:
    return msgspec.structs.replace(QUIET, **fields)


@pytest.mark.parametrize(
    ("what", "due"),
    [
        (QUIET, False),
        (changed(unprocessed_tokens=401), True),
        (changed(waiting=1), True),
        (changed(waiting=1, reserved=1), False),
    ],
)
def test_it_looks_only_where_there_may_be_something_to_see(what: NodeLoad, due: bool) -> None:
    assert Lookout(CONFIG).is_due(what, 0.0) is due


def test_it_takes_a_bounded_share_of_time() -> None:
    lookout, waits = Lookout(CONFIG), changed(waiting=1)
    lookout.saw(NodeOutlook(), 0.0, took_s=0.001)
    assert not lookout.is_due(waits, EVERY_S - 0.01)
    assert lookout.is_due(waits, EVERY_S)
    lookout.saw(NodeOutlook(), EVERY_S, took_s=0.1)
    assert not lookout.is_due(waits, EVERY_S + 0.1 / SHARE - 0.01)
    assert lookout.is_due(waits, EVERY_S + 0.1 / SHARE)


def test_what_was_seen_comes_nearer_and_is_forgotten() -> None:
    lookout, waits = Lookout(CONFIG), changed(waiting=1)
    lookout.saw(NodeOutlook(preemption_ahead_s=0.5, head_waits_s=2.0), 10.0)
    told = lookout.told(waits, 10.25)
    assert (told.preemption_ahead_s, told.head_waits_s) == (0.25, 1.75)
    assert lookout.told(waits, 10.75).preemption_ahead_s == 0.0
    assert lookout.told(QUIET, 10.25).head_waits_s == 0.0, "nobody waits any more"
    assert lookout.told(waits, 10.0 + LASTS_S + 0.01) is waits
    lookout.saw(None, 20.0)
    assert lookout.told(waits, 20.0) is waits


def test_a_node_tells_how_long_the_first_in_its_queue_will_wait() -> None:
    """Four seats are taken, the fifth request gets the one that is free first."""
    rig = Rig().connect()
    predictor = NodePredictor(rig.traced, Calibration())
    assert not predictor.is_look_due(rig.now_s)
    for i in range(5):
        rig.dispatch(candidate(f"r{i}", output_tokens=20 + i))
    rig.step(6)
    assert predictor.is_look_due(rig.now_s)
    asked_s = rig.now_s
    predictor.look_ahead(asked_s)
    assert not predictor.is_look_due(asked_s)
    told = predictor.load(asked_s)
    assert told is not None
    assert told.preemption_ahead_s == -1.0
    while rig.node.output_tokens("r0") is not None:
        rig.step()
    assert told.head_waits_s == pytest.approx(rig.now_s - asked_s)
