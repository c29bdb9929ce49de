"""Values by group of a fleet, as options say them: one for all, or `a30=2,h100=0`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def by_group(value: object, groups: Sequence[str], read: Callable[[str], T], *, key: str) -> dict[str, T]:
    """What is said of each group; groups that are not named are left out. Nothing said, `""`: none is named.

    Raises ValueError naming `key`, for a group that is not there and for what `read` cannot read.
    """
    text = str(value).strip()
    if not text:
        return {}
    if "=" not in text:
        return dict.fromkeys(groups, _read(text, read, key))
    found: dict[str, T] = {}
    for part in text.split(","):
        name, equals, own = (word.strip() for word in part.partition("="))
        if not equals or name not in groups or name in found:
            raise ValueError(
                f"{key}: cannot read {part.strip()!r}; write one value, or GROUP=VALUE,... with the groups "
                f"{', '.join(groups)}"
            )
        found[name] = _read(own, read, key)
    return found


def _read(text: str, read: Callable[[str], T], key: str) -> T:
    try:
        return read(text)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def count(text: str) -> int:
    """A number of nodes. Raises ValueError."""
    if not text.isdecimal():
        raise ValueError(f"cannot read the number {text!r}; write a whole number of 0 or more")
    return int(text)


def price(text: str) -> float:
    """Of a node-hour. Raises ValueError."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError(f"cannot read the price {text!r}; write a number of 0 or more")
    return value
