"""A real predictor daemon, asked the way people and gateways ask."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.local_cluster import Child
from protos.v1 import astrolabe_engine_pb2 as engine_pb
from protos.v1 import astrolabe_predict_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from protos.v1.astrolabe_engine_pb2_grpc import EngineStub
from protos.v1.astrolabe_predict_pb2_grpc import PredictStub
from tests.e2e.cluster import GRPCURL
from tests.e2e.predictor_daemon import DEADLINE_S, SessionClient, candidate, daemon, engine_request

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    with daemon(tmp_path_factory.mktemp("predictor")) as child:
        yield child


@pytest.fixture
async def channel(node: Child) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(node.address) as channel:
        yield channel
        await until_idle(PredictStub(channel))


async def state(stub: Any) -> types_pb.NodeState:
    return await stub.GetState(pb.GetStateRequest(), timeout=DEADLINE_S)


async def until_idle(stub: Any) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            now = await state(stub)
            if not (now.running or now.waiting or now.reserved) and now.free_blocks == now.config.num_blocks:
                return
            await asyncio.sleep(0.01)


async def generate(channel: grpc.aio.Channel, request: engine_pb.EngineGenerateRequest) -> list[engine_pb.EngineChunk]:
    return [chunk async for chunk in EngineStub(channel).Generate(request, timeout=DEADLINE_S)]


# --- unary calls ------------------------------------------------------------------------------------------------------


async def test_generate_streams_every_token_and_the_usage(channel: grpc.aio.Channel) -> None:
    chunks = await generate(channel, engine_request("a", prompt_tokens=20, max_tokens=30))
    assert sum(len(c.token_ids) for c in chunks) == 30
    assert all(not c.HasField("outcome") for c in chunks[:-1])
    assert chunks[-1].outcome == types_pb.OUTCOME_LENGTH
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.output_tokens) == (20, 30)


async def test_max_tokens_left_out_means_what_the_context_leaves(channel: grpc.aio.Channel) -> None:
    request = engine_request("a", prompt_tokens=2000)
    request.sampling.ClearField("max_tokens")
    chunks = await generate(channel, request)
    assert sum(len(c.token_ids) for c in chunks) == 48


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (engine_request("a", prompt_tokens=2048), "2048 tokens.*shorten the prompt"),
        (engine_request("a", prompt_tokens=0), "no tokens"),
        (engine_request("a", max_tokens=0), "max_tokens must be >= 1, got 0"),
        (engine_request("a", max_tokens=-5), "max_tokens must be >= 1, got -5"),
        (engine_request(""), "request_id is empty"),
    ],
    ids=["too long", "empty", "zero", "negative", "no id"],
)
async def test_bad_requests_are_invalid_arguments(
    channel: grpc.aio.Channel, request_: engine_pb.EngineGenerateRequest, words: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
        await generate(channel, request_)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert len(await generate(channel, engine_request("fine", max_tokens=3))) > 0


async def test_leaving_generate_stops_the_engine(channel: grpc.aio.Channel) -> None:
    call = EngineStub(channel).Generate(engine_request("a", max_tokens=1500), timeout=DEADLINE_S)
    await call.read()
    assert len((await state(PredictStub(channel))).running) == 1
    call.cancel()
    await until_idle(PredictStub(channel))


async def test_abort_ends_the_stream_as_cancelled(channel: grpc.aio.Channel) -> None:
    call = EngineStub(channel).Generate(engine_request("a", max_tokens=1500), timeout=DEADLINE_S)
    chunks = aiter(call)
    await anext(chunks)
    engine = EngineStub(channel)
    assert (await engine.Abort(engine_pb.AbortRequest(request_id="a"))).found
    rest = [chunk async for chunk in chunks]
    assert rest[-1].outcome == types_pb.OUTCOME_CANCELLED
    assert not (await engine.Abort(engine_pb.AbortRequest(request_id="a"))).found


async def test_predict_answers_each_candidate_as_if_alone(channel: grpc.aio.Channel) -> None:
    stub = PredictStub(channel)
    asked = [candidate("a"), candidate("b", tokens=300), types_pb.Candidate(
        request_id="c", prompt_tokens=5, max_output_tokens=500
    )]  # fmt: skip
    reply = await stub.Predict(pb.PredictRequest(candidates=asked), timeout=DEADLINE_S)
    assert [f.request_id for f in reply.forecasts] == ["a", "b", "c"]
    a, b, c = reply.forecasts
    assert 0 < a.ttft_s.p50 < a.e2e_s.p50 < b.e2e_s.p50
    assert c.e2e_s.p50 < c.e2e_s.p90, "of an unknown length only a distribution is known"
    assert a.source == types_pb.FORECAST_SOURCE_SIMULATED
    assert a.node_id == "n1"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (types_pb.Candidate(request_id="x", max_output_tokens=5), r"candidates\[1\]: candidate.prompt_tokens"),
        (types_pb.Candidate(request_id="x", prompt_tokens=5), r"candidates\[1\]: candidate.max_output_tokens"),
        (candidate("x", prompt_tokens=3000), r"candidates\[1\]: .*3000"),
    ],
)
async def test_predict_names_the_bad_candidate(channel: grpc.aio.Channel, bad: types_pb.Candidate, words: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
        await PredictStub(channel).Predict(pb.PredictRequest(candidates=[candidate("fine"), bad]), timeout=DEADLINE_S)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_reservations_count_until_released_or_expired(channel: grpc.aio.Channel) -> None:
    stub = PredictStub(channel)
    alone = (await stub.Predict(pb.PredictRequest(candidates=[candidate("x")]), timeout=DEADLINE_S)).forecasts[0]
    for i in range(40):
        reply = await stub.Reserve(pb.ReserveRequest(candidate=candidate(f"r{i}", tokens=200)), timeout=DEADLINE_S)
        assert reply.ttl_s == 30.0
    assert len((await state(stub)).reserved) == 40
    crowded = (await stub.Predict(pb.PredictRequest(candidates=[candidate("x")]), timeout=DEADLINE_S)).forecasts[0]
    assert crowded.ttft_s.p50 > alone.ttft_s.p50
    for i in range(40):
        assert (await stub.Release(pb.ReleaseRequest(request_id=f"r{i}"), timeout=DEADLINE_S)).found
    assert not (await stub.Release(pb.ReleaseRequest(request_id="r0"), timeout=DEADLINE_S)).found
    reply = await stub.Reserve(pb.ReserveRequest(candidate=candidate("brief"), ttl_s=0.05), timeout=DEADLINE_S)
    assert reply.ttl_s == pytest.approx(0.05)
    await until_idle(stub)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (pb.ReserveRequest(candidate=candidate("x", prompt_tokens=3000)), "3000"),
        (pb.ReserveRequest(candidate=candidate("")), "request_id"),
        (pb.ReserveRequest(candidate=candidate("x"), ttl_s=-1.0), "ttl_s"),
        (pb.ReserveRequest(), "prompt_tokens"),
        (
            pb.ReserveRequest(
                candidate=types_pb.Candidate(request_id="x", prompt_tokens=5, max_output_tokens=5, leaving=True)
            ),
            "leaving",
        ),
    ],
)
async def test_reservations_that_make_no_sense_are_refused(
    channel: grpc.aio.Channel, request_: pb.ReserveRequest, words: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
        await PredictStub(channel).Reserve(request_, timeout=DEADLINE_S)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_watch_state_shows_a_request_come_and_go(channel: grpc.aio.Channel) -> None:
    stub = PredictStub(channel)
    watch: Any = stub.WatchState(pb.WatchStateRequest(min_interval_s=0.01), timeout=DEADLINE_S)
    first = await watch.read()
    assert not first.running
    task = asyncio.create_task(generate(channel, engine_request("seen", max_tokens=200)))
    seen = False
    while True:
        now = await watch.read()
        running = [r.request_id for r in now.running]
        seen = seen or running == ["seen"]
        if seen and not running:
            break
    await task
    watch.cancel()


async def test_health_is_serving_for_the_server_and_each_service(channel: grpc.aio.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", "astrolabe.v1.Predict", "astrolabe.v1.Engine"):
        reply = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE_S)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


# --- grpcurl, as a person would ---------------------------------------------------------------------------------------


def grpcurl(node: Child, *arguments: str) -> str:
    before = [a for a in arguments if a.startswith(("-", "{"))]
    after = [a for a in arguments if a not in before]
    done = subprocess.run(
        [GRPCURL, "-plaintext", *before, node.address, *after], capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_grpcurl_lists_and_describes_the_services_by_reflection(node: Child) -> None:
    services = grpcurl(node, "list").split()
    assert {"astrolabe.v1.Predict", "astrolabe.v1.Engine", "grpc.health.v1.Health"} <= set(services)
    assert "rpc GetState" in grpcurl(node, "describe", "astrolabe.v1.Predict")


def test_grpcurl_reads_the_state(node: Child) -> None:
    read = json.loads(grpcurl(node, "astrolabe.v1.Predict/GetState"))
    assert read["node_id"] == "n1"
    assert read["config"]["max_num_seqs"] == 16
    assert read["free_blocks"] == 600
    assert read["synchronised"] is True
    assert read["profile"] == "a30/llama-2-7b"


# --- the session ------------------------------------------------------------------------------------------------------


async def test_a_session_begins_with_a_welcome_and_a_load_note(channel: grpc.aio.Channel) -> None:
    client = await SessionClient(channel).begin()
    assert client.frames[0].HasField("welcome")
    assert client.welcome is not None
    assert client.welcome.node_id == "n1"
    assert client.welcome.config.max_model_len_tokens == 2048
    await client.until(lambda: client.load is not None)
    assert client.load is not None
    assert client.load.load.total_blocks == 600
    await client.leave()


async def test_dispatch_streams_tokens_in_frames_of_one_step(channel: grpc.aio.Channel) -> None:
    client = await SessionClient(channel).begin()
    requests = tuple(engine_request(f"r{i}", max_tokens=40, first=i) for i in range(10))
    await client.send(dispatch=requests)
    await client.until(lambda: len(client.ends) == 10)
    assert all(len(tokens) == 40 for tokens in client.tokens.values())
    assert all(end.outcome == types_pb.OUTCOME_LENGTH for end in client.ends.values())
    assert all(end.usage.output_tokens == 40 for end in client.ends.values())
    with_tokens = [f for f in client.frames if f.parts]
    assert len(with_tokens) <= 60, "ten requests in step make about forty frames, not four hundred"
    alone = await generate(channel, engine_request("alone", max_tokens=40, first=3))
    assert [t for c in alone for t in c.token_ids] == client.tokens["r3"]
    await client.leave()


async def test_asks_are_answered_after_the_dispatches_of_their_frame(channel: grpc.aio.Channel) -> None:
    client = await SessionClient(channel).begin()
    await client.send(ask={1: candidate("x")})
    await client.until(lambda: 1 in client.answers)
    crowd = tuple(engine_request(f"r{i}", prompt_tokens=300, max_tokens=100) for i in range(16))
    await client.send(
        dispatch=crowd,
        ask={2: candidate("y"), 3: candidate("bad", prompt_tokens=9999), 4: types_pb.Candidate(request_id="z")},
    )
    await client.until(lambda: client.answers.keys() >= {1, 2, 3, 4})
    assert client.answers[2].forecast.ttft_s.p50 > client.answers[1].forecast.ttft_s.p50
    assert client.answers[2].forecast.harm_s.mean >= 0
    assert "9999" in client.answers[3].error
    assert "prompt_tokens" in client.answers[4].error
    await client.send(abort=tuple(r.request_id for r in crowd))
    await client.until(lambda: len(client.ends) == 16)
    await client.leave()


async def test_a_request_that_is_there_is_asked_of_by_its_name(channel: grpc.aio.Channel) -> None:
    client = await SessionClient(channel).begin()
    stays, gone = candidate("r0"), candidate("never heard of")
    stays.leaving = gone.leaving = True
    crowd = tuple(engine_request(f"r{i}", prompt_tokens=300, max_tokens=1000) for i in range(16))
    await client.send(dispatch=crowd, ask={1: stays, 2: gone})
    await client.until(lambda: client.answers.keys() >= {1, 2})
    assert client.answers[1].forecast.request_id == "r0"
    assert client.answers[1].forecast.harm_s.mean > 0, "the others would gain if it left"
    assert "'never heard of' is not here" in client.answers[2].error
    await client.send(abort=tuple(r.request_id for r in crowd))
    await client.until(lambda: len(client.ends) == 16)
    await client.leave()


async def test_load_notes_say_which_dispatches_they_include(channel: grpc.aio.Channel) -> None:
    client = await SessionClient(channel).begin()
    await client.send(dispatch=(engine_request("a", max_tokens=1500), engine_request("b", max_tokens=1500)))
    await client.until(lambda: client.load is not None and client.load.dispatch_seq == 2)
    assert client.load is not None
    assert client.load.load.running + client.load.load.waiting == 2
    await client.send(abort=("a", "b", "never heard of"))
    await client.until(lambda: len(client.ends) == 2)
    assert {e.outcome for e in client.ends.values()} == {types_pb.OUTCOME_CANCELLED}
    await client.until(lambda: client.load is not None and client.load.load.running + client.load.load.waiting == 0)
    await client.leave()


async def test_a_bad_dispatch_ends_as_invalid_and_disturbs_nothing(channel: grpc.aio.Channel) -> None:
    client = await SessionClient(channel).begin()
    await client.send(
        dispatch=(
            engine_request("long", prompt_tokens=4000),
            engine_request("zero", max_tokens=0),
            engine_request("fine", max_tokens=5),
        )
    )
    await client.until(lambda: len(client.ends) == 3)
    assert client.ends["long"].outcome == types_pb.OUTCOME_INVALID
    assert "4000 tokens" in client.ends["long"].detail
    assert client.ends["zero"].outcome == types_pb.OUTCOME_INVALID
    assert client.ends["fine"].outcome == types_pb.OUTCOME_LENGTH
    await client.leave()


async def test_an_id_can_be_dispatched_again_with_its_abort(channel: grpc.aio.Channel) -> None:
    client = await SessionClient(channel).begin()
    await client.send(dispatch=(engine_request("a", max_tokens=1500),))
    await client.until(lambda: len(client.tokens.get("a", [])) > 3)
    await client.send(abort=("a",))
    await client.until(lambda: "a" in client.ends)
    client.ends.clear()
    client.tokens.clear()
    await client.send(dispatch=(engine_request("a", max_tokens=7, first=9),))
    await client.until(lambda: "a" in client.ends)
    assert len(client.tokens["a"]) == 7
    await client.leave()


@pytest.mark.parametrize("politely", [True, False], ids=["half-closed", "cancelled"])
async def test_the_requests_of_a_session_that_ends_are_aborted(
    node: Child, channel: grpc.aio.Channel, politely: bool
) -> None:
    stub = PredictStub(channel)
    other = await SessionClient(channel, "other").begin()
    await other.send(dispatch=(engine_request("theirs", max_tokens=600),))
    async with grpc.aio.insecure_channel(node.address) as own:
        client = await SessionClient(own, "doomed").begin()
        await client.send(dispatch=tuple(engine_request(f"mine{i}", max_tokens=1500) for i in range(5)))
        await client.until(lambda: len(client.tokens) == 5)
        if politely:
            await client.call.done_writing()
        else:
            client.call.cancel()
        async with asyncio.timeout(DEADLINE_S):
            while True:
                now = await state(stub)
                names = {r.request_id for r in (*now.running, *now.waiting)}
                if not any(n.startswith("mine") for n in names):
                    break
                await asyncio.sleep(0.01)
        await client.leave()
    await other.until(lambda: "theirs" in other.ends)
    assert other.ends["theirs"].outcome == types_pb.OUTCOME_LENGTH, "another gateway's request went on"
    assert len(other.tokens["theirs"]) == 600
    await other.leave()


async def test_calibration_joins_what_was_asked_and_then_dispatched(channel: grpc.aio.Channel) -> None:
    stub = PredictStub(channel)
    before = await stub.GetCalibration(pb.GetCalibrationRequest(), timeout=DEADLINE_S)
    client = await SessionClient(channel).begin()
    for i in range(5):
        await client.send(ask={i: candidate(f"c{i}", prompt_tokens=100, tokens=60)})
        await client.until(lambda i=i: i in client.answers)  # type: ignore[misc]
        await client.send(dispatch=(engine_request(f"c{i}", prompt_tokens=100, max_tokens=60),))
    await client.until(lambda: len(client.ends) == 5)
    after = await stub.GetCalibration(pb.GetCalibrationRequest(), timeout=DEADLINE_S)
    assert after.ttft.samples == before.ttft.samples + 5
    assert after.e2e.samples == before.e2e.samples + 5
    await client.leave()
