"""Open-loop client: sends each request when it is due, whatever became of the others, and measures at the client.

Times count from the moment a request was *due*. If this process or machine cannot keep up, requests leave late and the
lateness is in the results and in the summary (achieved against offered rate); nothing is dropped or thinned.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import grpc.aio
import msgspec

from bench.measure.results import RequestResult, tpot_s
from bench.workload.item import LengthKnowledge, WorkloadItem, belief_of
from bench.workload.prefix import prefix_token_ids
from bench.workload.synthetic import prompt_token_ids
from gateway.core.outcomes import CODES, COMPLETE
from protos import codec
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchStub
from simcore.types import Outcome

if TYPE_CHECKING:
    from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchAsyncStub

CHANNEL_OPTIONS = [("grpc.max_receive_message_length", 64 * 2**20), ("grpc.use_local_subchannel_pool", 1)]

DEFAULT_LIMIT_TOKENS = 2048
"""Limit of answers whose length is not told, if none of the run is longer."""

DECISION_KEY = "x-astrolabe-decision-s"
"""Initial metadata: seconds from arrival at the gateway to the placement, on the wall clock."""
OUTCOME_KEY = "x-astrolabe-outcome"
"""Trailing metadata of calls that failed."""

_OUTCOME_OF_CODE: dict[int, Outcome] = {
    code.grpc: outcome
    for outcome, code in reversed(CODES.items())
    if outcome not in (Outcome.STOP, Outcome.LENGTH, Outcome.CLIENT_LEFT)
}
"""For servers that do not say the outcome in their trailing metadata: the first outcome with that status."""


class ReplayPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What to send and how."""

    items: Sequence[WorkloadItem]
    run_id: str
    """Prefix of the request ids on the gateway, so that two runs there cannot be mixed up."""
    lengths: LengthKnowledge = "known"
    natural_length: bool = False
    """Let the model end its answers. Else they have the data set's length: with `known` lengths the engine runs to a
    limit of just so many tokens (`ignore_eos`, as the seed does); otherwise an emulated engine is told the length apart
    from the limit, which is the same for all, because a limit that is the length would give it away."""
    model: str = ""
    """For requests that do not name one."""
    seed: int = 0
    vocab_size: int = 256
    """Range of made-up token ids, for items without text."""
    timeout_s: float = 600.0
    """A request without its whole answer after this long is given up and counts as `deadline`."""
    time_scale: float = 1.0
    """Workload seconds per second of the clock, for emulated engines that run on such a scale: the schedule is
    compressed by it and measured times are stretched back. Decision times are those of the clock."""


class Progress(msgspec.Struct):
    """Counts while a replay runs."""

    sent: int = 0
    ended: int = 0
    failed: int = 0
    tokens: int = 0


def common_limit_tokens(items: Sequence[WorkloadItem]) -> int:
    """The limit that all answers of a run carry when their lengths are not told."""
    return max(DEFAULT_LIMIT_TOKENS, *(item.output_tokens for item in items))


def request_message(item: WorkloadItem, plan: ReplayPlan, index: int, *, limit_tokens: int) -> pb.GenerateRequest:
    """The wire form of one item; `limit_tokens` is the common limit."""
    belief = belief_of(item, plan.lengths)
    sampling = types_pb.SamplingParams(temperature=0.0)
    if not plan.natural_length and plan.lengths == "known":
        sampling.ignore_eos = True
        sampling.max_tokens = item.output_tokens
    elif not plan.natural_length:
        sampling.max_tokens = limit_tokens
        sampling.emulated_output_tokens = item.output_tokens
    message = pb.GenerateRequest(
        request_id=f"{plan.run_id}-{item.request_id}",
        model=item.model or plan.model,
        sampling=sampling,
        priority=item.priority,
        session=item.session,
        belief=codec.belief_to_wire(belief) if belief is not None else None,
    )
    if item.prompt:
        message.text = item.prompt
    else:
        message.token_ids.ids.extend(made_up_prompt(item, seed=plan.seed, index=index, vocab_size=plan.vocab_size))
    return message


def made_up_prompt(item: WorkloadItem, *, seed: int, index: int, vocab_size: int) -> list[int]:
    """Token ids for an item without text: what it shares with others by its prefix ids, then tokens of its own."""
    shared = prefix_token_ids(
        item.prefix_ids,
        prefix_block_tokens=item.prefix_block_tokens,
        prompt_tokens=item.prompt_tokens,
        vocab_size=vocab_size,
    )
    own = item.prompt_tokens - len(shared)
    return shared + prompt_token_ids(seed=seed, index=index, prompt_tokens=own, vocab_size=vocab_size)


async def replay(
    channel: grpc.aio.Channel, plan: ReplayPlan, *, progress: Progress | None = None
) -> list[RequestResult]:
    """Sends the whole plan and waits for every answer. One result per item, in the plan's order.

    A request that fails is a result, not an exception. When the caller is cancelled, so are the running requests.
    """
    stub: DispatchAsyncStub = DispatchStub(channel)
    # Messages are made before the clock starts: sending must cost as little as it can.
    limit_tokens = common_limit_tokens(plan.items)
    messages = [request_message(item, plan, i, limit_tokens=limit_tokens) for i, item in enumerate(plan.items)]
    count = progress if progress is not None else Progress()
    start_s = time.perf_counter()
    tasks: list[asyncio.Task[RequestResult]] = []
    async with asyncio.TaskGroup() as group:
        for item, message in zip(plan.items, messages, strict=True):
            due_s = start_s + item.arrival_s / plan.time_scale
            await reach(due_s)
            exchange = _Exchange(plan, item, due_s=due_s, progress=count)
            tasks.append(group.create_task(exchange.run(stub, message)))
    return [task.result() for task in tasks]


