# mypy: disable-error-code="import-not-found,misc,no-any-return"
"""A device for stock vLLM that computes nothing: step times of a GPU that is not there, made-up but repeatable tokens.

vLLM's server, scheduler, KV manager, prefix cache and metrics are the real ones; only the executor is this one
(`--distributed-executor-backend engine_adapters.vllm_emulated_device.EmulatedDevice`). Steps run one after another, as
on a device: each lasts what the step-time model says of its batch, times the noise asked for, from the end of the one
before it if that was still running. Settings come in the environment (`astrolabe engine vllm` fills it).
"""

from __future__ import annotations

import os
import queue
import random
import threading
import time
from concurrent.futures import Future
from typing import Any

import msgspec
import numpy as np
import torch
from vllm.v1.executor.abstract import Executor
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput

from engine_adapters.emulated_answer import Answer, made_up_logprobs, natural_length
from simcore.cost.shipped import load_shipped
from simcore.cost.step_time import StepTimeModel
from simcore.trace import StepBatch

ENV_SETTINGS = "ASTROLABE_EMULATED_DEVICE"
"""A JSON object with the fields of `DeviceSettings`."""


class DeviceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the device pretends to be."""

    profile: str = "a30/llama-2-7b"
    """A shipped profile, as gpu/model."""
    noise: float = 0.0
    """Standard deviation of a step's duration, as a share of it."""
    time_scale: float = 1.0
    """How much faster than the real device."""
    seed: int = 0
    """Seed of the noise."""
    async_scheduling: bool = True
    """Whether vLLM plans a step while the device runs the one before, as it does with a GPU."""
    first_text_id: int = 97
    """Answers are made of the token ids from here ..."""
    last_text_id: int = 122
    """... to here."""

    def __post_init__(self) -> None:
        if not (self.noise >= 0 and self.time_scale > 0):
            raise ValueError(f"noise must be >= 0 and time_scale > 0, got {self.noise} and {self.time_scale}")

    def step_time(self) -> StepTimeModel:
        return load_shipped(self.profile).scaled(1.0 / self.time_scale)


class DeviceRequest:
    """One request on the device: its text so far and where it ends by itself."""

    __slots__ = ("answer", "eos", "logprobs", "natural", "produced", "prompt_tokens")

    def __init__(
        self,
        prompt: list[int],
        *,
        text_ids: range,
        eos: int | None,
        wanted_tokens: int = 0,
        logprobs: int | None = None,
    ) -> None:
        """`wanted_tokens` as in `natural_length`."""
        self.prompt_tokens = len(prompt)
        self.answer = Answer(prompt, text_ids)
        self.eos = eos
        self.logprobs = logprobs
        """How many likeliest tokens are to be told with each; None: none."""
        ends = eos is not None
        self.natural = natural_length(prompt, text_ids, wanted_tokens=wanted_tokens) if ends else 0
        self.produced = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.produced

    def next_token(self) -> int:
        self.produced += 1
        if self.eos is not None and self.produced == self.natural:
            return self.eos
        return self.answer.next_token()


