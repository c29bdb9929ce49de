"""What is said about engines outside the proved rules."""

from __future__ import annotations

from simcore.proved import PROVED_VLLM_VERSION, approximations
from simcore.types import EngineConfig


def test_the_proved_engine_and_the_emulated_one_are_exact() -> None:
    assert approximations(EngineConfig(model="m")) == ()
    assert approximations(EngineConfig(model="m", engine="vllm", engine_version=f"{PROVED_VLLM_VERSION}.1")) == ()


def test_what_is_not_modelled_is_named() -> None:
    config = EngineConfig(model="m", engine="vllm", engine_version="0.19.0", async_scheduling=True)
    ahead, version = approximations(config)
    assert "asynchronous" in ahead
    assert "0.19.0" in version
    assert PROVED_VLLM_VERSION in version
