"""The page at the HTTP front: its files, its stream, stories of requests, and who may have them.

The key comes as a header with each call, as everywhere: the page keeps it in its tab's sessionStorage. A cookie would
go to every other port of the host too, and with requests that other sites make; and a session is state that workers
would have to share. So nothing is sent that the page did not mean to send, and nothing but the page's own code may run
in it (`content-security-policy`), which writes what others say as text only.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

import orjson

from gateway.core.outcomes import Denial
from gateway.http.connection import Exchange
from gateway.http.delivery import JSON
from gateway.http.errors import plain_error
from gateway.intake.callers import KeyRing, require
from gateway.intake.client_stream import ClientStream
from gateway.intake.denied import Denied
from gateway.operators import Operators
from gateway.ui.feed import MOST_VIEWERS, Feed
from gateway.ui.files import page_files
from gateway.ui.siblings import SiblingParts
from gateway.ui.story import story
from gateway.ui.tail import LogTail
from gateway.ui.view import FleetView

PATH = "/ui"
_STREAM, _REQUESTS = f"{PATH}/stream", f"{PATH}/requests/"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SAFE = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class PageFront:
    """One instance serves all connections; `start`, then `handle`, then `close`.

    `local_only`: the page is there because the gateway listens on loopback, so it must also have been asked for by a
    name of this machine. Else a foreign site could have its own name resolve to here and read it.
    """

    def __init__(
        self,
        view: FleetView,
        tail: LogTail,
        *,
        operators: Operators,
        keys: KeyRing,
        about: Callable[[], dict[str, Any]],
        local_only: bool,
        siblings: SiblingParts,
        worker: int = 0,
    ) -> None:
        """`worker`: the number of this one among its `siblings`."""
        self._view = view
        self._operators = operators
        self._keys = keys
        self._local_only = local_only
        self.feed = Feed(view, tail, about, siblings=siblings, worker=worker)
        self._files = page_files()

    def start(self) -> None:
        self.feed.start()

    def close(self) -> None:
        """Ends all streams; there are no more."""
        self.feed.close()

    def keys_changed(self) -> None:
        """A key that opened a stream may be none any more."""
        self.feed.end_all()

    def finished(self, stream: ClientStream) -> None:
        """A request has ended."""
        self._view.finished(stream)

    async def handle(self, exchange: Exchange) -> None:
        """Answers what is below PATH. Raises Denied."""
        request = exchange.request
        if self._local_only and not is_this_machine(request.headers.get("host", "")):
            raise Denied(
                Denial.FORBIDDEN,
                "the page is for this machine: open it as http://127.0.0.1/... or http://localhost/..., or start the "
                "gateway with --ui",
            )
        path = request.path
        if request.method not in (("GET",) if path == _STREAM else ("GET", "HEAD")):
            body = plain_error(path, 405, f"{path[:100]} takes GET only", code=Denial.INVALID.value)
            exchange.respond(405, {"content-type": JSON, "allow": "GET"}, body)
        elif path == PATH:
            # Relative, for proxies that serve us below a path of theirs.
            exchange.respond(308, {"location": "ui/", **_SAFE}, b"")
        elif path == _STREAM:
            self._stream(exchange)
        elif path.startswith(_REQUESTS):
            await self._story(exchange, path.removeprefix(_REQUESTS))
        else:
            self._file(exchange, path.removeprefix(f"{PATH}/"))

    def _file(self, exchange: Exchange, name: str) -> None:
        file = self._files.get(name)
        if file is None:
            raise Denied(Denial.UNKNOWN, f"the page has no file {name[:100]!r}; it is at {PATH}/")
        headers = {"content-type": file.content_type, "etag": file.etag, "cache-control": "no-cache", **_SAFE}
        if exchange.request.headers.get("if-none-match") == file.etag:
            exchange.start(304, headers)
            exchange.end()
            return
        exchange.respond(200, headers, file.body)

    def _stream(self, exchange: Exchange) -> None:
        self._check(exchange)
        if self.feed.is_closed or self.feed.viewers >= MOST_VIEWERS:
            why = (
                "the gateway is stopping"
                if self.feed.is_closed
                else f"{MOST_VIEWERS} pages are open already, the most there may be; close one"
            )
            body = plain_error(PATH, 503, why, kind="service_unavailable_error")
            exchange.respond(503, {"content-type": JSON, "retry-after": "5", **_SAFE}, body)
            return
        headers = {"content-type": "text/event-stream", "cache-control": "no-store", "x-accel-buffering": "no"}
        exchange.start(200, {**headers, **_SAFE})
        self.feed.watch(exchange)

    async def _story(self, exchange: Exchange, request_id: str) -> None:
        self._check(exchange)
        told = await self._operators.explain(request_id)
        headers = {"content-type": JSON, "cache-control": "no-store", **_SAFE}
        exchange.respond(200, headers, orjson.dumps(story(request_id, told)))

    def _check(self, exchange: Exchange) -> None:
        """Raises Denied."""
        require(self._keys.identify(exchange.request.headers.get("authorization", "")))


async def switched_off(exchange: Exchange) -> None:
    """The page's place where there is none. Raises Denied."""
    raise Denied(
        Denial.UNKNOWN,
        "the page is off here; a gateway that listens beyond its own machine has it with --ui (enabled = true in [ui])",
    )


def is_this_machine(host: str) -> bool:
    """Whether a `host` header names the machine itself: localhost, or an address of loopback."""
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    name = name.strip("[]").lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
