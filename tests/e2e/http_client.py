"""A bare HTTP/1.1 client on a socket: says exactly what the test wants, reads exactly what came."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Self

import msgspec


class Reply(msgspec.Struct, frozen=True):
    """One response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The `data:` lines, decoded; the last is `[DONE]` as text if it came."""
        lines = [line[6:] for line in self.body.decode().split("\n") if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]


class RawClient:
    """One connection."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._where = (host, int(port))
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection(*self._where)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> None:
        self.send(message("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), headers or {}))

    def get(self, path: str, headers: dict[str, str] | None = None) -> None:
        self.send(message("GET", path, b"", headers or {}))

    async def reply(self, deadline_s: float = 10.0) -> Reply:
        """The next response, whole."""
        async with asyncio.timeout(deadline_s):
            status, headers = await self.head()
            if "content-length" in headers:
                return Reply(status, headers, await self.reader.readexactly(int(headers["content-length"])))
            if headers.get("transfer-encoding") != "chunked":
                return Reply(status, headers, await self.reader.read())
            body = b""
            while piece := await self.chunk():
                body += piece
            return Reply(status, headers, body)

    async def head(self) -> tuple[int, dict[str, str]]:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), headers

    async def chunk(self) -> bytes:
        """The next chunk; empty at the end."""
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def is_closed(self, deadline_s: float = 10.0) -> bool:
        """Whether the other side closes, with no more to say."""
        async with asyncio.timeout(deadline_s):
            try:
                return await self.reader.read() == b""
            except ConnectionError:
                return True


def message(method: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: test", *(f"{k}: {v}" for k, v in headers.items())]
    if method == "POST":
        lines.append(f"content-length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body
