"""What the prefix cache of a simulated node holds, followed from look to look."""

from __future__ import annotations

import numpy as np

from simcore.compiled.layout import Ints
from simcore.node import SimNode


class CacheContent:
    """Names in one simulated node's cache. A look costs as much as has changed, and a glance at every block."""

    def __init__(self, node: SimNode) -> None:
        self._node = node
        self._keys = np.zeros(node.config.num_blocks, dtype=np.int64)
        self._named = np.zeros(node.config.num_blocks, dtype=np.bool_)
        self._one_in = 1
        self._blocks: dict[int, int] = {}
        """How many blocks have each name that is told."""

    def names(self) -> list[int]:
        """All that were there at the last look; one that several blocks have as often as that."""
        return _unsigned(self._keys[self._named])

    def look(self, one_in: int) -> tuple[list[int], list[int]]:
        """(Names that have come since the last look, names that have gone), those that are told
        (`cache_summary.is_told`)."""
        if one_in != self._one_in:
            self._one_in = one_in
            self._blocks = {}
            for name in _unsigned(self._told(self._keys[self._named])):
                self._blocks[name] = self._blocks.get(name, 0) + 1
        found = self._node.cached_names()
        if found is None:
            return [], []
        keys, named = found[0], found[1] == 1
        differs = (named != self._named) | (named & (keys != self._keys))
        if not differs.any():
            return [], []
        changed = np.flatnonzero(differs)
        was, now = changed[self._named[changed]], changed[named[changed]]
        gone, come = _unsigned(self._told(self._keys[was])), _unsigned(self._told(keys[now]))
        self._named[changed] = named[changed]
        self._keys[now] = keys[now]
        blocks = self._blocks
        before = {name: name in blocks for name in (*come, *gone)}
        for name in come:
            blocks[name] = blocks.get(name, 0) + 1
        for name in gone:
            if blocks[name] > 1:
                blocks[name] -= 1
            else:
                del blocks[name]
        stored = [name for name, was_there in before.items() if not was_there and name in blocks]
        return stored, [name for name, was_there in before.items() if was_there and name not in blocks]

    def _told(self, keys: Ints) -> Ints:
        return keys if self._one_in == 1 else keys[(keys >> 32) & (self._one_in - 1) == 0]


def _unsigned(keys: Ints) -> list[int]:
    names: list[int] = keys.view(np.uint64).tolist()
    return names
