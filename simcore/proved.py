"""Against what the scheduling rules were proved, and what they leave out."""

from __future__ import annotations

from simcore.types import EngineConfig

PROVED_VLLM_VERSION = "0.32"
"""The vLLM whose synchronous scheduler the rules equal step by step: `tests/conformance/test_scheduler_oracle.py`."""


def approximations(config: EngineConfig) -> tuple[str, ...]:
    """Why forecasts for this engine are approximate; empty where the proved rules hold.

    Not visible here and not modelled either: prompts that share a prefix, speculative decoding, multimodal encoders,
    pipeline parallelism, groups of KV caches of several kinds, external KV connectors, a watermark of free blocks.
    """
    reasons: list[str] = []
    if config.async_scheduling:
        reasons.append("asynchronous scheduling: seats and KV blocks are taken to be free at once, not a step later")
    if config.engine == "vllm" and config.engine_version and not _same_minor(config.engine_version):
        reasons.append(f"vLLM {config.engine_version}: the rules were proved against {PROVED_VLLM_VERSION}")
    return tuple(reasons)


def _same_minor(version: str) -> bool:
    return version.split(".")[:2] == PROVED_VLLM_VERSION.split(".")[:2]
