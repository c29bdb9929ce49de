"""A daemon that starts where no kernels are compiled: it serves at once, and answers as it will when they are."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest

from deploy.local_cluster import Child
from protos.runtime import compiling, kernels
from protos.v1 import astrolabe_predict_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from protos.v1.astrolabe_predict_pb2_grpc import PredictStub
from simcore import kernel_files
from tests.e2e.predictor_daemon import DEADLINE_S, SessionClient, candidate, daemon, engine_request, until

pytestmark = pytest.mark.e2e

INTERPRETED = "kernels are interpreted until they are compiled"
COMPILED = "kernels are not interpreted any more"
FAILED = "kernels are not compiled, and interpreted still"
UNSURE = types_pb.LengthBelief(atoms_tokens=[20, 90, 400])
ASKED = [
    types_pb.Candidate(request_id=f"c{tokens}", prompt_tokens=tokens, max_output_tokens=500, belief=UNSURE)
    for tokens in (5, 300, 1200)
]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where nothing is compiled. What these tests themselves run with can be copied from `compiled` beside it."""
    (tmp_path / "compiled").symlink_to(kernel_files.folder() or tmp_path)
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(folder))
    return folder


@contextlib.contextmanager
def compiling_elsewhere(cache: Path) -> Iterator[None]:
    """Another process is about to compile."""
    with (cache / f"kernels-warm_node-{kernels._fingerprint()}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def forecasts(child: Child) -> list[types_pb.Forecast]:
    with grpc.insecure_channel(child.address) as channel:
        reply = PredictStub(channel).Predict(pb.PredictRequest(candidates=ASKED), timeout=DEADLINE_S)
    return list(reply.forecasts)


def lines(child: Child) -> list[dict[str, Any]]:
    return [json.loads(line) for line in child.log_path.read_text().splitlines() if line.endswith("}")]


def events(child: Child) -> list[str]:
    return [line["event"] for line in lines(child)]


def compilers(child: Child) -> list[psutil.Process]:
    found = psutil.Process(child.pid).children(recursive=True)
    return [process for process in found if compiling.__name__ in process.cmdline()]


def test_it_answers_before_kernels_are_compiled_and_the_same_after(tmp_path: Path, cache: Path) -> None:
    with contextlib.ExitStack() as elsewhere:
        elsewhere.enter_context(compiling_elsewhere(cache))
        with daemon(tmp_path) as child:
            before = forecasts(child)
            assert len(before) == len(ASKED)
            assert INTERPRETED in events(child)
            for kernel in (tmp_path / "compiled").glob("*.kernel"):
                shutil.copy2(kernel, cache)
            assert COMPILED not in events(child)
            elsewhere.close()
            until(child, lambda: COMPILED in events(child))
            assert forecasts(child) == before
            seen = events(child)
            assert seen.index("node is serving") < seen.index(COMPILED)


def test_requests_and_questions_of_gateways_are_served_meanwhile(tmp_path: Path, cache: Path) -> None:
    async def use(address: str) -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            gateway = await SessionClient(channel).begin()
            await gateway.send(dispatch=(engine_request("r"),), ask={1: candidate("few")})
            await gateway.until(lambda: "r" in gateway.ends and 1 in gateway.answers)
            assert gateway.ends["r"].outcome == types_pb.OUTCOME_LENGTH
            assert len(gateway.tokens["r"]) == 30
            assert gateway.answers[1].HasField("forecast")
            many = {i: candidate(f"c{i}") for i in range(2, 102)}
            await gateway.send(ask=many)
            await gateway.until(lambda: len(gateway.answers) == 101)
            assert "kernels" in gateway.answers[101].error, "too much for them; its gateway does without"
            await gateway.leave()

    with compiling_elsewhere(cache), daemon(tmp_path) as child:
        asyncio.run(use(child.address))
        assert COMPILED not in events(child)


def test_a_compiler_that_is_killed_costs_no_answer(tmp_path: Path, cache: Path) -> None:
    with daemon(tmp_path) as child:
        before = forecasts(child)
        until(child, lambda: len(compilers(child)) == 2)
        found = compilers(child)
        until(child, lambda: all(process.nice() >= compiling.NICENESS for process in found))
        for process in found:
            process.kill()
        until(child, lambda: FAILED in events(child))
        (failed,) = [line for line in lines(child) if line["event"] == FAILED]
        assert failed["again_in_s"] == kernels.AGAIN_S
        assert str(-signal.SIGKILL) in failed["detail"]
        assert forecasts(child) == before
        assert COMPILED not in events(child)


def test_compilers_end_with_a_daemon_that_is_killed(tmp_path: Path, cache: Path) -> None:
    child = Child("predictor", "predictor", {"listen": "127.0.0.1:0", "tokenizer": "bytes"}, tmp_path)
    child.start()
    try:
        child.wait_ready(time.monotonic() + 50.0)
        until(child, lambda: len(compilers(child)) == 2)
        left = compilers(child)
    finally:
        child.kill()
    gone, alive = psutil.wait_procs(left, timeout=DEADLINE_S)
    assert len(gone) == 2, alive