class EmulatedDevice(Executor):
    """vLLM's Executor without workers."""

    @classmethod
    def supports_async_scheduling(cls) -> bool:
        return True

    def _init_executor(self) -> None:
        settings = msgspec.json.decode(os.environ.get(ENV_SETTINGS, "{}"), type=DeviceSettings)
        # vLLM's CPU platform switches this off for its own kernels; the scheduler, built after us, reads it here.
        self.scheduler_config.async_scheduling = settings.async_scheduling
        self._step_time = settings.step_time()
        self._step_time.seconds(StepBatch(decode_seqs=1))  # compiles now, not in the first step
        self._noise = settings.noise
        self._random = random.Random(settings.seed)
        self._text_ids = range(settings.first_text_id, settings.last_text_id + 1)
        self._requests: dict[str, DeviceRequest] = {}
        self._pending: Future[Any] | None = None
        self._work: queue.SimpleQueue[tuple[float, float, ModelRunnerOutput, Future[Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="emulated-device", daemon=True).start()

    def _run(self) -> None:
        """The device: one step after another."""
        end_s = 0.0
        while True:
            submitted_s, duration_s, output, future = self._work.get()
            end_s = max(end_s, submitted_s) + duration_s
            wait_s = end_s - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
            future.set_result(output)

    def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:
        batch, output = self._compute(scheduler_output)
        future: Future[Any] = Future()
        duration_s = 0.0
        if batch.total_tokens:
            duration_s = self._step_time.seconds(batch)
            if self._noise:
                duration_s *= max(0.1, self._random.gauss(1.0, self._noise))
        self._work.put((time.monotonic(), duration_s, output, future))
        if not batch.total_tokens:
            return future if non_block else future.result()
        # As with real workers: the tokens are asked for with `sample_tokens`.
        self._pending = future
        if not non_block:
            return None
        executed: Future[Any] = Future()
        executed.set_result(None)
        return executed

    def sample_tokens(self, grammar_output: Any, non_block: bool = False) -> Any:
        pending, self._pending = self._pending, None
        assert pending is not None, "sample_tokens follows execute_model"
        return pending if non_block else pending.result()

    def _compute(self, plan: Any) -> tuple[StepBatch, ModelRunnerOutput]:
        for request_id in plan.finished_req_ids:
            self._requests.pop(request_id, None)
        computed: dict[str, int] = {}
        for new in plan.scheduled_new_reqs:
            computed[new.req_id] = new.num_computed_tokens
            if new.req_id not in self._requests:
                self._requests[new.req_id] = self._request(new)
        cached = plan.scheduled_cached_reqs
        computed.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        prefill = prefill_seqs = decode = kv = 0
        work = 0.0
        sampled: list[list[int]] = []
        ids = list(plan.num_scheduled_tokens)
        for request_id in ids:
            request, n, before = self._requests[request_id], plan.num_scheduled_tokens[request_id], computed[request_id]
            if before >= request.prompt_tokens and request.tokens - before == 1:
                decode += 1
                kv += before + 1
            else:
                prefill += n
                prefill_seqs += 1
                work += n * (before + 0.5 * n)
            sampled.append([request.next_token()] if before + n >= request.tokens else [])
        output = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={r: i for i, r in enumerate(ids)},
            sampled_token_ids=sampled,
            logprobs=self._logprobs(ids, sampled),
        )
        return StepBatch(prefill, work, prefill_seqs, decode, kv), output

    def _logprobs(self, request_ids: list[str], sampled: list[list[int]]) -> LogprobsLists | None:
        """Made-up ones, a row for each request, as wide as the one that asks for most."""
        widths = [self._requests[request_id].logprobs for request_id in request_ids]
        if all(width is None for width in widths):
            return None
        width = max(width or 0 for width in widths)
        token_ids = np.zeros((len(sampled), width + 1), np.int64)
        logprobs = np.full((len(sampled), width + 1), -np.inf, np.float32)
        for row, tokens in enumerate(sampled):
            if tokens and widths[row] is not None:
                # One more than is told: the token itself may be among them.
                told = made_up_logprobs(tokens[0], width + 1, self._text_ids)
                count = min(width, len(told.other_ids)) + 1
                token_ids[row, :count] = (tokens[0], *told.other_ids)[:count]
                logprobs[row, :count] = (told.logprob, *told.other_logprobs)[:count]
        return LogprobsLists(token_ids, logprobs, np.ones(len(sampled), np.int64))

    def _request(self, new: Any) -> DeviceRequest:
        parameters = new.sampling_params
        ends = parameters is not None and not parameters.ignore_eos
        eos = self.model_config.hf_config.eos_token_id if ends else None
        wanted = (getattr(parameters, "extra_args", None) or {}).get("emulated_output_tokens", 0)
        logprobs = None if parameters is None else parameters.logprobs
        prompt = list(new.prompt_token_ids or [])
        return DeviceRequest(prompt, text_ids=self._text_ids, eos=eos, wanted_tokens=int(wanted), logprobs=logprobs)

    # --- what vLLM asks of an executor besides steps ------------------------------------------------------------------

    def determine_available_memory(self) -> list[int]:
        return [64 << 30]

    def get_kv_cache_specs(self) -> list[dict[str, Any]]:
        spec = FullAttentionSpec(
            block_size=self.cache_config.block_size, num_kv_heads=1, head_size=16, dtype=torch.bfloat16
        )
        return [{"layer": spec}]

    def get_supported_kv_cache_layouts(self) -> list[list[str]]:
        return [["NHD"]]

    def set_kv_cache_layout(self, layout_name: str) -> None:
        pass

    def initialize_from_config(self, kv_cache_configs: Any) -> None:
        pass

    def compile_or_warm_up_model(self) -> Any:
        pass

    @property
    def supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    def collective_rpc(
        self,
        method: Any,
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        non_block: bool = False,
        single_value: bool = False,
    ) -> Any:
        """There are no workers; the few questions that are asked anyway have fixed answers."""
        name = method if isinstance(method, str) else getattr(method, "__name__", "")
        answer = ("generate",) if name == "get_supported_tasks" else None
        if name.startswith("supports_"):
            answer = False  # type: ignore[assignment]
        return answer if single_value else [answer]

    def take_draft_token_ids(self) -> None:
        return None

    def check_health(self) -> None:
        pass

    def shutdown(self) -> None:
        pass
