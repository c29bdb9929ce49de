"""Servers and proxies word their answers differently: what has a sane reading is read, what has none is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_adapters.base import EngineError, RequestRefused
from engine_adapters.openai_answers import EngineModel, Piece, read_fault, read_models, read_piece
from simcore.types import TokenLogprobs


def piece(**fields: Any) -> Piece:
    return read_piece(json.dumps(fields).encode())


def choice(**fields: Any) -> Piece:
    return piece(choices=[fields])


def test_as_vllm_says_it() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}
    read = piece(
        choices=[{"index": 0, "text": "hi", "token_ids": [7, 8], "finish_reason": "length"}], usage=usage, model="m"
    )
    assert read == Piece(token_ids=(7, 8), text="hi", finish="length", completion_tokens=2, cached_tokens=1)
    assert piece(choices=[], usage=usage) == Piece(completion_tokens=2, cached_tokens=1)


@pytest.mark.parametrize(
    "nothing",
    [
        {},
        {"choices": None},
        {"choices": []},
        {"choices": {}},
        {"choices": [None]},
        {"choices": [{}]},
        {"choices": [{"index": None, "text": None, "token_ids": None, "finish_reason": None}]},
        {"choices": [{"text": "", "token_ids": [], "finish_reason": ""}], "usage": None},
        {"choices": [{"delta": {}}], "usage": {}},
        {"choices": [{"delta": {"role": "assistant", "content": None}}], "usage": []},
        {"choices": [{"text": "", "finish_reason": "null"}], "error": None, "usage": ""},
        {"choices": [], "error": {}},
        {"type": "ping"},
        {"choices": [{"index": 1, "text": "of another choice"}]},
    ],
)
def test_what_says_nothing_is_nothing(nothing: dict[str, Any]) -> None:
    read = piece(**nothing)
    assert (read.text, read.token_ids or (), read.finish, read.completion_tokens) == ("", (), None, None)


@pytest.mark.parametrize(
    ("fields", "token_ids"),
    [
        ({"text": "a", "token_ids": ["7", 8.0, "9"]}, (7, 8, 9)),
        ({"text": "a", "token_ids": 7}, (7,)),
        ({"text": "a", "token_ids": [7, None]}, (7,)),
        ({"delta": {"content": "a", "token_ids": [7]}}, (7,)),
        ({"index": "0", "message": {"content": "a"}, "token_ids": [7]}, (7,)),
        ({"index": 0, "text": [{"type": "text", "text": "a"}], "token_ids": [7]}, (7,)),
        ({"text": "a", "token_ids": [7], "logprobs": {"tokens": None}}, (7,)),
    ],
)
def test_numbers_and_texts_in_other_clothes(fields: dict[str, Any], token_ids: tuple[int, ...]) -> None:
    read = choice(**fields)
    assert (read.text, read.token_ids) == ("a", token_ids)


@pytest.mark.parametrize(
    ("word", "finish"),
    [
        ("stop", "stop"),
        ("STOP", "stop"),
        ("eos_token", "stop"),
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ({"type": "length", "length": 8}, "length"),
        ("MAX_TOKENS", "length"),
        ("max_new_tokens", "length"),
        ("abort", "aborted"),
        ("cancelled", "aborted"),
    ],
)
def test_words_for_the_end(word: Any, finish: str) -> None:
    assert choice(text="", finish_reason=word).finish == finish


LOGPROBS = {
    "tokens": ["token_id:7", "token_id:8"],
    "token_logprobs": [-0.5, -9999.0],
    "top_logprobs": [{"token_id:7": -0.5, "token_id:9": -1.5}, {"token_id:8": -9999.0, "token_id:3": -0.1}],
    "text_offset": [0, 10],
}


@pytest.mark.parametrize("index", [0, "0"])
def test_logprobs_of_tokens_that_are_named_by_their_ids(index: int | str) -> None:
    body = json.dumps({"choices": [{"index": index, "text": "ab", "token_ids": [7, 8], "logprobs": LOGPROBS}]}).encode()
    told = (TokenLogprobs(-0.5, (9,), (-1.5,)), TokenLogprobs(-9999.0, (3,), (-0.1,)))
    assert read_piece(body, with_logprobs=True).logprobs == told
    assert read_piece(body).logprobs == ()


@pytest.mark.parametrize(
    "change",
    [
        {"token_logprobs": [-0.5]},
        {"token_logprobs": [None, -1]},
        {"top_logprobs": [{"a": -0.5}, {}]},
        {"token_logprobs": None},
    ],
)
def test_logprobs_that_belong_to_no_token_are_a_failure_of_the_engine(change: dict[str, Any]) -> None:
    choice = {"text": "ab", "token_ids": [7, 8], "logprobs": {**LOGPROBS, **change}}
    with pytest.raises(EngineError, match=r"choices\[0\]\.logprobs"):
        read_piece(json.dumps({"choices": [choice]}).encode(), with_logprobs=True)


def test_counts_in_other_clothes() -> None:
    read = piece(choices=[], usage={"completion_tokens": "12", "prompt_tokens_details": {"cached_tokens": 4.0}})
    assert (read.completion_tokens, read.cached_tokens) == (12, 4)
    assert piece(choices=[], usage={"prompt_tokens": 3, "cached_tokens": 5}).cached_tokens == 5


def test_numbers_that_json_does_not_have_are_passed_over_where_nobody_asked_for_them() -> None:
    read = read_piece(b'{"choices":[{"text":"a","token_ids":[7],"logprobs":{"token_logprobs":[NaN]}}]}')
    assert read.token_ids == (7,)
    assert read_piece(b'\xef\xbb\xbf{"choices":[{"text":"a"}]}').text == "a"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"choices": "x"}, 'choices: expected a list, got "x"'),
        ({"choices": ["x"]}, r"choices\[0\]: expected an object"),
        ({"choices": [{"text": 5}]}, r"choices\[0\]\.text: expected a text, got 5"),
        ({"choices": [{"text": "", "token_ids": ["x"]}]}, r'choices\[0\]\.token_ids\[0\]: .* got "x"'),
        ({"choices": [{"text": "", "token_ids": [-1]}]}, r"choices\[0\]\.token_ids\[0\]"),
        ({"choices": [{"text": "", "token_ids": [1.5]}]}, r"choices\[0\]\.token_ids\[0\]"),
        ({"choices": [{"text": "", "token_ids": [True]}]}, r"choices\[0\]\.token_ids\[0\]"),
        ({"choices": [{"text": "", "finish_reason": "boredom"}]}, 'finish_reason "boredom"'),
        ({"choices": [{"text": "", "finish_reason": "error"}]}, 'finish_reason "error"'),
        ({"choices": [{"text": "", "finish_reason": 3}]}, "finish_reason 3"),
        ({"choices": [], "usage": "many"}, "usage: expected an object"),
        ({"choices": [], "usage": {"completion_tokens": "many"}}, "usage.completion_tokens"),
        ([], "expected a JSON object"),
    ],
)
def test_what_cannot_be_understood_names_its_field(data: Any, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        read_piece(json.dumps(data).encode())


@pytest.mark.parametrize(
    "data",
    [
        {"error": {"message": "out of memory", "code": 500}},
        {"error": "out of memory", "error_type": "generation"},
        {"error": {"detail": "out of memory"}},
        {"object": "error", "message": "out of memory"},
        {"message": "out of memory"},
        {"detail": "out of memory"},
        {"choices": [], "error": {"message": "out of memory"}},
    ],
)
def test_errors_in_their_shapes(data: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="the engine failed: out of memory"):
        piece(**data)
    assert read_fault(json.dumps(data).encode()) == "out of memory"


def test_an_error_of_the_request_in_an_answer_that_has_begun() -> None:
    with pytest.raises(RequestRefused, match=r"^id 9 is out of vocabulary$"):
        piece(error={"message": "id 9 is out of vocabulary", "type": "BadRequestError", "code": 400})


def test_bodies_that_are_no_json() -> None:
    assert read_fault(b"<html>Bad Gateway</html>") == "<html>Bad Gateway</html>"
    with pytest.raises(EngineError, match="no JSON: '<html>"):
        read_piece(b"<html>")


@pytest.mark.parametrize(
    ("body", "models"),
    [
        ({"data": [{"id": "a", "max_model_len": 8}, {"id": "b"}]}, [("a", 8), ("b", None)]),
        ({"object": "list", "data": [{"id": "a", "max_model_len": None}]}, [("a", None)]),
        ({"data": [{"id": "a", "max_model_len": "8"}]}, [("a", 8)]),
        ({"data": [{"id": "a", "context_length": 8.0}]}, [("a", 8)]),
        ({"data": [{"id": "a"}, {"id": "a"}]}, [("a", None)]),
        ({"data": {"id": "a"}}, [("a", None)]),
        ({"data": ["a", "b"]}, [("a", None), ("b", None)]),
        ({"models": [{"name": "a"}]}, [("a", None)]),
        ([{"id": "a"}], [("a", None)]),
        ({"data": []}, []),
    ],
)
def test_lists_of_models(body: Any, models: list[tuple[str, int | None]]) -> None:
    assert read_models(json.dumps(body).encode()) == [EngineModel(*model) for model in models]


@pytest.mark.parametrize("odd", [None, {}, {"id": None}, {"id": ""}, {"id": 5}, [], 3])
def test_an_entry_without_a_name_does_not_cost_the_others(odd: Any) -> None:
    assert read_models(json.dumps({"data": [odd, {"id": "m"}, odd]}).encode()) == [EngineModel("m", None)]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"data": None}, "data: expected a list"),
        ({"data": [{"id": 5}]}, r"data\[0\]\.id"),
        ({"data": [{"id": "a", "max_model_len": "long"}]}, r"data\[0\]\.max_model_len"),
        ({"error": "not loaded"}, "not loaded"),
        ("hello", "expected a list"),
    ],
)
def test_what_is_no_list_of_models(body: Any, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        read_models(json.dumps(body).encode())


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "text", "token_ids", "finish_reason", "usage", "delta", "error", "data", "id"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(values)
def test_anything_is_read_or_raises_the_one_error(tree: Any) -> None:
    data = json.dumps(tree).encode()
    for read in (read_piece, read_models):
        try:
            read(data)
        except EngineError:
            pass
    read_fault(data)
