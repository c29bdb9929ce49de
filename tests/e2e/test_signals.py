"""Signals that mean nothing to a daemon end none: rotators of logs and supervisors send them."""

from __future__ import annotations

import signal
import time
import urllib.request
from pathlib import Path

import grpc
import pytest

from deploy.local_cluster import Child
from protos.v1 import astrolabe_predict_pb2 as pb
from protos.v1.astrolabe_predict_pb2_grpc import PredictStub
from tests.e2e.predictor_daemon import DEADLINE_S, daemon

pytestmark = pytest.mark.e2e

SENT = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


def is_told(child: Child, times: int) -> bool:
    return child.log_path.read_text().count("signal passed over") >= times


def until_told(child: Child, times: int) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while not is_told(child, times):
        assert time.monotonic() < end_s, child.last_words()
        child.check()
        time.sleep(0.02)


def test_a_node_lives_through_them(tmp_path: Path) -> None:
    with daemon(tmp_path) as child, grpc.insecure_channel(child.address) as channel:
        for number in SENT:
            child.signal(number)
        until_told(child, 2)
        assert PredictStub(channel).GetState(pb.GetStateRequest(), timeout=DEADLINE_S).node_id == "n1"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_gateway_lives_through_them(tmp_path: Path, workers: int) -> None:
    options = {"listen": "127.0.0.1:0", "http_listen": "127.0.0.1:0", "workers": workers, "tokenizer": "bytes"}
    child = Child("gateway", "gateway", {**options, "lame_duck_s": 0.1}, tmp_path)
    child.start()
    try:
        child.wait_ready(time.monotonic() + 50.0)
        for number in SENT:
            child.signal(number)
        until_told(child, 2)
        with urllib.request.urlopen(f"http://{child.http_address}/health/live", timeout=DEADLINE_S) as reply:
            assert reply.status == 200
        child.signal(signal.SIGTERM)
        assert child.wait(DEADLINE_S) == 0
    finally:
        child.kill()
