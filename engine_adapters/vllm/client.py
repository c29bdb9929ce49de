"""Sends requests to vLLM's OpenAI-compatible HTTP server with token ids in and out. One connection per request.

Closing the connection is the abort: vLLM notices it at once and drops the request before its next step. The id under
which a request is sent carries the caller's, so that the trace names it as the caller does.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence

import aiohttp
import msgspec
import structlog

from engine_adapters.base import (
    EngineError,
    EngineFull,
    EngineMisconfigured,
    EngineOutput,
    EngineRequest,
    FinishReason,
    OutputSink,
    RequestRefused,
)
from engine_adapters.openai_answers import Piece, read_fault, read_models, read_piece
from engine_adapters.relay import EngineRelay
from engine_adapters.streaming import stream
from engine_adapters.tokenizer import Tokenizer
from engine_adapters.vllm.kv_source import held_blocks, is_api_server, side_channel
from engine_adapters.vllm.request_ids import engine_request_id
from protos.answer_status import outcome_of_status
from protos.runtime.addresses import parse_url
from protos.runtime.channels import uses_proxy
from protos.runtime.secret import NO_SECRET, Secret
from protos.runtime.tls_files import ClientTlsFiles
from simcore.types import EngineConfig, Outcome, TokenLogprobs

log = structlog.get_logger("engine_adapters.vllm")

CONNECT_TIMEOUT_S = 5.0
MAX_LINE_BYTES = 4 << 20
_BLANK = b" \t\r\n\xef\xbb\xbf"


class VllmClient:
    """Requests to one server: `start`, then `submit` or `generate`, then `close`. All on one event loop."""

    def __init__(
        self,
        url: str,
        *,
        tls: ClientTlsFiles | None = None,
        tokenizer: Tokenizer | None = None,
        key: Secret = NO_SECRET,
    ) -> None:
        """With a `tokenizer`, servers that answer with text alone are understood too. `key`: the server's API key;
        empty: none."""
        self.url = parse_url(url)
        self._tls = tls
        self._tokenizer = tokenizer
        self._key = key
        self.models: tuple[str, ...] = ()
        """All names by which it may be asked, its own first; set by `connect`."""
        self.max_model_len_tokens: int | None = None
        """If the server says; set by `connect`."""
        self._config: EngineConfig | None = None
        self._text_prompts = False
        self._session: aiohttp.ClientSession | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._sinks: dict[str, OutputSink] = {}
        self._sources_refused: set[str] = set()
        """Those that held no KV when they were asked last."""
        self._closed = False

    async def connect(self) -> None:
        """Asks the server for its models, also again. Raises EngineError if it is not there or not ready,
        EngineMisconfigured if it will never let us in."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=https(self.url, self._tls)),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
                read_bufsize=MAX_LINE_BYTES,
                trust_env=uses_proxy(),
                headers=auth_headers(self._key),
            )
        body = await self._get("/v1/models")
        try:
            models = read_models(body)
        except EngineError as error:
            raise EngineError(f"{self.url}/v1/models is no list of models: {error}") from None
        if not models:
            raise EngineError(f"the server at {self.url} serves no model")
        self.models = tuple(model.id for model in models)
        self.max_model_len_tokens = models[0].max_model_len_tokens

    async def metrics(self) -> str:
        """The server's page for Prometheus. Raises EngineError."""
        return (await self._get("/metrics")).decode(errors="replace")

    async def _get(self, path: str) -> bytes:
        """Raises EngineError."""
        assert self._session is not None, "connect comes first"
        try:
            timeout = aiohttp.ClientTimeout(total=CONNECT_TIMEOUT_S)
            async with self._session.get(f"{self.url}{path}", timeout=timeout) as answer:
                if answer.status != 200:
                    raise refusal(answer.status, await answer.read(), f"{self.url}{path}", self._key)
                return await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            why = f"{error or type(error).__name__}"
            raise EngineError(f"no vLLM server at {self.url}, where --engine-url says ({why})") from None

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
        task = asyncio.create_task(self._run(request, body, headers, self._session), name="vllm request")
        self._tasks[request.request_id] = task

    async def abort(self, request_id: str) -> bool:
        task = self._tasks.pop(request_id, None)
        if task is None:
            return False
        sink = self._sinks.pop(request_id)
        task.cancel()
        sink(request_id, EngineOutput((), "aborted"))
        return True

    def _body(self, request: EngineRequest, config: EngineConfig) -> dict[str, object]:
        prompt = request.prompt_token_ids
        if request.max_tokens < 1:
            raise RequestRefused(f"max_tokens must be >= 1, got {request.max_tokens}")
        if request.model and request.model not in config.names:
            raise RequestRefused(f"the engine serves {', '.join(map(repr, config.names))}, not {request.model!r}")
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
            "min_p": request.min_p,
            "presence_penalty": request.presence_penalty,
            "frequency_penalty": request.frequency_penalty,
            "repetition_penalty": request.repetition_penalty,
            "min_tokens": request.min_tokens or None,
            "logit_bias": {str(i): bias for i, bias in request.logit_bias} or None,
            "bad_words": request.bad_words or None,
            "logprobs": request.logprobs,
            # Texts of tokens are not unique.
            "return_tokens_as_token_ids": None if request.logprobs is None else True,
            # A queue in order of arrival refuses a priority instead of not minding it.
            "priority": request.priority if config.scheduling_policy == "priority" and request.priority else None,
        }
        if request.emulated_output_tokens:
            options["vllm_xargs"] = {"emulated_output_tokens": request.emulated_output_tokens}
        if request.kv_source and not is_api_server(request.kv_source):
            options["kv_transfer_params"] = side_channel(request)
        options |= self._as_text(request) if self._text_prompts else {"prompt": prompt}
        return {
            "model": request.model or config.model,
            "max_tokens": min(request.max_tokens, room),
            "ignore_eos": request.ignore_eos,
            "request_id": engine_request_id(request.request_id),
            "add_special_tokens": False,
            "return_token_ids": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **{k: v for k, v in options.items() if v is not None},
        }

    def _as_text(self, request: EngineRequest) -> dict[str, object]:
        """What a server that takes text alone is told otherwise. Raises RequestRefused."""
        assert self._tokenizer is not None
        if request.stop_token_ids:
            raise RequestRefused("this server takes no stop_token_ids: give the texts to stop at")
        # TGI refuses a top_p that leaves nothing out.
        top_p = None if request.top_p is not None and request.top_p >= 1.0 else request.top_p
        return {"prompt": self._tokenizer.decode(request.prompt_token_ids), "top_p": top_p}

    async def _run(
        self, request: EngineRequest, body: dict[str, object], headers: dict[str, str], session: aiohttp.ClientSession
    ) -> None:
        request_id = request.request_id
        try:
            last = await self._stream(request, body, headers, session)
        except EngineError as error:
            self._deliver_last(request_id, error)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            detail = str(error) or type(error).__name__
            self._deliver_last(request_id, EngineError(f"the connection to {self.url} broke: {detail}"))
        except ValueError as error:
            self._deliver_last(request_id, EngineError(f"{self.url} answered what cannot be read: {error}"))
        else:
            self._deliver_last(request_id, last)

    async def _stream(
        self, request: EngineRequest, body: dict[str, object], headers: dict[str, str], session: aiohttp.ClientSession
    ) -> EngineOutput:
        """Delivers all outputs but the last, which it returns. Raises EngineError."""
        request_id = request.request_id
        if is_api_server(request.kv_source):
            body |= await self._held(request, session)
        data = msgspec.json.encode(body)
        async with session.post(f"{self.url}/v1/completions", data=data, headers=headers) as answer:
            if answer.status != 200:
                raise refusal(answer.status, await answer.read(), self.url, self._key, of_request=True)
            held: tuple[int, ...] = ()
            held_logprobs: tuple[TokenLogprobs, ...] = ()
            with_logprobs = request.logprobs is not None
            finish: FinishReason | None = None
            count, cached_tokens, counted = 0, 0, None
            stop_token_id: int | None = None
            is_done = has_text = False
            async for data in _events(answer.content):
                if data == b"[DONE]":
                    is_done = True
                    break
                piece = self._read(data, with_logprobs)
                tokens = piece.token_ids or self._pieces(piece.text)
                has_text = has_text or bool(piece.text)
                count += len(tokens)
                if with_logprobs and len(tokens) != len(piece.logprobs):
                    raise EngineError(f"{self.url} tells no logprobs with its tokens")
                finish = finish or piece.finish
                stop_token_id = piece.stop_token_id if stop_token_id is None else stop_token_id
                counted = counted if piece.completion_tokens is None else piece.completion_tokens
                cached_tokens = piece.cached_tokens or cached_tokens
                if finish is not None:
                    held += tokens
                    held_logprobs += piece.logprobs
                    if counted is not None:
                        break
                elif tokens:
                    self._sinks[request_id](request_id, EngineOutput(tokens, logprobs=piece.logprobs))
        if has_text and not count:
            raise EngineError(
                f"{self.url} answered without choices[0].token_ids: it does not know return_token_ids "
                "(vLLM 0.10.2 or newer does); stand beside it with --engine openai_metrics"
            )
        if finish is None and is_done:
            # Nobody has said why, but the end came in good order.
            finish = "length" if count >= request.max_tokens else "stop"
        if finish is None:
            raise EngineError(f"{self.url} ended the stream without a reason (finish_reason) after {count} tokens")
        if counted and counted != count and self._tokenizer is None:
            raise EngineError(f"the engine counted {counted} output tokens (usage.completion_tokens), {count} arrived")
        return EngineOutput(held, finish, cached_tokens, stop_token_id, held_logprobs)

    async def _held(self, request: EngineRequest, session: aiohttp.ClientSession) -> dict[str, object]:
        """What the engine is told of the KV that another holds for it; nothing, when that does not hold any."""
        assert self._config is not None, "limit comes before submit"
        try:
            held = await held_blocks(request, self._config.model, session)
        except EngineError as error:
            if request.kv_source not in self._sources_refused:
                self._sources_refused.add(request.kv_source)
                log.warning("KV cannot be fetched", detail=self._key.hidden_in(str(error)))
            return {}
        self._sources_refused.discard(request.kv_source)
        return {"kv_transfer_params": held}

    def _read(self, data: bytes, with_logprobs: bool) -> Piece:
        """Raises EngineError."""
        try:
            return read_piece(data, with_logprobs=with_logprobs)
        except RequestRefused as error:
            raise RequestRefused(self._key.hidden_in(str(error))) from None
        except EngineError as error:
            raise EngineError(f"{self.url}: {self._key.hidden_in(str(error))}") from None

    def _pieces(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text)) if self._tokenizer is not None and text else ()

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


