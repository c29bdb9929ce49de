# mypy: disable-error-code="import-not-found"
"""vLLM's own scheduler, driven by hand in this process: no model, no device, no network.

Imports vLLM only when a scheduler is built, so that the module can be read without it.
"""

from __future__ import annotations

import copy
import json
import os
import tempfile
from collections import deque
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from simcore.drafts import DraftOdds, cells_of, draw
from simcore.types import EngineConfig
from tests.conformance.scheduler_workloads import Observation, OracleRequest

STOP_TOKEN = 9_999_999

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
}


def why_unavailable() -> str:
    """Empty if vLLM can be imported here, else the reason."""
    os.environ.update({k: v for k, v in _ENVIRONMENT.items() if k not in os.environ})
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        return f"vLLM is not installed here ({error})"
    return ""


@cache
def _base_config() -> Any:
    """One engine configuration to copy from: building one takes a second."""
    from vllm.engine.arg_utils import EngineArgs

    model = Path(tempfile.mkdtemp(prefix="astrolabe-oracle-"))
    (model / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "hidden_size": 256,
                "intermediate_size": 512,
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 1 << 20,
                "vocab_size": 260,
                "torch_dtype": "bfloat16",
            }
        )
    )
    arguments = EngineArgs(
        model=str(model),
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=4096,
        max_num_seqs=48,
        max_num_batched_tokens=512,
        async_scheduling=False,
    )
    return arguments.create_engine_config()


def _speculative_config(config: EngineConfig) -> Any:
    """As vLLM would make it for a method with these numbers, without the model that drafts."""
    from vllm.config.speculative import SpeculativeConfig

    speculative = SpeculativeConfig(
        method="ngram", num_speculative_tokens=config.num_speculative_tokens, prompt_lookup_max=2
    )
    if config.num_lookahead_tokens:
        speculative.method = "eagle"
        speculative.disable_eagle_block_drop = not config.drops_cached_block
    return speculative


class _Batch(NamedTuple):
    plan: Any
    """vLLM's SchedulerOutput."""
    cached: dict[str, int]
    """Tokens found cached, of the requests that it admits."""
    samples: dict[str, int]
    """Tokens that the model will yield: drafts that are right, and one; 0 for parts of prompts."""


class _Drafting:
    """What a model makes of one request's drafts."""

    def __init__(self, order: int) -> None:
        self._order = order
        self._drawn = 0
        self.drafts = self.right = 0

    def draw(self, cells: Sequence[int]) -> None:
        self.drafts, self.right = draw(cells, self._order, self._drawn)
        self._drawn += 1


