"""One request sent to two servers, and what differs between their replies, field by field.

A stream is compared as what it adds up to and as the set of its events' shapes: in how many pieces a server sends an
answer depends on how busy it is.
"""

from __future__ import annotations

import http.client
import json
import math
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 120.0
HERE = "<here>"
ROUNDING = 1e-6
"""Two texts computed in one step or one after the other differ in the last digit of single precision."""
KNOWN = {
    "ids": "each server makes up its own; the same one must stand where the other's stands",
    "times": "of creation and completion",
    "framing": "headers that speak of the connection, the date or the server's software, and those of the gateway",
    "pieces": "in how many events a stream comes, and so their sequence numbers",
}
"""What may differ in every reply, and why."""
OWN_ANSWERS = {
    "nulls": "fields that say nothing are left out",
    "cache": "vLLM's own count of tokens that are new in a node's cache",
    "fingerprint": "of the node's server: an answer that the gateway puts together from tokens may come from several",
    "shapes": "the first event of a stream has the role and the first text, vLLM's the role alone",
    "caches": "headers that ask caches and proxies to hold nothing back, and no `vary`",
}
"""What may differ besides where the gateway has made the answer of an engine's tokens."""
OWN_REFUSALS = "the gateway's errors have words, types and codes of its own; their statuses are those of vLLM"
FRAMING = frozenset(
    {"connection", "content-length", "date", "keep-alive", "server", "transfer-encoding", "x-request-id"}
)
CACHES = frozenset({"cache-control", "vary", "x-accel-buffering"})
OF_ONE_NODE = frozenset({"system_fingerprint", "created_cache_tokens"})
OURS = "x-astrolabe-"
TIMES = frozenset({"created", "created_at", "completed_at"})
MADE_UP = re.compile(
    r"((?:chatcmpl-tool|chatcmpl|cmpl|resp|msg|fc|rs|modelperm|call|embd|embed|pool|pooling|classify|score|rerank)[-_])[\w=-]{8,}"
)
TEXTS = frozenset(
    {"content", "text", "arguments", "reasoning", "reasoning_content", "delta", "partial_json", "thinking"}
)


@dataclass(frozen=True)
class Call:
    """One request. `body`: what is to be JSON, or bytes sent as they are."""

    path: str
    body: Any = None
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)

    def data(self) -> bytes | None:
        if self.body is None or isinstance(self.body, bytes):
            return self.body
        return json.dumps(self.body).encode()


@dataclass(frozen=True)
class Reply:
    """What came back; the server's own address stands as HERE in it."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_stream(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")


def send(url: str, call: Call) -> Reply:
    """The whole reply; of a stream too."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT_S)
    try:
        data = call.data()
        headers = {"Content-Type": "application/json"} if data is not None else {}
        connection.request(call.method, call.path, body=data, headers={**headers, **call.headers})
        return _read(connection.getresponse(), url)
    finally:
        connection.close()


def send_raw(url: str, data: bytes) -> Reply:
    """What comes in reply to these very bytes; an interim reply is passed over."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname or "", where.port or 80), timeout=TIMEOUT_S) as connection:
        connection.sendall(data)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return _read(response, url)


def _read(response: http.client.HTTPResponse, url: str) -> Reply:
    here = urlsplit(url).netloc
    headers: dict[str, str] = {}
    for name, value in response.getheaders():
        name, value = name.lower(), value.replace(here, HERE)
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return Reply(response.status, headers, response.read().replace(here.encode(), HERE.encode()))


def differences(one: Reply, other: Reply) -> list[str]:
    """One line for each field that differs; empty if none does."""
    return list(_compare("", told(one), told(other)))


def differences_from_the_server(plain: Reply, through: Reply) -> list[str]:
    """The same for a server's reply and one through a gateway: less is asked of those that are the gateway's own."""
    if "server" in through.headers:
        return differences(plain, through)
    if through.status < 400:
        return list(_compare("", told(plain, lean=True), told(through, lean=True)))
    if plain.status != through.status:
        return differences(plain, through)
    error = json.loads(through.body).get("error", {})
    return [] if error.get("message") and error.get("type") else [f"no error: {through.body.decode()[:300]}"]


def told(reply: Reply, *, lean: bool = False) -> dict[str, Any]:
    """A reply without what is KNOWN to differ; a lean one also without what differs in OWN_ANSWERS."""
    apart = FRAMING | (CACHES if lean else frozenset())
    headers = {k: _read_json(v) for k, v in reply.headers.items() if k not in apart and not k.startswith(OURS)}
    body: Any
    if reply.is_stream:
        body = _stream(reply.body.decode(), lean=lean)
    else:
        try:
            body = json.loads(reply.body)
        except ValueError:
            body = reply.body.decode(errors="replace")
        body = _without_nothing(body) if lean else body
    return {"status": reply.status, "headers": _neutral(headers, {}), "body": _neutral(body, {})}


def _read_json(value: str) -> Any:
    """A header's value, as JSON where it is some."""
    return json.loads(value) if value.startswith("{") else value


