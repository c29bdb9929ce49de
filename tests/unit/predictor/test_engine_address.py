"""Where proxies reach an engine, from what its daemon is told."""

from __future__ import annotations

from typing import Any

import pytest

from predictor.config import load
from predictor.engine_address import engine_address
from protos.runtime.addresses import HostPort


@pytest.mark.parametrize(
    ("listen", "engine", "address"),
    [
        ("10.0.0.11", {}, "10.0.0.11:8000"),
        ("10.0.0.11", {"url": "http://127.0.0.1:9000/v1"}, "10.0.0.11:9000"),
        ("10.0.0.11", {"url": "http://10.1.1.1:9000"}, "10.1.1.1:9000"),
        ("10.0.0.11", {"url": "https://engine.example.org"}, "engine.example.org:443"),
        ("10.0.0.11", {"address": "10.2.2.2:80"}, "10.2.2.2:80"),
        ("0.0.0.0", {"url": "http://localhost:9000"}, ":9000"),
        ("::", {}, ":8000"),
        ("fd00::1", {}, "[fd00::1]:8000"),
        ("127.0.0.1", {}, "127.0.0.1:8000"),
    ],
)
def test_of_an_engine_that_runs_by_itself(listen: str, engine: dict[str, Any], address: str) -> None:
    config = load(None, {"engine": {"dialect": "vllm", **engine}})
    assert engine_address(config, HostPort(listen, 8100), None) == address


def test_of_an_emulated_engine() -> None:
    config, daemon = load(None, {}), HostPort("10.0.0.11", 8100)
    assert engine_address(config, daemon, None) == ""
    assert engine_address(config, daemon, HostPort("0.0.0.0", 8000)) == "10.0.0.11:8000"
    assert engine_address(config, daemon, HostPort("127.0.0.1", 8000)) == "10.0.0.11:8000"