class VllmScheduler:
    """Same verbs as the simulated scheduler: add, abort, step."""

    def __init__(self, config: EngineConfig, *, draft_odds: DraftOdds | None = None, runner_seats: int = 0) -> None:
        """`runner_seats`: seats of the model runner, where fewer (`config.max_num_seqs`) may be active; 0: as many."""
        import torch
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, SlidingWindowSpec
        from vllm.v1.structured_output import StructuredOutputManager

        vllm_config = copy.deepcopy(_base_config())
        # vLLM keeps one block for itself: its null block.
        blocks = config.num_blocks + 1
        size = config.block_size_tokens
        scheduler = vllm_config.scheduler_config
        scheduler.max_num_seqs = runner_seats or config.max_num_seqs
        scheduler.max_num_active_seqs = config.max_num_seqs if runner_seats else None
        scheduler.max_num_batched_tokens = config.max_num_batched_tokens
        scheduler.max_num_scheduled_tokens = config.max_num_batched_tokens
        scheduler.long_prefill_token_threshold = config.long_prefill_token_threshold_tokens
        scheduler.long_prefill_token_threshold_adaptive = config.long_prefill_adaptive
        scheduler.policy = config.scheduling_policy
        scheduler.async_scheduling = config.async_scheduling
        vllm_config.model_config.max_model_len = config.max_model_len_tokens
        vllm_config.cache_config.block_size = size
        vllm_config.cache_config.num_gpu_blocks = blocks
        vllm_config.cache_config.enable_prefix_caching = config.enable_prefix_caching
        if config.max_loras:
            from vllm.config.lora import LoRAConfig

            vllm_config.lora_config = LoRAConfig(max_loras=config.max_loras)
        if config.num_speculative_tokens:
            vllm_config.speculative_config = _speculative_config(config)
        shape = {"block_size": size, "num_kv_heads": 2, "head_size": 64, "dtype": torch.float16}
        specs = [
            SlidingWindowSpec(**shape, sliding_window=window) if window else FullAttentionSpec(**shape)
            for window in config.kv_windows_tokens
        ]
        groups = [KVCacheGroupSpec([f"l{i}"], spec) for i, spec in enumerate(specs)]
        init_none_hash(sha256)
        self.config = config
        self._hasher = get_request_block_hasher(size, sha256) if config.enable_prefix_caching else None
        kind = AsyncScheduler if config.async_scheduling else Scheduler
        self.scheduler = kind(
            vllm_config=vllm_config,
            kv_cache_config=KVCacheConfig(
                num_blocks=blocks,
                kv_cache_tensors=[],
                kv_cache_groups=groups,
                prefix_cache_retention_interval=vllm_config.cache_config.prefix_cache_retention_interval,
            ),
            structured_output_manager=StructuredOutputManager(vllm_config),
            block_size=size,
            log_stats=False,
        )
        self._texts: dict[str, list[int]] = {}
        self._adapters: dict[str, int] = {}
        self._drafting: dict[str, _Drafting] = {}
        self._draft_odds = cells_of(config, draft_odds)
        self._batches: deque[_Batch] = deque()
        """Planned and not taken in yet, oldest first: `EngineCore.batch_queue`."""
        self._most_batches = 2 if config.async_scheduling else 1

    @property
    def has_work(self) -> bool:
        return bool(self.scheduler.requests) or any(b.plan.num_scheduled_tokens for b in self._batches)

    def add(self, request: OracleRequest, arrival_s: float) -> None:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        text = request.token_ids()
        prompt = text[: request.prompt_tokens]
        if request.output_tokens < request.most_tokens:
            text[-1] = STOP_TOKEN
        self._texts[request.request_id] = text
        self._drafting[request.request_id] = _Drafting(len(self._drafting))
        self.scheduler.add_request(
            Request(
                request_id=request.request_id,
                prompt_token_ids=prompt,
                sampling_params=SamplingParams(
                    max_tokens=request.most_tokens, ignore_eos=True, stop_token_ids=[STOP_TOKEN]
                ),
                pooling_params=None,
                arrival_time=arrival_s,
                priority=request.priority,
                block_hasher=self._hasher,
                lora_request=self._lora(request.adapter) if request.adapter else None,
            )
        )

    def _lora(self, adapter: str) -> Any:
        from vllm.lora.request import LoRARequest

        number = self._adapters.setdefault(adapter, len(self._adapters) + 1)
        return LoRARequest(lora_name=adapter, lora_int_id=number, lora_path=f"/adapters/{adapter}")

    def abort(self, request_id: str) -> None:
        from vllm.v1.request import RequestStatus

        self.scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)

    def step(self) -> Observation:
        """As `EngineCore` does: plans until its queue of batches is full, then takes in the oldest. An empty batch
        takes no time, so the step goes on to the next."""
        preempted: set[str] = set()
        while True:
            batch = self._plan(preempted)
            self._batches.append(batch)
            if len(self._batches) < self._most_batches:
                continue
            done = self._batches.popleft()
            if self.config.async_scheduling and not done.plan.num_scheduled_tokens:
                self._take_in(done)
                continue
            break
        scheduler = self.scheduler
        before = dict(scheduler.requests)
        tokens = done.plan.num_scheduled_tokens
        outputs = {i: before[i].num_output_tokens for i in tokens if i in before}
        self._take_in(done)
        return Observation(
            scheduled=tuple(
                (i, tokens[i], before[i].num_output_tokens - had, done.cached.get(i, 0)) for i, had in outputs.items()
            ),
            preempted=tuple(sorted(preempted)),
            finished=tuple(sorted(before.keys() - set(scheduler.requests))),
            running=tuple((r.request_id, r.num_computed_tokens, r.num_output_tokens) for r in scheduler.running),
            waiting=tuple(r.request_id for r in scheduler.waiting),
            free_blocks=scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
        )

    def _plan(self, preempted: set[str]) -> _Batch:
        scheduler = self.scheduler
        preemptions = {i: r.num_preemptions for i, r in scheduler.requests.items()}
        plan = scheduler.schedule()
        preempted.update(i for i, n in preemptions.items() if scheduler.requests[i].num_preemptions > n)
        cached = {new.req_id: new.num_computed_tokens for new in plan.scheduled_new_reqs}
        old = plan.scheduled_cached_reqs
        positions = zip(old.req_ids, old.num_computed_tokens, strict=True)
        cached.update((i, computed) for i, computed in positions if i in old.resumed_req_ids)
        samples: dict[str, int] = {}
        for request_id in plan.num_scheduled_tokens:
            drafting = self._drafting[request_id]
            if request_id in cached:
                drafting.drafts = drafting.right = 0
            if scheduler.requests[request_id].is_prefill_chunk:
                samples[request_id] = 0
                continue
            drafts = len(plan.scheduled_spec_decode_tokens.get(request_id, ()))
            samples[request_id] = 1 + min(drafts, drafting.right)
            if self.config.num_speculative_tokens:
                drafting.draw(self._draft_odds)
        return _Batch(plan, cached, samples)

    def _take_in(self, batch: _Batch) -> None:
        from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput

        ids = list(batch.plan.num_scheduled_tokens)
        self.scheduler.update_from_output(
            batch.plan,
            ModelRunnerOutput(
                req_ids=ids,
                req_id_to_index={r: i for i, r in enumerate(ids)},
                sampled_token_ids=[self._sampled(r, batch.samples[r]) for r in ids],
            ),
        )
        if self.config.num_speculative_tokens and not self.config.async_scheduling:
            self.scheduler.update_draft_token_ids(DraftTokenIds(ids, [[0] * self._drafting[r].drafts for r in ids]))

    def _sampled(self, request_id: str, tokens: int) -> list[int]:
        """The next tokens of its text; behind its end those that end it."""
        request = self.scheduler.requests.get(request_id)
        at = request.num_tokens if request is not None else 0
        return (self._texts[request_id] + [STOP_TOKEN] * tokens)[at : at + tokens]

    def free_blocks_in_order(self) -> Sequence[int]:
        """Block ids in the order in which they would be reused."""
        queue = self.scheduler.kv_cache_manager.block_pool.free_block_queue
        return [b.block_id for b in queue.get_all_free_blocks()]
