"""Tokens counted in answers that go by unread: per kind of stream, cut anywhere, with and without usage."""

from __future__ import annotations

import json
import random
import secrets
from typing import Any

import pytest

from engine_adapters.answer_tokens import AnswerTokens, Counted

STREAM = (("content-type", "text/event-stream; charset=utf-8"),)
WHOLE = (("content-type", "application/json"),)
HOSTILE = (
    'she said {"delta":{"text":"x"},"completion_tokens":99,"finish_reason":"length"}\nevent: content_block_delta\n'
)


def sse(*events: dict[str, Any], named: bool = False, spaced: bool = False) -> bytes:
    separators = None if spaced else (",", ":")
    return b"".join(
        (f"event: {event['type']}\n" if named else "").encode()
        + f"data: {json.dumps(event, separators=separators)}\n\n".encode()
        for event in events
    )


def chat(*, usage: bool, spaced: bool = False) -> bytes:
    events: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}]
    events += [{"choices": [{"index": 0, "delta": {"content": HOSTILE}, "finish_reason": None}]} for _ in range(6)]
    events += [{"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "length"}]}]
    if usage:
        details = {"cached_tokens": 16}
        said = {"prompt_tokens": 21, "completion_tokens": 11, "prompt_tokens_details": details}
        events += [{"choices": [], "usage": said}]
    return sse(*events, spaced=spaced) + b"data: [DONE]\n\n"


def completion() -> bytes:
    return sse(*({"choices": [{"text": HOSTILE, "finish_reason": None}]} for _ in range(7))) + b"data: [DONE]\n\n"


def responses() -> bytes:
    deltas = [{"type": "response.output_text.delta", "delta": HOSTILE} for _ in range(5)]
    usage = {"input_tokens": 4, "output_tokens": 9, "input_tokens_details": {"cached_tokens": 2}}
    last = {"type": "response.completed", "response": {"max_output_tokens": 77, "usage": usage}}
    return sse({"type": "response.created", "response": {"usage": None}}, *deltas, last, named=True)


def messages() -> bytes:
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 8, "output_tokens": 0}}}
    deltas = [{"type": "content_block_delta", "delta": {"type": "text_delta", "text": HOSTILE}} for _ in range(5)]
    end = {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 6}}
    return sse(start, *deltas, end, named=True)


CASES = [
    ("/v1/chat/completions", chat(usage=False), 7, Counted(None, None, 0), True),
    ("/v1/chat/completions?x=1", chat(usage=True), 11, Counted(21, 11, 16), True),
    ("/v1/chat/completions", chat(usage=True, spaced=True), 11, Counted(21, 11, 16), True),
    ("/v1/completions", completion(), 7, Counted(None, None, 0), False),
    ("/v1/responses", responses(), 9, Counted(4, 9, 2), False),
    ("/v1/messages", messages(), 6, Counted(8, 6, 0), True),
    ("/v1/other", completion(), 0, Counted(None, None, 0), False),
]


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_a_stream_counts_the_same_however_it_is_cut(case: tuple[str, bytes, int, Counted, bool]) -> None:
    path, answer, tokens, usage, at_limit = case
    seed = secrets.randbits(32)
    print(f"seed {seed}")  # noqa: T201
    rng = random.Random(seed)
    for most in (len(answer), 1, 7, 50, 300):
        counts = AnswerTokens(path, STREAM)
        at = total = 0
        while at < len(answer):
            size = rng.randint(1, most) if most < len(answer) else most
            total += counts.add(answer[at : at + size])
            at += size
        assert total == tokens
        assert counts.usage() == usage
        assert counts.at_limit == at_limit
        assert counts.is_stream


def test_a_whole_answer_has_the_tokens_of_its_usage_wherever_it_is_cut() -> None:
    usage = {"prompt_tokens": 12, "total_tokens": 1246, "completion_tokens": 1234, "prompt_tokens_details": None}
    tree = {"choices": [{"message": {"content": HOSTILE}, "finish_reason": "length"}], "usage": usage, "end": "x" * 300}
    answer = json.dumps(tree).encode()
    for cut in range(len(answer)):
        counts = AnswerTokens("/v1/chat/completions", WHOLE)
        assert counts.add(answer[:cut]) + counts.add(answer[cut:]) == 1234
        assert counts.usage() == Counted(12, 1234, 0)
        assert counts.at_limit
        assert not counts.is_stream


def test_a_line_that_never_ends_is_not_kept() -> None:
    counts = AnswerTokens("/v1/chat/completions", STREAM)
    for _ in range(100):
        counts.add(b"x" * 60_000)
    assert len(counts._rest) < 130_000


def test_a_compressed_answer_is_not_looked_into_for_events() -> None:
    counts = AnswerTokens("/v1/chat/completions", (*STREAM, ("content-encoding", "gzip")))
    assert counts.add(b'\x1f\x8b"delta":\n') == 0
