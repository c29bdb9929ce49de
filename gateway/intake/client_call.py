"""A client's own HTTP call to an engine's server, and what has come of the engine's answer: bytes, never read here."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from gateway.core.outcomes import COMPLETE
from gateway.intake.resumable_answer import ResumableAnswer
from protos.answer_status import may_be_spared
from simcore.types import Outcome

Headers = tuple[tuple[str, str], ...]
"""Names in lower case, values as they came; a name may come twice."""

KEEP_BYTES = 64 * 1024
"""Longest body of an answer that another node may spare the client; a longer one goes to the client."""
REPORT_BYTES = 64 * 1024
"""So much must have been taken before the node is told again: it holds an answer at 1 MiB."""
STANDSTILL_S = 60.0
"""A client that has taken nothing for so long, though there was something, is given up."""
SOMEBODY_FAILED = frozenset(
    {Outcome.OVERLOADED, Outcome.ENGINE_FAILED, Outcome.NODE_LOST, Outcome.NO_NODE, Outcome.INTERNAL}
)
"""Ends after which the last answer that was kept back is the best that there is to say."""


class ClientCall(msgspec.Struct, kw_only=True):
    """The call, as the engine's server is to get it."""

    method: str
    target: str
    """Path and query."""
    headers: Headers
    """What the client says beside its body; nothing of the connection and no keys."""
    body: bytes | bytearray
    """Emptied when no other node can be asked any more for all of it."""
    body_bytes: int
    """Length of the whole body."""
    is_light: bool = False
    """Whether the engine's server answers it without the engine: then there is nothing to forecast."""
    is_aside: bool = False
    """Whether it is a question of the gateway's own: nobody's request, and not counted among them."""
    resumable: ResumableAnswer | None = None
    """How another node goes on with a begun answer; None: it does not."""


class AnswerHead(msgspec.Struct, frozen=True):
    """The head of an engine's own answer."""

    status: int
    headers: Headers


class KeptAnswer(NamedTuple):
    """A complete answer that was kept back while another node was tried."""

    head: AnswerHead
    data: bytes


class CallAnswer:
    """The answer to one call. The pump writes, one front's call reads; a new attempt begins it anew.

    Nothing of it is shown (`has_begun`) before the first bytes of its body have come: until then another node can still
    be asked. What has been shown stays when another node goes on with it (`go_on`).
    """

    __slots__ = (
        "_came_bytes",
        "_is_deaf",
        "_is_held",
        "_is_later",
        "_pieces",
        "_resumable",
        "_told_tied",
        "has_begun",
        "head",
        "is_complete",
        "is_streamed",
        "kept",
        "unread_bytes",
        "unreported_bytes",
    )

    def __init__(self, resumable: ResumableAnswer | None = None) -> None:
        self.head: AnswerHead | None = None
        self.has_begun = False
        """Whether its reader may have it."""
        self.is_complete = False
        self.is_streamed = False
        """Whether it is a stream of server-sent events, which are as old as they look."""
        self.kept: KeptAnswer | None = None
        """What the last node answered that failed the call."""
        self.unread_bytes = 0
        self.unreported_bytes = 0
        """Taken by the reader since the node was last told."""
        self._pieces: list[bytes] = []
        self._came_bytes = 0
        self._is_held = False
        self._resumable = resumable
        self._told_tied = False
        self._is_later = False
        """Whether the present node goes on with what another has begun."""
        self._is_deaf = False
        """Whether what it says is no part of the answer."""

    def expect(self) -> None:
        """Another attempt begins; none of the last one's answer has been shown."""
        assert not self.has_begun, "an answer that has been shown cannot be taken back"
        self._forget()

    def go_on(self, came_tokens: int) -> bytes:
        """Another attempt goes on with what has been shown, which is `came_tokens` long; the body that asks for it."""
        assert self.has_begun, "nothing has been shown"
        assert self._resumable is not None, "it was not to go on elsewhere"
        self._is_later = self._is_deaf = True
        # The next node has not sent what is still unread.
        self.unreported_bytes = -self.unread_bytes
        return self._resumable.body_for(came_tokens)

    def newly_tied(self) -> bool:
        """Whether what has been shown is from now on such that no other node can go on with it; told once."""
        resumable = self._resumable
        if resumable is None or self._told_tied or not (self.has_begun and resumable.is_tied):
            return False
        self._told_tied = True
        return True

    def put_head(self, head: AnswerHead) -> None:
        is_readable = True
        if self._resumable is not None:
            content_type, encoding = (header(head.headers, f"content-{name}") for name in ("type", "encoding"))
            is_readable = self._resumable.begin(head.status, content_type, encoding)
        if self._is_later:
            self._is_deaf = not is_readable
            return
        self.head = head
        self.is_streamed = header(head.headers, "content-type").startswith("text/event-stream")
        self._came_bytes = 0
        self._is_held = may_be_spared(head.status)

    def put(self, data: bytes) -> None:
        """The next bytes of the body. Before a head they are dropped: the node has left the order."""
        if self.head is None or self._is_deaf:
            return
        self._came_bytes += len(data)
        if self._resumable is not None:
            came_bytes = len(data)
            data = self._resumable.read(data)
            self.unreported_bytes += came_bytes - len(data)
            if not data:
                return
        self._pieces.append(data)
        self.unread_bytes += len(data)
        if not self._is_held or self.unread_bytes > KEEP_BYTES:
            self._is_held = False
            self.has_begun = True

    def end(self, outcome: Outcome) -> None:
        """No more comes of this attempt. It is complete unless its engine failed in the middle of it; an engine's word
        that it fails (a status from 400 on) is complete as far as its stated length says nothing else."""
        if outcome in COMPLETE and not self._is_deaf:
            self._put_rest()
        if self._is_later:
            self.is_complete = outcome in COMPLETE and not self._is_deaf
            return
        is_complete = self.head is not None and (
            outcome in COMPLETE or outcome is Outcome.INVALID or (self.head.status >= 400 and self._has_its_length())
        )
        if self.head is not None and is_complete and self._is_held:
            self.kept = KeptAnswer(self.head, b"".join(self._pieces))
        elif is_complete:
            self.has_begun = self.is_complete = True
        if not self.has_begun:
            self._forget()

    def take(self) -> bytes:
        """What has come and may be shown, once."""
        if not self.has_begun or not self._pieces:
            return b""
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._drop()
        self.unreported_bytes += len(data)
        return data

    def last_words(self, outcome: Outcome) -> KeptAnswer | None:
        """What the client gets when no node's answer was shown: what the last one said, if that tells why."""
        return self.kept if outcome in SOMEBODY_FAILED or outcome in COMPLETE else None

    def _put_rest(self) -> None:
        rest = b"" if self._resumable is None else self._resumable.end()
        if rest:
            self._pieces.append(rest)
            self.unread_bytes += len(rest)
            self.unreported_bytes -= len(rest)

    def _has_its_length(self) -> bool:
        assert self.head is not None, "asked of an answer with a head"
        length = header(self.head.headers, "content-length")
        # None of it comes where only the head was asked for.
        return not length.isdecimal() or self._came_bytes in (0, int(length))

    def _forget(self) -> None:
        self.head = None
        self.is_streamed = False
        self._drop()

    def _drop(self) -> None:
        self._pieces = []
        self.unread_bytes = 0


def header(headers: Headers, name: str) -> str:
    """The first value of a header; empty without one."""
    for known, value in headers:
        if known == name:
            return value
    return ""
