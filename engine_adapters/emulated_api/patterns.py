"""A text that a regular expression matches, made up. Pure."""

from __future__ import annotations

import importlib
import random
import re
from typing import Any

from engine_adapters.emulated_api.errors import ApiError

_parser: Any = importlib.import_module("re._parser")
_WORD = "abcdefghijklmnopqrstuvwxyz0123456789"
_CLASSES = {
    "CATEGORY_DIGIT": "0123456789",
    "CATEGORY_NOT_DIGIT": "abcdefgh",
    "CATEGORY_SPACE": " ",
    "CATEGORY_NOT_SPACE": _WORD,
    "CATEGORY_WORD": _WORD,
    "CATEGORY_NOT_WORD": " .-",
}
_MORE = 3
"""Times that something without an upper bound comes beyond its lower one, at most."""


class _BeyondUsError(Exception):
    """A pattern uses what is not known here."""


def matching_text(pattern: str, rng: random.Random, *, whole: bool) -> str:
    """`whole`: the pattern has to match all of it, else a part. Raises ApiError for a pattern that is not well formed
    or uses more than sets, groups, choices, repetitions and anchors at its ends."""
    try:
        parsed = _parser.parse(pattern)
        text = _all(parsed, rng, {})
        found = re.fullmatch(pattern, text) if whole else re.search(pattern, text)
    except (re.error, _BeyondUsError, RecursionError) as bad:
        raise ApiError(f"Failed to convert regex pattern {pattern!r}: {bad}") from None
    if found is None:
        raise ApiError(f"regex pattern {pattern!r} is beyond an emulated engine")
    return text


def _said(op: Any, argument: Any, rng: random.Random, groups: dict[int, str]) -> str:
    name = str(op)
    if name == "LITERAL":
        return chr(argument)
    if name == "NOT_LITERAL":
        return next(c for c in "xy" if ord(c) != argument)
    if name == "ANY":
        return rng.choice(_WORD)
    if name == "AT":
        return ""
    if name == "IN":
        return _one_of(argument, rng)
    if name == "BRANCH":
        return _all(rng.choice(argument[1]), rng, groups)
    if name == "SUBPATTERN":
        text = _all(argument[-1], rng, groups)
        if argument[0] is not None:
            groups[argument[0]] = text
        return text
    if name == "GROUPREF":
        return groups.get(argument, "")
    if name == "ATOMIC_GROUP":
        return _all(argument, rng, groups)
    if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        low, high, what = argument
        times = rng.randint(low, min(int(high), low + _MORE))
        return "".join(_all(what, rng, groups) for _ in range(times))
    raise _BeyondUsError(f"{name.lower()} is beyond an emulated engine")


def _all(parsed: Any, rng: random.Random, groups: dict[int, str]) -> str:
    return "".join(_said(op, argument, rng, groups) for op, argument in parsed)


def _one_of(members: Any, rng: random.Random) -> str:
    without = str(members[0][0]) == "NEGATE"
    named: list[str] = []
    for op, argument in members[1:] if without else members:
        kind = str(op)
        if kind == "LITERAL":
            named.append(chr(argument))
        elif kind == "RANGE":
            low, high = argument
            # A wide range is sampled: all of it may be all of Unicode.
            named += map(chr, range(low, high + 1) if high - low < 256 else (low, (low + high) // 2, high))
        elif kind == "CATEGORY":
            named += _CLASSES[str(argument)]
    if without:
        taken = set(named)
        named = [c for c in _WORD + "ABC .-_" if c not in taken]
    if not named:
        raise _BeyondUsError("an empty set")
    return rng.choice(named)
