"""One request to an OpenAI-compatible server, streamed and timed at the client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import msgspec

from bench.measure.results import RequestResult, tpot_s
from bench.workload.item import WorkloadItem
from gateway.core.outcomes import COMPLETE
from simcore.types import Outcome

_DATA = b"data:"
_DONE = b"[DONE]"


class _Choice(msgspec.Struct):
    text: str = ""
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_DECODER = msgspec.json.Decoder(_Event)


def completion_body(
    item: WorkloadItem, *, model: str, prompt: str | list[int], natural_length: bool
) -> dict[str, object]:
    """The body of `POST /v1/completions`. Answers of the data set's length need `ignore_eos` (vLLM, SGLang)."""
    body: dict[str, object] = {
        "model": model,
        "prompt": prompt,
        "max_tokens": item.output_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if not natural_length:
        body["ignore_eos"] = True
    return body


async def complete(
    http: aiohttp.ClientSession,
    url: str,
    body: dict[str, object],
    *,
    item: WorkloadItem,
    due_s: float,
    timeout_s: float,
    on_tokens: Callable[[int], None],
) -> RequestResult:
    """Sends it and reads the answer to its end. A failure is a result, not an exception.

    `due_s`: on the clock of `time.perf_counter`, from which all times count. `url` names the server in the result.
    """
    exchange = _Exchange(item, due_s, on_tokens)
    try:
        async with asyncio.timeout(timeout_s), http.post(f"{url}/v1/completions", json=body) as response:
            if response.status != 200:
                text = (await response.text())[:300]
                return exchange.result(url, _outcome_of(response.status), f"HTTP {response.status}: {text}")
            async for line in response.content:
                exchange.take(line)
    except TimeoutError:
        return exchange.result(url, Outcome.DEADLINE, f"no complete answer within {timeout_s:g} s")
    except aiohttp.ClientConnectorError as error:
        return exchange.result("", Outcome.NO_NODE, f"{url}: {error}")
    except (aiohttp.ClientError, ConnectionError, ValueError) as error:
        return exchange.result(url, Outcome.NODE_LOST, f"{url}: {error or type(error).__name__}")
    if exchange.error:
        return exchange.result(url, Outcome.ENGINE_FAILED, exchange.error)
    if exchange.outcome is None:
        return exchange.result(url, Outcome.NODE_LOST, f"{url}: the stream ended without a finish_reason")
    return exchange.result(url, exchange.outcome, "")


class _Exchange:
    def __init__(self, item: WorkloadItem, due_s: float, on_tokens: Callable[[int], None]) -> None:
        self.outcome: Outcome | None = None
        self.error = ""
        self._item = item
        self._due_s = due_s
        self._sent_s = time.perf_counter()
        self._on_tokens = on_tokens
        self._first_s: float | None = None
        self._last_s = due_s
        self._gaps_s: list[float] = []
        self._tokens = 0
        self._usage: _Usage | None = None

    def take(self, line: bytes) -> None:
        """Raises ValueError for a line of data that is no JSON object of this API."""
        if not line.startswith(_DATA):
            return
        data = line[len(_DATA) :].strip()
        if data == _DONE:
            return
        event = _DECODER.decode(data)
        now_s = time.perf_counter()
        if event.error is not None:
            self.error = str(event.error)[:300]
        if event.usage is not None:
            self._usage = event.usage
        for choice in event.choices:
            if choice.text:
                if self._first_s is None:
                    self._first_s = now_s
                else:
                    self._gaps_s.append(now_s - self._last_s)
                self._tokens += 1
                self._on_tokens(1)
                self._last_s = now_s
            if choice.finish_reason:
                self.outcome = Outcome.LENGTH if choice.finish_reason == "length" else Outcome.STOP
                self._last_s = now_s

    def result(self, server: str, outcome: Outcome, detail: str) -> RequestResult:
        # A server may put several tokens into one event: its own count is the right one.
        counted = None if self._usage is None else self._usage.completion_tokens
        tokens = counted or self._tokens
        ttft_s = None if self._first_s is None else self._first_s - self._due_s
        e2e_s = self._last_s - self._due_s if outcome in COMPLETE else None
        return RequestResult(
            request_id=self._item.request_id,
            arrival_s=self._item.arrival_s,
            sent_s=self._item.arrival_s + self._sent_s - self._due_s,
            node_id=server,
            outcome=outcome,
            prompt_tokens=(self._usage.prompt_tokens if self._usage else 0) or self._item.prompt_tokens,
            output_tokens=tokens,
            ttft_s=ttft_s,
            tpot_s=None
            if ttft_s is None or e2e_s is None
            else tpot_s(ttft_s=ttft_s, e2e_s=e2e_s, output_tokens=tokens),
            e2e_s=e2e_s,
            itl_s=tuple(round(gap, 6) for gap in self._gaps_s),
            detail=detail,
        )


def _outcome_of(status: int) -> Outcome:
    if status in (429, 503):
        return Outcome.OVERLOADED
    return Outcome.INVALID if 400 <= status < 500 else Outcome.ENGINE_FAILED
