"""How likely the tokens were, in the words of both APIs."""

from __future__ import annotations

import json
import random
from typing import Any

from engine_adapters.tokenizer import load_tokenizer
from gateway.http.chunks import CHAT, COMPLETION, Style
from gateway.http.logprobs import AnswerLogprobs
from simcore.types import TokenLogprobs

BYTES = load_tokenizer("bytes")
A, B, C = b"abc"
EURO = list("€".encode())


def words(style: Style, top: int, *, as_ids: bool = False) -> AnswerLogprobs:
    return AnswerLogprobs(BYTES, style=style, top=top, as_ids=as_ids)


def told(logprobs: AnswerLogprobs) -> Any:
    return json.loads(logprobs.take())


def test_a_chat_has_the_likeliest_tokens_of_each_place_and_the_token_itself_before_them() -> None:
    logprobs = words(CHAT, 2)
    logprobs.add([A], [TokenLogprobs(-1.5, (B, C), (-0.25, -4.0))])
    entry = {"token": "a", "logprob": -1.5, "bytes": [A]}
    other = {"token": "b", "logprob": -0.25, "bytes": [B]}
    assert told(logprobs) == {"content": [{**entry, "top_logprobs": [entry, other]}]}
    assert told(logprobs) == {"content": []}
    logprobs = words(CHAT, 0)
    logprobs.add([A], [TokenLogprobs(float("-inf"))])
    assert told(logprobs) == {"content": [{**entry, "logprob": -9999.0, "top_logprobs": []}]}


def test_a_completion_has_one_more_and_says_where_each_token_begins() -> None:
    logprobs = words(COMPLETION, 1)
    logprobs.add([A, B], [TokenLogprobs(-1.5, (B, C), (-0.25, -4.0)), TokenLogprobs(-0.5)])
    assert told(logprobs) == {
        "tokens": ["a", "b"],
        "token_logprobs": [-1.5, -0.5],
        "top_logprobs": [{"a": -1.5, "b": -0.25}, {"b": -0.5}],
        "text_offset": [0, 1],
    }
    logprobs.add([C], [TokenLogprobs(-0.5)])
    assert told(logprobs)["text_offset"] == [2]


def test_the_last_token_of_a_character_has_all_of_it() -> None:
    """As vLLM has it: what comes before is no text yet."""
    logprobs = words(CHAT, 2)
    others = TokenLogprobs(-1.0, (EURO[2], A), (-2.0, -3.0))
    logprobs.add([A, *EURO, EURO[1]], [others] * 5)
    content = told(logprobs)["content"]
    assert [entry["token"] for entry in content] == ["a", "", "", "€", ""]
    assert content[3]["bytes"] == EURO
    # The same byte in another place of the same step: no character ends with it there.
    assert [entry["top_logprobs"][1]["token"] for entry in content] == ["", "", "", "€", ""]


def test_tokens_by_their_ids_keep_their_bytes() -> None:
    logprobs = words(CHAT, 0, as_ids=True)
    logprobs.add([A], [TokenLogprobs(-1.0)])
    (entry,) = told(logprobs)["content"]
    assert (entry["token"], entry["bytes"]) == (f"token_id:{A}", [A])
    logprobs = words(COMPLETION, 1, as_ids=True)
    logprobs.add([A, B], [TokenLogprobs(-1.0, (C,), (-2.0,))] * 2)
    assert told(logprobs)["text_offset"] == [0, len(f"token_id:{A}")]


def test_it_does_not_matter_in_which_pieces_an_answer_comes() -> None:
    seed = random.SystemRandom().randrange(1 << 30)
    rng = random.Random(seed)
    ids = list("a€ü🙂b".encode()) * 3 + EURO[:2]
    made_up = [TokenLogprobs(-rng.random(), (rng.choice(ids),), (-1.0,)) for _ in ids]
    for style in (CHAT, COMPLETION):
        whole, pieces = words(style, 1), words(style, 1)
        whole.add(ids, made_up)
        got: dict[str, list[Any]] = {}
        expected, at = told(whole), 0
        while at < len(ids):
            count = rng.randint(1, 4)
            pieces.add(ids[at : at + count], made_up[at : at + count])
            at += count
            for name, column in told(pieces).items():
                got[name] = got.get(name, []) + column
        assert got == expected, f"seed {seed}"


def test_every_tokenizer_spells_its_control_tokens_out() -> None:
    assert BYTES.spell([A, 300, B]) == "ab"
