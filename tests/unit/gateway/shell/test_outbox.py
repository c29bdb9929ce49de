from __future__ import annotations

import pytest

from gateway.nodes.outbox import BODY_PART_BYTES, MAX_PROMPT_TOKENS_PER_FRAME, Outbox
from protos.v1 import astrolabe_engine_pb2 as engine_pb
from protos.v1 import astrolabe_predict_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb


def dispatched(seq: int, request_id: str, prompt_tokens: int = 3) -> pb.Dispatched:
    request = engine_pb.EngineGenerateRequest(request_id=request_id, prompt_token_ids=[1] * prompt_tokens)
    return pb.Dispatched(dispatch_seq=seq, request=request)


def frames(outbox: Outbox) -> list[pb.GatewayFrame]:
    out = []
    while outbox:
        out.append(outbox.pop())
    return out


def test_what_comes_up_together_leaves_in_one_frame() -> None:
    outbox = Outbox()
    outbox.abort("old")
    outbox.dispatch(dispatched(1, "a"))
    outbox.ask(7, types_pb.Candidate(request_id="b"))
    outbox.dispatch(dispatched(2, "c"))
    (frame,) = frames(outbox)
    assert list(frame.abort_request_ids) == ["old"]
    assert [d.dispatch_seq for d in frame.dispatches] == [1, 2]
    assert [a.ask_id for a in frame.asks] == [7]


def test_what_the_node_is_to_expect_goes_with_the_question() -> None:
    outbox = Outbox()
    outbox.expected(pb.ExpectedWork(requests_per_s=1.0))
    outbox.expected(pb.ExpectedWork(requests_per_s=2.0))
    outbox.ask(7, types_pb.Candidate(request_id="b"))
    (frame,) = frames(outbox)
    assert frame.expected_work.requests_per_s == 2.0
    assert [a.ask_id for a in frame.asks] == [7]


def test_an_abort_never_overtakes_its_dispatch() -> None:
    outbox = Outbox()
    outbox.dispatch(dispatched(1, "a"))
    outbox.abort("a")
    outbox.dispatch(dispatched(2, "a"))
    first, second = frames(outbox)
    assert [d.dispatch_seq for d in first.dispatches] == [1]
    assert not first.abort_request_ids
    # Aborts of a frame are applied before its dispatches, so the second try survives.
    assert list(second.abort_request_ids) == ["a"]
    assert [d.dispatch_seq for d in second.dispatches] == [2]


def test_an_abort_after_the_dispatch_has_left_needs_no_new_frame() -> None:
    outbox = Outbox()
    outbox.dispatch(dispatched(1, "a"))
    outbox.pop()
    outbox.abort("a")
    outbox.ask(1, types_pb.Candidate(request_id="b"))
    (frame,) = frames(outbox)
    assert list(frame.abort_request_ids) == ["a"]


