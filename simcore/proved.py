"""The engine release against which the scheduling rules were proved.

An adapter says what else its engine does that they leave out.
"""

from __future__ import annotations

PROVED_VLLM_VERSION = "0.32"
"""The vLLM whose schedulers, synchronous and asynchronous, the rules equal step by step:
`tests/conformance/test_scheduler_oracle.py`."""


def outside_proved(version: str) -> str:
    """Why a vLLM of that version may schedule otherwise; empty for the proved release."""
    if version.split(".")[:2] == PROVED_VLLM_VERSION.split(".")[:2]:
        return ""
    return f"vLLM {version} is not the release that the rules were proved against ({PROVED_VLLM_VERSION})"
