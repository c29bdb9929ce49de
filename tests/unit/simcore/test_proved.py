"""What is said about engines outside the proved rules."""

from __future__ import annotations

import pytest

from simcore.proved import PROVED_VLLM, PROVED_VLLM_VERSIONS, has_rules_of_0_33, outside_proved


@pytest.mark.parametrize("patch", ["", ".0", ".1", ".1.dev3"])
@pytest.mark.parametrize("release", PROVED_VLLM_VERSIONS)
def test_a_proved_release_is_exact_in_all_its_patches(release: str, patch: str) -> None:
    assert outside_proved(release + patch) == ""


@pytest.mark.parametrize("version", ["0.19.0", PROVED_VLLM_VERSIONS[0] + "0.1", "unknown", ""])
def test_another_release_is_named_beside_the_proved_ones(version: str) -> None:
    why = outside_proved(version)
    assert f"vLLM {version} " in why
    assert PROVED_VLLM in why


@pytest.mark.parametrize(
    ("version", "newer"),
    [("0.19.0", False), ("0.32.1", False), ("0.33.0", True), ("0.40.0.dev1", True), ("1.0", True), ("", True)],
)
def test_whoever_is_not_known_to_be_older_has_the_newest_rules(version: str, newer: bool) -> None:
    assert has_rules_of_0_33(version) is newer