def relay_to(url: str, *, tls: ClientTlsFiles, key: Secret) -> EngineRelay:
    """Hands calls on to that server, named so that its trace says whose they are. Raises EngineError."""
    context = https(url, tls)
    return EngineRelay(
        url, tls=context if isinstance(context, ssl.SSLContext) else None, key=key, named=engine_request_id
    )


def _headers(request: EngineRequest) -> dict[str, str]:
    headers = {"Content-Type": "application/json", "X-Request-Id": engine_request_id(request.request_id)}
    if request.traceparent:
        headers["traceparent"] = request.traceparent
    return headers


def check_wanted(client: VllmClient, wanted: str) -> None:
    """Raises EngineMisconfigured when the server does not serve the model that the configuration names."""
    if wanted and wanted not in client.models:
        raise EngineMisconfigured(
            f"the engine at {client.url} serves {', '.join(map(repr, client.models))}, the configuration says "
            f"{wanted!r}: correct `model` (or leave it out), or the engine's URL"
        )


def served_names(models: Sequence[str], wanted: str) -> tuple[str, ...]:
    """All names, the wanted one first; the server's own, if that is empty or not served."""
    first = wanted if wanted in models else models[0]
    return (first, *(name for name in models if name != first))


def renamed(config: EngineConfig, names: Sequence[str]) -> EngineConfig:
    """The same engine under these names, its own first."""
    return msgspec.structs.replace(config, model=names[0], other_names=tuple(names[1:]))


