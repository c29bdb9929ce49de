"""What an engine's prefix cache holds, in few bytes: what a node tells its gateways of it.

A block goes by the low half of its name (`simcore.prefix`). Where an engine has more blocks than a summary may have
names, only some are told, chosen by the high half of their names: so whoever asks for a prompt knows which of its
blocks would be told if they were cached.
"""

from __future__ import annotations

import msgspec

MOST_NAMES = 16_384
"""Names in a summary at most: 64 KiB on the wire, about 1.5 MB in a gateway."""
MOST_ONE_IN = 1 << 16
_LOW = 0xFFFF_FFFF


class CacheSummary(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The whole content, or what has changed since the summary before."""

    number: int
    """That of the summary before plus 1; anything else is a gap, unless `whole`."""
    whole: bool = False
    """Nothing of what was told before holds: `stored` is all there is."""
    one_in: int = 1
    """A power of two: of so many blocks about one is told (`is_told`)."""
    stored: tuple[int, ...] = ()
    """Names (`told_name`) that are there now and were not."""
    evicted: tuple[int, ...] = ()
    """Names that are not there any more."""
    names: int = 0
    """How many there are after this."""
    unknown: bool = False
    """The node does not know what is cached until it tells the whole again."""


def told_name(name: int) -> int:
    """What a block of this name goes by."""
    return name & _LOW


def is_told(name: int, one_in: int) -> bool:
    """Whether a block of this name is told if it is cached. `one_in` is a power of two."""
    return not (name >> 32) & (one_in - 1)
