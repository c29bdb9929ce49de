"""Sends requests to vLLM's OpenAI-compatible HTTP server with token ids in and out. One connection per request.

Closing the connection is the abort: vLLM notices it at once and drops the request before its next step. The id under
which a request is sent carries the caller's, so that the trace names it as the caller does.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator

import aiohttp
import msgspec

from engine_adapters.base import (
    EngineError,
    EngineOutput,
    EngineRequest,
    FinishReason,
    OutputSink,
    RequestRefused,
)
from engine_adapters.streaming import stream
from engine_adapters.tokenizer import Tokenizer
from engine_adapters.vllm.account import engine_request_id
from protos.runtime.addresses import parse_url
from protos.runtime.channels import uses_proxy
from protos.runtime.tls_files import ClientTlsFiles
from simcore.types import EngineConfig

CONNECT_TIMEOUT_S = 5.0
MAX_LINE_BYTES = 4 << 20
_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "abort": "aborted",
    # TGI's words.
    "eos_token": "stop",
    "stop_sequence": "stop",
}


class _Choice(msgspec.Struct):
    token_ids: list[int] | None = None
    finish_reason: str | None = None
    text: str = ""


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int
    prompt_tokens_details: _PromptDetails | None = None

    @property
    def cached_tokens(self) -> int:
        details = self.prompt_tokens_details
        return (details.cached_tokens or 0) if details is not None else 0


class _Fault(msgspec.Struct):
    message: str = ""


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Fault | None = None


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


_chunks = msgspec.json.Decoder(_Chunk)


class VllmClient:
    """Requests to one server: `start`, then `submit` or `generate`, then `close`. All on one event loop."""

    def __init__(self, url: str, *, tls: ClientTlsFiles | None = None, tokenizer: Tokenizer | None = None) -> None:
        """With a `tokenizer`, servers that answer with text alone are understood too."""
        self.url = parse_url(url)
        self._tls = tls
        self._tokenizer = tokenizer
        self.model = ""
        """As the server calls it; set by `connect`."""
        self.max_model_len: int | None = None
        """If the server says; set by `connect`."""
        self._config: EngineConfig | None = None
        self._text_prompts = False
        self._session: aiohttp.ClientSession | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._sinks: dict[str, OutputSink] = {}
        self._closed = False

    async def connect(self) -> None:
        """Asks the server for its model. Raises EngineError if it is not there or not ready."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=https(self.url, self._tls)),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
                read_bufsize=MAX_LINE_BYTES,
                trust_env=uses_proxy(),
            )
        try:
            async with self._session.get(
                f"{self.url}/v1/models", timeout=aiohttp.ClientTimeout(total=CONNECT_TIMEOUT_S)
            ) as answer:
                if answer.status != 200:
                    raise EngineError(f"{self.url}/v1/models answers {answer.status} {answer.reason}")
                models = msgspec.json.decode(await answer.read(), type=_Models)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise EngineError(f"no vLLM server at {self.url} ({error or type(error).__name__})") from None
        except msgspec.MsgspecError as error:
            raise EngineError(f"{self.url}/v1/models is not what vLLM answers: {error}") from None
        if not models.data:
            raise EngineError(f"the server at {self.url} serves no model")
        self.model = models.data[0].id
        self.max_model_len = models.data[0].max_model_len

    def limit(self, config: EngineConfig, *, text_prompts: bool = False) -> None:
        """The engine's limits, once they are known. `text_prompts`: it takes no token ids (TGI); needs a tokenizer."""
        assert self._tokenizer is not None or not text_prompts, "without a tokenizer there is no text"
        self._config = config
        self._text_prompts = text_prompts

    async def close(self) -> None:
        self._closed = True
        for request_id in list(self._tasks):
            await self.abort(request_id)
        if self._session is not None:
            await self._session.close()

    def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        return stream(self, request)  # type: ignore[arg-type]  # needs submit and abort only

    def submit(self, request: EngineRequest, sink: OutputSink) -> None:
        """See `EngineClient.submit`. Raises RequestRefused, EngineError."""
        if self._closed:
            raise EngineError("the engine adapter was closed")
        if self._session is None or self._config is None:
            raise EngineError("the engine adapter is not started")
        if request.request_id in self._tasks:
            raise RequestRefused(f"request {request.request_id!r} runs here already; give each request its own name")
        body = self._body(request, self._config)
        self._sinks[request.request_id] = sink
        headers = _headers(request)
        task = asyncio.create_task(self._run(request.request_id, body, headers, self._session), name="vllm request")
        self._tasks[request.request_id] = task

    async def abort(self, request_id: str) -> bool:
        task = self._tasks.pop(request_id, None)
        if task is None:
            return False
        sink = self._sinks.pop(request_id)
        task.cancel()
        sink(request_id, EngineOutput((), "aborted"))
        return True

    def _body(self, request: EngineRequest, config: EngineConfig) -> bytes:
        prompt = request.prompt_token_ids
        if request.max_tokens < 1:
            raise RequestRefused(f"max_tokens must be >= 1, got {request.max_tokens}")
        if not prompt:
            raise RequestRefused("the prompt has no tokens; send at least one")
        room = config.max_model_len_tokens - len(prompt)
        if room < 1:
            raise RequestRefused(
                f"the prompt has {len(prompt)} tokens; with one token of answer the engine takes "
                f"{config.max_model_len_tokens} (max_model_len): shorten the prompt"
            )
        if "" in request.stop:
            raise RequestRefused("a stop text is empty text; leave it out")
        options: dict[str, object] = {
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k,
            "seed": request.seed,
            "stop": request.stop or None,
            "stop_token_ids": request.stop_token_ids or None,
            # A queue in order of arrival refuses a priority instead of not minding it.
            "priority": request.priority if config.scheduling_policy == "priority" and request.priority else None,
        }
        options |= self._as_text(request) if self._text_prompts else {"prompt": prompt}
        return msgspec.json.encode(
            {
                "model": self.model,
                "max_tokens": min(request.max_tokens, room),
                "ignore_eos": request.ignore_eos,
                "request_id": engine_request_id(request.request_id),
                "add_special_tokens": False,
                "return_token_ids": True,
                "stream": True,
                "stream_options": {"include_usage": True},
                **{k: v for k, v in options.items() if v is not None},
            }
        )

    def _as_text(self, request: EngineRequest) -> dict[str, object]:
        """What a server that takes text alone is told otherwise. Raises RequestRefused."""
        assert self._tokenizer is not None
        if request.stop_token_ids:
            raise RequestRefused("this server takes no stop_token_ids: give the texts to stop at")
        # TGI refuses a top_p that leaves nothing out.
        top_p = None if request.top_p is not None and request.top_p >= 1.0 else request.top_p
        return {"prompt": self._tokenizer.decode(request.prompt_token_ids), "top_p": top_p}

    async def _run(self, request_id: str, body: bytes, headers: dict[str, str], session: aiohttp.ClientSession) -> None:
        try:
            last = await self._stream(request_id, body, headers, session)
        except EngineError as error:
            self._deliver_last(request_id, error)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            detail = str(error) or type(error).__name__
            self._deliver_last(request_id, EngineError(f"the connection to {self.url} broke: {detail}"))
        except (msgspec.MsgspecError, ValueError) as error:
            self._deliver_last(request_id, EngineError(f"{self.url} answered what cannot be read: {error}"))
        else:
            self._deliver_last(request_id, last)

    async def _stream(
        self, request_id: str, body: bytes, headers: dict[str, str], session: aiohttp.ClientSession
    ) -> EngineOutput:
        """Delivers all outputs but the last, which it returns. Raises EngineError."""
        async with session.post(f"{self.url}/v1/completions", data=body, headers=headers) as answer:
            if answer.status != 200:
                raise _refusal(answer.status, await answer.read(), self.url)
            held: tuple[int, ...] = ()
            finish: FinishReason | None = None
            count = 0
            async for line in answer.content:
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    break
                chunk = _chunks.decode(data)
                if chunk.error is not None:
                    raise EngineError(f"the engine failed: {chunk.error.message}")
                for choice in chunk.choices:
                    tokens = tuple(choice.token_ids or self._pieces(choice.text))
                    count += len(tokens)
                    if choice.finish_reason is not None:
                        if choice.finish_reason not in _FINISH:
                            raise EngineError(f"the engine ended the request with {choice.finish_reason!r}")
                        finish, held = _FINISH[choice.finish_reason], tokens
                    elif tokens:
                        self._sinks[request_id](request_id, EngineOutput(tokens))
                if chunk.usage is not None and finish is not None:
                    if chunk.usage.completion_tokens != count and self._tokenizer is None:
                        raise EngineError(
                            f"the engine counted {chunk.usage.completion_tokens} output tokens, {count} arrived"
                        )
                    return EngineOutput(held, finish, chunk.usage.cached_tokens)
        if finish is not None and self._tokenizer is not None:
            return EngineOutput(held, finish)
        raise EngineError(f"{self.url} ended the stream without a reason after {count} tokens")

    def _pieces(self, text: str) -> list[int]:
        return self._tokenizer.encode(text) if self._tokenizer is not None and text else []

    def _deliver_last(self, request_id: str, output: EngineOutput | EngineError) -> None:
        # Cancelled tasks do not come here: the abort has said its last word.
        if self._tasks.pop(request_id, None) is not None:
            self._sinks.pop(request_id)(request_id, output)


def https(url: str, tls: ClientTlsFiles | None) -> ssl.SSLContext | bool:
    """What aiohttp wants to know for connections to a URL. Raises EngineError."""
    if tls is None or not url.startswith("https://"):
        return True
    from protos.runtime.config import ConfigError
    from protos.runtime.tls import client_context

    try:
        return client_context(tls)
    except ConfigError as bad:
        raise EngineError(str(bad)) from None


def _headers(request: EngineRequest) -> dict[str, str]:
    headers = {"Content-Type": "application/json", "X-Request-Id": engine_request_id(request.request_id)}
    if request.traceparent:
        headers["traceparent"] = request.traceparent
    return headers


def _refusal(status: int, body: bytes, url: str) -> EngineError:
    try:
        fault = msgspec.json.decode(body, type=_Chunk).error
        message = fault.message if fault is not None else ""
    except msgspec.MsgspecError:
        message = ""
    text = message or body[:300].decode(errors="replace")
    # 401, 403, 404: it is the daemon's configuration that does not fit this server, not the request.
    if 400 <= status < 500 and status not in (401, 403, 404, 408, 429):
        return RequestRefused(text)
    return EngineError(f"{url} answers {status}: {text}")
