"""Clients of a gateway's HTTP front for as long as a test wants them."""

from __future__ import annotations

import json
import ssl
import threading
import urllib.error
import urllib.request
from types import TracebackType
from typing import Any


class Load:
    """So many clients, each with one request after another, until it is left."""

    def __init__(
        self, url: str, *, clients: int = 2, key: str = "", ca: str = "", pause_s: float = 0.02, **body: Any
    ) -> None:
        context = ssl.create_default_context(cafile=ca) if ca else None
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        self._url = f"{url}/v1/completions"
        self._body = json.dumps({"prompt": "why is the sky blue?", "max_tokens": 10, **body}).encode()
        self._headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
        self._pause_s = pause_s
        self._stop = threading.Event()
        self.statuses: list[int] = []
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(5.0)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with self._opener.open(
                    urllib.request.Request(self._url, self._body, self._headers), timeout=60
                ) as answer:
                    answer.read()
                    self.statuses.append(answer.status)
            except urllib.error.HTTPError as refused:
                refused.read()
                self.statuses.append(refused.code)
            except OSError:
                self.statuses.append(0)
            self._stop.wait(self._pause_s)
