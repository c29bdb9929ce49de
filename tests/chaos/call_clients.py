"""Clients of calls that are handed on: they leave when they are told to, and know what a whole answer is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

import grpc
import grpc.aio
import msgspec

from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_engine_pb2 as engine_pb
from tests.chaos.scripted_engines import LONG_BYTES, PIECE, answered, streamed

Leaves = Literal["never", "amid_upload", "once_sent", "at_head", "amid_body", "sometime"]
GRPC_PART_BYTES = 256 * 1024
PATIENCE_S = 50.0


class Ended(msgspec.Struct, kw_only=True):
    """How a call ended for its client."""

    status: int = 0
    """Of HTTP, or of the head over gRPC; 0: none came."""
    body: bytes = b""
    is_whole: bool = False
    """Whether the transport says that the answer is complete."""
    left: bool = False
    code: str = ""
    """Of gRPC."""


class CallClient:
    """One call and all that comes of it."""

    def __init__(
        self, name: str, body: bytes, *, path: str = "/v1/embeddings", headers: dict[str, str] | None = None
    ) -> None:
        self.name = name
        self.body = body
        self.path = path
        self.headers = {"content-type": "application/json", "x-request-id": name, **(headers or {})}
        self.metadata: tuple[tuple[str, str], ...] = ()
        """Of gRPC."""
        self.leaves: Leaves = "never"
        self.leaves_after_s = 0.0
        self.upload_bytes_per_s = 0.0
        """0: as fast as it goes."""
        self.waits_s = 0.0
        """Before it begins to read."""
        self.ended = Ended()
        self.done = False

    # --- HTTP ---------------------------------------------------------------------------------------------------------

    async def over_http(self, address: str) -> None:
        try:
            limit_s = self.leaves_after_s if self.leaves == "sometime" else PATIENCE_S
            async with asyncio.timeout(limit_s):
                await self._http(address)
        except TimeoutError:
            self.ended.left = self.leaves == "sometime"
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        self.done = True

    async def _http(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=64 * 1024)
        try:
            lines = [f"POST {self.path} HTTP/1.1", "host: x", f"content-length: {len(self.body)}"]
            lines += [f"{name}: {value}" for name, value in self.headers.items()]
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
            if self.leaves == "amid_upload":
                writer.write(self.body[: len(self.body) // 2])
                await writer.drain()
                self.ended.left = True
                return
            await self._upload(writer)
            if self.leaves == "once_sent":
                self.ended.left = True
                return
            await asyncio.sleep(self.waits_s)
            await self._read(reader)
        finally:
            writer.transport.abort()

    async def _upload(self, writer: asyncio.StreamWriter) -> None:
        if not self.upload_bytes_per_s:
            writer.write(self.body)
            await writer.drain()
            return
        step = max(1, int(self.upload_bytes_per_s / 20))
        for start in range(0, len(self.body), step):
            writer.write(self.body[start : start + step])
            await writer.drain()
            await asyncio.sleep(0.05)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        self.ended.status = int(head[0].split()[1])
        headers = dict(line.split(": ", 1) for line in head[1:-2])
        if self.leaves == "at_head":
            self.ended.left = True
            return
        pieces = bytearray()
        try:
            if "content-length" in headers:
                length = int(headers["content-length"])
                while len(pieces) < length:
                    data = await reader.read(min(65536, length - len(pieces)))
                    if not data:
                        return
                    pieces += data
                    if self.leaves == "amid_body":
                        self.ended.left = True
                        return
            else:
                assert headers.get("transfer-encoding") == "chunked", headers
                while size := int(await reader.readuntil(b"\r\n"), 16):
                    pieces += (await reader.readexactly(size + 2))[:-2]
                    if self.leaves == "amid_body":
                        self.ended.left = True
                        return
            self.ended.is_whole = True
        finally:
            self.ended.body = bytes(pieces)

    # --- gRPC ---------------------------------------------------------------------------------------------------------

    async def over_grpc(self, stub: Any) -> None:
        call = stub.Forward(self._parts(), timeout=PATIENCE_S, metadata=self.metadata)
        pieces = bytearray()
        try:
            async with asyncio.timeout(self.leaves_after_s if self.leaves == "sometime" else None):
                if self.leaves == "once_sent":
                    self.ended.left = True
                    return
                await asyncio.sleep(self.waits_s)
                async for reply in call:
                    if reply.HasField("head"):
                        self.ended.status = reply.head.status
                        if self.leaves == "at_head":
                            self.ended.left = True
                            return
                    pieces += reply.data
                    if self.leaves == "amid_body" and pieces:
                        self.ended.left = True
                        return
                self.ended.code = "OK"
                self.ended.is_whole = True
        except TimeoutError:
            self.ended.left = True
        except grpc.aio.AioRpcError as error:
            self.ended.code = error.code().name
            self.ended.left = self.leaves == "amid_upload"
        except asyncio.CancelledError:
            if self.leaves != "amid_upload":
                raise
            self.ended.left = True
        finally:
            call.cancel()
            self.ended.body = bytes(pieces)
            self.done = True

    async def _parts(self) -> AsyncIterator[pb.ForwardRequest]:
        lines = [engine_pb.Header(name=name, value=value) for name, value in self.headers.items()]
        first = self.body[:GRPC_PART_BYTES]
        yield pb.ForwardRequest(method="POST", target=self.path, headers=lines, body=first)
        for start in range(GRPC_PART_BYTES, len(self.body), GRPC_PART_BYTES):
            if self.upload_bytes_per_s:
                await asyncio.sleep(GRPC_PART_BYTES / self.upload_bytes_per_s)
            yield pb.ForwardRequest(body=self.body[start : start + GRPC_PART_BYTES])

    # --- what is right ------------------------------------------------------------------------------------------------

    def scripted_complaint(self, *, statuses: tuple[int, ...] = (200,), may_break: bool = False) -> str:
        """What is wrong with what a scripted engine's client got; empty: nothing."""
        ended = self.ended
        what = f"{self.name} ({self.headers.get('x-fault', 'none')}): "
        if ended.left:
            return ""
        if not ended.is_whole:
            return (
                "" if may_break else what + f"broken after status {ended.status}, {len(ended.body)} bytes {ended.code}"
            )
        if ended.status not in statuses:
            return what + f"status {ended.status}, not {statuses}: {ended.body[:200]!r}"
        if ended.status != 200:
            return ""
        expected = (answered(self.body), streamed(self.body))
        if ended.body in expected or is_long_answer(ended.body):
            return ""
        told = [line for line in ended.body.split(b"\n\n") if line]
        if may_break and told and b'"error"' in told[-1] and streamed(self.body).startswith(b"\n\n".join(told[:-1])):
            return ""
        return what + f"looks whole and is not: {len(ended.body)} bytes, {ended.body[:80]!r}...{ended.body[-80:]!r}"


