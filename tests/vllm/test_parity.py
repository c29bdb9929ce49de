"""What clients get from a gateway is what they would get from the vLLM server behind it, field by field.

ASTROLABE_PARITY=plain compares the server with itself, which tells whether the suite can be relied on.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.vllm.fronts import Fronts
from tests.vllm.parity import Call, Reply, differences, differences_from_the_server, send, send_raw
from tests.vllm.parity_cases import BY_DESIGN, TO_MEND, calls, expected_to_differ, raw, response

CALLS = dict(calls())


def compare(ask: Callable[[str], Reply], fronts: Fronts, expected: str = "") -> None:
    """Fails with what differs, and with what differs between two replies of the server itself. `expected`: why the
    replies are known to differ."""
    plain, through = ask(fronts.plain), ask(fronts.gateway)
    found = differences_from_the_server(plain, through)
    if expected and fronts.plain != fronts.gateway:
        assert found, f"take it off the list of what differs: {expected}"
        return
    if not found:
        return
    unsteady = differences(plain, ask(fronts.plain))
    lines = [f"{len(found)} fields differ (the server's, other: the gateway's):", *found]
    if unsteady:
        lines += ["the server itself does not answer twice alike:", *unsteady]
    pytest.fail("\n".join(lines), pytrace=False)


@pytest.mark.parametrize("name", CALLS)
def test_a_reply_is_the_one_of_the_server(fronts: Fronts, name: str) -> None:
    compare(lambda url: send(url, CALLS[name]), fronts, expected_to_differ(name))


@pytest.mark.parametrize("name", raw(""))
def test_a_request_may_be_sent_in_every_way_that_the_server_takes(fronts: Fronts, name: str) -> None:
    compare(lambda url: send_raw(url, raw(urlsplit(url).netloc)[name]), fronts)


def test_a_stored_response_is_found_again_followed_and_cancelled(fronts: Fronts) -> None:
    def kept(url: str) -> list[Reply]:
        def asked(call: Call) -> tuple[Reply, dict[str, Any]]:
            reply = send(url, call)
            return reply, json.loads(reply.body)

        first, answer = asked(Call("/v1/responses", response(store=True)))
        again, _ = asked(Call(f"/v1/responses/{answer['id']}", method="GET"))
        follow, _ = asked(Call("/v1/responses", response(previous_response_id=answer["id"], store=True)))
        slow, begun = asked(Call("/v1/responses", response(store=True, background=True, max_output_tokens=1500)))
        cancelled, ended = asked(Call(f"/v1/responses/{begun['id']}/cancel"))
        assert ended.get("status") in ("cancelled", None), ended
        quick, begun = asked(Call("/v1/responses", response(store=True, background=True)))
        end_s = time.monotonic() + 60.0
        while True:
            done, state = asked(Call(f"/v1/responses/{begun['id']}", method="GET"))
            if state.get("status") not in ("queued", "in_progress"):
                break
            assert time.monotonic() < end_s, state
            time.sleep(0.1)
        too_late, _ = asked(Call(f"/v1/responses/{begun['id']}/cancel"))
        return [first, again, follow, slow, cancelled, quick, done, too_late]

    for one, other in zip(kept(fronts.plain), kept(fronts.gateway), strict=True):
        assert differences_from_the_server(one, other) == []


def test_a_connection_serves_calls_of_all_kinds_one_after_another(fronts: Fronts) -> None:
    """Also after errors, streams and bodies that nobody has read."""
    names = ["chat: plain", "wrong: bad JSON", "chat: plain, streamed", "wrong: unknown path", "other: tokenize text"]
    connection = http.client.HTTPConnection(urlsplit(fronts.gateway).netloc, timeout=60.0)
    wanted = [send(fronts.plain, CALLS[name]).status for name in names]
    seen: list[int] = []
    try:
        for name in names:
            call = CALLS[name]
            connection.request(call.method, call.path, call.data(), {"Content-Type": "application/json"})
            reply = connection.getresponse()
            reply.read()
            seen.append(reply.status)
    finally:
        connection.close()
    assert seen == wanted


def test_what_is_known_to_differ_is_asked() -> None:
    asked = {name.removesuffix(", streamed") for name in CALLS}
    assert {*BY_DESIGN, *TO_MEND} <= asked


def test_the_comparison_finds_what_differs_and_nothing_else() -> None:
    one = Reply(
        200, {"content-type": "application/json"}, b'{"id": "cmpl-%s", "created": 1, "a": [1, null]}' % (b"a" * 16)
    )
    same = Reply(200, {**one.headers, "date": "x"}, one.body.replace(b"a" * 16, b"b" * 16).replace(b"1,", b"2,", 1))
    assert differences(one, same) == []
    other = Reply(201, one.headers, one.body.replace(b"null", b'"x"').replace(b'"a"', b'"b": 1, "a"'))
    assert differences(one, other) == [
        ".status: 200, other: 201",
        '.body.a[1]: null, other: "x"',
        ".body.b: absent, other: 1",
    ]


def test_streams_in_other_pieces_are_the_same_and_others_are_not() -> None:
    def stream(*texts: str) -> Reply:
        chunks = [{"object": "c", "choices": [{"index": 0, "delta": {"content": text}}]} for text in texts]
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
        return Reply(200, {"content-type": "text/event-stream"}, "".join([*lines, "data: [DONE]\n\n"]).encode())

    assert differences(stream("a", "bc"), stream("ab", "c")) == []
    assert len(differences(stream("a", "bc"), stream("ab", "d"))) == 1
    cut = Reply(200, stream("a").headers, stream("a").body.replace(b"data: [DONE]\n\n", b""))
    assert differences(stream("a"), cut) != []