async def _events(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The data of server-sent events; of a server that does not stream, the body."""
    body: list[bytes] = []
    async for line in content:
        if line.startswith(b"data:"):
            yield line[5:].strip()
        elif body or line.lstrip(_BLANK).startswith(b"{"):
            body.append(line)
    if body:
        yield b"".join(body)
        # A body that came whole is an answer that ended well.
        yield b"[DONE]"


def auth_headers(key: Secret) -> dict[str, str]:
    """What a server with an API key wants to see in each request."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def refusal(status: int, body: bytes, url: str, key: Secret, *, of_request: bool = False) -> EngineError:
    """The error for a status that is not 200. Says nothing of the key. `of_request`: it may be the request's fault."""
    if status in (401, 403):
        return EngineMisconfigured(
            f"{url} answers {status}: it {'does not take the API key that it got' if key else 'wants an API key'}; "
            "give the engine's own with --engine-api-key-file FILE (api_key_file in [engine]) or in "
            "ASTROLABE_ENGINE_API_KEY"
        )
    text = key.hidden_in(read_fault(body))
    meant = outcome_of_status(status)
    # 404: it is the daemon's configuration that does not fit this server, not the request.
    if of_request and meant is Outcome.INVALID and status != 404:
        return RequestRefused(text)
    said = f"{url} answers {status}{': ' if text else ''}{text}"
    return EngineFull(said) if meant is Outcome.OVERLOADED else EngineError(said)
