"""A node is killed amid streamed answers that were handed on: who asked for it gets the rest from another node."""

from __future__ import annotations

import json
import signal
import threading
import urllib.request
from typing import Any

import pytest

from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from tests.e2e.cluster import MakeCluster, until

pytestmark = pytest.mark.e2e

TOKENS = 400
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "tell me a tale"}]}),
    "text": ("/v1/completions", {"prompt": "once upon a time"}),
}


class Reader(threading.Thread):
    """One client, and the events that it has got so far."""

    def __init__(self, address: str, name: str, path: str, fields: dict[str, Any], resume: str) -> None:
        super().__init__(daemon=True)
        options = {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
        # The field that nobody knows makes it a call to be handed on.
        body = {**fields, **options, "max_tokens": TOKENS, "unknown_to_the_gateway": 1}
        headers = {"x-request-id": name, "x-astrolabe-resume": resume, "content-type": "application/json"}
        self._request = urllib.request.Request(f"http://{address}{path}", json.dumps(body).encode(), headers)
        self.events: list[Any] = []
        self.node_id = ""

    def run(self) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self._request, timeout=60) as answer:
            self.node_id = answer.headers["x-astrolabe-node"]
            for line in answer:
                if line.startswith(b"data: "):
                    data = line[6:].strip()
                    self.events.append("[DONE]" if data == b"[DONE]" else json.loads(data))


@pytest.mark.parametrize("resume", ["best_effort", "exact"])
def test_a_killed_node_leaves_whole_streams_to_those_who_asked(make_cluster: MakeCluster, resume: str) -> None:
    cluster = make_cluster(
        nodes=2, predictor={"time_scale": 4.0}, gateway={"policy": "least_requests"}, expect_deaths=True
    )
    with cluster.stub() as stub:
        readers = {
            f"{kind}{i}": Reader(cluster.gateway.http_address, f"{kind}{i}", *CALLS[kind], resume)
            for kind in CALLS
            for i in range(3)
        }
        for reader in readers.values():
            reader.start()
            # One by one, so that each node gets some of each kind.
            until(lambda reader=reader: reader.events, what="an answer under way")  # type: ignore[misc]
        until(lambda: all(len(reader.events) > 30 for reader in readers.values()), what="answers under way")
        assert all(reader.is_alive() for reader in readers.values()), "an answer was over before a node was killed"
        killed = next(iter(readers.values())).node_id
        cluster.nodes[int(killed.rpartition("-")[2])].signal(signal.SIGKILL)
        for reader in readers.values():
            reader.join(60)
        hit = [name for name, reader in readers.items() if reader.node_id == killed]
        assert {name[:4] for name in hit} == set(CALLS), "each kind of call should have been interrupted"
        for name, reader in readers.items():
            told = stub.Explain(pb.ExplainRequest(request_id=name), timeout=5)
            events = reader.events
            if name in hit and resume != "best_effort":
                assert "error" in events[-1]
                assert "ask for resume = best_effort" in events[-1]["error"]["message"]
                assert len(told.decisions) == 1
                continue
            assert events.pop() == "[DONE]"
            assert "error" not in events[-1]
            assert len({event["id"] for event in events}) == 1
            choices = [event["choices"][0] for event in events if event["choices"]]
            assert sum("role" in choice.get("delta", {}) for choice in choices) == (name[:4] == "chat")
            assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["length"]
            said = events[-1]["usage"]
            assert said["completion_tokens"] == TOKENS
            assert said["prompt_tokens"] < 60
            assert told.actual.usage.output_tokens == TOKENS
            assert len(told.decisions) == (2 if name in hit else 1)
            assert told.actual.outcome in (types_pb.OUTCOME_STOP, types_pb.OUTCOME_LENGTH)
        page = urllib.request.urlopen(f"http://{cluster.gateway.http_address}/metrics", timeout=10).read().decode()
        ended = [line for line in page.splitlines() if line.startswith("astrolabe_lane_requests_total{")]
        assert sum(float(line.rpartition(" ")[2]) for line in ended) == len(readers)
