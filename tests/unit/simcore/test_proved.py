"""What is said about engines outside the proved rules."""

from __future__ import annotations

import pytest

from simcore.proved import PROVED_VLLM_VERSION, outside_proved


@pytest.mark.parametrize("patch", ["", ".0", ".1", ".1.dev3"])
def test_the_proved_release_is_exact_in_all_its_patches(patch: str) -> None:
    assert outside_proved(PROVED_VLLM_VERSION + patch) == ""


@pytest.mark.parametrize("version", ["0.19.0", PROVED_VLLM_VERSION + "0.1", "unknown", ""])
def test_another_release_is_named_beside_the_proved_one(version: str) -> None:
    why = outside_proved(version)
    assert f"vLLM {version} " in why
    assert PROVED_VLLM_VERSION in why
