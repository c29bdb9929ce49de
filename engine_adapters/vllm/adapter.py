"""A stock vLLM server as an engine: requests over its HTTP API, state from its trace."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator

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
from engine_adapters.forwarding import BodyFeed, ForwardCall, ForwardSink
from engine_adapters.openai_metrics_view import MetricsError, read_page
from engine_adapters.vllm.address import AddressError, address_for_url, parse_address
from engine_adapters.vllm.client import VllmClient, check_wanted, relay_to, renamed, served_names
from engine_adapters.vllm.probe import TraceProbe
from protos.runtime.addresses import parse_url
from simcore.cost.step_time import StepTimeModel
from simcore.trace import TraceItem, TraceSnapshot
from simcore.types import EngineConfig

log = structlog.get_logger("engine_adapters.vllm")

DEFAULT_URL = "http://127.0.0.1:8000"
PAUSE_S = 0.5
REMIND_S = 30.0


class VllmEngine:
    """A stock vLLM server, client and probe in one."""

    def __init__(self, options: EngineOptions) -> None:
        try:
            url = parse_url(options.url or DEFAULT_URL)
            address = parse_address(options.trace) if options.trace else address_for_url(url, os.environ)
        except AddressError as bad:
            raise EngineError(str(bad)) from None
        except ValueError as bad:
            raise EngineError(f"the engine's URL: {bad}") from None
        self.capabilities = Capabilities(per_request_trace=True, exact_rules=False, logprobs=True, forwards=True)
        self._wanted_model = options.model
        self._step_time = None
        if options.step_time is not None and options.time_scale != 1.0:
            self._step_time = options.step_time.scaled(1.0 / options.time_scale)
        self._wait_s = options.wait_s
        self._client = VllmClient(url, tls=options.tls, key=options.key)
        self._relay = relay_to(url, tls=options.tls, key=options.key)
        self._probe = TraceProbe(address)
        self._config: EngineConfig | None = None
        self._traced: EngineConfig | None = None
        """What the trace said of the engine when we came."""

    async def start(self) -> None:
        """Waits for the engine: it may be started after the daemon. Raises EngineError after `wait_s`."""
        began_s = time.monotonic()
        reminded_s = began_s - REMIND_S
        while True:
            try:
                await self._client.connect()
                hello = await self._probe.greet()
                break
            except EngineMisconfigured:
                await self._client.close()
                raise
            except EngineError as error:
                now_s = time.monotonic()
                if now_s - began_s >= self._wait_s:
                    await self._client.close()
                    raise
                if now_s - reminded_s >= REMIND_S:
                    reminded_s = now_s
                    log.info("waiting for the engine", detail=str(error))
            await asyncio.sleep(PAUSE_S)
        try:
            self._check_model(hello.config)
        except EngineError:
            await self._client.close()
            raise
        self._traced = hello.config
        self._config = config = renamed(hello.config, served_names(self._client.models, self._wanted_model))
        self.capabilities = Capabilities(
            per_request_trace=True,
            exact_rules=not config.outside_rules,
            settable_length=hello.settable_length,
            logprobs=True,
            forwards=True,
        )
        self._client.limit(config)
        log.info("engine found", url=self._client.url, trace=str(self._probe.address), version=config.engine_version)

    async def close(self) -> None:
        await self._relay.close()
        await self._client.close()

    def config(self) -> EngineConfig:
        assert self._config is not None, "the adapter is not started"
        return self._config

    async def names(self) -> tuple[str, ...]:
        await self._client.connect()
        self._config = renamed(self.config(), served_names(self._client.models, self._wanted_model))
        self._client.limit(self._config)
        return self._config.names

    async def adapters(self) -> tuple[str, ...] | None:
        try:
            return read_page(await self._client.metrics()).adapters
        except MetricsError as bad:
            raise EngineError(f"{self._client.url}/metrics: {bad}") from None

    def step_time(self) -> StepTimeModel | None:
        """Step times of an emulated device that runs faster than its profile; else nothing is known."""
        return self._step_time

    def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        return self._client.generate(request)

    def submit(self, request: EngineRequest, sink: OutputSink) -> None:
        self._client.submit(request, sink)

    async def abort(self, request_id: str) -> bool:
        return await self._client.abort(request_id) or await self._relay.abort(request_id)

    def forward(self, call: ForwardCall, body: BodyFeed, sink: ForwardSink) -> None:
        self._relay.forward(call, body, sink)

    def hold(self, request_id: str, held: bool) -> None:
        self._relay.hold(request_id, held)

    async def watch(self) -> AsyncGenerator[TraceItem, None]:
        watching = self._probe.watch()
        try:
            async for item in watching:
                if isinstance(item, TraceSnapshot):
                    self._check_limits(item.config)
                yield item
        finally:
            await watching.aclose()

    def _check_model(self, config: EngineConfig) -> None:
        check_wanted(self._client, self._wanted_model)
        if config.model not in self._client.models:
            served = ", ".join(map(repr, self._client.models))
            raise EngineError(
                f"the server at {self._client.url} serves {served}, but the trace at "
                f"{self._probe.address} is of {config.model!r}: these are two engines"
            )

    def _check_limits(self, config: EngineConfig) -> None:
        if self._traced is None:
            return
        # Other names are no other engine: `names` tells them.
        config = renamed(config, self._traced.names)
        if config != self._traced:
            changed = [f for f in config.__struct_fields__ if getattr(config, f) != getattr(self._traced, f)]
            raise EngineError(f"the engine was restarted with another {', '.join(changed)}: restart the daemon too")
