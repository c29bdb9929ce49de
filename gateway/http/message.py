"""HTTP/1.1 messages as bytes: the request that has come, the heads of responses. Knows nothing of what they say."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from email.utils import formatdate
from http import HTTPStatus

import msgspec

LAST_CHUNK = b"0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_PHRASES = {int(s): s.phrase for s in HTTPStatus} | {499: "Client Closed Request"}
_date = (0, "")


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request, complete."""

    method: str
    path: str
    """Without the query; decoded."""
    headers: Mapping[str, str]
    """Names in lower case; of one that comes twice the last."""
    body: bytes | bytearray
    is_http10: bool = False
    url: str = ""
    """Path and query as they came."""
    lines: Sequence[tuple[str, str]] = ()
    """All headers in their order, names in lower case."""


def head(
    status: int,
    headers: Mapping[str, str] | Sequence[tuple[str, str]],
    *,
    length: int | None,
    keep_alive: bool,
    chunked: bool = True,
) -> bytes:
    """Status line and headers, whose names must be in lower case; `date` is added unless it is among them. `length`
    None: the body comes in chunks (`chunked`) or ends with the connection.

    Header values must be checked by whoever takes them from a client: no line breaks.
    """
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    lines = [f"HTTP/1.1 {status} {_PHRASES.get(status, 'Unknown')}"]
    if not any(name == "date" for name, _ in pairs):
        lines.append(f"date: {_http_date()}")
    lines += [f"{name}: {value}" for name, value in pairs]
    if length is not None:
        lines.append(f"content-length: {length}")
    elif chunked:
        lines.append("transfer-encoding: chunked")
    if not keep_alive:
        lines.append("connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", errors="replace")


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body; `data` must not be empty, which would end it."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _http_date() -> str:
    global _date
    now = int(time.time())
    if now != _date[0]:
        _date = (now, formatdate(now, usegmt=True))
    return _date[1]
