"""What a prompt looks like to a small model: a few numbers and hashed n-grams. Pure, and the same on every machine.

Only the beginning and the end of a text are looked at, so that a megabyte costs no more than a page.
"""

from __future__ import annotations

import itertools
import math
import re
import zlib

import numpy as np
from numpy.typing import NDArray

from length_model.core.query import LengthQuery

FEATURES_VERSION = 1
"""Grows with every change to what follows: a model trained on one version must not run on another."""

DENSE_FEATURES = (
    "log_chars",
    "log_words",
    "log_lines",
    "log_paragraphs",
    "digit_share",
    "non_ascii_share",
    "upper_share",
    "punctuation_share",
    "has_question_mark",
    "ends_with_question",
    "ends_with_colon",
    "has_code",
    "log_wanted_words",
    "log_wanted_items",
    "says_short",
    "says_long",
    "has_history",
    "log_turns",
    "log_last_answer_chars",
    "log_mean_answer_chars",
    "log_longest_answer_chars",
    "log_shortest_answer_chars",
    "log_last_question_chars",
    "last_answer_ends_open",
    "has_other_role",
)

_LOOK_HEAD_CHARS = 1500
_LOOK_TAIL_CHARS = 700
_HEAD_WORDS = 120
_TAIL_WORDS = 60
_PAST_WORDS = 24

