"""Takes calls as vLLM's server would, finds who answers them, and keeps those under way."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from urllib.parse import parse_qsl, unquote, urlsplit

import structlog

from engine_adapters.base import EngineError, RequestRefused
from engine_adapters.emulated_api.adapters import AdapterBook
from engine_adapters.emulated_api.api_call import ApiCall
from engine_adapters.emulated_api.audio import transcribe
from engine_adapters.emulated_api.chat import chat
from engine_adapters.emulated_api.checks import BodyChecks, load_checks
from engine_adapters.emulated_api.completions import complete
from engine_adapters.emulated_api.errors import ApiError
from engine_adapters.emulated_api.messages import answer_messages, count_messages
from engine_adapters.emulated_api.plain import detokenize, healthy, tokenize, version
from engine_adapters.emulated_api.pooling import classify, embed, pool, rerank, score
from engine_adapters.emulated_api.reply import JSON, Reply, encode_json
from engine_adapters.emulated_api.responses import ResponseBook
from engine_adapters.emulated_api.work import TokenEngine
from engine_adapters.forwarding import BodyFeed, ForwardCall, ForwardSink
from engine_adapters.tokenizer import Tokenizer, TokenizerError, load_tokenizer

log = structlog.get_logger("engine_adapters.emulated_api")

Handler = Callable[[ApiCall], None]


class EmulatedApi:
    """The HTTP API of one emulated engine. All on one event loop."""

    def __init__(self, engine: TokenEngine, tokenizer: str) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._checks: asyncio.Task[BodyChecks] | None = None
        self._loading: asyncio.Task[Tokenizer] | None = None
        self._calls: dict[str, _Call] = {}
        book = ResponseBook()
        self._book = book
        adapters = AdapterBook(engine)
        routes: tuple[tuple[str, dict[str, Handler]], ...] = (
            ("/v1/chat/completions", {"POST": chat}),
            ("/v1/completions", {"POST": complete}),
            ("/v1/responses", {"POST": book.create}),
            ("/v1/responses/{response_id}", {"GET": book.retrieve}),
            ("/v1/responses/{response_id}/cancel", {"POST": book.cancel}),
            ("/v1/messages", {"POST": answer_messages}),
            ("/v1/messages/count_tokens", {"POST": count_messages}),
            ("/v1/embeddings", {"POST": embed}),
            ("/pooling", {"POST": pool}),
            ("/classify", {"POST": classify}),
            ("/score", {"POST": score}),
            ("/v1/score", {"POST": score}),
            ("/rerank", {"POST": rerank}),
            ("/v1/rerank", {"POST": rerank}),
            ("/v2/rerank", {"POST": rerank}),
            ("/v1/audio/transcriptions", {"POST": transcribe}),
            ("/v1/audio/translations", {"POST": transcribe}),
            ("/tokenize", {"POST": tokenize}),
            ("/detokenize", {"POST": detokenize}),
            ("/v1/models", {"GET": adapters.list_models}),
            ("/v1/load_lora_adapter", {"POST": adapters.load}),
            ("/v1/unload_lora_adapter", {"POST": adapters.unload}),
            ("/version", {"GET": version}),
            ("/health", {"GET": healthy}),
            ("/ping", {"GET": healthy, "POST": healthy}),
        )
        self._routes = [(_pattern(path), handlers) for path, handlers in routes]

    async def warm_up(self) -> None:
        """Loads the tokenizer, for which the first call would wait. Checks by vLLM's models wait for that call."""
        # Calls say what is missing; those by tokens do without.
        with contextlib.suppress(TokenizerError):
            await self._loaded_tokenizer()

    def forward(self, call: ForwardCall, body: BodyFeed, sink: ForwardSink) -> None:
        """As `Forwarder.forward`."""
        if call.request_id in self._calls:
            raise RequestRefused(f"request {call.request_id!r} runs here already; give each request a name of its own")
        made = _Call(Reply(call.request_id, sink, self._forget))
        self._calls[call.request_id] = made
        made.task = asyncio.create_task(self._take(call, body, made), name="emulated call")

    def hold(self, request_id: str, held: bool) -> None:
        """As `Forwarder.hold`."""
        if call := self._calls.get(request_id):
            call.reply.hold(held)

    def abort(self, request_id: str) -> bool:
        """As `Forwarder.abort`, at once."""
        call = self._calls.get(request_id)
        if call is None:
            return False
        if call.task is not None:
            call.task.cancel()
        if call.answered is not None and not call.answered.detached:
            call.answered.work.drop()
        call.reply.abort()
        return True

    def close(self) -> None:
        """Breaks off all calls, and answers that are made in the background."""
        for request_id in list(self._calls):
            self.abort(request_id)
        self._book.close()
        if self._checks is not None:
            self._checks.cancel()
        if self._loading is not None:
            self._loading.cancel()

    async def _take(self, call: ForwardCall, body: BodyFeed, made: _Call) -> None:
        try:
            pieces = [piece async for piece in body]
            checks = await self._loaded_checks()
        except EngineError as broken:
            made.reply.fail(broken)
            return
        url = urlsplit(call.target)
        try:
            handler, path = self._find(call.method, url.path)
            made.answered = ApiCall(
                call,
                b"".join(pieces),
                made.reply,
                engine=self._engine,
                tokenizer=await self._loaded_tokenizer(),
                checks=checks,
                path=path,
                query=dict(parse_qsl(url.query)),
            )
            handler(made.answered)
        except _NoRoute as none:
            headers = (*JSON, ("allow", ", ".join(none.allowed))) if none.allowed else JSON
            detail = "Method Not Allowed" if none.allowed else "Not Found"
            made.reply.whole(405 if none.allowed else 404, encode_json({"detail": detail}), headers)
        except ApiError as error:
            self._refuse(made.reply, error, url.path)
        except EngineError as error:
            made.reply.fail(error)
        except Exception as defect:
            log.exception("emulated call failed", path=url.path)
            if made.answered is not None:
                made.answered.work.drop()
            said = ApiError(f"the emulated engine failed: {defect!r}", status=500, kind="InternalServerError")
            self._refuse(made.reply, said, url.path)

    def _refuse(self, reply: Reply, error: ApiError, path: str) -> None:
        # Bodies that fail validation never reach the part that speaks Anthropic's dialect.
        anthropic = path.startswith("/v1/messages") and error.kind != "Bad Request"
        reply.json(error.status, error.anthropic_body() if anthropic else error.body())

    async def _loaded_checks(self) -> BodyChecks:
        if self._checks is None:
            self._checks = asyncio.create_task(asyncio.to_thread(load_checks), name="protocol models")
        return await asyncio.shield(self._checks)

    async def _loaded_tokenizer(self) -> Tokenizer:
        # Not on the event loop: the engine's steps and all other calls would stand still meanwhile.
        if self._loading is None:
            self._loading = asyncio.create_task(asyncio.to_thread(load_tokenizer, self._tokenizer), name="tokenizer")
        return await asyncio.shield(self._loading)

    def _find(self, method: str, path: str) -> tuple[Handler, dict[str, str]]:
        for pattern, handlers in self._routes:
            if found := pattern.fullmatch(path):
                if method not in handlers:
                    raise _NoRoute(tuple(handlers))
                return handlers[method], {k: unquote(v) for k, v in found.groupdict().items()}
        raise _NoRoute(())

    def _forget(self, request_id: str) -> None:
        del self._calls[request_id]


class _Call:
    """One call under way."""

    __slots__ = ("answered", "reply", "task")

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.task: asyncio.Task[None] | None = None
        self.answered: ApiCall | None = None


class _NoRoute(Exception):
    def __init__(self, allowed: tuple[str, ...]) -> None:
        super().__init__()
        self.allowed = allowed


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path))
