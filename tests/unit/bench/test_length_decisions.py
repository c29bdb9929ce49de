from __future__ import annotations

from collections.abc import Sequence

import pytest

from deploy.length_decisions import samples_from_decisions
from gateway.core import events as ev
from gateway.core.recording import RecordingError, entry_line, header_line
from gateway.core.router import RouterConfig
from length_model.baseline import train_histogram
from length_model.core.belief import DEFAULT_PRIOR
from simcore.types import Outcome


def arrived(request_id: str, session: str = "") -> bytes:
    shape = ev.RequestShape(
        request_id=request_id,
        model="m",
        prompt_tokens=7,
        max_output_tokens=100,
        belief=DEFAULT_PRIOR,
        session=session,
    )
    return entry_line(1.0, ev.Arrived(request=shape), [])


def tokens(request_id: str, count: int) -> bytes:
    return entry_line(2.0, ev.TokensSeen(request_id=request_id, node_id="n", tokens=count), [])


def ended(request_id: str, outcome: Outcome, finish: Sequence[ev.AnyAction] = ()) -> bytes:
    event = ev.StreamEnded(request_id=request_id, node_id="n", outcome=outcome)
    return entry_line(3.0, event, [*finish, ev.Finish(request_id=request_id, outcome=outcome)])


HEAD = header_line(RouterConfig())


def test_finished_requests_are_samples_and_others_are_cut_ones() -> None:
    lines = [
        HEAD,
        arrived("a", session="talk"),
        arrived("b"),
        arrived("c"),
        arrived("still running"),
        tokens("a", 3),
        tokens("b", 20),
        tokens("a", 4),
        tokens("still running", 9),
        ended("a", Outcome.STOP),
        ended("b", Outcome.LENGTH),
        ended("c", Outcome.NO_NODE),
    ]
    found = list(samples_from_decisions(lines))
    assert [(s.sample_id, s.group, s.output_tokens, s.censored) for s in found] == [
        ("a", "talk", 7, False),
        ("b", "b", 20, True),
    ]
    assert found[0].prompt_tokens == 7
    assert found[0].query.model == "m"
    assert train_histogram(found).pmf([found[0].query]).sum() == pytest.approx(1)


def test_a_line_cut_by_a_killed_gateway_is_passed_over() -> None:
    lines = [HEAD, arrived("a"), tokens("a", 5), ended("a", Outcome.STOP), tokens("b", 1)[:20]]
    assert len(list(samples_from_decisions(lines))) == 1


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [([], "empty"), ([b"{}\n"], "line 1"), ([HEAD, b"nonsense\n"], "line 2"), ([HEAD, b"\xff\xfe\n"], "line 2")],
)
def test_what_is_no_decision_log_is_refused(lines: list[bytes], complaint: str) -> None:
    with pytest.raises(RecordingError, match=complaint):
        list(samples_from_decisions(lines))
