"""How the emulated engine takes calls, holds their answers back, and lets go of them."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from engine_adapters.base import EngineError, RequestRefused
from engine_adapters.emulated import EmulatedEngine
from engine_adapters.emulated_api import server
from engine_adapters.forwarding import BodyFeed, ForwardCall, ReplyEnd
from engine_adapters.tokenizer import Tokenizer, load_tokenizer
from tests.helpers.emulated_calls import DEADLINE_S, Answered, emulated_caller

PATH = "/v1/completions"
LONG: dict[str, Any] = {"prompt": "hello", "max_tokens": 2000, "ignore_eos": True, "stream": True}


async def ended(answered: Answered) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await answered.ended.wait()


async def test_the_adapter_says_that_it_forwards() -> None:
    assert EmulatedEngine.capabilities.forwards


@pytest.mark.parametrize("warm", [True, False])
async def test_the_tokenizer_is_loaded_once_and_never_on_the_event_loop(
    warm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def load(name: str) -> Tokenizer:
        threads.append(threading.get_ident())
        return load_tokenizer(name)

    monkeypatch.setattr(server, "load_tokenizer", load)
    async with emulated_caller() as caller:
        if warm:
            await caller.engine._api.warm_up()
            assert len(threads) == 1
        for _ in range(2):
            assert (await caller.call(PATH, {"prompt": "hello", "max_tokens": 2})).status == 200
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()


async def test_an_abort_frees_the_scheduler_at_once_and_is_the_last_word() -> None:
    async with emulated_caller() as caller:
        answered = caller.begin(PATH, {**LONG, "n": 3})
        await caller.until_scheduled(3)
        assert await caller.engine.abort(answered.request_id)
        assert caller.scheduled() == []
        assert answered.last == ReplyEnd(aborted=True)
        assert not await caller.engine.abort(answered.request_id)
        assert (await caller.call(PATH, {"prompt": "again", "max_tokens": 2})).status == 200


async def test_an_abort_before_the_body_is_there_ends_the_call() -> None:
    async with emulated_caller() as caller:
        answered = Answered("early")
        call = ForwardCall(request_id="early", method="POST", target=PATH, headers=(), body_bytes=10)
        caller.engine.forward(call, BodyFeed(10), answered.take)
        await asyncio.sleep(0)
        assert await caller.engine.abort("early")
        assert answered.last == ReplyEnd(aborted=True)
        assert answered.head is None


async def test_while_an_answer_is_held_the_engine_goes_on_and_nothing_is_delivered() -> None:
    async with emulated_caller() as caller:
        answered = caller.begin(PATH, {**LONG, "max_tokens": 50})
        await caller.until_scheduled(1)
        caller.engine.hold(answered.request_id, True)
        told = len(answered.chunks)
        await caller.until_scheduled(0)
        await asyncio.sleep(0)
        assert (len(answered.chunks), answered.last) == (told, None)
        caller.engine.hold(answered.request_id, False)
        await ended(answered)
        assert answered.output_tokens == 50
        assert answered.events()[-1] == "[DONE]"


async def test_a_held_answer_can_be_aborted_after_its_end() -> None:
    async with emulated_caller() as caller:
        answered = caller.begin(PATH, {**LONG, "max_tokens": 5})
        caller.engine.hold(answered.request_id, True)
        await caller.until_scheduled(1)
        await caller.until_scheduled(0)
        assert answered.head is None
        assert await caller.engine.abort(answered.request_id)
        assert answered.last == ReplyEnd(aborted=True)
        caller.engine.hold(answered.request_id, False)
        assert answered.head is None


async def test_a_held_answer_held_again_while_it_is_let_go_stays_in_order() -> None:
    async with emulated_caller() as caller:
        chunks = 0

        def sink(answered: Answered) -> Any:
            def take(request_id: str, item: Any) -> None:
                nonlocal chunks
                answered.take(request_id, item)
                chunks = len(answered.chunks)
                if chunks == 3 and answered.last is None:
                    caller.engine.hold(request_id, True)

            return take

        answered = caller.begin(PATH, {**LONG, "max_tokens": 20}, sink=sink)
        caller.engine.hold(answered.request_id, True)
        await caller.until_scheduled(1)
        await caller.until_scheduled(0)
        caller.engine.hold(answered.request_id, False)
        assert chunks == 3
        caller.engine.hold(answered.request_id, False)
        await ended(answered)
        assert answered.output_tokens == 20
        assert answered.events()[-1] == "[DONE]"


async def test_a_body_that_stops_coming_fails_the_call() -> None:
    async with emulated_caller() as caller:
        answered = Answered("cut")
        feed = BodyFeed(100)
        call = ForwardCall(request_id="cut", method="POST", target=PATH, headers=(), body_bytes=100)
        caller.engine.forward(call, feed, answered.take)
        feed.feed(b"{")
        feed.give_up()
        await ended(answered)
        assert isinstance(answered.last, EngineError)
        assert answered.head is None


async def test_two_calls_of_one_name_are_refused() -> None:
    async with emulated_caller() as caller:
        first = caller.begin(PATH, LONG)
        call = ForwardCall(request_id=first.request_id, method="GET", target="/version", headers=(), body_bytes=0)
        with pytest.raises(RequestRefused, match="runs here already"):
            caller.engine.forward(call, BodyFeed(0), first.take)


async def test_closing_the_engine_ends_all_calls() -> None:
    async with emulated_caller() as caller:
        several = [caller.begin(PATH, LONG) for _ in range(12)]
        await caller.until_scheduled(12)
        await caller.engine.close()
        assert [a.last for a in several] == [ReplyEnd(aborted=True)] * 12
        call = ForwardCall(request_id="late", method="GET", target="/version", headers=(), body_bytes=0)
        with pytest.raises(EngineError, match="closed"):
            caller.engine.forward(call, BodyFeed(0), several[0].take)


async def test_a_defect_of_the_engine_is_the_last_word_of_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    async with emulated_caller() as caller:
        answered = caller.begin(PATH, LONG)
        await caller.until_scheduled(1)

        def broken(now_s: float) -> None:
            raise ArithmeticError("broken on purpose")

        monkeypatch.setattr(caller.engine._node, "step", broken)
        await ended(answered)
        assert isinstance(answered.last, EngineError)
        assert "broken on purpose" in str(answered.last)


async def test_a_defect_in_the_words_of_one_answer_ends_that_one_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async with emulated_caller() as caller:
        other = caller.begin("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 20})

        def broken(*args: object) -> None:
            raise ArithmeticError("broken on purpose")

        monkeypatch.setattr("engine_adapters.emulated_api.completions._Stream.step", broken)
        answered = caller.begin(PATH, {**LONG, "n": 2})
        await ended(answered)
        assert isinstance(answered.last, EngineError)
        await ended(other)
        assert other.status == 200
        assert caller.scheduled() == []


async def test_a_thousand_clients_that_leave_leave_nothing() -> None:
    async with emulated_caller() as caller:
        for _ in range(10):
            several = [caller.begin(PATH, LONG) for _ in range(100)]
            await caller.until_scheduled(100)
            for answered in several:
                await caller.engine.abort(answered.request_id)
            assert caller.scheduled() == []
            assert all(a.last == ReplyEnd(aborted=True) for a in several)


async def test_forwarded_calls_and_tokens_share_the_trace() -> None:
    async with emulated_caller() as caller:
        answered = caller.begin(PATH, {"prompt": "hello", "max_tokens": 9, "ignore_eos": True})
        seen = []
        async with asyncio.timeout(DEADLINE_S):
            async for item in caller.engine.watch():
                arrived = getattr(item, "arrived", ())
                seen += [(r.request_id, r.prompt_tokens, r.max_output_tokens) for r in arrived]
                if answered.request_id in getattr(item, "finished", ()):
                    break
        assert seen == [(answered.request_id, 5, 9)]
        await ended(answered)
        assert json.loads(answered.body)["usage"]["completion_tokens"] == 9
