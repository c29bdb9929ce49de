"""Which releases understand each other: each side of a session tells what it speaks, and either refuses in one line.

The number counts changes of meaning only. Fields and frames that the other side does not know are passed over without
harm, and need no new number (`protos/compatibility.md`).
"""

from __future__ import annotations

import functools
import importlib.metadata
from typing import NamedTuple

NUMBER = 1
"""Of the protocol that this release speaks."""
OLDEST = 1
"""The oldest that it understands: that of the release before, at least."""


class Protocol(NamedTuple):
    """What one side speaks."""

    number: int
    oldest: int
    release: str
    """Of its software, for people."""


@functools.cache
def ours() -> Protocol:
    """This process's."""
    try:
        release = importlib.metadata.version("astrolabe")
    except importlib.metadata.PackageNotFoundError:
        release = "unknown"
    return Protocol(NUMBER, OLDEST, release)


def disagreement(theirs: Protocol, own: Protocol, *, they: str, we: str) -> str:
    """Why the two cannot work together, with who is to be upgraded, for people; empty if they can."""
    if theirs.number >= own.oldest and own.number >= theirs.oldest:
        return ""
    behind = we if own.number < theirs.number else they
    return f"{they} speaks {_spoken(theirs)}, {we} {_spoken(own)}; upgrade {behind}"


def _spoken(one: Protocol) -> str:
    oldest = "" if one.oldest == one.number else f" and from {one.oldest} on"
    return f"protocol {one.number}{oldest} (release {one.release or 'unknown'})"
