"""What every engine adapter must do, run over the registry."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

import msgspec
import pytest

from engine_adapters import emulated
from engine_adapters.base import (
    EngineClient,
    EngineError,
    EngineOptions,
    EngineOutput,
    EngineProbe,
    EngineRequest,
    RequestRefused,
)
from engine_adapters.registry import UnknownEngineError, client_and_probe
from predictor.core.mirror import Applied, NodeMirror
from simcore.trace import CacheDelta, TraceDelta, TraceSnapshot
from simcore.types import EngineConfig, TokenLogprobs
from tests.helpers.step_time import STEP_TIME

CONFIG = EngineConfig(
    model="m",
    max_num_seqs=8,
    max_num_batched_tokens=64,
    block_size_tokens=4,
    num_blocks=64,
    max_model_len_tokens=200,
)
DEADLINE_S = 20.0


def emulated_options() -> EngineOptions:
    return EngineOptions(node_id="n", config=CONFIG, step_time=STEP_TIME)


def vllm_options() -> EngineOptions:
    url = os.environ.get("ASTROLABE_TEST_VLLM", "")
    if not url:
        pytest.skip("no vLLM server to ask: `make test-vllm` starts one and sets ASTROLABE_TEST_VLLM to its URL")
    return EngineOptions(node_id="n", url=url, wait_s=5.0)


OPTIONS: dict[str, Callable[[], EngineOptions]] = {"emulated": emulated_options, "vllm": vllm_options}
"""How to build each adapter; one that needs something absent here skips. `openai_metrics` promises less: see
tests/unit/engine_adapters/test_openai_metrics.py and tests/vllm."""


@pytest.fixture(params=list(OPTIONS))
async def adapter(request: pytest.FixtureRequest) -> AsyncIterator[tuple[EngineClient, EngineProbe]]:
    client, probe = client_and_probe(request.param, OPTIONS[request.param]())
    await client.start()
    yield client, probe
    await client.close()
    await client.close()


def ask(
    name: str, *, prompt: Iterable[int] = range(20), max_tokens: int = 10, ignore_eos: bool = True
) -> EngineRequest:
    return EngineRequest(request_id=name, prompt_token_ids=tuple(prompt), max_tokens=max_tokens, ignore_eos=ignore_eos)


async def collect(client: EngineClient, request: EngineRequest) -> tuple[list[int], EngineOutput]:
    """All tokens, and the last output."""
    tokens: list[int] = []
    async with asyncio.timeout(DEADLINE_S):
        async for output in client.generate(request):
            assert not tokens or output.token_ids or output.finish, "an output must say something"
            tokens.extend(output.token_ids)
            last = output
    return tokens, last


async def state_where(probe: EngineProbe, condition: Callable[[NodeMirror], bool]) -> NodeMirror:
    """Follows the trace until the condition holds."""
    mirror: NodeMirror | None = None
    async with asyncio.timeout(DEADLINE_S):
        async for item in probe.watch():
            if mirror is None:
                assert isinstance(item, TraceSnapshot), "the first item of a trace is a snapshot"
                mirror = NodeMirror(item)
            elif not isinstance(item, CacheDelta):
                assert isinstance(item, TraceDelta)
                assert mirror.apply(item) is Applied.APPLIED
            if condition(mirror):
                return mirror
    raise AssertionError("the trace ended")


def is_idle(mirror: NodeMirror) -> bool:
    return not mirror.running_count and not mirror.waiting_count and mirror.free_blocks == mirror.config.num_blocks


Pair = tuple[EngineClient, EngineProbe]


async def test_the_names_are_those_of_the_configuration_however_often_they_are_read(adapter: Pair) -> None:
    client = adapter[0]
    before = client.config()
    for _ in range(2):
        assert await client.names() == before.names
    assert client.config() == before
    assert (await collect(client, ask("a")))[1].finish == "length"


async def test_exactly_max_tokens_when_the_end_of_sequence_is_ignored(adapter: Pair) -> None:
    for n in (1, 2, 57):
        tokens, last = await collect(adapter[0], ask(f"r{n}", max_tokens=n))
        assert len(tokens) == n
        assert last.finish == "length"


async def test_without_ignoring_it_an_answer_may_end_earlier_and_says_so(adapter: Pair) -> None:
    ends = set()
    for i in range(20):
        tokens, last = await collect(adapter[0], ask(f"r{i}", prompt=[i, 7], max_tokens=60, ignore_eos=False))
        assert (last.finish == "length") == (len(tokens) == 60) or last.finish == "stop"
        assert 1 <= len(tokens) <= 60
        ends.add(last.finish)
    assert "length" in ends


async def test_it_tells_how_likely_its_tokens_were(adapter: Pair) -> None:
    """Also of an answer that goes on elsewhere."""
    prompt = list(range(20))

    async def told(name: str, top: int | None, cut: Sequence[int] = ()) -> tuple[list[int], list[TokenLogprobs]]:
        request = ask(name, prompt=[*prompt, *cut], max_tokens=30 - len(cut))
        tokens, logprobs = list[int](), list[TokenLogprobs]()
        async with asyncio.timeout(DEADLINE_S):
            async for output in adapter[0].generate(msgspec.structs.replace(request, logprobs=top)):
                tokens += output.token_ids
                logprobs += output.logprobs
        return tokens, logprobs

    assert adapter[0].capabilities.logprobs
    whole, logprobs = await told("a", 3)
    assert [len(one.other_ids) for one in logprobs] == [len(one.other_logprobs) for one in logprobs]
    assert {len(one.other_ids) for one in logprobs} <= {2, 3}
    assert all(token not in one.other_ids for token, one in zip(whole, logprobs, strict=True))
    rest, last = await told("b", 3, whole[:10])
    assert rest == whole[10:]
    assert [one.logprob for one in last] == pytest.approx([one.logprob for one in logprobs[10:]], abs=1e-3)
    alone, each = await told("c", 0)
    assert (alone, [one.other_ids for one in each]) == (whole, [()] * len(whole))
    assert (await told("d", None))[1] == []


async def test_an_answer_ends_where_it_was_told_to(adapter: Pair) -> None:
    """Where it can be told, and also when it goes on elsewhere; a limit comes first."""
    if not adapter[0].capabilities.settable_length:
        pytest.skip("this engine ends its answers as it likes")

    async def told(name: str, *, cut: Sequence[int] = (), max_tokens: int = 100) -> tuple[list[int], EngineOutput]:
        request = ask(name, prompt=[*range(20), *cut], max_tokens=max_tokens, ignore_eos=False)
        return await collect(adapter[0], msgspec.structs.replace(request, emulated_output_tokens=30))

    whole, last = await told("a")
    assert (len(whole), last.finish) == (30, "stop")
    rest, last = await told("b", cut=whole[:10])
    assert (rest, last.finish) == (whole[10:], "stop")
    short, last = await told("c", max_tokens=12)
    assert (short, last.finish) == (whole[:12], "length")


async def test_tokens_depend_on_the_tokens_so_far_only(adapter: Pair) -> None:
    whole, _ = await collect(adapter[0], ask("a", max_tokens=40))
    again, _ = await collect(adapter[0], ask("b", max_tokens=40))
    other, _ = await collect(adapter[0], ask("c", prompt=range(1, 21), max_tokens=40))
    assert whole == again
    assert whole != other


@pytest.mark.parametrize("ignore_eos", [True, False])
async def test_a_broken_stream_can_be_resumed_at_any_token(adapter: Pair, ignore_eos: bool) -> None:
    prompt = list(range(20))
    whole, end = await collect(adapter[0], ask("a", prompt=prompt, max_tokens=120, ignore_eos=ignore_eos))
    for cut in (1, 5, len(whole) - 1):
        rest, last = await collect(
            adapter[0],
            ask(f"cut{cut}", prompt=prompt + whole[:cut], max_tokens=120 - cut, ignore_eos=ignore_eos),
        )
        assert whole[:cut] + rest == whole
        assert last.finish == end.finish


async def test_abort_ends_the_stream_and_frees_the_blocks(adapter: Pair) -> None:
    client, probe = adapter
    outputs: list[EngineOutput] = []
    async with asyncio.timeout(DEADLINE_S):
        async for output in client.generate(ask("a", max_tokens=150)):
            outputs.append(output)
            if len(outputs) == 3:
                assert await client.abort("a")
    assert outputs[-1].finish == "aborted"
    assert sum(len(o.token_ids) for o in outputs) < 150
    assert not await client.abort("a"), "it is gone"
    await state_where(probe, is_idle)


async def test_abort_of_the_last_request_shows_in_the_trace_although_no_step_follows(adapter: Pair) -> None:
    client, probe = adapter
    following = asyncio.create_task(state_where(probe, lambda m: m.running_count == 1))
    task = asyncio.create_task(collect(client, ask("a", max_tokens=150)))
    await following
    idle = asyncio.create_task(state_where(probe, is_idle))
    await asyncio.sleep(0)
    assert await client.abort("a")
    _, last = await task
    assert last.finish == "aborted"
    await idle


async def test_leaving_the_iterator_aborts(adapter: Pair) -> None:
    client, probe = adapter
    stream = client.generate(ask("a", max_tokens=150))
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    assert not await client.abort("a")
    await state_where(probe, is_idle)


async def test_an_id_can_be_used_again_right_after_its_abort(adapter: Pair) -> None:
    client, probe = adapter
    first = asyncio.create_task(collect(client, ask("a", max_tokens=150)))
    await state_where(probe, lambda m: m.running_count == 1)
    assert await client.abort("a")
    tokens, last = await collect(client, ask("a", prompt=[5, 6], max_tokens=30))
    fresh, _ = await collect(client, ask("b", prompt=[5, 6], max_tokens=30))
    assert (await first)[1].finish == "aborted"
    assert tokens == fresh
    assert last.finish == "length"


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (ask("a", prompt=range(200)), "200"),
        (ask("a", prompt=range(5000)), "5000"),
        (ask("a", prompt=[]), "prompt"),
        (ask("a", max_tokens=0), "max_tokens"),
        (ask("a", max_tokens=-3), "max_tokens"),
    ],
    ids=["no room for an answer", "too long", "empty", "no tokens wanted", "negative"],
)
async def test_what_the_engine_cannot_take_is_refused_clearly(
    adapter: Pair, request_: EngineRequest, words: str
) -> None:
    client, probe = adapter
    with pytest.raises(RequestRefused, match=words):
        await collect(client, request_)
    await state_where(probe, is_idle)
    tokens, _ = await collect(client, ask("b"))
    assert len(tokens) == 10, "nothing else is disturbed"


async def test_a_running_id_is_refused(adapter: Pair) -> None:
    client, _ = adapter
    stream = client.generate(ask("a", max_tokens=100))
    await anext(stream)
    with pytest.raises(RequestRefused, match="'a'"):
        await collect(client, ask("a"))
    await stream.aclose()  # type: ignore[attr-defined]


async def test_the_answer_ends_where_the_context_does(adapter: Pair) -> None:
    tokens, last = await collect(adapter[0], ask("a", prompt=range(150), max_tokens=10_000))
    assert len(tokens) == 50
    assert last.finish == "length"


async def test_many_at_once_with_preemptions_and_an_exact_trace(adapter: Pair) -> None:
    client, probe = adapter
    started = asyncio.Event()
    idle_after = asyncio.create_task(
        state_where(probe, lambda m: started.is_set() and is_idle(m) and m.preemptions_total > 0)
    )
    await asyncio.sleep(0)
    answers = await asyncio.gather(
        *(collect(client, ask(f"r{i}", prompt=range(i, i + 30), max_tokens=20 + 3 * i)) for i in range(24))
    )
    started.set()
    assert [len(tokens) for tokens, _ in answers] == [20 + 3 * i for i in range(24)]
    if not idle_after.done():
        await collect(client, ask("last", max_tokens=1))
    await idle_after
    state = await state_where(probe, is_idle)
    assert state.seq > 0


async def test_submit_delivers_a_step_in_one_turn(adapter: Pair) -> None:
    client, _ = adapter
    if not isinstance(client, emulated.EmulatedEngine):
        pytest.skip("each request has a connection of its own, and they are read in turn")
    done = asyncio.Event()
    turns: list[int] = []
    turn = 0
    loop = asyncio.get_running_loop()

    def count_turns() -> None:
        nonlocal turn
        turn += 1
        if not done.is_set():
            loop.call_soon(count_turns)

    seen: list[tuple[int, str]] = []
    ended: list[str] = []

    def sink(request_id: str, output: EngineOutput | EngineError) -> None:
        assert isinstance(output, EngineOutput)
        seen.append((turn, request_id))
        turns.append(turn)
        if output.finish:
            ended.append(request_id)
            if len(ended) == 4:
                done.set()

    # All four fit one step's budget, so they go on in step.
    for i in range(4):
        client.submit(ask(f"r{i}", prompt=range(10), max_tokens=5), sink)
    loop.call_soon(count_turns)
    await asyncio.wait_for(done.wait(), DEADLINE_S)
    assert len(set(turns)) == 5
    assert len(seen) == 20


async def test_two_watchers_see_the_same(adapter: Pair) -> None:
    client, probe = adapter
    waits = [asyncio.create_task(state_where(probe, lambda m: m.seq >= 12)) for _ in range(2)]
    await asyncio.sleep(0)
    await collect(client, ask("a", max_tokens=30))
    one, two = await asyncio.gather(*waits)
    assert msgspec.structs.replace(one.snapshot(), at_s=0.0) == msgspec.structs.replace(two.snapshot(), at_s=0.0)


async def test_a_watcher_that_does_not_read_loses_deltas_and_never_blocks(
    adapter: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, probe = adapter
    if not isinstance(client, emulated.EmulatedEngine):
        pytest.skip("the socket holds more than this test writes; tests/e2e/test_vllm_trace_socket.py")
    monkeypatch.setattr(emulated, "WATCH_BUFFER_DELTAS", 8)
    trace = probe.watch()
    first = await anext(trace)
    assert isinstance(first, TraceSnapshot)
    mirror = NodeMirror(first)
    tokens, _ = await collect(client, ask("a", max_tokens=40))
    assert len(tokens) == 40
    delta = await anext(trace)
    assert isinstance(delta, TraceDelta)
    assert mirror.apply(delta) is Applied.GAP
    await trace.aclose()  # type: ignore[attr-defined]
    async for item in probe.watch():
        assert isinstance(item, TraceSnapshot)
        mirror.reset(item)
        break
    assert mirror.synchronised
    assert is_idle(mirror)


async def test_after_close_streams_have_ended_and_nothing_is_taken(adapter: Pair) -> None:
    client, probe = adapter
    task = asyncio.create_task(collect(client, ask("a", max_tokens=150)))
    await state_where(probe, lambda m: m.running_count == 1)
    await client.close()
    assert (await task)[1].finish == "aborted"
    with pytest.raises(EngineError, match="closed"):
        await collect(client, ask("b"))


def test_an_unknown_engine_lists_those_that_exist() -> None:
    with pytest.raises(UnknownEngineError, match=r"unknown engine 'emulatd' \(did you mean 'emulated'\?\).*emulated"):
        client_and_probe("emulatd", EngineOptions(node_id="n"))


def test_the_emulated_engine_says_what_it_needs() -> None:
    with pytest.raises(EngineError, match="step-time profile"):
        client_and_probe("emulated", EngineOptions(node_id="n"))
    with pytest.raises(EngineError, match="time_scale must be > 0, got 0"):
        client_and_probe("emulated", msgspec.structs.replace(emulated_options(), time_scale=0))


async def test_late_wake_ups_do_not_add_up() -> None:
    """300 steps of 2 ms each take 0.6 s of schedule; per-step jitter of the loop must not be summed."""
    options = EngineOptions(node_id="n", config=CONFIG, step_time=STEP_TIME)
    engine = emulated.EmulatedEngine(msgspec.structs.replace(options, time_scale=0.5))
    await engine.start()
    watching = engine.watch()
    await anext(watching)
    begun = time.monotonic()
    await collect(engine, ask("a", prompt=[1], max_tokens=150))
    took_s = time.monotonic() - begun
    steps: list[TraceDelta] = []
    while len(steps) < 150:
        item = await anext(watching)
        if not isinstance(item, CacheDelta):
            assert isinstance(item, TraceDelta)
            steps.append(item)
    await watching.aclose()  # type: ignore[attr-defined]
    pacing = engine.pacing()
    await engine.close()
    for before, after in itertools.pairwise(steps):
        assert after.start_s == pytest.approx(before.end_s, abs=1e-9)
    schedule_s = sum(d.duration_s for d in steps)
    assert took_s >= schedule_s - 0.002
    assert pacing.steps == 150
    assert pacing.mean_late_s <= pacing.max_late_s


@pytest.mark.parametrize(("stop", "stop_ids"), [(True, False), (False, True)])
async def test_emulated_answers_stop_at_stop_texts_and_tokens(stop: bool, stop_ids: bool) -> None:
    engine = emulated.EmulatedEngine(emulated_options())
    await engine.start()
    whole, _ = await collect(engine, ask("a", max_tokens=50))
    wanted = bytes(whole[10:13]).decode()
    first_at = bytes(whole).decode().index(wanted) + 3 if stop else whole.index(whole[10]) + 1
    request = msgspec.structs.replace(
        ask("b", max_tokens=50),
        stop=(wanted,) if stop else (),
        stop_token_ids=(whole[10],) if stop_ids else (),
    )
    tokens, last = await collect(engine, request)
    assert tokens == whole[:first_at]
    assert last.finish == "stop"
    with pytest.raises(RequestRefused, match="empty text"):
        await collect(engine, msgspec.structs.replace(request, request_id="c", stop=("",)))
    await engine.close()
