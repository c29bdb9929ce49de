"""Gateway, daemon and a real vLLM server, as processes: streams, aborts, mirror, kills and restarts."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest

from deploy.local_cluster import Child
from protos.v1 import astrolabe_dispatch_pb2 as pb
from tests.vllm.chains import NODE, ask, chain, forecast, is_quiet, state, tokens_of, works
from tests.vllm.servers import Server, until


def test_streams_equal_those_of_vllm_itself_token_for_token(real_server: Server, tmp_path: Path) -> None:
    rng = random.Random(11)
    prompts = [[rng.randrange(256) for _ in range(rng.randrange(1, 300))] for _ in range(8)]
    with chain(real_server, tmp_path) as cluster, cluster.stub() as stub:
        model = state(cluster).config.model
        for i, prompt in enumerate(prompts):
            body = {"model": model, "prompt": prompt, "max_tokens": 40, "temperature": 0, "return_token_ids": True}
            direct = real_server.ask(body)["choices"][0]["token_ids"]
            through = tokens_of(stub, ask(f"r{i}", prompt, max_tokens=40, ignore_eos=False))
            assert through == direct, f"prompt {i}"
        until(lambda: is_quiet(cluster, real_server), what="an idle engine")


def test_a_stream_resumed_with_its_tokens_so_far_goes_on_as_before(real_server: Server, tmp_path: Path) -> None:
    prompt = [9, 8, 7, 6, 5]
    with chain(real_server, tmp_path) as cluster, cluster.stub() as stub:
        whole = tokens_of(stub, ask("whole", prompt, max_tokens=30))
        rest = tokens_of(stub, ask("rest", prompt + whole[:12], max_tokens=18))
    assert whole[12:] == rest


def test_a_client_that_leaves_frees_the_engine(real_server: Server, tmp_path: Path) -> None:
    with chain(real_server, tmp_path) as cluster, cluster.stub() as stub:
        calls = [stub.Generate(ask(f"r{i}", [i] * 50, max_tokens=900)) for i in range(4)]
        for call in calls:
            next(iter(call))
        until(lambda: len(state(cluster).running) == 4, what="four requests in the mirror")
        for call in calls:
            call.cancel()
        until(lambda: is_quiet(cluster, real_server), what="all blocks free again")


@pytest.mark.parametrize("kind", ["fast_server", "sync_server"])
def test_after_500_random_operations_everything_agrees(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path
) -> None:
    server: Server = request.getfixturevalue(kind)
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    print(f"seed {seed}")  # noqa: T201
    with chain(server, tmp_path, time_scale=10) as cluster, cluster.stub() as stub:
        open_calls: list[Any] = []
        threads: list[threading.Thread] = []

        def read(call: Any) -> None:
            try:
                for _ in call:
                    pass
            except grpc.RpcError:
                pass

        for operation in range(500):
            if rng.random() < 0.6 and len(open_calls) < 40:
                prompt = [rng.randrange(256) for _ in range(rng.randrange(1, 400))]
                most, priority = rng.randrange(1, 200), rng.choice([0, 0, 1, 5])
                call = stub.Generate(ask(f"op{operation}", prompt, max_tokens=most, priority=priority))
                open_calls.append(call)
                threads.append(threading.Thread(target=read, args=(call,)))
                threads[-1].start()
            elif open_calls:
                open_calls.pop(rng.randrange(len(open_calls))).cancel()
            if operation % 100 == 99:
                for call in open_calls[::2]:
                    call.cancel()
                for thread in threads:
                    thread.join(60.0)
                    assert not thread.is_alive(), f"a stream did not end (seed {seed})"
                open_calls, threads = [], []
                until(lambda: is_quiet(cluster, server), what=f"a quiet engine (seed {seed})")
        assert state(cluster).config.async_scheduling == (kind == "fast_server")
        assert state(cluster).preemptions_total > 0, "blocks were meant to be short"


def placed_by(stub: Any, request_id: str) -> str:
    """The policy that placed a request; empty while nobody has."""
    try:
        decisions = stub.Explain(pb.ExplainRequest(request_id=request_id), timeout=5.0).decisions
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return ""
        raise
    return str(decisions[-1].policy) if decisions else ""


def test_an_engine_that_hangs_while_its_http_server_is_healthy(fast_server: Server, tmp_path: Path) -> None:
    """Its state ages, forecasts shift and widen, the gateway no longer places by them; it never looks idle, and it is
    not shut out for ever."""
    stale = {"state_stale_s": 1.0, "forecast_timeout_ms": 2000.0}
    with chain(fast_server, tmp_path, gateway=stale, time_scale=10) as cluster, cluster.stub() as stub:
        call = stub.Generate(ask("long", [1] * 20, max_tokens=900))
        next(iter(call))
        until(lambda: len(state(cluster).running) == 1, what="the request in the mirror")
        before = forecast(cluster, prompt_tokens=20, output_tokens=50)
        core = fast_server.engine_core()
        core.suspend()
        try:
            until(lambda: state(cluster).state_age_s > 1.5, what="a state that ages")
            assert fast_server.is_ready(), "the HTTP server does not know"
            assert len(state(cluster).running) == 1, "a frozen engine does not look idle"
            later = forecast(cluster, prompt_tokens=20, output_tokens=50)
            assert later.state_age_s > 1.0
            assert later.ttft_s.p50 > before.ttft_s.p50 + 0.3, "nothing has been seen of it for a second"
            assert later.ttft_s.p90 - later.ttft_s.p50 > before.ttft_s.p90 - before.ttft_s.p50 + 0.3
            second = stub.Generate(ask("meanwhile", [2] * 20, max_tokens=5), timeout=60.0)
            until(lambda: placed_by(stub, "meanwhile") != "", what="a decision")
            assert placed_by(stub, "meanwhile") == "least_requests", "forecasts from an old state are not believed"
        finally:
            core.resume()
        until(lambda: state(cluster).state_age_s < 0.5, what="a fresh state")
        assert sum(len(chunk.token_ids) for chunk in second) == 5, "what was sent meanwhile has only waited"
        call.cancel()
        until(lambda: is_quiet(cluster, fast_server), what="a quiet engine")
        until(works(cluster, "after"), what="requests after the engine went on")
        assert len(tokens_of(stub, ask("again", [3] * 20, max_tokens=5))) == 5
        assert placed_by(stub, "again") == "min_total_latency", "its forecasts count again"


def test_kill_and_restart_of_the_daemon_then_of_engine_and_daemon(fast_server: Server, tmp_path: Path) -> None:
    with chain(fast_server, tmp_path, time_scale=10) as cluster:
        until(works(cluster, "before"))
        node = cluster.nodes[0]
        node.kill()
        node.start()
        until(works(cluster, "daemon"), deadline_s=200.0, what="requests after the daemon's restart")
        fast_server.kill()
        fast_server.start()
        until(works(cluster, "engine"), deadline_s=400.0, what="requests after the engine's restart")
        until(lambda: is_quiet(cluster, fast_server), what="a synchronised, quiet node")
        fast_server.kill()
        node.kill()
        # The daemon is back before its engine.
        node.start()
        fast_server.start()
        until(works(cluster, "both"), deadline_s=400.0, what="requests after both were restarted")


def test_a_second_daemon_is_refused_and_a_wrong_model_too(fast_server: Server, tmp_path: Path) -> None:
    with chain(fast_server, tmp_path / "first", time_scale=10):
        for name, options, words in (
            ("second", {}, "already has a daemon"),
            ("other", {"model": "gpt-x", "engine_wait_s": 1}, "the configuration says 'gpt-x'"),
        ):
            child = Child(
                name, "predictor", {**NODE, "engine_url": fast_server.url, "listen": "127.0.0.1:0", **options}, tmp_path
            )
            child.start()
            try:
                until(lambda c=child, w=words: w in c.log_path.read_text(), what=words)  # type: ignore[misc]
            finally:
                child.kill()
