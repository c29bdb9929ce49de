"""The two Protocols behind which every engine dialect stands: a probe (its trace) and a client (generate, abort).

An adapter owns its connection and translates; it decides nothing. `engine_adapters.registry` maps names to classes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Literal, Protocol

import msgspec

from protos.runtime.secret import NO_SECRET, Secret
from protos.runtime.tls_files import ClientTlsFiles
from simcore.cost.step_time import StepTimeModel
from simcore.trace import TraceItem
from simcore.types import EngineConfig, TokenLogprobs

FinishReason = Literal["stop", "length", "aborted"]


class EngineError(Exception):
    """The engine failed or cannot be reached. The message is for people."""


class EngineMisconfigured(EngineError):
    """The engine is there, and we are configured wrongly for it. Waiting will not help."""


class EngineFull(EngineError):
    """The engine takes no more for now. That is no failure, and another one may have room."""


class RequestRefused(EngineError):
    """The engine will not take this request as it stands: too long, unknown option. Trying elsewhere will not help."""


class EngineRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is asked to generate."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    emulated_output_tokens: int = 0
    """Tokens after which the answer ends by itself; 0: as the engine has it. For engines with `settable_length`."""
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int = 0
    """Before so many the answer does not end by itself."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what is added to its logit)"""
    bad_words: tuple[str, ...] = ()
    logprobs: int | None = None
    """Tell with each token how likely it was, and so many of the likeliest others; None: do not. For engines with
    `Capabilities.logprobs`."""
    priority: int = 0
    model: str = ""
    """The name under which the engine serves the model that the client wants; empty: its own."""
    traceparent: str = ""
    """W3C trace context of the client's call, for engines that trace; empty: none."""
    kv_source: str = ""
    """An engine that holds the prompt's KV and lets it be fetched (`EngineConfig.kv_source`); empty: it is computed."""


class EngineOutput(msgspec.Struct, frozen=True):
    """New tokens of one request. `finish` is set in the last one only."""

    token_ids: tuple[int, ...]
    finish: FinishReason | None = None
    cached_tokens: int = 0
    """Prompt tokens taken from the prefix cache; set in the last one."""
    stop_token_id: int | None = None
    """Which of the ids to stop at (those asked for, and those that the engine has itself) ended the answer, if one did
    that the engine tells of; in the last one."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each token, where they were asked for."""


OutputSink = Callable[[str, EngineOutput | EngineError], None]
"""Takes (request id, output). The last call for a request brings an output with `finish`, or an EngineError."""


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What an adapter is told. Each uses what concerns it."""

    node_id: str
    config: EngineConfig | None = None
    """Limits of an engine that we start ourselves; one that runs elsewhere tells its own."""
    step_time: StepTimeModel | None = None
    """Hardware that an emulated engine pretends to be."""
    time_scale: float = 1.0
    """How much faster than that hardware an emulated engine runs."""
    tokenizer: str = "bytes"
    """Whose ids the engine speaks."""
    warm_tokenizer: bool = False
    """Whether an emulated engine loads it at start."""
    url: str = ""
    """HTTP server of an engine that runs elsewhere."""
    tls: ClientTlsFiles = ClientTlsFiles()
    """For an https URL."""
    key: Secret = NO_SECRET
    """The API key that it asks for; empty: none."""
    trace: str = ""
    """Where that engine serves its trace; empty: as follows from the URL."""
    model: str = ""
    """The model that it must serve; empty: any."""
    wait_s: float = 600.0
    """How long to wait for an engine that is not up yet."""


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What an adapter can do, so that callers ask instead of trying."""

    per_request_trace: bool
    """False: only aggregates are known and forecasts are `approximate`."""
    exact_rules: bool
    """True when the engine's scheduler is one that simcore was proved equal to."""
    settable_length: bool = False
    """Whether `EngineRequest.emulated_output_tokens` is obeyed."""
    logprobs: bool = False
    """Whether `EngineRequest.logprobs` is obeyed."""
    forwards: bool = False
    """Whether it takes calls as their clients made them (`engine_adapters.forwarding`)."""


class EngineClient(Protocol):
    """Sends work to one engine."""

    capabilities: Capabilities

    async def start(self) -> None:
        """Connects (or starts an embedded engine). Raises EngineError."""

    async def close(self) -> None:
        """Aborts what runs and disconnects. Idempotent."""

    def config(self) -> EngineConfig:
        """The engine's limits. Valid after `start`."""

    async def names(self) -> tuple[str, ...]:
        """All names by which the engine may be asked now, its own first; `config` has them from then on. Raises
        EngineError when it does not say."""

    async def adapters(self) -> tuple[str, ...] | None:
        """LoRA adapters that requests in the engine use now; None where it does not tell. Raises EngineError."""

    def step_time(self) -> StepTimeModel | None:
        """The engine's step-time model if the adapter knows one (an emulated device does); else None."""

    def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        """Streams the answer; the last output carries `finish`.

        Raises RequestRefused before the first output, EngineError at any point. Closing the iterator early aborts
        the request in the engine.
        """

    def submit(self, request: EngineRequest, sink: OutputSink) -> None:
        """As `generate`, without a task per request: outputs go to `sink`, called on the event loop, those of one
        engine step in one turn of it. A sink must not raise and must not call back into the client.

        Raises RequestRefused or EngineError if that is known at once; then the sink is never called.
        """

    async def abort(self, request_id: str) -> bool:
        """Stops a request wherever it is; its iterator ends with finish `aborted`. False if it is unknown."""


class EngineProbe(Protocol):
    """Reads the trace of one engine."""

    def watch(self) -> AsyncIterator[TraceItem]:
        """A snapshot first, then deltas; those of the prefix cache, if the engine tells them, anywhere behind it.

        After a lost delta the sequence number shows a gap: call `watch` again for a new snapshot. Raises
        EngineError when the connection breaks."""
