"""A file of nodes that somebody else writes, looked at once a second.

`.json`: a list of addresses, or what Prometheus' `file_sd_configs` reads (a label `node_id` is the node's name).
`.toml`: `nodes`, as in the gateway's own file. Any other: an address a line, `#` begins a comment.
"""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import orjson

from gateway.config import NodeEntry
from gateway.nodes.sources.base import NodesUnknown

LOOK_S = 1.0
Stamp = tuple[int, int, int]
"""Changes with the file: whether it is written in place or another one takes its name."""


class _Targets(msgspec.Struct):
    """One group of Prometheus' `file_sd_configs`."""

    targets: list[str]
    labels: dict[str, str] = {}


class _Table(msgspec.Struct, forbid_unknown_fields=True):
    nodes: list[str | NodeEntry]


class NodeFileSource:
    """A file that is missing, empty or broken says nothing: it may be about to be written."""

    def __init__(self, path: Path) -> None:
        self.where = f"file {path}"
        self._path = path

    async def lists(self) -> AsyncGenerator[Sequence[NodeEntry], None]:
        stamp: Stamp | None = None
        while True:
            # A folder of another machine may keep us waiting.
            read = await asyncio.to_thread(self._read_unless, stamp)
            if read is not None:
                stamp, data = read
                yield nodes_in(self._path.name, data)
            await asyncio.sleep(LOOK_S)

    def _read_unless(self, seen: Stamp | None) -> tuple[Stamp, bytes] | None:
        """None: it is as it was seen. Raises NodesUnknown."""
        try:
            state = self._path.stat()
            stamp = (state.st_ino, state.st_mtime_ns, state.st_size)
            return None if stamp == seen else (stamp, self._path.read_bytes())
        except OSError as error:
            raise NodesUnknown(f"{self._path}: {error.strerror}") from None


def nodes_in(name: str, data: bytes) -> list[NodeEntry]:
    """The nodes that a file of that name lists. Raises NodesUnknown."""
    try:
        text = data.decode()
        if not text.strip():
            raise ValueError("is empty; for no nodes write [] (.json), nodes = [] (.toml) or a comment alone")
        if name.endswith(".json"):
            return _in_json(orjson.loads(text))
        if name.endswith(".toml"):
            return [_entry(one) for one in msgspec.convert(tomllib.loads(text), _Table).nodes]
        lines = (line.partition("#")[0].strip() for line in text.splitlines())
        return [_entry(line) for line in lines if line]
    except (ValueError, msgspec.ValidationError) as bad:
        raise NodesUnknown(f"{name}: {bad}") from None


def _in_json(tree: Any) -> list[NodeEntry]:
    if isinstance(tree, list) and all(isinstance(one, str) for one in tree):
        return [_entry(one) for one in tree]
    found = []
    for group in msgspec.convert(tree, list[_Targets]):
        # One name cannot be that of several.
        name = group.labels.get("node_id", "") if len(group.targets) == 1 else ""
        found += [_entry(NodeEntry(address=target, name=name)) for target in group.targets]
    return found


def _entry(said: str | NodeEntry) -> NodeEntry:
    """Raises ValueError."""
    entry = NodeEntry(address=said) if isinstance(said, str) else said
    if entry.is_name:
        raise ValueError(f"{entry.address} is a name to be resolved, which only the gateway's own nodes may be")
    return entry
