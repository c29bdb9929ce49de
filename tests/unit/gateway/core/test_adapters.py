"""The mild preference for nodes that have a request's LoRA adapter in use."""

from __future__ import annotations

import pytest

from gateway.core import events as ev
from gateway.core.decision.adapters import ADAPTER_LOAD_S
from tests.helpers.routing import CheckedRouter, engine_config, every, only

ADAPTED = engine_config("m", other_names=("sql", "poems"))
NODES = ("a", "b", "c")


def world(policy: str = "least_requests", **uses: tuple[str, ...] | None) -> CheckedRouter:
    made = CheckedRouter(policy)
    made.join(*NODES, config=ADAPTED)
    for node_id, names in uses.items():
        made.tell(ev.AdaptersUsed(node_id=node_id, names=names))
    return made


def drawn(made: CheckedRouter, model: str, times: int = 24) -> set[str]:
    """Where requests for the model go while no other runs."""
    nodes = set()
    for i in range(times):
        nodes.add(only(made.arrive(f"r{i}-{model}", model=model), ev.Dispatch).node_id)
        made.end(f"r{i}-{model}")
    return nodes


def test_among_equals_the_node_that_uses_it_is_taken() -> None:
    made = world(a=("poems",), b=("poems", "sql"), c=())
    assert drawn(made, "sql") == {"b"}
    assert drawn(made, "poems") == {"a", "b"}


def test_without_an_adapter_there_is_no_preference() -> None:
    made = world(a=(), b=("sql",), c=())
    assert drawn(made, "m") == set(NODES)
    assert drawn(made, "") == set(NODES)
    assert drawn(made, "poems") == set(NODES), "nobody uses it"


def test_a_node_that_does_not_tell_is_nobody_s_loser() -> None:
    made = world(a=(), b=("sql",))
    assert drawn(made, "sql") == {"b", "c"}


def test_any_real_difference_counts_for_more() -> None:
    made = world(a=(), b=("sql",), c=())
    made.arrive("r", model="sql")
    assert made.at["r"] == "b"
    assert only(made.arrive("next", model="sql"), ev.Dispatch).node_id in ("a", "c")


def test_policies_that_do_not_look_at_load_draw_as_ever() -> None:
    made = world("random", a=(), b=("sql",), c=())
    assert drawn(made, "sql", times=60) == set(NODES)


@pytest.mark.parametrize("costs_s", [{"a": 1.0, "b": 1.04, "c": 1.01}, {"a": 1.0, "b": 1.06, "c": 1.01}])
def test_where_costs_are_seconds_loading_has_a_price_that_the_explanation_shows(costs_s: dict[str, float]) -> None:
    made = world("min_new_request_latency", a=(), b=("sql",), c=())
    asks = every(made.arrive("r", model="sql"), ev.AskForecast)
    decision = only(made.answer(asks, costs_s), ev.Dispatch).decision
    scores = {score.node_id: score for score in decision.scores}
    cheapest = "b" if costs_s["b"] < costs_s["a"] + ADAPTER_LOAD_S else "a"
    assert decision.node_id == cheapest
    for node_id in ("a", "c"):
        assert scores[node_id].cost == pytest.approx(costs_s[node_id] + ADAPTER_LOAD_S)
        assert scores[node_id].note == "adapter 'sql' is in use elsewhere, not here: costs 0.05 s for loading it"
    assert scores["b"].cost == costs_s["b"]
    assert not scores["b"].note
    for node_id, score in scores.items():
        assert score.forecast is not None
        assert score.forecast.e2e_s.mean == costs_s[node_id], "forecasts stay what they were"


def test_what_was_told_is_forgotten_with_the_session_and_can_be_taken_back() -> None:
    made = world(a=(), b=("sql",), c=())
    made.tell(ev.NodeLost(node_id="b"))
    made.join("b", config=ADAPTED)
    assert drawn(made, "sql") == set(NODES)
    made.tell(ev.AdaptersUsed(node_id="b", names=("sql",)))
    assert only(made.arrive("again", model="sql"), ev.Dispatch).node_id == "b"
    made.end("again")
    made.tell(ev.AdaptersUsed(node_id="b", names=None))
    made.tell(ev.AdaptersUsed(node_id="nobody", names=("sql",)))
    assert only(made.arrive("last", model="sql"), ev.Dispatch).decision.scores[0].note == ""
    made.end("last")
    made.router.check_quiescent()
