"""Every route of vLLM's own server is one that the gateway hands on, answers itself, or never hands on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence

import pytest

from gateway.intake.call_paths import CALL_PATHS, may_be_handed_on, target_of
from tests.vllm.fronts import Fronts
from tests.vllm.parity import Call, send
from tests.vllm.servers import ROOT

OWN = frozenset({"/v1/models"})
"""What the gateway answers itself, by what its nodes serve."""
BY_THE_BODY = frozenset(
    {
        "/v1/chat/completions/batch",
        "/cohere/v2/chat",
        "/invocations",
        "/ping",
        "/v1/realtime",
    }
)
"""Handed on though no table knows them: they ask for answers, or for nothing that could do harm. A route that a new
release brings is looked at by a person before it gets here."""


def routes(python: str) -> Mapping[str, Sequence[str]]:
    done = subprocess.run(
        [python, "-W", "ignore", "-m", "tests.vllm.routes_driver"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: Mapping[str, Sequence[str]] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def test_every_route_of_the_installed_release_is_on_one_list(vllm_python: str) -> None:
    found = routes(vllm_python)
    assert {"/sleep", "/v1/load_lora_adapter", "/pooling", "/v1/audio/transcriptions"} <= found.keys(), "all are found"
    unknown: list[str] = []
    twice: list[str] = []
    for path in found:
        known = path in CALL_PATHS or target_of(path).held_response or path in OWN | BY_THE_BODY
        never = not may_be_handed_on(path)
        (twice if known and never else [] if known or never else unknown).append(path)
    assert unknown == [], "new routes: decide for each whether callers may reach it on a node"
    assert twice == []


def disguises(path: str) -> Iterator[str]:
    """Ways to write a path that some server, proxy or library reads as the same."""
    first, rest = path[1], path[2:]
    yield from (path, f"{path}/", f"/{path}", f"/.{path}", f"/v1/..{path}", f"/%2e{path}", f"{path}?a=b", f"{path}%2f")
    yield from (
        f"/%{ord(first):02x}{rest}",
        f"/%25{ord(first):02x}{rest}",
        path.upper(),
        f"{path};a=b",
        f"/{path[1:]}%00",
    )
    yield from (f"{path}%20", f"/%2f{path[1:]}", f"/v1/%2e%2e{path}", f"/\\{path[1:]}", f"{path}%23", f"{path}%3f")


GUARDED = ("/is_sleeping", "/sleep", "/server_info", "/reset_prefix_cache", "/is_paused", "/load", "/openapi.json")
"""The fixture's server has all of them: its mode of developers is on."""


@pytest.mark.parametrize("path", GUARDED)
def test_what_is_never_handed_on_is_not_reached_by_another_name(fronts: Fronts, path: str) -> None:
    method = "GET" if send(fronts.plain, Call(path, method="GET")).status != 405 else "POST"
    for name in disguises(path):
        for asked in (Call(name, method=method), Call(name, {"level": 1}), Call(f"http://engine{path}", method=method)):
            reply = send(fronts.gateway, asked)
            # A reply with this header has been made by a node's server.
            assert "server" not in reply.headers, (asked, reply)
            assert reply.status in (400, 403, 404, 405), (asked, reply)
    awake = json.loads(send(fronts.plain, Call("/is_sleeping", method="GET")).body)
    assert awake == {"is_sleeping": False}
