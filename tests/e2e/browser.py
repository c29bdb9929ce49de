"""A real headless Chromium, driven over its DevTools protocol: https://chromedevtools.github.io/devtools-protocol/"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
STARTED_S = 60.0
ANSWER_S = 30.0
_KEYS = {
    "Enter": ("Enter", 13, "\r"), "Escape": ("Escape", 27, ""), "Tab": ("Tab", 9, ""),
    "ArrowDown": ("ArrowDown", 40, ""), "ArrowUp": ("ArrowUp", 38, ""),
    "Home": ("Home", 36, ""), "End": ("End", 35, ""),
}  # fmt: skip


def chromium() -> str:
    """Its program; empty where there is none. ASTROLABE_CHROMIUM names another."""
    return os.environ.get("ASTROLABE_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), "")


class Browser:
    """One tab. `complaints` is what its console, its network and its security policies found wrong."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.complaints: list[str] = []
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._session = ""
        self._reader = asyncio.create_task(self._read())

    async def start(self) -> None:
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._answers[number] = answer = asyncio.get_running_loop().create_future()
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        await self._socket.send_json(message | ({"sessionId": self._session} if self._session else {}))
        return await asyncio.wait_for(answer, ANSWER_S)

    async def open(self, url: str) -> None:
        await self.call("Page.navigate", url=url)

    async def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        said = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "result" in said, f"{expression}: {said}"
        assert "exceptionDetails" not in said, f"{expression}: {said['exceptionDetails']}"
        return said["result"].get("value")

    async def until(self, expression: str, deadline_s: float = 30.0) -> Any:
        """Its value, once that is true; meanwhile what it speaks of need not be there."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + deadline_s
        patient = f"(() => {{ try {{ return {expression} }} catch {{ return false }} }})()"
        while not (value := await self.js(patient)):
            assert loop.time() < end_s, f"not within {deadline_s:g} s: {expression}; {self.complaints}"
            await asyncio.sleep(0.05)
        return value

    async def press(self, key: str) -> None:
        name, code, text = _KEYS.get(key, (key, ord(key[0].upper()), key))
        event: dict[str, Any] = {"key": name, "windowsVirtualKeyCode": code}
        await self.call("Input.dispatchKeyEvent", type="keyDown", **event, **({"text": text} if text else {}))
        await self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    async def type(self, text: str) -> None:
        await self.call("Input.insertText", text=text)

    async def view(self, width: int, height: int, *, dark: bool = False, still: bool = False, scale: int = 1) -> None:
        """Size of the window in CSS pixels, and what its user prefers."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 700}
        await self.call("Emulation.setDeviceMetricsOverride", **size)
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"},
        ]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def picture(self) -> bytes:
        """What is seen, as PNG."""
        said = await self.call("Page.captureScreenshot", format="png")
        return base64.b64decode(said["data"])

    async def close(self) -> None:
        with contextlib.suppress(TimeoutError, ConnectionError):
            await self.call("Browser.close")
        self._reader.cancel()

    async def _read(self) -> None:
        async for message in self._socket:
            said = message.json()
            if answer := self._answers.pop(said.get("id", 0), None):
                if not answer.done():
                    answer.set_result(said.get("result") or {"error": said.get("error")})
            else:
                self._note(said.get("method", ""), said.get("params", {}))

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")


@contextlib.asynccontextmanager
async def browser(folder: Path) -> AsyncIterator[Browser]:
    """A fresh Chromium with its profile in `folder`; gone afterwards."""
    options = [
        f"--user-data-dir={folder / 'profile'}", "--headless=new", "--remote-debugging-port=0", "--no-first-run",
        "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-extensions",
        "--no-proxy-server", "--hide-scrollbars", *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ]  # fmt: skip
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(chromium(), *options, "about:blank", stdout=quiet, stderr=quiet)
    try:
        async with asyncio.timeout(STARTED_S):
            port, path = await _where(folder / "profile" / "DevToolsActivePort")
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"ws://127.0.0.1:{port}{path}", max_msg_size=0) as socket,
        ):
            tab = Browser(socket)
            await tab.start()
            try:
                yield tab
            finally:
                await tab.close()
    finally:
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _where(file: Path) -> tuple[str, str]:
    """Port and path of the DevTools socket, once Chromium has written them."""
    while len(lines := await asyncio.to_thread(_lines, file)) < 2:  # noqa: ASYNC110 - another process writes it
        await asyncio.sleep(0.05)
    return lines[0], lines[1]


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []
