"""Bodies and answers go through the models of vLLM where those are there."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from typing import Any

import pytest

from engine_adapters.emulated_api import checks, server
from engine_adapters.emulated_api.checks import MODELS, NoChecks, load_checks
from engine_adapters.emulated_api.errors import ApiError
from tests.helpers.emulated_calls import emulated_caller

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}


class Marking:
    """Stands where vLLM's models would."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def check_body(self, kind: str, body: bytes) -> None:
        self.seen.append(kind)
        if b"forbidden" in body:
            raise ApiError("no such field", param="forbidden")

    def completed(self, kind: str, tree: dict[str, Any]) -> dict[str, Any]:
        return {**tree, "checked": kind}


async def test_every_body_and_whole_answer_is_shown_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    marking = Marking()
    monkeypatch.setattr(server, "load_checks", lambda: marking)
    async with emulated_caller() as caller:
        assert (await caller.call(CHAT, BODY)).json()["checked"] == "chat"
        refused = await caller.call(CHAT, {**BODY, "forbidden": 1})
        assert (refused.status, refused.json()["error"]["param"]) == (400, "forbidden")
        assert marking.seen == ["ChatCall", "ChatCall"]


async def test_while_they_are_loaded_the_engine_does_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = threading.Event()

    def slowly() -> NoChecks:
        assert loaded.wait(20.0)
        return NoChecks()

    monkeypatch.setattr(server, "load_checks", slowly)
    async with emulated_caller() as caller:
        first, gone = caller.begin(CHAT, BODY), caller.begin(CHAT, BODY)
        await asyncio.sleep(0.02)
        assert first.head is None
        assert await caller.engine.abort(gone.request_id)
        loaded.set()
        async with asyncio.timeout(20.0):
            await first.ended.wait()
        assert first.status == 200


def test_without_vllm_our_records_are_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert isinstance(load_checks(), NoChecks)
    assert set(MODELS) >= checks._WHOLE
