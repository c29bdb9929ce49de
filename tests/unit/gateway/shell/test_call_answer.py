"""An engine's own answer on its way: shown from its first bytes on, kept back while another node may do better."""

from __future__ import annotations

import pytest

from gateway.core.events import AnswerBegan, Arrived, ClientGone, Dispatch, Finish, StreamEnded, TokensSeen
from gateway.intake.client_call import KEEP_BYTES, REPORT_BYTES, AnswerHead, CallAnswer, ClientCall
from gateway.intake.client_stream import ClientStream
from simcore.types import Outcome
from tests.unit.gateway.shell.world import World, decision, shape

EVENTS = AnswerHead(200, (("content-type", "text/event-stream"),))
PLAIN = AnswerHead(200, (("content-type", "application/json"),))
FULL = AnswerHead(503, ())


def submitted(max_unread_bytes: int = 1_000_000) -> tuple[World, ClientStream]:
    world = World(max_unread_bytes=max_unread_bytes)
    world.node_up()
    sent = Dispatch(request_id="r", node_id="n", dispatch_seq=1, decision=decision())
    world.script.on(Arrived, sent)
    call = ClientCall(method="POST", target="/x", headers=(), body=b"body", body_bytes=4)
    stream = ClientStream(shape(), call=call)
    world.pump.submit(stream)
    return world, stream


def answer_of(stream: ClientStream) -> CallAnswer:
    assert stream.answer is not None
    return stream.answer


def test_a_head_alone_is_not_shown() -> None:
    world, stream = submitted()
    world.pump.answered("n", "r", EVENTS, b"", 0)
    assert not answer_of(stream).has_begun
    assert not world.heard(AnswerBegan)
    world.pump.answered("n", "r", None, b"data: 1\n\n", 2)
    assert answer_of(stream).take() == b"data: 1\n\n"
    assert [type(event) for event in world.script.heard[-2:]] == [AnswerBegan, TokensSeen]
    assert (stream.output_tokens, stream.first_token_s) == (2, 100.0)
    assert stream.call is not None
    assert stream.call.body == b""


def test_an_answer_without_a_body_is_shown_at_its_end() -> None:
    world, stream = submitted()
    world.pump.answered("n", "r", AnswerHead(204, ()), b"", 0)
    world.pump.part("n", "r", (), outcome=Outcome.STOP)
    answer = answer_of(stream)
    assert (answer.has_begun, answer.is_complete, answer.take()) == (True, True, b"")
    assert len(world.heard(AnswerBegan)) == 1


def test_a_failure_is_kept_back_until_nobody_is_left() -> None:
    world, stream = submitted()
    answer = answer_of(stream)
    world.pump.answered("n", "r", FULL, b"full", 0)
    again = Dispatch(request_id="r", node_id="n", dispatch_seq=2, decision=decision(), attempt=2)
    world.script.on(StreamEnded, again)
    world.pump.part("n", "r", (), outcome=Outcome.OVERLOADED)
    assert not answer.has_begun
    assert stream.call is not None
    assert stream.call.body == b"body"
    world.script.on(StreamEnded, Finish(request_id="r", outcome=Outcome.ENGINE_FAILED))
    world.pump.part("n", "r~2", (), outcome=Outcome.ENGINE_FAILED, detail="broke")
    assert answer.last_words(Outcome.ENGINE_FAILED) == (FULL, b"full")
    assert answer.last_words(Outcome.DEADLINE) is None
    assert not world.heard(AnswerBegan)


def test_a_failure_too_long_to_keep_is_shown() -> None:
    world, stream = submitted()
    world.pump.answered("n", "r", FULL, b"x" * KEEP_BYTES, 0)
    assert not answer_of(stream).has_begun
    world.pump.answered("n", "r", None, b"y", 0)
    assert answer_of(stream).take() == b"x" * KEEP_BYTES + b"y"


def test_an_answer_that_broke_is_not_complete() -> None:
    world, stream = submitted()
    world.pump.answered("n", "r", PLAIN, b"half", 0)
    world.pump.part("n", "r", (), outcome=Outcome.ENGINE_FAILED, detail="the connection broke")
    assert (answer_of(stream).has_begun, answer_of(stream).is_complete) == (True, False)


@pytest.mark.parametrize(("length", "is_kept"), [("4", True), ("9", False), ("", True)])
def test_a_failing_answer_is_whole_when_its_length_says_so(length: str, is_kept: bool) -> None:
    world, stream = submitted()
    world.pump.answered("n", "r", AnswerHead(500, (("content-length", length),)), b"oops", 0)
    world.pump.part("n", "r", (), outcome=Outcome.ENGINE_FAILED, detail="the engine's server answers 500")
    assert (answer_of(stream).kept is not None) is is_kept


def test_bytes_before_any_head_are_nobodys() -> None:
    world, stream = submitted()
    world.pump.answered("n", "r", None, b"lost", 1)
    assert not answer_of(stream).has_begun
    assert not world.heard(TokensSeen)


def test_the_node_hears_of_what_was_taken_now_and_then() -> None:
    world, stream = submitted()
    world.pump.answered("n", "r", EVENTS, b"x" * (REPORT_BYTES - 1), 0)
    answer_of(stream).take()
    world.pump.consumed(stream)
    assert ("consumed", "r", REPORT_BYTES - 1) not in world.port.sent
    world.pump.answered("n", "r", None, b"yz", 0)
    answer_of(stream).take()
    world.pump.consumed(stream)
    assert world.port.sent[-1] == ("consumed", "r", REPORT_BYTES + 1)
    assert answer_of(stream).unreported_bytes == 0


def test_a_node_that_sends_more_than_it_may_ends_the_request_not_the_gateway() -> None:
    world, _ = submitted(max_unread_bytes=1000)
    world.pump.answered("n", "r", EVENTS, b"x" * 1001, 0)
    (gone,) = world.heard(ClientGone)
    assert isinstance(gone, ClientGone)
    assert gone.outcome is Outcome.CLIENT_SLOW


@pytest.mark.parametrize(("head", "whole"), [(EVENTS, False), (PLAIN, True)])
def test_only_a_stream_tells_when_its_first_token_came(head: AnswerHead, whole: bool) -> None:
    world, stream = submitted()
    world.pump.answered("n", "r", head, b"x", 5)
    (seen,) = world.heard(TokensSeen)
    assert isinstance(seen, TokensSeen)
    assert seen.whole is whole
    assert (stream.first_token_s is None) is whole
