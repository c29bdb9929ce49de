"""The engine releases against which the scheduling rules were proved, and where their rules differ.

An adapter says what else its engine does that they leave out.
"""

from __future__ import annotations

PROVED_VLLM_VERSIONS = ("0.32", "0.33")
"""The vLLM whose schedulers, synchronous and asynchronous, the rules equal step by step:
`tests/conformance/test_scheduler_oracle.py`."""
PROVED_VLLM = " and ".join(PROVED_VLLM_VERSIONS)
"""The same for people."""


def release_of(version: str) -> str:
    """`0.32` of `0.32.1.dev3`."""
    return ".".join(version.split(".")[:2])


def outside_proved(version: str) -> str:
    """Why a vLLM of that version may schedule otherwise; empty for the proved releases."""
    if release_of(version) in PROVED_VLLM_VERSIONS:
        return ""
    return f"vLLM {version} is not the release that the rules were proved against ({PROVED_VLLM})"


def has_rules_of_0_33(version: str) -> bool:
    """Whether an engine of that version is simulated by the rules of vLLM 0.33, where they differ from those of 0.32.

    So are all but those that are known to be older: whoever says nothing is taken for the newest.
    """
    major, _, minor = release_of(version).partition(".")
    return not (major == "0" and minor.isdigit() and int(minor) < 33)
