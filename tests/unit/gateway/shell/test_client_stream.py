from __future__ import annotations

import asyncio

import pytest

from gateway import wire
from gateway.core.request.resume import remainder
from gateway.intake.client_request import Sampling
from gateway.intake.client_stream import ClientStream, Usage
from simcore.types import Outcome
from tests.unit.gateway.shell.world import shape


async def test_a_reader_waits_for_tokens_and_takes_all_of_them() -> None:
    stream = ClientStream(shape())
    waiting = asyncio.create_task(stream.changed())
    await asyncio.sleep(0)
    assert not waiting.done()
    stream.put([1, 2], 1.0)
    stream.put([3], 2.0)
    await waiting
    assert stream.take() == [1, 2, 3]
    assert stream.take() == []
    assert (stream.first_token_s, stream.output_tokens) == (1.0, 3)


async def test_the_end_wakes_the_reader_and_stays() -> None:
    stream = ClientStream(shape())
    waiting = asyncio.create_task(stream.changed())
    await asyncio.sleep(0)
    stream.end(Outcome.NO_NODE, "none is up", 1.0)
    await waiting
    await stream.changed()
    assert (stream.outcome, stream.detail) == (Outcome.NO_NODE, "none is up")


async def test_a_request_ends_once() -> None:
    stream = ClientStream(shape())
    stream.end(Outcome.STOP, "", 1.0)
    with pytest.raises(AssertionError, match="ended twice"):
        stream.end(Outcome.LENGTH, "", 2.0)


async def test_a_reader_that_is_cancelled_leaves_the_stream_usable() -> None:
    stream = ClientStream(shape())
    waiting = asyncio.create_task(stream.changed())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    stream.put([1], 1.0)
    await stream.changed()
    assert stream.take() == [1]


def test_without_the_nodes_count_our_own_is_told() -> None:
    stream = ClientStream(shape())
    stream.put([1, 2, 3], 1.0)
    usage = stream.usage()
    assert (usage.prompt_tokens, usage.output_tokens) == (3, 3)


def test_the_next_node_gets_the_answer_so_far_as_prompt_and_usage_counts_all_once() -> None:
    stream = ClientStream(shape(), prompt_token_ids=(1, 2, 3), sampling=Sampling(max_tokens=10))
    stream.sent(1, None)
    first = wire.engine_request(stream)
    assert (first.request_id, list(first.prompt_token_ids), first.sampling.max_tokens) == ("r", [1, 2, 3], 10)
    stream.put([7, 8], 1.0)
    stream.sent(2, remainder(stream.shape, 2))
    second = wire.engine_request(stream)
    assert second.request_id != "r"
    assert (list(second.prompt_token_ids), second.sampling.max_tokens) == ([1, 2, 3, 7, 8], 8)
    stream.put([9], 2.0)
    stream.cached_tokens = 5
    assert stream.usage() == Usage(prompt_tokens=3, output_tokens=3, cached_tokens=3)
    assert stream.sampling.max_tokens == 10
