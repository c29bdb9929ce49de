"""Recordings of events and actions as lines of JSON, and their replay. Pure.

The first line names the format and holds the configuration; every other line is `[now_s, event, actions]`. A fresh
machine that is fed the events must answer with the same actions. If it does not, it read something besides its events
(a clock, the order of a set, a global generator), or the code has changed since. The functions here are those of the
router's recordings; a scaler's are in `gateway.core.scale.recording`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from gateway.core.events import AnyAction, AnyEvent
from gateway.core.router import Router, RouterConfig

FORMAT = 1

Config = TypeVar("Config")
Event = TypeVar("Event")
Action = TypeVar("Action")


class RecordingError(ValueError):
    """Not a recording, or one of another format. The message says which line and what to do."""


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One event, when it was handled, and what the router wanted done."""

    now_s: float
    event: AnyEvent
    actions: list[AnyAction]


class Divergence(msgspec.Struct, frozen=True, kw_only=True):
    """An event to which the fresh machine answers otherwise."""

    line: int
    """Line number in the recording, from 1."""
    now_s: float
    event: Any
    recorded: list[Any]
    replayed: list[Any]
    error: str = ""
    """What the fresh machine raised instead of answering."""

    def __str__(self) -> str:
        replayed = self.error or [_name(action) for action in self.replayed]
        recorded = [_name(action) for action in self.recorded]
        return f"line {self.line}, {type(self.event).__name__} at {self.now_s:.6f} s: {recorded} became {replayed}"


class _Machine(Protocol):
    """What is recorded: it answers events with actions."""

    def handle(self, event: Any, now_s: float, /) -> Any: ...


class RecordingFormat(Generic[Config, Event, Action]):
    """The recordings of one kind of machine."""

    def __init__(
        self,
        key: str,
        config: type[Config],
        entry: type[Any],
        make: Callable[[Config], _Machine],
        *,
        made_by: str,
        enc_hook: Callable[[Any], Any] | None = None,
        dec_hook: Callable[[type, Any], Any] | None = None,
    ) -> None:
        """`entry` is a line as it is decoded, (now_s, event, actions); `make` makes the machine of its configuration.
        `key` is what the first line says that it is, `made_by` what people are asked about a file that is none. The
        hooks are msgspec's, for types that it does not know."""
        self._key = key
        self._config = config
        self._make = make
        self._made_by = made_by
        self._dec_hook = dec_hook
        self._encoder = msgspec.json.Encoder(enc_hook=enc_hook)
        self._header_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
        self._entry_decoder = msgspec.json.Decoder(entry, dec_hook=dec_hook)

    def header_line(self, config: Config) -> bytes:
        """The first line, with its line end."""
        return self._encoder.encode({self._key: FORMAT, "config": config}) + b"\n"

    def entry_line(self, now_s: float, event: Event, actions: Sequence[Action]) -> bytes:
        """One line, with its line end."""
        return self._encoder.encode((now_s, event, actions)) + b"\n"

    def read_header(self, line: bytes | str) -> Config:
        """The configuration of what was recorded. Raises RecordingError."""
        try:
            head = self._header_decoder.decode(line)
            if self._key not in head or "config" not in head:
                raise msgspec.ValidationError(f"it has no {self._key!r} and config")
            version = msgspec.json.decode(head[self._key], type=int)
            if version == FORMAT:
                return msgspec.json.decode(head["config"], type=self._config, dec_hook=self._dec_hook)
        except msgspec.MsgspecError as problem:
            raise RecordingError(
                f"line 1: not the head of a recording ({problem}); was the file made by {self._made_by}?"
            ) from None
        raise RecordingError(
            f"line 1: recording format {version}, this version reads {FORMAT}; replay it with the version that wrote it"
        )

    def begin(self, lines: Iterable[bytes | str]) -> tuple[_Machine, Iterator[tuple[int, Any]]]:
        """A fresh machine, and what it is to be fed: numbers of lines and entries. A last line without its end, as a
        killed gateway leaves it, is not read. Raises RecordingError, also while it is read."""
        rest = iter(lines)
        head = next(rest, None)
        if head is None:
            raise RecordingError("line 1: the recording is empty")
        return self._make(self.read_header(head)), self._entries(rest)

    def _entries(self, lines: Iterator[bytes | str]) -> Iterator[tuple[int, Any]]:
        for number, line in enumerate(lines, start=2):
            raw = line.encode() if isinstance(line, str) else line
            if not raw.endswith(b"\n"):
                return
            try:
                yield number, self._entry_decoder.decode(raw)
            except msgspec.MsgspecError as problem:
                raise RecordingError(f"line {number}: not an entry of a recording ({problem})") from None

    def replay(self, lines: Iterable[bytes | str], *, limit: int = 10) -> list[Divergence]:
        """Feeds a recording to a fresh machine and lists where it answers otherwise, at most `limit` times.

        After the first divergence the two are in different states, so the first is the one to look at. Raises
        RecordingError.
        """
        machine, entries = self.begin(lines)
        divergences: list[Divergence] = []
        for number, entry in entries:
            error = ""
            replayed: list[Action] = []
            try:
                replayed = machine.handle(entry.event, entry.now_s)
            except Exception as raised:
                error = f"{type(raised).__name__}: {raised}"
            if error or replayed != entry.actions:
                divergences.append(
                    Divergence(
                        line=number,
                        now_s=entry.now_s,
                        event=entry.event,
                        recorded=entry.actions,
                        replayed=replayed,
                        error=error,
                    )
                )
                if len(divergences) >= limit:
                    break
        return divergences


ROUTERS: RecordingFormat[RouterConfig, AnyEvent, AnyAction] = RecordingFormat(
    "astrolabe_recording", RouterConfig, Entry, Router, made_by="--record"
)

header_line = ROUTERS.header_line
entry_line = ROUTERS.entry_line
read_header = ROUTERS.read_header
replay = ROUTERS.replay


def _name(action: Any) -> str:
    node_id = getattr(action, "node_id", "")
    return f"{type(action).__name__}({node_id})" if node_id else type(action).__name__