def is_long_answer(body: bytes) -> bool:
    return len(body) == LONG_BYTES and body[: len(PIECE)] == PIECE and body[-len(PIECE) :] == PIECE


def scripted_body(rng: random.Random, size: int = 0, *, stream: bool = False) -> bytes:
    """Of about `size` bytes, and no two alike."""
    filling = rng.randbytes(8).hex() + "x" * max(0, size - 80)
    return json.dumps({"model": "scripted", "input": filling, "stream": stream}).encode()


def emulated_body(prompt: str, tokens: int, *, stream: bool) -> bytes:
    """A chat that the gateway hands on."""
    return json.dumps(
        {
            "model": "emulated",
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0.0,
            "include_stop_str_in_output": True,
            "stream": stream,
        }
    ).encode()


def emulated_text(body: bytes, *, stream: bool) -> tuple[str, bool, bool]:
    """The text of an emulated answer, whether it says that it is complete, and whether it ends with an error."""
    if not stream:
        return json.loads(body)["choices"][0]["message"]["content"], True, False
    text, failed = "", False
    lines = [line.removeprefix(b"data: ") for line in body.split(b"\n\n") if line and not line.startswith(b":")]
    for line in lines:
        assert not failed, "something follows an error"
        if line == b"[DONE]":
            continue
        tree = json.loads(line)
        if "error" in tree:
            failed = True
        else:
            text += "".join(choice["delta"].get("content") or "" for choice in tree["choices"])
    return text, bool(lines) and lines[-1] == b"[DONE]", failed


async def until(what: str, condition: Callable[[], bool], within_s: float = 20.0) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while not condition():  # noqa: ASYNC110 - what other processes do sets no event here
                await asyncio.sleep(0.02)
            return
    raise AssertionError(f"not within {within_s:g} s: {what}")