_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORDS = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+|[?!:`{{}}\[\]*#]")
_CODE = re.compile(r"```|\bdef \w+\(|\bfunction\b|\bclass \w+|#include|[;{}]\s*\n|\bimport \w+|select .* from")
_NUMBERS = {
    **{
        w: i
        for i, w in enumerate(["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], start=1)
    },
    "fifteen": 15,
    "twenty": 20,
    "fifty": 50,
    "hundred": 100,
}
_WANTED = re.compile(
    rf"\b(\d{{1,5}}|{'|'.join(_NUMBERS)})\s*[- ]?(?:\w+\s+){{0,2}}?"
    r"(words?|characters?|tokens?|sentences?|lines?|paragraphs?|pages?|points?|bullets?|items?|ideas?|examples?|"
    r"questions?|titles?|names?|tips?|ways?|reasons?|steps?|options?|facts?|headlines?|keywords?|topics?|posts?|tweets?)\b"
)
_TOKENS_PER_UNIT = {"word": 1.3, "character": 0.25, "token": 1.0, "sentence": 22.0, "line": 14.0, "paragraph": 90.0}
_SHORT = re.compile(
    r"\b(short|brief|briefly|concise|yes or no|one word|in a sentence|"
    r"only (?:the|answer|output|reply)|just (?:say|answer|reply))\b"
)
_LONG = re.compile(
    r"\b(detailed|in detail|comprehensive|essay|article|blog|long|thorough|elaborate|story|complete|full)\b"
)

# Most prompts hold none of these, and looking for a plain text is many times as quick as trying a pattern.
_CODE_SIGNS = ("```", ";", "{", "}", "def ", "function", "class ", "#include", "import ", "select ")
_SHORT_SIGNS = ("short", "brief", "concise", "yes or no", "one word", "in a sentence", "only ", "just ")
_LONG_SIGNS = (
    "detail", "comprehensive", "essay", "article", "blog", "long", "thorough", "elaborate", "story", "complete", "full",
)  # fmt: skip
_UNIT_SIGNS = (
    "word", "character", "token", "sentence", "line", "paragraph", "page", "point", "bullet", "item", "idea", "example",
    "question", "title", "name", "tip", "way", "reason", "step", "option", "fact", "topic", "post", "tweet",
)  # fmt: skip


def dense(query: LengthQuery) -> NDArray[np.float32]:
    """Numbers of the prompt and of the conversation before it, in the order of `DENSE_FEATURES`; finite always."""
    text = _looked_at(query.prompt)
    lower = text.lower()
    n = max(1, len(text))
    words = len(_WORDS.findall(text)) * max(1.0, query.chars / n)
    digits = sum(map(text.count, "0123456789"))
    tail = text[-80:].rstrip()
    wanted_words, wanted_items = _wanted(lower, digits > 0)
    answers = [t.chars for t in query.history if t.role == "assistant"]
    questions = [t.chars for t in query.history if t.role == "user"]
    last_answer = next((t for t in reversed(query.history) if t.role == "assistant"), None)
    clipped = last_answer is not None and last_answer.chars > len(last_answer.text)
    open_end = last_answer is not None and not clipped and last_answer.text.rstrip()[-1:] not in ".!?`\"')"
    values = (
        math.log1p(query.chars),
        math.log1p(words),
        math.log1p(text.count("\n")),
        math.log1p(text.count("\n\n")),
        digits / n,
        1 - len(text.encode("ascii", "ignore")) / n,
        sum(map(str.isupper, text[:400])) / min(n, 400),
        sum(map(text.count, ".,;()")) / n,
        float("?" in text),
        float(tail.endswith(("?", "？"))),
        float(tail.endswith(":")),
        float(_holds(_CODE, lower, _CODE_SIGNS)),
        math.log1p(wanted_words),
        math.log1p(wanted_items),
        float(_holds(_SHORT, lower, _SHORT_SIGNS)),
        float(_holds(_LONG, lower, _LONG_SIGNS)),
        float(bool(query.history)),
        math.log1p(len(query.history)),
        math.log1p(answers[-1] if answers else 0),
        math.log1p(sum(answers) / len(answers) if answers else 0),
        math.log1p(max(answers, default=0)),
        math.log1p(min(answers, default=0)),
        math.log1p(questions[-1] if questions else 0),
        float(open_end),
        float(any(t.role == "other" for t in query.history)),
    )
    return np.array(values, dtype=np.float32)


def ngrams(query: LengthQuery, buckets: int) -> NDArray[np.int32]:
    """Hashes in [0, buckets) of words and word pairs at the beginning and the end of the prompt, of its first and last
    words by place, and of the words that begin the last answer and the last question. At least one."""
    text = query.prompt
    words = _WORDS.findall(text[:_LOOK_HEAD_CHARS].lower())[:_HEAD_WORDS]
    if len(text) > _LOOK_HEAD_CHARS:
        words += _WORDS.findall(text[-_LOOK_TAIL_CHARS:].lower())[-_TAIL_WORDS:]
    features = {f"w {w}" for w in words}
    features.update(f"b {a} {b}" for a, b in itertools.pairwise(words))
    features.update(f"f{i} {w}" for i, w in enumerate(words[:4]))
    features.update(f"l{i} {w}" for i, w in enumerate(words[:-4:-1]))
    features.add("f " + " ".join(words[:3]))
    features.add("c " + query.request_class)
    if len(words) <= 4:
        features.add("t " + " ".join(words))
    answer = next((t.text for t in reversed(query.history) if t.role == "assistant"), None)
    question = next((t.text for t in reversed(query.history) if t.role == "user"), None)
    if answer is not None:
        features.update(f"a {w}" for w in _WORDS.findall(answer[:240].lower())[:_PAST_WORDS])
    if question is not None:
        past = _WORDS.findall(question[:240].lower())[:_PAST_WORDS]
        features.update(f"q {w}" for w in past)
        features.add("q3 " + " ".join(past[:3]))
    hashes = np.array([zlib.crc32(g.encode("utf-8", "replace")) for g in features], dtype=np.uint32) % buckets
    # In order, so that sums over them come out the same everywhere: a set has its own order in every process.
    return np.sort(hashes).astype(np.int32)


def _looked_at(text: str) -> str:
    if len(text) <= _LOOK_HEAD_CHARS + _LOOK_TAIL_CHARS:
        return text
    return text[:_LOOK_HEAD_CHARS] + "\n" + text[-_LOOK_TAIL_CHARS:]


def _holds(pattern: re.Pattern[str], lower: str, signs: tuple[str, ...]) -> bool:
    """Whether the pattern is in the text; without any of `signs` it cannot be."""
    return any(sign in lower for sign in signs) and pattern.search(lower) is not None


def _wanted(lower: str, has_digits: bool) -> tuple[float, float]:
    """Tokens and items that the text asks for in so many words; 0 when it does not."""
    tokens = items = 0.0
    if not (has_digits or any(name in lower for name in _NUMBERS)) or not any(sign in lower for sign in _UNIT_SIGNS):
        return tokens, items
    for number, unit in _WANTED.findall(lower):
        count = float(_NUMBERS.get(number) or (number.isdigit() and number) or 0)
        per_unit = _TOKENS_PER_UNIT.get(unit.rstrip("s"))
        if per_unit is None:
            items = max(items, min(count, 1000.0))
        else:
            tokens = max(tokens, min(count, 20_000.0) * per_unit)
    return tokens, items