async def reach(due_s: float) -> None:
    """Waits until the clock says `due_s`: a loop's timers may be coarser than it and fire early."""
    while True:
        wait_s = due_s - time.perf_counter()
        if wait_s <= 0:
            return
        await asyncio.sleep(wait_s)


class _Exchange:
    """One request and its answer, timed. Wall-clock seconds inside; the result is on the workload's scale."""

    __slots__ = (
        "_decision_s", "_due_s", "_first_s", "_gaps_s", "_item", "_last_s", "_node_id", "_outcome", "_plan",
        "_progress", "_prompt_tokens", "_sent_s", "_tokens",
    )  # fmt: skip

    def __init__(self, plan: ReplayPlan, item: WorkloadItem, *, due_s: float, progress: Progress) -> None:
        self._plan = plan
        self._item = item
        self._due_s = due_s
        self._progress = progress
        self._sent_s = due_s
        self._first_s: float | None = None
        self._last_s = due_s
        self._gaps_s: list[float] = []
        self._tokens = 0
        self._prompt_tokens = item.prompt_tokens
        self._node_id = ""
        self._decision_s: float | None = None
        self._outcome: Outcome | None = None

    async def run(self, stub: DispatchAsyncStub, message: pb.GenerateRequest) -> RequestResult:
        self._sent_s = time.perf_counter()
        self._progress.sent += 1
        call: Any = stub.Generate(message)  # its published type is that of a blocking call
        detail = ""
        try:
            async with asyncio.timeout(self._plan.timeout_s):
                async for chunk in call:
                    self._take(chunk)
                    if self._first_s is not None and self._decision_s is None:
                        self._read_metadata(await call.initial_metadata())
            outcome = self._outcome or Outcome.INTERNAL
            detail = "" if self._outcome is not None else "the stream ended without an outcome"
        except TimeoutError:
            call.cancel()
            outcome, detail = Outcome.DEADLINE, f"no complete answer within {self._plan.timeout_s:g} s"
        except grpc.aio.AioRpcError as error:
            outcome, detail = _failure(error)
        finally:
            self._progress.ended += 1
        if outcome not in COMPLETE:
            self._progress.failed += 1
        return self._result(outcome, detail)

    def _take(self, chunk: pb.GenerateChunk) -> None:
        now_s = time.perf_counter()
        if chunk.token_ids:
            if self._first_s is None:
                self._first_s = now_s
                self._node_id = chunk.node_id
            else:
                self._gaps_s.append(now_s - self._last_s)
            self._last_s = now_s
            self._tokens += len(chunk.token_ids)
            self._progress.tokens += len(chunk.token_ids)
        if chunk.HasField("outcome"):
            self._outcome = codec.outcome_from_wire(chunk.outcome)
            self._last_s = now_s
            if chunk.HasField("usage"):
                self._prompt_tokens = chunk.usage.prompt_tokens

    def _read_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        said = dict(metadata)
        try:
            self._decision_s = float(said[DECISION_KEY])
        except (KeyError, ValueError):
            self._decision_s = math.nan

    def _result(self, outcome: Outcome, detail: str) -> RequestResult:
        scale = self._plan.time_scale
        complete = outcome in COMPLETE
        ttft_s = None if self._first_s is None else (self._first_s - self._due_s) * scale
        e2e_s = (self._last_s - self._due_s) * scale if complete else None
        return RequestResult(
            request_id=self._item.request_id,
            arrival_s=self._item.arrival_s,
            sent_s=self._item.arrival_s + (self._sent_s - self._due_s) * scale,
            node_id=self._node_id,
            outcome=outcome,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._tokens,
            ttft_s=ttft_s,
            tpot_s=None
            if ttft_s is None or e2e_s is None
            else tpot_s(ttft_s=ttft_s, e2e_s=e2e_s, output_tokens=self._tokens),
            e2e_s=e2e_s,
            itl_s=tuple(round(gap * scale, 6) for gap in self._gaps_s),
            decision_s=None if self._decision_s is None or math.isnan(self._decision_s) else self._decision_s,
            detail=detail,
        )


def _failure(error: grpc.aio.AioRpcError) -> tuple[Outcome, str]:
    """The outcome that the server named in its trailing metadata, else the one that its status stands for."""
    detail = error.details() or ""
    trailing: Any = error.trailing_metadata()  # its published type is not iterable
    for key, value in trailing or ():
        if key == OUTCOME_KEY:
            try:
                return Outcome(value), detail
            except ValueError:
                break
    if error.code() is grpc.StatusCode.NOT_FOUND:
        # The model: a call that was turned away, of which no outcome tells.
        return Outcome.INVALID, detail
    return _OUTCOME_OF_CODE.get(error.code().value[0], Outcome.INTERNAL), detail
