"""The stub engine's answers from HTTP servers that are widely used: what `gateway.http` would cost on top of one.

    PYTHON bench/micro/http_servers.py uvicorn --port 9103 --tick-ms 20

Runs in an environment of its own (`pip install uvicorn httptools uvloop granian aiohttp`) and imports nothing of this
repository. Every server gets uvloop, one worker, no access log; each stream is a task that writes one chunk per tick,
and one timer wakes all of them.
"""

import argparse
import asyncio
import json
import os
import sys
from typing import Any

HEAD = (
    b'data: {"id":"cmpl-1","object":"text_completion","created":1,"model":"stub-model","choices":[{"index":0,"text":"x"'
)
CHUNK = HEAD + b',"logprobs":null,"finish_reason":null}]}\n\n'
LAST = HEAD + b',"logprobs":null,"finish_reason":"length"}]}\n\ndata: [DONE]\n\n'
WHOLE = (
    b'{"id":"cmpl-1","object":"text_completion","created":1,"model":"stub-model","choices":[{"index":0,"text":"x",'
    b'"logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
)
TICK_VARIABLE = "STUB_TICK_S"


class Ticker:
    """Wakes everybody at once."""

    def __init__(self, tick_s: float) -> None:
        self.tick_s = tick_s
        self._next: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        """Until the next tick."""
        if self._next is None:
            loop = asyncio.get_running_loop()
            self._next = loop.create_future()
            loop.call_later(self.tick_s, self._tick)
        await self._next

    def _tick(self) -> None:
        woken, self._next = self._next, None
        if woken is not None:
            woken.set_result(None)


ticker = Ticker(float(os.environ.get(TICK_VARIABLE, "0.02")))


async def app(scope: Any, receive: Any, send: Any) -> None:
    """ASGI, for uvicorn and granian."""
    if scope["type"] != "http":
        raise ValueError(f"no {scope['type']} here")
    data = b""
    while True:
        message = await receive()
        data += message.get("body", b"")
        if not message.get("more_body", False):
            break
    body = json.loads(data)
    if not body.get("stream"):
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(WHOLE))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": WHOLE})
        return
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for _ in range(body["max_tokens"] - 1):
        await ticker.wait()
        await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
    await send({"type": "http.response.body", "body": LAST})


def serve_uvicorn(port: int) -> None:
    import uvicorn

    uvicorn.run(
        app,
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        log_level="warning",
        access_log=False,
        timeout_keep_alive=75,
    )


def serve_granian(port: int) -> None:
    command = [sys.executable, "-m", "granian", "--interface", "asginl", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--loop", "uvloop", "--no-ws", "--log-level", "warning", "http_servers:app"]
    os.chdir(os.path.dirname(os.path.abspath(__file__)))
    os.execv(sys.executable, command)


def serve_aiohttp(port: int) -> None:
    import uvloop
    from aiohttp import web

    async def complete(request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        if not body.get("stream"):
            return web.Response(body=WHOLE, content_type="application/json")
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(body["max_tokens"] - 1):
            await ticker.wait()
            await response.write(CHUNK)
        await response.write(LAST)
        await response.write_eof()
        return response

    application = web.Application()
    application.router.add_post("/v1/completions", complete)
    web.run_app(application, host="127.0.0.1", port=port, access_log=None, print=None, loop=uvloop.new_event_loop())


SERVERS = {"uvicorn": serve_uvicorn, "granian": serve_granian, "aiohttp": serve_aiohttp}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", choices=SERVERS)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tick-ms", type=float, default=20.0)
    options = parser.parse_args()
    # For granian, which imports this module anew.
    os.environ[TICK_VARIABLE] = str(options.tick_ms / 1000)
    ticker.tick_s = options.tick_ms / 1000
    SERVERS[options.server](options.port)


if __name__ == "__main__":
    main()
