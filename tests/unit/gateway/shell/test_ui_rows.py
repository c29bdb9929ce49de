"""Rows of the page for the person on call: what a node is called, and what is sent again."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.core.nodes.accuracy import AccuracyStatus
from gateway.core.nodes.node import NodeStatus
from gateway.scale.status import ScaledNode
from gateway.ui.part import NodePart
from gateway.ui.rows import Row, changed_fields, changes, node_row, starting_row
from gateway.wire import node_state
from simcore.types import EngineConfig, NodeLoad

CONFIG = EngineConfig(model="m", max_num_seqs=48)
LOAD = NodeLoad(
    node_id="n", trace_seq=1, state_age_s=0.2, running=3, waiting=2, free_blocks=25, total_blocks=100,
    waiting_prompt_blocks=0, unprocessed_tokens=900, preemptions_total=7,
)  # fmt: skip
KNOWN = NodeStatus(
    node_id="n", status="up", config=CONFIG, profile="a30/m", detail="", load=LOAD, noted_s=100.0, in_flight=4,
    forecasts=AccuracyStatus(use="corrected", bias=1.42, spread=1.1, samples=20), cached_blocks=50,
)  # fmt: skip
IDLE = msgspec.structs.replace(LOAD, running=0, waiting=0)


def row(**changed: Any) -> Row:
    given: dict[str, Any] = {
        "name": "n", "address": "h:1", "link_state": "up", "link_detail": "", "config": CONFIG, "profile": "a30/m",
        "known": KNOWN, "scaled": None, "group": "", "now_s": 100.5,
    }  # fmt: skip
    return node_row(**{**given, **changed})


def test_a_node_that_is_up_shows_its_load_its_forecasts_and_its_cache() -> None:
    shown = row(part=NodePart(in_flight=4, out=1, into=2))
    assert (shown["state"], shown["running"], shown["waiting"], shown["seats"]) == ("up", 3, 2, 48)
    assert (shown["kv"], shown["tokens"], shown["preemptions"], shown["in_flight"]) == (0.75, 900, 7, 4)
    assert (shown["use"], shown["bias"], shown["spread"], shown["cached"]) == ("corrected", 1.42, 1.1, 0.5)
    assert (shown["out"], shown["into"], shown["old_s"], shown["group"]) == (1, 2, 0, "a30/m")


def test_what_nobody_knows_is_not_shown_as_nought() -> None:
    fresh = msgspec.structs.replace(KNOWN, load=None, forecasts=AccuracyStatus(), cached_blocks=None)
    assert {row(known=fresh)[name] for name in ("running", "kv", "tokens", "bias", "spread", "cached")} == {None}
    absent = row(known=None, config=None, link_state="connecting", link_detail="no answer yet")
    assert (absent["state"], absent["why"], absent["running"]) == ("connecting", "no answer yet", None)


def test_only_a_state_that_is_old_has_an_age_so_that_an_idle_node_sends_nothing() -> None:
    assert row(now_s=100.5) == row(now_s=101.9)
    assert row(now_s=109.8)["old_s"] == 10


@pytest.mark.parametrize(
    ("load", "in_flight", "state"), [(LOAD, 0, "draining"), (IDLE, 1, "draining"), (IDLE, 0, "drained")]
)
def test_a_node_taken_out_of_service_drains_until_it_has_nothing(load: NodeLoad, in_flight: int, state: str) -> None:
    known = msgspec.structs.replace(KNOWN, status="draining", drained=True, load=load, in_flight=0)
    # Whichever worker it has them of.
    shown = row(known=known, link_state=node_state(known, "up"), part=NodePart(in_flight=in_flight), workers=2)
    assert (shown["state"], shown["why"]) == (state, "taken out of service by an operator")


def test_a_node_that_is_to_leave_says_so_and_why() -> None:
    known = msgspec.structs.replace(KNOWN, status="draining", retiring=True)
    leaving = node_state(known, "up")
    assert row(known=known, link_state=leaving)["state"] == "leaving"
    scaled = ScaledNode(node_id="n", state="draining", detail="one too many")
    assert row(known=known, link_state=leaving, scaled=scaled)["why"] == "one too many"


def test_nodes_of_a_scaler_are_there_before_they_can_be_reached_and_after() -> None:
    starting = starting_row(ScaledNode(node_id="g-1", state="starting", ready_in_s=41.6), group="g", model="m")
    assert (starting["state"], starting["ready_in_s"], starting["group"]) == ("starting", 42, "g")
    stopping = ScaledNode(node_id="n", state="stopping", detail="idle")
    gone = row(known=None, link_state="down", link_detail="refused", scaled=stopping)
    assert (gone["state"], gone["why"]) == ("leaving", "idle")
    assert row(scaled=ScaledNode(node_id="n", state="serving"), link_state="up")["state"] == "up"
    lost = row(scaled=ScaledNode(node_id="n", state="serving"), link_state="down", link_detail="refused")
    assert (lost["state"], lost["why"]) == ("down", "refused")


def test_a_node_that_some_workers_do_not_reach_is_to_be_looked_at() -> None:
    away = NodePart(away=1)
    assert row(part=away, workers=3)["alarm"] == "1 of 3 workers do not reach it"
    assert row(part=msgspec.structs.replace(away, alarm="slow"), workers=3)["alarm"].startswith("slow; 1 of 3")
    # Where nobody reaches it, its state says so.
    assert row(part=away, workers=1)["alarm"] == ""
    assert row(part=NodePart(away=3), workers=3)["alarm"] == ""


def test_only_what_has_changed_is_sent() -> None:
    before = {"a": row(), "b": row(name="b"), "c": row(name="c")}
    busier = msgspec.structs.replace(KNOWN, load=msgspec.structs.replace(LOAD, running=9))
    after = {"a": row(known=busier), "b": row(name="b"), "d": row(name="d")}
    changed, gone = changes(before, after)
    assert changed == {"a": {"running": 9}, "d": after["d"]}
    assert gone == ["c"]
    assert changes(after, after) == ({}, [])
    assert changed_fields({"a": 1}, {"a": 1, "b": None}) == {"b": None}
