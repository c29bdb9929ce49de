"""Every parser of the gateway under anything: it takes it or refuses it in words, and never breaks."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.config import load
from gateway.http.bodies import (
    NEUTRAL,
    ChatBody,
    CompletionBody,
    chat_body,
    client_request,
    completion_body,
    prompt_of,
)
from gateway.http.chat import messages_of, question_and_history
from gateway.http.connection import Connection, ConnectionLimits, Exchange
from gateway.intake.callers import KeyEntry, KeyFile, KeyRing, digest, read_keys, write_keys
from gateway.intake.denied import Denied
from protos.runtime.config import ConfigError

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
FIELDS = sorted({*CompletionBody.__struct_fields__, *ChatBody.__struct_fields__, *NEUTRAL, "user", "other"})
bodies = st.dictionaries(st.sampled_from(FIELDS), anything, max_size=6)
good = st.fixed_dictionaries({"prompt": st.just("x"), "messages": st.just([{"role": "user", "content": "x"}])})


def read(data: bytes) -> None:
    """As the front does it; raises nothing but Denied."""
    refusals = []
    for parse in (completion_body, chat_body):
        try:
            body: CompletionBody | ChatBody = parse(data)
            client_request(body, {}, "")
            if isinstance(body, ChatBody):
                question_and_history(messages_of(body.messages))
            elif isinstance(body, CompletionBody):
                prompt_of(body)
        except Denied as no:
            refusals.append(str(no))
    assert all(refusals)


@given(st.binary(max_size=200))
def test_bytes_as_a_body(data: bytes) -> None:
    read(data)


@given(bodies)
def test_json_as_a_body(fields: dict[str, Any]) -> None:
    read(json.dumps(fields).encode())


@given(bodies, good)
def test_a_good_body_with_something_odd_in_it(fields: dict[str, Any], rest: dict[str, Any]) -> None:
    read(json.dumps({**rest, **fields}).encode())


@given(st.text(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_text_as_a_key_file_or_a_configuration(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.toml"
    path.write_text(text, encoding="utf-8", errors="replace")
    refusals = []
    for parse in (read_keys, load):
        try:
            parse(path)
        except ConfigError as bad:
            refusals.append(str(bad))
    assert all(str(path) in refusal for refusal in refusals)


entries = st.builds(
    KeyEntry,
    name=st.from_regex(r"[A-Za-z0-9._@-]{1,20}", fullmatch=True),
    sha256=st.binary(min_size=32, max_size=32).map(bytes.hex),
    role=st.sampled_from(["client", "metrics", "admin"]),
    requests_per_s=st.floats(0, 1e6),
    burst=st.integers(1, 1000),
    max_concurrent=st.integers(0, 1000),
)


@given(st.lists(entries, max_size=5, unique_by=(lambda e: e.name, lambda e: e.sha256)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_key_files_are_read_as_they_were_written(tmp_path: Path, keys: list[KeyEntry]) -> None:
    path = tmp_path / "keys.toml"
    file = KeyFile(keys=tuple(keys))
    write_keys(path, file)
    assert read_keys(path) == file
    assert path.stat().st_mode & 0o077 == 0


@given(st.text(max_size=60))
def test_any_authorization_is_a_caller_or_refused(tmp_path_factory: pytest.TempPathFactory, header: str) -> None:
    path = tmp_path_factory.getbasetemp() / "ring.toml"
    if not path.exists():
        write_keys(path, KeyFile(keys=(KeyEntry(name="a", sha256=digest("secret").hex()),)))
    ring = KeyRing()
    ring.read(str(path))
    assert ring.identify("Bearer secret").name == "a"
    with pytest.raises(Denied):
        ring.identify(header)


class FakeTransport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.closed = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


pieces = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n",
        b"POST /v1/completions HTTP/1.1\r\n",
        b"host: x\r\n",
        b"content-length: 3\r\n",
        b"transfer-encoding: chunked\r\n",
        b"connection: upgrade\r\nupgrade: h2c\r\n",
        b"expect: 100-continue\r\n",
        b"\r\n",
        b"abc",
        b"3\r\nabc\r\n0\r\n\r\n",
    ]
) | st.binary(max_size=30)


@given(st.lists(pieces, max_size=12))
def test_bytes_on_a_connection(data: list[bytes]) -> None:
    """Each complete request is answered once, in order, and a broken one ends the connection."""

    async def talk() -> None:
        answered: list[Exchange] = []

        def answer(exchange: Exchange) -> None:
            answered.append(exchange)
            exchange.respond(200, {}, b"%d" % len(answered))

        transport = FakeTransport()
        registry: set[Connection] = set()
        connection = Connection(answer, ConnectionLimits(max_body_bytes=100, max_head_bytes=500), registry)
        connection.connection_made(transport)
        for piece in data:
            if not transport.closed:
                connection.data_received(piece)
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert transport.written.count(b"HTTP/1.1 200 OK") == len(answered)
        assert transport.written.count(b"HTTP/1.1 4") <= 1
        connection.connection_lost(None)
        assert not registry

    asyncio.run(talk())
