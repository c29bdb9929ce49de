"""Small parts of the page for the person on call: where it is on, its files, the log's tail, a request's story."""

from __future__ import annotations

import re
from typing import Any

import pytest

from gateway import wire
from gateway.config import GatewayConfig
from gateway.core.request.explanation import Explanation, MoveTold
from gateway.ui.files import FOLDER, page_files
from gateway.ui.front import is_this_machine
from gateway.ui.story import MOST_CANDIDATES, story
from gateway.ui.tail import KEPT, LogTail
from protos.runtime.config import load_config
from protos.runtime.options import tables
from simcore.types import Decision, Forecast, LengthBelief, Outcome, Quantiles, Score


@pytest.mark.parametrize(
    ("given", "shows"),
    [
        ({}, True),
        ({"http_listen": "[::1]:0"}, True),
        ({"http_listen": "0.0.0.0:8201", "insecure": True}, False),
        ({"http_listen": "0.0.0.0:8201", "insecure": True, "ui": True}, True),
        ({"ui": False}, False),
        ({"http_listen": "", "ui": True}, False),
    ],
)
def test_the_page_is_on_where_only_this_machine_can_reach_it_or_somebody_says_so(
    given: dict[str, Any], shows: bool
) -> None:
    assert load_config(GatewayConfig, None, tables(GatewayConfig, given)).shows_ui is shows


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8201", "localhost", "LOCALHOST:1", "a.localhost:80", "[::1]:8201", "[::1]", "127.9.9.9"]
)
def test_names_of_this_machine(host: str) -> None:
    assert is_this_machine(host)


@pytest.mark.parametrize(
    "host", ["", "evil.example", "evil.example:8201", "127.0.0.1.evil.example", "10.0.0.1:1", "::1x"]
)
def test_names_that_may_be_anybodys(host: str) -> None:
    assert not is_this_machine(host)


def test_every_file_is_served_as_what_it_is_and_the_page_names_no_other() -> None:
    files = page_files()
    assert files[""].content_type == "text/html; charset=utf-8"
    assert files["app.js"].content_type == "text/javascript; charset=utf-8"
    assert b"MIT" in files["vendor/uplot-LICENSE.txt"].body
    assert len(files) == sum(path.is_file() for path in FOLDER.rglob("*"))
    assert len({file.etag for file in files.values()}) == len(files)
    named = re.findall(r'(?:src|href)="([^"#]+)"', files[""].body.decode())
    assert named
    assert set(named) <= set(files)
    for name, file in files.items():
        if name.endswith(".js"):
            imported = re.findall(r'^import .* from "\./([^"]+)";', file.body.decode(), re.MULTILINE)
            assert set(imported) <= set(files), name
        # The policy lets nothing in that stands in the page itself.
        if name == "":
            assert not re.search(rb"<script>|<style|\sstyle=|\son\w+=|https?://", file.body)


def test_the_tail_of_the_log_tells_what_is_new_and_keeps_little() -> None:
    tail = LogTail()
    line = {"event": "one"}
    assert tail(None, "info", line) is line
    last, lines = tail.since(0)
    assert (last, lines) == (1, [line])
    assert tail.since(last) == (1, [])
    for number in range(KEPT + 10):
        tail(None, "info", {"event": number})
    last, lines = tail.since(last)
    assert (last, len(lines), lines[-1]["event"]) == (KEPT + 11, KEPT, KEPT + 9)


def forecast(node_id: str, e2e_s: float) -> Forecast:
    times = Quantiles(e2e_s, e2e_s, 2 * e2e_s)
    return Forecast(
        request_id="r", node_id=node_id, ttft_s=Quantiles(0.1, 0.1, 0.2), tpot_s=times, e2e_s=times, preemptions=0.0,
        kv_headroom_blocks=9, harm_s=Quantiles(0.3, 0.3, 0.3), trace_seq=1, state_age_s=0.0, cached_tokens=64,
        preemption_probability=0.25,
    )  # fmt: skip


def decision(chosen: int, nodes: int) -> Decision:
    scores = tuple(Score(node_id=f"n{i}", cost=float(i), forecast=forecast(f"n{i}", i + 1.0)) for i in range(nodes))
    return Decision(
        request_id="r", node_id=f"n{chosen}", policy="p", cost_unit="s", scores=scores, reason="cheapest",
        decision_s=0.002,
    )  # fmt: skip


def told(*decisions: Decision, **facts: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"belief": LengthBelief((10, 20, 30)), "belief_source": "hashed", **facts}
    return story("r", wire.explanation(Explanation(request_id="r", decisions=decisions, prompt_tokens=50, **given)))


def test_a_story_tells_who_could_have_had_the_request_and_what_was_foreseen() -> None:
    (one,) = told(decision(0, 3))["decisions"]
    assert (one["node"], one["policy"], one["unit"], one["more"]) == ("n0", "p", "s", 0)
    first = one["scores"][0]
    assert (first["node"], first["cost"], first["forecast"]["e2e_s"]) == ("n0", 0.0, [1.0, 1.0, 2.0])
    assert (first["forecast"]["cached_tokens"], first["forecast"]["preempted"]) == (64, 0.25)


def test_a_story_of_many_candidates_keeps_the_best_and_the_chosen_one() -> None:
    (one,) = told(decision(399, 400))["decisions"]
    assert len(one["scores"]) == MOST_CANDIDATES + 1
    assert one["scores"][-1]["node"] == "n399"
    assert one["more"] == 400 - MOST_CANDIDATES - 1


def test_a_story_goes_on_until_its_request_has_ended() -> None:
    running = told(decision(0, 1), ttft_s=0.4, output_tokens=7)["actual"]
    assert (running["outcome"], running["ttft_s"], running["e2e_s"]) == (None, 0.4, None)
    move = MoveTold(source="n0", destination="n1", cause="operator", why="asked", after_s=0.5, outcome="moved")
    ended = told(decision(0, 1), outcome=Outcome.STOP, e2e_s=1.5, moves=(move,))
    assert (ended["actual"]["outcome"], ended["actual"]["e2e_s"], ended["belief"]) == ("stop", 1.5, [20, 30])
    assert (ended["moves"][0]["destination"], ended["moves"][0]["gap_s"]) == ("n1", None)
    assert told(belief=None)["belief"] is None
