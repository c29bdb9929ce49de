"""The OpenAI-compatible front: routes requests, checks who may make them, hands them to the intake."""

from __future__ import annotations

import asyncio
import functools
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import orjson
import structlog

from gateway.core.outcomes import DENIALS, Denial
from gateway.http.bodies import (
    ChatBody,
    CompletionBody,
    chat_body,
    check_headers,
    client_request,
    completion_body,
    prompt_of,
)
from gateway.http.calls import CallDelivery
from gateway.http.chat import messages_of, prompt_of_chat, question_and_history
from gateway.http.chunks import CHAT, COMPLETION, Style
from gateway.http.connection import Exchange, Handler
from gateway.http.delivery import JSON, Delivery, FlushBatch, ResponseOptions, retry_after
from gateway.http.errors import DEFECT, error_body, plain_error
from gateway.http.heartbeats import Heartbeats
from gateway.http.logprobs import AnswerLogprobs
from gateway.http.message import Request
from gateway.intake.call_desk import CallDesk, FrontCall
from gateway.intake.call_paths import may_be_handed_on, target_of
from gateway.intake.callers import Caller, KeyRing, Role, require, said_key
from gateway.intake.client_stream import ClientStream
from gateway.intake.denied import Denied, invalid
from gateway.intake.submission import Intake
from gateway.nodes.registry import NodeRegistry
from length_model.core.conversation import Turn
from simcore.types import Outcome

log = structlog.get_logger("gateway.http")

EARLY_HEADERS = "x-astrolabe-early-headers"
"""`off`: the status of this request waits for the first token, or for what went wrong before it."""
_OFF = ("off", "0", "false", "no")
_MODEL_PATH = re.compile(r"/v1/models/(?:[^/]+/)*[^/]+")
"""Names may have slashes in them, as those of model hubs do."""

_OUR_FIELDS = frozenset(
    {"request_id", "session", "slo", "policy", "resume", "idempotency_key", "belief", "belief_tokens"}
)
"""What an engine does not know: nonsense in these is for us to say."""

Metrics = Callable[[], tuple[str, bytes]]
"""Content type and body of the metrics page."""
AsyncHandler = Callable[[Exchange], Awaitable[None]]
"""Answers with the help of a model; a plain `Handler` answers at once."""