def test_frames_stay_below_the_message_limit() -> None:
    outbox = Outbox()
    for seq in range(1, 6):
        outbox.dispatch(dispatched(seq, f"r{seq}", MAX_PROMPT_TOKENS_PER_FRAME // 2))
    sent = frames(outbox)
    assert [d.dispatch_seq for f in sent for d in f.dispatches] == [1, 2, 3, 4, 5]
    assert all(sum(len(d.request.prompt_token_ids) for d in f.dispatches) <= MAX_PROMPT_TOKENS_PER_FRAME for f in sent)


def test_one_prompt_beyond_the_limit_still_goes() -> None:
    outbox = Outbox()
    outbox.dispatch(dispatched(1, "a", MAX_PROMPT_TOKENS_PER_FRAME + 1))
    assert len(frames(outbox)) == 1


def test_an_empty_outbox_has_no_frame() -> None:
    outbox = Outbox()
    assert not outbox
    with pytest.raises(IndexError):
        outbox.pop()


def forwarded(seq: int, request_id: str, body: bytes) -> pb.Dispatched:
    call = engine_pb.ForwardedCall(request_id=request_id, body=body, body_bytes=len(body))
    return pb.Dispatched(dispatch_seq=seq, forward=call)


def test_bodies_leave_in_turns_and_only_when_nothing_else_waits() -> None:
    outbox = Outbox()
    bodies = {name: bytes([i]) * (2 * BODY_PART_BYTES + 5) for i, name in enumerate("ab")}
    for seq, (name, body) in enumerate(bodies.items(), 1):
        outbox.dispatch(forwarded(seq, name, body[:10]))
        outbox.body(name, body, 10)
    assert [d.forward.request_id for d in outbox.pop().dispatches] == ["a", "b"]
    first = outbox.pop()
    outbox.ask(1, types_pb.Candidate(request_id="c"))
    assert [ask.ask_id for ask in outbox.pop().asks] == [1]
    parts = [part for frame in [first, *frames(outbox)] for part in frame.body_parts]
    assert [part.request_id for part in parts[:4]] == ["a", "b", "a", "b"]
    for name, body in bodies.items():
        assert body[:10] + b"".join(part.data for part in parts if part.request_id == name) == body


def test_no_more_of_a_body_is_sent_than_its_engine_has_read_of() -> None:
    outbox = Outbox()
    outbox.body_window_bytes = 2 * BODY_PART_BYTES
    body = bytes(range(256)) * (5 * BODY_PART_BYTES // 256) + b"end"
    outbox.dispatch(forwarded(1, "slow", body[:10]))
    outbox.body("slow", body, 10)
    outbox.dispatch(forwarded(2, "quick", b"q"))
    outbox.body("quick", b"q" * (BODY_PART_BYTES + 2), 1)
    sent: dict[str, bytes] = {"slow": body[:10], "quick": b"q"}

    def send() -> None:
        for frame in frames(outbox):
            for part in frame.body_parts:
                sent[part.request_id] += part.data

    send()
    assert len(sent["quick"]) == BODY_PART_BYTES + 2, "who is read gets by"
    assert len(sent["slow"]) == 2 * BODY_PART_BYTES + 10
    outbox.taken("slow", 11)
    outbox.taken("unknown", 11)
    send()
    assert len(sent["slow"]) == 3 * BODY_PART_BYTES + 10
    outbox.taken("slow", 4 * BODY_PART_BYTES)
    send()
    assert sent["slow"] == body
    outbox.taken("slow", BODY_PART_BYTES)
    assert not outbox


def test_a_body_that_waits_is_dropped_too() -> None:
    outbox = Outbox()
    outbox.body_window_bytes = BODY_PART_BYTES
    outbox.body("a", b"x" * 3 * BODY_PART_BYTES, 0)
    assert len(frames(outbox)) == 1
    outbox.abort("a")
    outbox.taken("a", BODY_PART_BYTES)
    (last,) = frames(outbox)
    assert list(last.abort_request_ids) == ["a"]


def test_nothing_more_of_a_body_is_sent_after_an_abort() -> None:
    outbox = Outbox()
    outbox.dispatch(forwarded(1, "a", b"x"))
    outbox.body("a", b"x" * 3 * BODY_PART_BYTES, 1)
    outbox.pop()
    outbox.pop()
    outbox.abort("a")
    (last,) = frames(outbox)
    assert list(last.abort_request_ids) == ["a"]


def test_first_parts_of_bodies_stay_below_the_message_limit() -> None:
    outbox = Outbox()
    for seq in range(1, 21):
        outbox.dispatch(forwarded(seq, f"r{seq}", b"x" * BODY_PART_BYTES))
    sent = frames(outbox)
    assert [d.dispatch_seq for f in sent for d in f.dispatches] == list(range(1, 21))
    assert max(frame.ByteSize() for frame in sent) < 4 * 1024 * 1024


def test_of_two_words_on_whether_to_leave_the_last_counts() -> None:
    outbox = Outbox()
    outbox.retire(False)
    outbox.retire(True)
    assert outbox.pop().retire == pb.RETIREMENT_UNDO
    assert not outbox
