from __future__ import annotations

import numpy as np
import pytest

from length_model.core.conversation import Turn
from length_model.core.features import DENSE_FEATURES, dense, ngrams
from length_model.core.query import LengthQuery, make_query

NASTY = {
    "empty": "",
    "blank": " \n\t ",
    "megabyte": "word " * 200_000,
    "one word of a megabyte": "x" * 1_000_000,
    "binary": bytes(range(256)).decode("latin-1") * 40,
    "half surrogates": "a \ud800 b \udfff",
    "zero bytes": "\0" * 1000,
    "chinese": "请写一篇关于灯塔的文章。" * 5,
    "right to left": "اكتب مقالا عن المنارات",
}


def value(query: LengthQuery, name: str) -> float:
    return float(dense(query)[DENSE_FEATURES.index(name)])


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY.keys())
def test_any_text_gives_finite_numbers_and_some_ngram(text: str) -> None:
    for query in (LengthQuery(prompt=text), make_query(text, [Turn("user", text), Turn("assistant", text)])):
        assert dense(query).shape == (len(DENSE_FEATURES),)
        assert np.isfinite(dense(query)).all()
        found = ngrams(query, 1000)
        assert len(found) >= 1
        assert ((found >= 0) & (found < 1000)).all()


def test_ngrams_are_the_same_on_every_machine() -> None:
    assert ngrams(LengthQuery(prompt="Hi"), 1 << 16).tolist() == sorted([2643, 2416, 62434, 60227, 38500, 14730])


def test_long_prompts_count_in_full_though_only_their_ends_are_read() -> None:
    short, long = make_query("tell me " * 500), make_query("tell me " * 100_000)
    assert len(long.prompt) < 7000
    assert value(long, "log_chars") == pytest.approx(np.log1p(800_000), rel=1e-6)
    assert value(long, "log_words") > value(short, "log_words") + 4


@pytest.mark.parametrize(
    ("text", "name", "wanted"),
    [
        ("Write 500 words on rain", "log_wanted_words", np.log1p(650)),
        ("a 3-paragraph summary", "log_wanted_words", np.log1p(270)),
        ("give me ten blog post ideas", "log_wanted_items", np.log1p(10)),
        ("list 25 tips", "log_wanted_items", np.log1p(25)),
        ("what is rain", "log_wanted_items", 0.0),
        ("is it so?", "ends_with_question", 1.0),
        ("answer yes or no", "says_short", 1.0),
        ("a detailed plan", "says_long", 1.0),
        ("def f(x):\n  return x", "has_code", 1.0),
    ],
)
def test_what_a_prompt_asks_for_is_seen(text: str, name: str, wanted: float) -> None:
    assert value(LengthQuery(prompt=text), name) == pytest.approx(wanted, rel=1e-5)


def test_history_is_seen() -> None:
    query = make_query("go on", [Turn("user", "a story"), Turn("assistant", "Once upon a time, " * 100)])
    assert value(query, "has_history") == 1
    assert value(query, "log_last_answer_chars") == pytest.approx(np.log1p(1800))
    assert value(LengthQuery(prompt="go on"), "has_history") == 0