class OpenAiApi:
    """One instance serves all connections of a listener: `handle` is their handler."""

    def __init__(
        self,
        *,
        intake: Intake,
        nodes: NodeRegistry,
        keys: KeyRing,
        metrics: Metrics,
        desk: CallDesk,
        max_body_bytes: int,
        ui: AsyncHandler | None = None,
        is_leaving: Callable[[], bool] = lambda: False,
        stream_comment_s: float = 0.0,
    ) -> None:
        """`max_body_bytes`: longest body that is taken apart here. `ui`: answers what is at and below `/ui`.
        `is_leaving`: whether clients should go elsewhere, though requests are still taken. `stream_comment_s`: how
        long a streamed answer may take to begin before its client gets a comment; 0: for ever."""
        self._max_body_bytes = max_body_bytes
        self._desk = desk
        self._ui = ui
        self._is_leaving = is_leaving
        self._intake = intake
        self._nodes = nodes
        self._keys = keys
        self._metrics = metrics
        self._batch = FlushBatch()
        self._heartbeats = Heartbeats(stream_comment_s)
        self._started = int(time.time())
        self._tasks: set[asyncio.Task[None]] = set()
        self._posts: dict[str, AsyncHandler] = {
            "/v1/completions": self._completions,
            "/v1/chat/completions": self._chat,
        }
        self._gets: dict[str, Handler] = {
            "/v1/models": self._models,
            "/health": self._ready,
            "/health/ready": self._ready,
            "/health/live": self._live,
            "/metrics": self._metrics_page,
            "/": self._root,
        }

    def handle(self, exchange: Exchange) -> None:
        """Answers now, or starts what answers later."""
        request = exchange.request
        post = self._posts.get(request.path)
        if post is not None and request.method == "POST":
            self._start(post, exchange)
            return
        if self._ui is not None and (request.path == "/ui" or request.path.startswith("/ui/")):
            self._start(self._ui, exchange)
            return
        try:
            get = self._gets.get(request.path) or (self._model if _MODEL_PATH.fullmatch(request.path) else None)
            if get is not None and request.method in ("GET", "HEAD"):
                get(exchange)
            elif get is None and self._desk.takes(target_of(request.url)):
                self._start(self._hand_on, exchange)
            elif post is not None or get is not None:
                allow = "POST" if post is not None else "GET, HEAD"
                body = plain_error(request.path, 405, f"{request.path} takes {allow} only", code=Denial.INVALID.value)
                _respond(exchange, 405, body, {"allow": allow})
            else:
                raise Denied(Denial.UNKNOWN, self._no_such(request))
        except Denied as refused:
            self._intake.on_denial(refused.denial)
            _refuse(exchange, refused)
        except Exception:
            _defect(exchange)

    def takes_long(self, url: str, headers: Mapping[str, str]) -> bool:
        """Whether a request may have a body of up to `max_call_bytes`: only that of a known caller, which can be handed
        on."""
        target = target_of(url)
        try:
            require(self._keys.identify(said_key(headers)), "client")
        except Denied:
            return False
        return target.is_canonical and may_be_handed_on(target.path) and self._intake.forwards("")

    def _start(self, handler: AsyncHandler, exchange: Exchange) -> None:
        task = asyncio.create_task(self._guarded(handler, exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, handler: AsyncHandler, exchange: Exchange) -> None:
        try:
            await handler(exchange)
        except Denied as refused:
            self._intake.on_denial(refused.denial)
            _refuse(exchange, refused)
        except Exception:
            _defect(exchange)

    def _no_such(self, request: Request) -> str:
        """Only the very paths are served: a path that is nearly one gets its name, not its answer."""
        meant = "/" + "/".join(part for part in request.path.split("/") if part)
        known = meant != request.path and (meant in self._gets or meant in self._posts)
        return f"Invalid URL ({request.method} {request.path[:100]}){f'; did you mean {meant}?' if known else ''}"

    # --- answers of a model -------------------------------------------------------------------------------------------

    async def _completions(self, exchange: Exchange) -> None:
        caller = self._client(exchange)
        if await self._is_too_long(exchange, caller):
            return
        try:
            check_headers(exchange.request.headers)
            body = completion_body(exchange.request.body)
            self._intake.check_tokenizer(body.model)
            await self._generate(exchange, caller, body, COMPLETION, prompt_of(body))
        except Denied as refused:
            await self._hand_on_instead(exchange, caller, refused)

    async def _chat(self, exchange: Exchange) -> None:
        caller = self._client(exchange)
        if await self._is_too_long(exchange, caller):
            return
        try:
            check_headers(exchange.request.headers)
            body = chat_body(exchange.request.body)
            self._intake.check_tokenizer(body.model)
            if self._nodes.words_chats(body.model):
                raise invalid("the model's server words chats itself, and no node hands them on to it", param="model")
            messages = messages_of(body.messages)
            question, history = question_and_history(messages)
            prompt = await prompt_of_chat(self._intake.tokenizer, messages)
            await self._generate(exchange, caller, body, CHAT, prompt, question=question, history=history)
        except Denied as refused:
            await self._hand_on_instead(exchange, caller, refused)

    async def _generate(
        self,
        exchange: Exchange,
        caller: Caller,
        body: CompletionBody | ChatBody,
        style: Style,
        prompt: str | Sequence[int],
        *,
        question: str = "",
        history: Sequence[Turn] = (),
    ) -> None:
        if self._nodes.gives_no_text(body.model or ""):
            raise invalid("the model gives no text: ask it for embeddings, scores or classes", param="model")
        request = client_request(body, exchange.request.headers, prompt, question=question, history=history)
        streams = await self._intake.admit_all(request, caller)
        wanted = body.stream_options
        options = ResponseOptions(
            style=style,
            model=body.model or self._only_model(),
            stream=bool(body.stream),
            token_ids=bool(body.return_token_ids),
            usage=wanted is not None and wanted.include_usage,
            running_usage=wanted is not None and wanted.include_usage and wanted.continuous_usage_stats,
            early_headers=exchange.request.headers.get(EARLY_HEADERS, "").strip().lower() not in _OFF,
        )
        logprobs = None
        if (top := request.sampling.logprobs) is not None:
            as_ids = bool(body.return_tokens_as_token_ids)
            logprobs = functools.partial(AnswerLogprobs, self._intake.tokenizer, style=style, top=top, as_ids=as_ids)
        Delivery(streams, self._intake, exchange, options, self._batch, self._heartbeats, logprobs=logprobs)

    def _only_model(self) -> str:
        return next(iter(self._nodes.models()), "")

    # --- answers of engines' own servers ------------------------------------------------------------------------------

    async def _hand_on(self, exchange: Exchange) -> None:
        await self._forward(exchange, self._client(exchange))

    async def _is_too_long(self, exchange: Exchange, caller: Caller) -> bool:
        """Hands a body on that is longer than what is taken apart here; whether it was."""
        if len(exchange.request.body) <= self._max_body_bytes:
            return False
        await self._forward(exchange, caller)
        return True

    async def _hand_on_instead(self, exchange: Exchange, caller: Caller, refused: Denied) -> None:
        """What we do not understand a node may. Raises the refusal where there is none, or where it is about ours."""
        if refused.denial not in (Denial.INVALID, Denial.UNSUPPORTED) or refused.param.partition(".")[0] in _OUR_FIELDS:
            raise refused
        await self._forward(exchange, caller, refused)

    async def _forward(self, exchange: Exchange, caller: Caller, instead_of: Denied | None = None) -> None:
        request = exchange.request
        target = target_of(request.url)
        call = FrontCall(
            method=request.method, target=target, headers=request.headers, lines=request.lines, body=request.body
        )

        def trying(stream: ClientStream) -> None:
            exchange.on_left = functools.partial(self._intake.close, stream)
            if exchange.is_over:
                # The client left before there was anybody to tell.
                self._intake.close(stream)

        stream = await self._desk.admit(call, caller, trying=trying, instead_of=instead_of)
        heard = self._desk.heard if target.kind == "responses" else None
        CallDelivery(stream, self._intake, exchange, target.path, self._batch, heard)

    # --- looks --------------------------------------------------------------------------------------------------------

    def _models(self, exchange: Exchange) -> None:
        self._check(exchange, "client", "metrics")
        models = [self._describe(name, tokens) for name, tokens in self._nodes.models().items()]
        _respond(exchange, 200, orjson.dumps({"object": "list", "data": models}))

    def _model(self, exchange: Exchange) -> None:
        self._check(exchange, "client", "metrics")
        name = exchange.request.path.removeprefix("/v1/models/")
        tokens = self._nodes.models().get(name)
        if tokens is None:
            raise Denied(Denial.MODEL_NOT_FOUND, f"no live node serves the model {name[:100]!r}", param="model")
        _respond(exchange, 200, orjson.dumps(self._describe(name, tokens)))

    def _describe(self, name: str, max_model_len_tokens: int) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "astrolabe",
            "max_model_len": max_model_len_tokens,
        }

    def _ready(self, exchange: Exchange) -> None:
        """200 while new requests should come here and a node is up."""
        leaving = self._is_leaving()
        is_ready = self._nodes.any_up and not leaving
        status = "ok" if is_ready else "shutting down" if leaving else "no node is up"
        _respond(exchange, 200 if is_ready else 503, orjson.dumps({"status": status}))

    def _root(self, exchange: Exchange) -> None:
        """Who opens the bare address in a browser looks for the page. Relative, for proxies that serve us below a path
        of theirs; not for ever, since the page can be switched off."""
        exchange.respond(307, {"location": "ui/"}, b"")

    def _live(self, exchange: Exchange) -> None:
        """200 as long as this process answers."""
        _respond(exchange, 200, b'{"status":"ok"}')

    def _metrics_page(self, exchange: Exchange) -> None:
        self._check(exchange, "metrics")
        content_type, page = self._metrics()
        exchange.respond(200, {"content-type": content_type}, page)

    def _client(self, exchange: Exchange) -> Caller:
        """Before anything is made of the body: who may not ask costs no template and no tokens."""
        return self._check(exchange, "client")

    def _check(self, exchange: Exchange, *roles: Role) -> Caller:
        caller = self._keys.identify(said_key(exchange.request.headers))
        require(caller, *roles)
        return caller


def _respond(exchange: Exchange, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    exchange.respond(status, {"content-type": JSON, **(headers or {})}, body)


def _refuse(exchange: Exchange, refused: Denied) -> None:
    codes = DENIALS[refused.denial]
    headers = {}
    if codes.http in (429, 503):
        headers["retry-after"] = retry_after(refused.retry_after_s)
    if refused.denial is Denial.NO_KEY:
        headers["www-authenticate"] = "Bearer"
    body = error_body(exchange.request.path, refused.denial, str(refused), refused.param)
    _respond(exchange, codes.http, body, headers)


def _defect(exchange: Exchange) -> None:
    log.exception("defect in the HTTP front")
    path, kind, text = exchange.request.path, DEFECT.error_type, DEFECT.text
    _respond(exchange, DEFECT.http, plain_error(path, DEFECT.http, text, kind=kind, code=Outcome.INTERNAL.value))
