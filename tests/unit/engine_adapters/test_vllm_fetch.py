"""What vLLM is told of an engine whose KV it fetches."""

from __future__ import annotations

import pytest

from engine_adapters.base import EngineRequest
from engine_adapters.vllm.client import VllmClient
from simcore.types import EngineConfig


def body(kv_source: str = "") -> dict[str, object]:
    request = EngineRequest(request_id="r~2", prompt_token_ids=(1, 2, 3), max_tokens=1, kv_source=kv_source)
    return VllmClient("http://127.0.0.1:8000")._body(request, EngineConfig(model="m"))


@pytest.mark.parametrize(
    ("source", "host", "port"), [("10.0.0.1:5710", "10.0.0.1", 5710), ("[fd00::1]:5711", "fd00::1", 5711)]
)
def test_a_request_names_where_its_kv_is(source: str, host: str, port: int) -> None:
    sent = body(kv_source=source)
    name = sent["request_id"]
    assert sent["kv_transfer_params"] == {
        "remote_kv_source": {"kv_request_id": name, "remote_host": host, "remote_port": port}
    }


@pytest.mark.parametrize("source", ["", "http://10.0.0.1:8000"], ids=["computed", "asked-first"])
def test_others_name_none(source: str) -> None:
    assert "kv_transfer_params" not in body(source)
