"""Any OpenAI-compatible server with Prometheus metrics: requests over its API, state from its counts and our account.

Less is known than from a trace: forecasts are `approximate`, and other people's requests are guesses. Servers that
answer with text only are read through the tokenizer: token counts follow its pieces, the text is exact. TGI, which
takes no token ids, is sent text.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator

import aiohttp
import msgspec
import structlog

from engine_adapters.base import (
    Capabilities,
    EngineError,
    EngineMisconfigured,
    EngineOptions,
    EngineOutput,
    EngineRequest,
    OutputSink,
)
from engine_adapters.forwarding import BodyFeed, ForwardCall, ForwardSink, ReplyData, ReplyEnd, ReplyHead
from engine_adapters.openai_metrics_view import Aggregates, MetricsError, OwnRequest, estimated_snapshot, read_page
from engine_adapters.streaming import stream
from engine_adapters.tokenizer import load_tokenizer
from engine_adapters.vllm.client import (
    VllmClient,
    auth_headers,
    check_wanted,
    https,
    refusal,
    relay_to,
    renamed,
    served_names,
)
from protos.runtime.addresses import parse_url
from protos.runtime.channels import uses_proxy
from simcore.cost.step_time import StepTimeModel
from simcore.trace import TraceDelta, TraceSnapshot
from simcore.types import EngineConfig

log = structlog.get_logger("engine_adapters.openai_metrics")

DEFAULT_URL = "http://127.0.0.1:8000"
POLL_S = 0.25
TIMEOUT_S = 2.0
PAUSE_S = 0.5


class OpenAiEngine:
    """An OpenAI-compatible server, client and probe in one."""

    capabilities = Capabilities(per_request_trace=False, exact_rules=False, forwards=True)

    def __init__(self, options: EngineOptions) -> None:
        if options.config is None:
            raise EngineError(
                "an engine known by its metrics needs its limits (max_num_seqs, num_blocks, ...) configured"
            )
        try:
            self._url = parse_url(options.url or DEFAULT_URL)
        except ValueError as bad:
            raise EngineError(f"the engine's URL: {bad}") from None
        self._limits = options.config
        self._wait_s = options.wait_s
        self._wanted_model = options.model
        self._tls = options.tls
        self._step_time = None
        if options.step_time is not None and options.time_scale != 1.0:
            self._step_time = options.step_time.scaled(1.0 / options.time_scale)
        self._key = options.key
        tokenizer = load_tokenizer(options.tokenizer)
        self._client = VllmClient(self._url, tls=options.tls, tokenizer=tokenizer, key=options.key)
        self._relay = relay_to(self._url, tls=options.tls, key=options.key)
        self._config: EngineConfig | None = None
        self._own: dict[str, OwnRequest] = {}
        self._seq = 0
        self._adapters: tuple[str, ...] | None = None
        self._preemptions: int | None = None
        """As a page told them last; one that does not know must not seem to count anew."""
        self._heard = False
        """Whether anything has come of our requests since the last page."""
        self._was_busy = False
        self._progress: int | None = None

    async def start(self) -> None:
        """Waits for the server. Raises EngineError after `wait_s`."""
        end_s = time.monotonic() + self._wait_s
        while True:
            try:
                await self._client.connect()
                async with self._session() as session:
                    page = await self._page(session)
                break
            except EngineError as error:
                if time.monotonic() >= end_s or isinstance(error, EngineMisconfigured):
                    await self._client.close()
                    raise
                log.info("waiting for the engine", detail=str(error))
            await asyncio.sleep(PAUSE_S)
        try:
            check_wanted(self._client, self._wanted_model)
        except EngineMisconfigured:
            await self._client.close()
            raise
        names = served_names(self._client.models, self._wanted_model)
        self._config = msgspec.structs.replace(
            self._limits,
            model=names[0],
            other_names=names[1:],
            engine=page.dialect,
            max_model_len_tokens=self._client.max_model_len_tokens or self._limits.max_model_len_tokens,
            num_blocks=page.num_blocks or self._limits.num_blocks,
            block_size_tokens=page.block_size_tokens or self._limits.block_size_tokens,
            outside_rules=(f"its {page.dialect} metrics tell sums only: it has no trace",),
        )
        self._client.limit(self._config, text_prompts=page.dialect == "tgi")
        log.info("engine found", url=self._url, dialect=page.dialect)

    async def close(self) -> None:
        await self._relay.close()
        await self._client.close()

    def config(self) -> EngineConfig:
        assert self._config is not None, "the adapter is not started"
        return self._config

    async def names(self) -> tuple[str, ...]:
        await self._client.connect()
        self._config = renamed(self.config(), served_names(self._client.models, self._wanted_model))
        self._client.limit(self._config, text_prompts=self._config.engine == "tgi")
        return self._config.names

    async def adapters(self) -> tuple[str, ...] | None:
        return self._adapters

    def step_time(self) -> StepTimeModel | None:
        """Step times of an emulated device that runs faster than its profile; else nothing is known."""
        return self._step_time

    def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        return stream(self, request)

    def submit(self, request: EngineRequest, sink: OutputSink) -> None:
        own = OwnRequest(
            request_id=request.request_id,
            prompt_tokens=len(request.prompt_token_ids),
            max_output_tokens=request.max_tokens,
            priority=request.priority,
            sent_s=time.monotonic(),
        )

        def accounted(request_id: str, output: EngineOutput | EngineError) -> None:
            self._heard = True
            if isinstance(output, EngineError) or output.finish is not None:
                self._own.pop(request_id, None)
            else:
                own.output_tokens += len(output.token_ids)
            sink(request_id, output)

        self._client.submit(request, accounted)
        self._own[request.request_id] = own

    async def abort(self, request_id: str) -> bool:
        return await self._client.abort(request_id) or await self._relay.abort(request_id)

    def forward(self, call: ForwardCall, body: BodyFeed, sink: ForwardSink) -> None:
        own = OwnRequest(
            request_id=call.request_id,
            prompt_tokens=call.prompt_tokens,
            max_output_tokens=call.max_output_tokens,
            priority=call.priority,
            sent_s=time.monotonic(),
        )

        def accounted(request_id: str, output: ReplyHead | ReplyData | ReplyEnd | EngineError) -> None:
            self._heard = True
            if isinstance(output, ReplyData):
                own.output_tokens += output.output_tokens
            elif not isinstance(output, ReplyHead):
                self._own.pop(request_id, None)
            sink(request_id, output)

        self._relay.forward(call, body, accounted)
        if call.prompt_tokens:
            self._own[call.request_id] = own

    def hold(self, request_id: str, held: bool) -> None:
        self._relay.hold(request_id, held)

    async def watch(self) -> AsyncGenerator[TraceSnapshot | TraceDelta, None]:
        """A snapshot every quarter of a second, under the number of the last one while the engine seems to stand."""
        async with self._session() as session:
            while True:
                page = await self._page(session)
                if not self._seq or not self._stands(page):
                    self._seq += 1
                if page.preemptions is None:
                    page = msgspec.structs.replace(page, preemptions=self._preemptions)
                self._preemptions = page.preemptions
                self._adapters = page.adapters
                yield estimated_snapshot(page, self._own.values(), self.config(), seq=self._seq, at_s=time.monotonic())
                await asyncio.sleep(POLL_S)

    def _stands(self, page: Aggregates) -> bool:
        """Whether it has had work of ours since the last page and has neither done nor answered any of it.

        A server may go on telling its numbers for ever when the engine behind it has stopped.
        """
        is_busy = bool(self._own) or len(self._relay) > 0
        stands = (
            (is_busy and self._was_busy and not self._heard)
            and page.progress is not None
            and page.progress == self._progress
        )
        self._was_busy, self._heard, self._progress = is_busy, False, page.progress
        return stands

    def _session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(ssl=https(self._url, self._tls))
        return aiohttp.ClientSession(connector=connector, trust_env=uses_proxy(), headers=auth_headers(self._key))

    async def _page(self, session: aiohttp.ClientSession) -> Aggregates:
        """Raises EngineError."""
        try:
            timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
            async with session.get(f"{self._url}/metrics", timeout=timeout) as answer:
                if answer.status != 200:
                    raise refusal(answer.status, b"", f"{self._url}/metrics", self._key)
                return read_page((await answer.read()).decode(errors="replace"))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise EngineError(f"no metrics at {self._url}/metrics ({error or type(error).__name__})") from None
        except MetricsError as error:
            raise EngineError(f"{self._url}/metrics: {error}") from None