def _without_nothing(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nothing(v) for k, v in value.items() if v is not None and k not in OF_ONE_NODE}
    return [_without_nothing(v) for v in value] if isinstance(value, list) else value


def events(text: str) -> list[tuple[str, Any]]:
    """Name and data of each event of a stream; the data as JSON where it is."""
    found: list[tuple[str, Any]] = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        lines = [line.partition(":") for line in block.split("\n") if line and not line.startswith(":")]
        if not lines:
            continue
        name = next((value.strip() for key, _, value in lines if key == "event"), "")
        data = "\n".join(value.removeprefix(" ") for key, _, value in lines if key == "data")
        try:
            found.append((name, json.loads(data)))
        except ValueError:
            found.append((name, data))
    return found


def _stream(text: str, *, lean: bool) -> dict[str, Any]:
    sums: dict[str, Any] = {}
    shapes: dict[str, set[str]] = {}
    order: list[str] = []
    for name, data in events(text):
        part = data if isinstance(data, dict) else {}
        part = _without_nothing(part) if lean else part
        place = [str(part[k]) for k in ("output_index", "content_index", "index") if k in part]
        kind = " ".join([name, str(part.get("type", part.get("object", "" if part else data))), *place]).strip()
        if not order or order[-1] != kind:
            order.append(kind)
        part = {k: v for k, v in part.items() if k != "sequence_number"}
        sums[kind] = _added(sums[kind], part) if kind in sums else part
        shapes.setdefault(kind, set()).add(_shape(_without_last_text(part)))
    told = {"order": order, "sum": sums}
    return told if lean else {**told, "shapes": {k: sorted(v) for k, v in shapes.items()}}


def _without_last_text(part: dict[str, Any]) -> dict[str, Any]:
    """Whether the last text comes with the reason of the end or right before it hangs on how busy the server is."""
    if not any(isinstance(choice, dict) and choice.get("finish_reason") for choice in part.get("choices") or ()):
        return part
    choices = [
        {**choice, "delta": {k: v for k, v in choice["delta"].items() if k not in TEXTS}}
        if "delta" in choice
        else choice
        for choice in part["choices"]
    ]
    return {**part, "choices": choices}


def _added(before: Any, now: Any, key: str = "") -> Any:
    """What two pieces of a stream amount to."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = list(dict.fromkeys((*before, *now)))
        return {n: _added(before.get(n), now[n], n) if n in now else before[n] for n in names}
    if isinstance(before, list) and isinstance(now, list):
        if all(isinstance(i, dict) and "index" in i for i in (*before, *now)):
            by_index = {i["index"]: i for i in before}
            for item in now:
                i = item["index"]
                by_index[i] = _added(by_index[i], item) if i in by_index else item
            return [by_index[i] for i in sorted(by_index)]
        return [*before, *now]
    if isinstance(before, str) and isinstance(now, str) and key in TEXTS:
        return before + now
    return before if now is None else now


def _shape(value: Any) -> str:
    """Names and kinds of all that is in a value, without how long texts and lists are."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_shape(v)}" for k, v in sorted(value.items())) + "}"
    if isinstance(value, list):
        return "[" + " | ".join(sorted({_shape(v) for v in value})) + "]"
    return "null" if value is None else type(value).__name__


def _neutral(value: Any, names: dict[str, str], key: str = "") -> Any:
    """Ids numbered as they come, times by their kind alone."""
    if isinstance(value, dict):
        return {_numbered(k, names): _neutral(v, names, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_neutral(v, names) for v in value]
    if key in TIMES and isinstance(value, int | float):
        return "<time>"
    return _numbered(value, names) if isinstance(value, str) else value


def _numbered(text: str, names: dict[str, str]) -> str:
    def number(found: re.Match[str]) -> str:
        made_up = found.group()
        return names.setdefault(made_up, f"<{found.group(1)}{len(names)}>")

    return MADE_UP.sub(number, text)


def _compare(where: str, one: Any, other: Any) -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys((*one, *other)):
            if key not in other:
                yield f"{where}.{key}: {_short(one[key])}, other: absent"
            elif key not in one:
                yield f"{where}.{key}: absent, other: {_short(other[key])}"
            else:
                yield from _compare(f"{where}.{key}", one[key], other[key])
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for i, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from _compare(f"{where}[{i}]", left, right)
    elif isinstance(one, float) and isinstance(other, float):
        if not math.isclose(one, other, rel_tol=ROUNDING):
            yield f"{where}: {one}, other: {other}"
    elif type(one) is not type(other) or one != other:
        yield f"{where}: {_short(one)}, other: {_short(other)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else f"{text[:300]}... ({len(text)} characters)"
