"""Recordings of a router's events and actions as lines of JSON, and their replay. Pure.

The first line names the format and holds the router's configuration; every other line is `[now_s, event, actions]`. A
fresh router that is fed the events must answer with the same actions. If it does not, it read something besides its
events (a clock, the order of a set, a global generator), or the code has changed since.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from gateway.core.events import AnyAction, AnyEvent
from gateway.core.router import Router, RouterConfig

FORMAT = 1


class RecordingError(ValueError):
    """Not a recording, or one of another format. The message says which line and what to do."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of a recording: its format and the configuration of the router."""

    astrolabe_recording: int
    config: RouterConfig


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One event, when it was handled, and what the router wanted done."""

    now_s: float
    event: AnyEvent
    actions: list[AnyAction]


class Divergence(msgspec.Struct, frozen=True, kw_only=True):
    """An event to which the fresh router answers otherwise."""

    line: int
    """Line number in the recording, from 1."""
    now_s: float
    event: AnyEvent
    recorded: list[AnyAction]
    replayed: list[AnyAction]
    error: str = ""
    """What the fresh router raised instead of answering."""

    def __str__(self) -> str:
        replayed = self.error or [_name(action) for action in self.replayed]
        recorded = [_name(action) for action in self.recorded]
        return f"line {self.line}, {type(self.event).__name__} at {self.now_s:.6f} s: {recorded} became {replayed}"


_encoder = msgspec.json.Encoder()
_header_decoder = msgspec.json.Decoder(Header)
_entry_decoder = msgspec.json.Decoder(Entry)


def header_line(config: RouterConfig) -> bytes:
    """The first line, with its line end."""
    return _encoder.encode(Header(astrolabe_recording=FORMAT, config=config)) + b"\n"


def entry_line(now_s: float, event: AnyEvent, actions: Sequence[AnyAction]) -> bytes:
    """One line, with its line end."""
    return _encoder.encode((now_s, event, actions)) + b"\n"


def read_header(line: bytes | str) -> RouterConfig:
    """The configuration of the recorded router. Raises RecordingError."""
    try:
        header = _header_decoder.decode(line)
    except msgspec.MsgspecError as problem:
        raise RecordingError(
            f"line 1: not the head of a recording ({problem}); was the file made by --record?"
        ) from None
    if header.astrolabe_recording != FORMAT:
        raise RecordingError(
            f"line 1: recording format {header.astrolabe_recording}, this version reads {FORMAT}; "
            "replay it with the version that wrote it"
        )
    return header.config


def replay(lines: Iterable[bytes | str], *, limit: int = 10) -> list[Divergence]:
    """Feeds a recording to a fresh router and lists where it answers otherwise, at most `limit` times.

    After the first divergence the two routers are in different states, so the first is the one to look at. A last line
    without its end, as a killed gateway leaves it, is not read. Raises RecordingError.
    """
    entries = iter(lines)
    head = next(entries, None)
    if head is None:
        raise RecordingError("line 1: the recording is empty")
    router = Router(read_header(head))
    divergences: list[Divergence] = []
    for number, line in enumerate(entries, start=2):
        raw = line.encode() if isinstance(line, str) else line
        if not raw.endswith(b"\n"):
            break
        try:
            entry = _entry_decoder.decode(raw)
        except msgspec.MsgspecError as problem:
            raise RecordingError(f"line {number}: not an entry of a recording ({problem})") from None
        error = ""
        replayed: list[AnyAction] = []
        try:
            replayed = router.handle(entry.event, entry.now_s)
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


def _name(action: AnyAction) -> str:
    node_id = getattr(action, "node_id", "")
    return f"{type(action).__name__}({node_id})" if node_id else type(action).__name__
