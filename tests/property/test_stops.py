"""Stop strings: however the text is cut into pieces, the answer ends at the same place."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from engine_adapters.tokenizer import load_tokenizer
from gateway.intake.answer_text import AnswerText
from gateway.intake.stops import StopFinder

texts = st.text(alphabet="abX€", max_size=40)
stops = st.lists(st.text(alphabet="abX€", min_size=1, max_size=4), min_size=1, max_size=3)


def cut(text: str, at: list[int]) -> list[str]:
    places = sorted({min(a, len(text)) for a in at})
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def ended(text: str, strings: list[str]) -> str | None:
    """The answer by definition: read letter by letter, it ends before the first stop string to be complete, of several
    before the one named first."""
    for end in range(len(text) + 1):
        starts = [end - len(s) for s in strings if text[:end].endswith(s)]
        if starts:
            return text[: starts[0]]
    return None


@given(text=texts, strings=stops, at=st.lists(st.integers(0, 40), max_size=8))
def test_the_cut_does_not_depend_on_the_pieces(text: str, strings: list[str], at: list[int]) -> None:
    finder = StopFinder(strings)
    got = "".join(finder.push(piece) for piece in cut(text, at))
    expected = ended(text, strings)
    assert (finder.found is None) is (expected is None)
    assert (got if finder.found else got + finder.finish()) == (text if expected is None else expected)


@given(text=texts, strings=stops, at=st.lists(st.integers(0, 40), max_size=8))
def test_nothing_is_told_that_a_stop_string_may_take_back(text: str, strings: list[str], at: list[int]) -> None:
    finder = StopFinder(strings)
    told = ""
    for piece in cut(text, at):
        told += finder.push(piece)
        assert (ended(text, strings) or text).startswith(told)


@given(text=texts, strings=stops, seed=st.integers(0, 2**32))
def test_tokens_after_the_stop_do_not_belong_to_the_answer(text: str, strings: list[str], seed: int) -> None:
    rng = random.Random(seed)
    ids = list(text.encode())
    answer = AnswerText(load_tokenizer("bytes"), strings)
    kept = 0
    rest = ids
    while rest:
        count = rng.randint(1, 5)
        kept += answer.push(rest[:count])
        rest = rest[count:]
        if answer.stopped:
            break
    answer.finish()
    expected = ended(text, strings)
    assert answer.take() == (text if expected is None else expected)
    if expected is None:
        assert kept == len(ids)
    else:
        read = bytes(ids[:kept]).decode()
        assert ended(read, strings) == expected
        assert ended(bytes(ids[: kept - 1]).decode(errors="ignore"), strings) is None


@given(
    data=st.lists(st.sampled_from([b"a", b"\xe2", b"\x82", b"\xac", "€".encode()]), max_size=12), size=st.integers(1, 5)
)
def test_an_answer_ends_with_its_last_whole_character(data: list[bytes], size: int) -> None:
    """What is none before that reads U+FFFD. As in vLLM, however the tokens come."""
    ids = list(b"".join(data))
    answer = AnswerText(load_tokenizer("bytes"))
    told = ""
    for at in range(0, len(ids), size):
        answer.push(ids[at : at + size])
        told += answer.take()
        assert not told.endswith("\ufffd")
    answer.finish()
    assert told + answer.take() == bytes(ids).decode(errors="replace").rstrip("\ufffd")


@given(text=st.text(alphabet="ab", max_size=10), strings=st.sampled_from([(), ("aa",)]))
def test_the_token_that_ends_an_answer_is_not_in_its_text(text: str, strings: tuple[str, ...]) -> None:
    answer = AnswerText(load_tokenizer("bytes"), strings, stop_token_ids=(ord("X"),))
    answer.push(list(f"{text}X".encode()))
    answer.finish()
    assert answer.take() == text.partition("aa" if strings else "X")[0]


@given(
    text=st.text(alphabet="abX", max_size=40),
    strings=st.lists(st.text(alphabet="abX", min_size=1, max_size=4), min_size=1, max_size=3),
    min_tokens=st.integers(0, 12),
    seed=st.integers(0, 2**32),
)
def test_a_stop_string_that_comes_too_early_stops_nothing(
    text: str, strings: list[str], min_tokens: int, seed: int
) -> None:
    rng = random.Random(seed)
    answer = AnswerText(load_tokenizer("bytes"), strings, min_tokens=min_tokens)
    rest = list(text.encode())
    while rest:
        count = rng.randint(1, 5)
        answer.push(rest[:count])
        rest = rest[count:]
    answer.finish()
    late = next((end for end in range(min_tokens + 1, len(text) + 1) if text[:end].endswith(tuple(strings))), None)
    assert answer.stopped is (late is not None)
    if late is None:
        assert answer.take() == text
    else:
        assert answer.stopped_by == next(s for s in strings if text[:late].endswith(s))
        assert answer.take() == text[: late - len(answer.stopped_by or "")]
