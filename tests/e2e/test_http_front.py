"""The HTTP front before scripted nodes: what it says, to the byte where that matters."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc.aio
import msgspec
import pytest

from gateway.http.heartbeats import Beat, Heartbeats
from protos import codec
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from simcore.types import Outcome
from tests.e2e.http_client import RawClient
from tests.e2e.in_process import dispatched, part, running, status, until
from tests.e2e.scripted_node import CONFIG, ScriptedNode

pytestmark = pytest.mark.e2e


async def up(gateway: Any) -> None:
    await until(lambda: status(gateway, "n") == "up")


def completion(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": "hello", "max_tokens": 8, **fields}


async def test_a_plain_answer_has_text_usage_and_headers(node: ScriptedNode) -> None:
    async with running(node.address) as (gateway, _), RawClient(gateway.http_address) as client:
        await up(gateway)
        client.post("/v1/completions", completion(), {"x-request-id": "mine"})
        request = (await dispatched(node)).request
        assert bytes(request.prompt_token_ids) == b"hello"
        node.say(part("mine", b"wor"))
        node.say(part("mine", b"ld", Outcome.STOP))
        reply = await client.reply()
        assert reply.status == 200
        assert (reply.headers["x-request-id"], reply.headers["x-astrolabe-node"]) == ("mine", "n")
        told = reply.json()
        (choice,) = told["choices"]
        said = {name: value for name, value in choice.items() if value is not None}
        assert said == {"index": 0, "text": "world", "finish_reason": "stop"}
        assert {"logprobs", "stop_reason", "token_ids", "prompt_logprobs"} <= choice.keys(), "clients look at them"
        assert told["usage"]["prompt_tokens"] == 5
        assert (told["usage"]["completion_tokens"], told["usage"]["total_tokens"]) == (5, 10)
        assert (told["id"], told["object"], told["model"]) == ("cmpl-mine", "text_completion", "m")


async def test_a_stream_says_what_grpc_says(node: ScriptedNode) -> None:
    """One engine's words, two fronts: same texts, same tokens, same end."""
    async with running(node.address) as (gateway, stub), RawClient(gateway.http_address) as client:
        await up(gateway)
        fields = {"stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True}
        client.post("/v1/completions", completion(request_id="h", **fields))
        call = stub.Generate(
            pb.GenerateRequest(request_id="g", text="hello", sampling=types_pb.SamplingParams(max_tokens=8))
        )
        assert {(await dispatched(node)).request.request_id for _ in range(2)} == {"h", "g"}
        # The euro sign is cut in two by the tokens.
        for tokens, outcome in ((b"a\xe2\x82", None), (b"\xacb", None), (b"c", Outcome.LENGTH)):
            for request_id in ("h", "g"):
                node.say(part(request_id, tokens, outcome))
            await asyncio.sleep(0)
        chunks = [chunk async for chunk in call]
        events = (await client.reply()).events()
        assert events[-1] == "[DONE]"
        usage = events[-2]
        assert usage["choices"] == []
        assert usage["usage"]["completion_tokens"] == chunks[-1].usage.output_tokens
        pieces = [event["choices"][0] for event in events[:-2]]
        assert "".join(p["text"] for p in pieces) == "".join(c.text for c in chunks) == "a€bc"
        assert [t for p in pieces for t in p["token_ids"]] == [t for c in chunks for t in c.token_ids]
        assert [p["finish_reason"] for p in pieces] == [None] * (len(pieces) - 1) + ["length"]
        assert all(event["usage"] is None for event in events[:-2])


@pytest.mark.parametrize("wanted", [False, True])
async def test_usage_in_every_chunk_is_told_only_where_usage_is(node: ScriptedNode, wanted: bool) -> None:
    async with running(node.address) as (gateway, _), RawClient(gateway.http_address) as client:
        await up(gateway)
        options = {"include_usage": wanted, "continuous_usage_stats": True}
        client.post("/v1/completions", completion(stream=True, stream_options=options, request_id="r"))
        await dispatched(node)
        node.say(part("r", b"ab", Outcome.STOP))
        events = (await client.reply()).events()
        assert events[-1] == "[DONE]"
        assert {bool(event.get("usage")) for event in events[:-1]} == {wanted}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_over_pieces_ends_the_answer_before_it_and_the_engine_too(
    node: ScriptedNode, stream: bool
) -> None:
    async with running(node.address) as (gateway, _), RawClient(gateway.http_address) as client:
        await up(gateway)
        client.post("/v1/completions", completion(stop=["END", "nope"], stream=stream, max_tokens=50, request_id="r"))
        request = (await dispatched(node)).request
        assert not request.sampling.stop
        for tokens in (b"one E", b"two", b" EN", b"D rest"):
            node.say(part("r", tokens))
        reply = await client.reply()
        if stream:
            pieces = [e["choices"][0] for e in reply.events()[:-1]]
            text, finish = "".join(p["text"] for p in pieces), pieces[-1]["finish_reason"]
            reasons = [p.get("stop_reason") for p in pieces]
            assert reasons == [None] * (len(pieces) - 1) + ["END"]
        else:
            choice = reply.json()["choices"][0]
            text, finish = choice["text"], choice["finish_reason"]
            assert choice["stop_reason"] == "END"
            assert reply.json()["usage"]["completion_tokens"] == len("one Etwo END")
        assert (text, finish) == ("one Etwo ", "stop")
        async with asyncio.timeout(5):
            assert list((await node.received.get()).abort_request_ids) == ["r"]
        explained = gateway.pump.router.explain("r")
        assert explained is not None
        assert explained.outcome is Outcome.STOP


async def test_grpc_stops_at_strings_too(node: ScriptedNode) -> None:
    async with running(node.address) as (gateway, stub):
        await up(gateway)
        sampling = types_pb.SamplingParams(max_tokens=50, stop=["\n\n"])
        call = stub.Generate(pb.GenerateRequest(request_id="r", text="hello", sampling=sampling))
        await dispatched(node)
        node.say(part("r", b"line\n"))
        node.say(part("r", b"\nnext"))
        chunks = [chunk async for chunk in call]
        assert "".join(c.text for c in chunks) == "line"
        assert chunks[-1].outcome == types_pb.OUTCOME_STOP
        assert chunks[-1].usage.output_tokens == 6
        assert chunks[-1].stop_text == "\n\n"


async def several(node: ScriptedNode, count: int) -> dict[str, Any]:
    """What the node is asked for, by the names of the answers."""
    requests = [(await dispatched(node)).request for _ in range(count)]
    return {request.request_id: request for request in requests}


async def aborted(node: ScriptedNode, *names: str) -> None:
    """Waits until the node has been told to stop these."""
    missing = set(names)
    async with asyncio.timeout(5):
        while missing:
            missing -= set((await node.received.get()).abort_request_ids)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
async def test_several_answers_are_drawn_side_by_side_and_told_together(
    node: ScriptedNode, stream: bool, path: str
) -> None:
    is_chat = "chat" in path
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]} if is_chat else {"prompt": "hello"}
    more = {"n": 3, "seed": 5, "temperature": 1.0, "stop": "!", "request_id": "r", "return_token_ids": True}
    usage = {"stream_options": {"include_usage": True}} if stream else {}
    async with running(node.address) as (gateway, _), RawClient(gateway.http_address) as client:
        await up(gateway)
        client.post(path, {"model": "m", "max_tokens": 8, "stream": stream, **asked, **more, **usage})
        requests = await several(node, 3)
        assert {name: request.sampling.seed for name, request in requests.items()} == {"r": 5, "r#1": 6, "r#2": 7}
        assert len({bytes(request.prompt_token_ids) for request in requests.values()}) == 1
        node.say(part("r#1", b"one"))
        node.say(part("r#2", b"two", Outcome.LENGTH))
        node.say(part("r", b"none!"))
        node.say(part("r#1", b"s", Outcome.STOP))
        reply = await client.reply()
        told = reply.events()[:-1] if stream else [reply.json()]
        assert {event["id"] for event in told} == {"chatcmpl-r" if is_chat else "cmpl-r"}
        texts, ids = ["", "", ""], [list[int]() for _ in range(3)]
        ends = [list[tuple[str, str | None]]() for _ in range(3)]
        for choice in (choice for event in told for choice in event["choices"]):
            said = choice[("delta" if stream else "message")]["content"] if is_chat else choice["text"]
            texts[choice["index"]] += said
            ids[choice["index"]] += choice["token_ids"]
            if choice["finish_reason"]:
                ends[choice["index"]].append((choice["finish_reason"], choice.get("stop_reason")))
        assert texts == ["none", "ones", "two"]
        assert [bytes(i) for i in ids] == [b"none!", b"ones", b"two"]
        assert ends == [[("stop", "!")], [("stop", None)], [("length", None)]]
        counts, prompt = told[-1]["usage"], len(requests["r"].prompt_token_ids)
        assert (counts["prompt_tokens"], counts["completion_tokens"]) == (prompt, 12)


async def test_each_of_several_answers_goes_on_by_itself_when_its_node_goes(node: ScriptedNode) -> None:
    other = ScriptedNode("other")
    await other.start()
    try:
        async with running(node.address, other.address) as (gateway, _), RawClient(gateway.http_address) as client:
            await up(gateway)
            await until(lambda: status(gateway, "other") == "up")
            client.post("/v1/completions", completion(n=2, request_id="r", stream=True))
            (here,) = await several(node, 1)
            (there,) = await several(other, 1)
            assert {here, there} == {"r", "r#1"}
            node.say(part(here, b"he"))
            other.say(part(there, b"the"))
            await until(lambda: len(gateway.pump.streams[there].produced) == 3)
            await other.stop()
            ((name, request),) = (await several(node, 1)).items()
            assert (name, bytes(request.prompt_token_ids)) == (f"{there}~2", b"hellothe")
            assert request.sampling.max_tokens == 5
            node.say(part(name, b"re", Outcome.STOP))
            node.say(part(here, b"re", Outcome.STOP))
            texts = {0: "", 1: ""}
            for event in (await client.reply()).events()[:-1]:
                for choice in event["choices"]:
                    texts[choice["index"]] += choice["text"]
            assert texts == ({0: "here", 1: "there"} if here == "r" else {0: "there", 1: "here"})
    finally:
        await other.stop()


@pytest.mark.parametrize("stream", [False, True])
async def test_when_one_of_several_answers_fails_all_end_and_the_client_is_told_once(
    node: ScriptedNode, stream: bool
) -> None:
    async with running(node.address) as (gateway, _), RawClient(gateway.http_address) as client:
        await up(gateway)
        client.post("/v1/completions", completion(n=2, request_id="r", stream=stream))
        await several(node, 2)
        if stream:
            node.say(part("r", b"a"))
            await until(lambda: bool(gateway.pump.streams["r"].output_tokens))
        node.say(part("r#1", b"", Outcome.INVALID))
        reply = await client.reply()
        if stream:
            assert reply.body.count(b'"error"') == 1
            assert b"[DONE]" not in reply.body
        else:
            assert (reply.status, reply.json()["error"]["code"]) == (400, "invalid")
        await aborted(node, "r")
        explained = [gateway.pump.router.explain(name) for name in ("r", "r#1")]
        assert [e.outcome for e in explained if e is not None] == [Outcome.INVALID, Outcome.INVALID]


async def test_a_client_that_leaves_ends_all_of_its_answers(node: ScriptedNode) -> None:
    async with running(node.address) as (gateway, _):
        await up(gateway)
        async with RawClient(gateway.http_address) as client:
            client.post("/v1/completions", completion(n=3, request_id="r", stream=True))
            await several(node, 3)
        await aborted(node, "r", "r#1", "r#2")


async def test_cancelling_a_request_ends_all_of_its_answers(node: ScriptedNode) -> None:
    async with running(node.address) as (gateway, stub), RawClient(gateway.http_address) as client:
        await up(gateway)
        client.post("/v1/completions", completion(n=2, request_id="r"))
        await several(node, 2)
        assert (await stub.Cancel(pb.CancelRequest(request_id="r"))).found
        assert (await client.reply()).headers["x-astrolabe-outcome"] == "cancelled"
        await aborted(node, "r", "r#1")


def telling_logprobs(node: ScriptedNode) -> None:
    assert node.welcome is not None
    node.welcome.welcome.config.tells_logprobs = True


@pytest.mark.parametrize("stream", [False, True])
async def test_how_likely_the_tokens_were_goes_with_them_to_both_fronts(node: ScriptedNode, stream: bool) -> None:
    telling_logprobs(node)

    def told(request_id: str, tokens: bytes, outcome: Outcome | None = None) -> Any:
        frame = part(request_id, tokens, outcome)
        for token in tokens:
            frame.parts[0].logprobs.add(logprob=-0.5, other_ids=[token + 1], other_logprobs=[-1.5])
        return frame

    async with running(node.address) as (gateway, stub), RawClient(gateway.http_address) as client:
        await up(gateway)
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stop": "END"}
        more = {"logprobs": True, "top_logprobs": 2, "request_id": "h", "stream": stream}
        client.post("/v1/chat/completions", {**body, **more})
        sampling = types_pb.SamplingParams(max_tokens=8, logprobs=1, stop=["END"])
        call = stub.Generate(pb.GenerateRequest(request_id="g", text="hello", sampling=sampling))
        asked = {r.request_id: r.sampling.logprobs for r in [(await dispatched(node)).request for _ in range(2)]}
        assert asked == {"h": 2, "g": 1}
        for name in ("h", "g"):
            node.say(told(name, b"ab"))
            node.say(told(name, b"ENDcd"))
        reply = await client.reply()
        choices = [e["choices"][0] for e in reply.events()[:-1]] if stream else [reply.json()["choices"][0]]
        content = [entry for c in choices for entry in c["logprobs"]["content"]]
        assert [entry["token"] for entry in content] == list("abEND")
        first = {"token": "a", "logprob": -0.5, "bytes": [97]}
        assert content[0] == {**first, "top_logprobs": [first, {"token": "b", "logprob": -1.5, "bytes": [98]}]}
        chunks = [chunk async for chunk in call]
        logprobs = [one for chunk in chunks for one in chunk.logprobs]
        assert [list(one.other_ids) for one in logprobs] == [[i + 1] for i in b"abEND"]


async def test_a_node_that_keeps_its_logprobs_to_itself_has_failed(node: ScriptedNode) -> None:
    telling_logprobs(node)
    async with running(node.address) as (gateway, _), RawClient(gateway.http_address) as client:
        await up(gateway)
        client.post("/v1/completions", completion(logprobs=0, request_id="r"))
        await dispatched(node)
        node.say(part("r", b"ab"))
        reply = await client.reply()
        assert (reply.status, reply.json()["error"]["code"]) == (502, "engine_failed")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
async def test_ids_of_prompt_and_answer_and_the_one_that_ended_it(node: ScriptedNode, stream: bool, path: str) -> None:
    is_chat = "chat" in path
    async with running(node.address) as (gateway, _), RawClient(gateway.http_address) as client:
        await up(gateway)
        asked = {"messages": [{"role": "user", "content": "hi"}]} if is_chat else {"prompt": "hello"}
        fields = {"stream": stream, "return_token_ids": True, "stop_token_ids": [33], "request_id": "r"}
        client.post(path, {"model": "m", "max_tokens": 8, **asked, **fields})
        prompt = list((await dispatched(node)).request.prompt_token_ids)
        node.say(part("r", b"no"))
        last = part("r", b"w!", Outcome.STOP)
        last.parts[0].stop_token_id = 33
        node.say(last)
        reply = await client.reply()
        told = reply.events()[:-1] if stream else [reply.json()]
        choices = [event["choices"][0] for event in told]
        assert [i for choice in choices for i in choice["token_ids"]] == list(b"now!")
        assert choices[-1]["stop_reason"] == 33
        assert (told if is_chat else choices)[0]["prompt_token_ids"] == prompt
        said = [event for event in (*told, *choices) if "prompt_token_ids" in event]
        assert len(said) == 1


async def test_chat_streams_deltas_with_the_role_first(node: ScriptedNode) -> None:
    async with running(node.address) as (gateway, _), RawClient(gateway.http_address) as client:
        await up(gateway)
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [_text("hi"), _text("!")]}]
        client.post("/v1/chat/completions", {"model": "m", "messages": messages, "stream": True, "request_id": "r"})
        request = (await dispatched(node)).request
        assert bytes(request.prompt_token_ids) == b"system: Be brief.\n\nuser: hi\n!\n\nassistant:"
        node.say(part("r", b"yes"))
        node.say(part("r", b"!", Outcome.STOP))
        events = (await client.reply()).events()
        deltas = [e["choices"][0]["delta"] for e in events[:-1]]
        assert "".join(d["content"] for d in deltas) == "yes!"
        assert [("role" in d) for d in deltas] == [True] + [False] * (len(deltas) - 1)
        assert {e["object"] for e in events[:-1]} == {"chat.completion.chunk"}


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        ("/v1/completions", b"{", None, "JSON"),
        ("/v1/completions", b"[]", None, "object"),
        ("/v1/completions", b'{"prompt": "\\ud800"}', None, "JSON"),
        ("/v1/completions", {}, "prompt", "prompt"),
        ("/v1/completions", {"prompt": ""}, "prompt", "empty"),
        ("/v1/completions", {"prompt": []}, "prompt", "empty"),
        ("/v1/completions", {"prompt": [1, "a"]}, "prompt", "token ids"),
        ("/v1/completions", {"prompt": [1, -5]}, "prompt", "token ids"),
        ("/v1/completions", {"prompt": [2**40]}, "prompt", "token ids"),
        ("/v1/completions", {"prompt": ["a", "b"]}, "prompt", "one prompt per request"),
        ("/v1/completions", {"prompt": "x", "max_tokens": 0}, "max_tokens", ">= 1"),
        ("/v1/completions", {"prompt": "x", "max_tokens": "many"}, "max_tokens", "int"),
        ("/v1/completions", {"prompt": "x", "temperature": -1}, "temperature", ">= 0"),
        ("/v1/completions", {"prompt": "x", "temperature": "hot"}, "temperature", "float"),
        ("/v1/completions", {"prompt": "x", "top_p": 2}, "top_p", "(0, 1]"),
        ("/v1/completions", {"prompt": "x", "n": 2, "temperature": 0}, "n", "n must be 1 when using greedy sampling"),
        ("/v1/completions", {"prompt": "x", "n": 17}, "n", "from 1 to 16"),
        ("/v1/completions", {"prompt": "x", "n": 0}, "n", "from 1 to 16"),
        ("/v1/completions", {"prompt": "x", "logprobs": 3}, "logprobs", "not supported"),
        ("/v1/completions", {"prompt": "x", "echo": True}, "echo", "not supported"),
        ("/v1/completions", {"prompt": "x", "best_of": 4}, "best_of", "not supported"),
        ("/v1/completions", {"prompt": "x", "n": True}, "n", "int"),
        ("/v1/completions", {"prompt": "x", "tempertaure": 1}, "tempertaure", "unknown field"),
        ("/v1/completions", {"prompt": "x", "stop": [""]}, "stop", "stop string"),
        ("/v1/completions", {"prompt": "x", "policy": "best"}, "policy", "policy"),
        ("/v1/completions", {"prompt": "x", "slo": {"ttft": 1}}, "slo", "unknown field"),
        ("/v1/completions", {"prompt": "x", "belief_tokens": [5, 3]}, "belief", "ascending"),
        ("/v1/completions", {"prompt": "x", "request_id": "a\nb"}, "request_id", "printable"),
        ("/v1/completions", {"prompt": "x", "seed": 2**70}, "seed", "int"),
        ("/v1/chat/completions", {"messages": []}, "messages", "empty"),
        ("/v1/chat/completions", {"messages": [{"role": "bot", "content": "x"}]}, "messages[0].role", "role"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "text"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content",
            "only text",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]},
            "tools",
            "not supported",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_object"}},
            "response_format",
            "not supported",
        ),
        ("/v1/completions", {"prompt": "x", "stream_options": {"include_usage": True}}, "stream_options", "stream"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(
    http_front: Any, path: str, body: Any, param: str | None, words: str
) -> None:
    async with RawClient(http_front.http_address) as client:
        client.post(path, body)
        reply = await client.reply()
        error = reply.json()["error"]
        assert reply.status == 400
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert words in error["message"]


async def test_ends_without_an_answer_have_their_own_status(node: ScriptedNode) -> None:
    cases = {
        Outcome.ENGINE_FAILED: (502, "engine_error"),
        Outcome.OVERLOADED: (429, "overloaded_error"),
        Outcome.INVALID: (400, "invalid_request_error"),
    }
    async with running(node.address, max_attempts=1) as (gateway, _), RawClient(gateway.http_address) as client:
        await up(gateway)
        for outcome, (code, kind) in cases.items():
            client.post("/v1/completions", completion(stream=True, request_id=outcome.value))
            await dispatched(node)
            node.say(part(outcome.value, b"", outcome))
            reply = await client.reply()
            assert (reply.status, reply.json()["error"]["type"]) == (code, kind)
            assert reply.headers["x-astrolabe-outcome"] == outcome.value
            assert ("retry-after" in reply.headers) is (code == 429)
        client.post("/v1/completions", completion(model="other"))
        assert (await client.reply()).status == 404
        client.post("/v1/completions", completion(slo={"deadline_s": 0.05}))
        assert (await client.reply()).status == 504


async def test_a_failure_after_the_first_token_is_an_event_and_not_an_end(node: ScriptedNode) -> None:
    async with running(node.address, max_attempts=1) as (gateway, _), RawClient(gateway.http_address) as client:
        await up(gateway)
        client.post("/v1/completions", completion(stream=True, request_id="r", resume="off"))
        await dispatched(node)
        node.say(part("r", b"ab"))
        node.say(part("r", b"", Outcome.ENGINE_FAILED))
        reply = await client.reply()
        events = reply.events()
        assert reply.status == 200
        assert "".join(e["choices"][0]["text"] for e in events if "choices" in e) == "ab"
        assert events[-1]["error"]["code"] == "engine_failed"


async def test_looks_and_paths(http_front: Any) -> None:
    async with RawClient(http_front.http_address) as client:
        for path, code in (
            ("/v1/models", 200),
            ("/v1/models/m", 200),
            ("/v1/models/other", 404),
            ("/health", 200),
            ("/health/live", 200),
            ("/metrics", 200),
            ("/nothing", 404),
            ("http://gateway.example/v1/models?x=1", 200),
            ("/v1/models/", 404),
            ("//v1/models", 404),
            ("/v1//models", 404),
            ("/v1/models//", 404),
            ("/v1/models//m", 404),
            ("/v1/models/m/", 404),
            ("/v1/../v1/models", 404),
            ("/V1/models", 404),
            ("/v1/models.json", 404),
            ("/", 307),
            ("/v1/completions", 405),
        ):
            client.get(path)
            reply = await client.reply()
            assert reply.status == code, path
            if code == 404:
                error = reply.json()["error"]
                assert error["type"] == "invalid_request_error", path
                assert "model" not in error["code"] or path == "/v1/models/other", path
        client.post("/v1/models", {})
        assert (await client.reply()).headers["allow"] == "GET, HEAD"
        client.get("/metrics")
        page = (await client.reply()).body.decode()
        assert 'astrolabe_nodes{status="up"} 1.0' in page


async def test_paths_that_are_nearly_one_are_told_which(http_front: Any) -> None:
    async with RawClient(http_front.http_address) as client:
        client.get("/v1/models/")
        told = (await client.reply()).json()["error"]["message"]
        assert told == "Invalid URL (GET /v1/models/); did you mean /v1/models?"
        client.post("//v1/completions", completion())
        told = (await client.reply()).json()["error"]["message"]
        assert told == "Invalid URL (POST //v1/completions); did you mean /v1/completions?"


async def test_a_model_that_nobody_serves_is_not_found(node: ScriptedNode) -> None:
    async with running(node.address) as (gateway, stub), RawClient(gateway.http_address) as client:
        # Without a node nobody can say that a model does not exist.
        await up(gateway)
        for path, body in (
            ("/v1/completions", completion(model="gpt-4")),
            ("/v1/chat/completions", {"model": "gpt-4", "messages": [{"role": "user", "content": "hi"}]}),
        ):
            client.post(path, body)
            reply = await client.reply()
            error = reply.json()["error"]
            assert (reply.status, error["code"], error["param"]) == (404, "model_not_found", "model")
            assert error["message"] == "no node serves model 'gpt-4'; served are 'm'"
        for call in (
            stub.Generate(pb.GenerateRequest(text="hello", model="gpt-4")).read(),
            stub.Place(pb.PlaceRequest(prompt_tokens=3, max_output_tokens=3, model="gpt-4")),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_node_with_several_names_is_served_under_each(node: ScriptedNode) -> None:
    config = msgspec.structs.replace(CONFIG, model="org/big", other_names=("big", "latest"))
    assert node.welcome is not None
    node.welcome.welcome.config.CopyFrom(codec.config_to_wire(config))
    async with running(node.address) as (gateway, _), RawClient(gateway.http_address) as client:
        await up(gateway)
        client.get("/v1/models")
        assert [m["id"] for m in (await client.reply()).json()["data"]] == ["org/big", "big", "latest"]
        for name in ("org/big", "big", "latest"):
            client.get(f"/v1/models/{name}")
            assert (await client.reply()).json()["id"] == name
        for asked, told in (("latest", "latest"), ("org/big", "org/big"), (None, "org/big")):
            client.post("/v1/completions", completion(model=asked, request_id="r"))
            assert (await dispatched(node)).request.model == (asked or "")
            node.say(part("r", b"hi", Outcome.STOP))
            assert (await client.reply()).json()["model"] == told


async def test_a_node_that_comes_back_with_another_model_is_served_as_such(node: ScriptedNode) -> None:
    async with running(node.address) as (gateway, _), RawClient(gateway.http_address) as client:
        await up(gateway)
        client.post("/v1/completions", completion(model="m", request_id="a"))
        await dispatched(node)
        node.say(part("a", b"hi", Outcome.STOP))
        assert (await client.reply()).status == 200
        await node.stop()
        await until(lambda: status(gateway, "n") == "down")
        client.post("/v1/completions", completion(model="m"))
        assert (await client.reply()).status == 503, "it may come back"
        smaller = msgspec.structs.replace(CONFIG, model="other", max_model_len_tokens=64)
        assert node.welcome is not None
        node.welcome.welcome.config.CopyFrom(codec.config_to_wire(smaller))
        await node.start()
        await up(gateway)
        client.post("/v1/completions", completion(model="m"))
        assert (await client.reply()).status == 404
        client.post("/v1/completions", completion(model="other", prompt="x" * 80))
        assert (await client.reply()).status == 400
        client.post("/v1/completions", completion(model="other", request_id="b"))
        await dispatched(node)
        node.say(part("b", b"hi", Outcome.STOP))
        assert (await client.reply()).status == 200


async def test_a_slow_first_token_is_waited_for_with_comments(node: ScriptedNode) -> None:
    async with running(node.address, stream_comment_s=0.1) as (gateway, _), RawClient(gateway.http_address) as client:
        await up(gateway)
        client.post("/v1/completions", completion(stream=True, request_id="r"))
        await dispatched(node)
        status, headers = await client.head()
        assert (status, headers["x-astrolabe-node"]) == (200, "n")
        assert headers["content-type"].startswith("text/event-stream")
        for _ in range(3):
            assert (await client.chunk()).startswith(b": ")
        node.say(part("r", b"hi", Outcome.STOP))
        body = b""
        while piece := await client.chunk():
            body += piece
        lines = [line for line in body.decode().split("\n\n") if line and not line.startswith(":")]
        assert json.loads(lines[0].removeprefix("data: "))["choices"][0]["text"] == "hi"
        assert lines[-1] == "data: [DONE]"
        # The connection goes on.
        client.get("/health")
        assert (await client.reply()).status == 200


async def test_what_goes_wrong_behind_the_comments_is_told_in_the_stream(node: ScriptedNode) -> None:
    async with (
        running(node.address, stream_comment_s=0.1, max_attempts=1) as (gateway, _),
        RawClient(gateway.http_address) as client,
    ):
        await up(gateway)
        client.post("/v1/completions", completion(stream=True, request_id="r"))
        await dispatched(node)
        await client.head()
        await client.chunk()
        node.say(part("r", b"", Outcome.ENGINE_FAILED))
        body = b""
        while piece := await client.chunk():
            body += piece
        (event,) = [line for line in body.decode().split("\n\n") if line.startswith("data: ")]
        assert json.loads(event.removeprefix("data: "))["error"]["code"] == "engine_failed"


@pytest.mark.parametrize(
    ("options", "fields", "headers"),
    [
        ({"stream_comment_s": 0.0}, {"stream": True}, {}),
        ({"stream_comment_s": 0.05}, {"stream": True}, {"x-astrolabe-early-headers": "off"}),
        ({"stream_comment_s": 0.05}, {"stream": False}, {}),
    ],
)
async def test_a_status_that_waits_for_the_answer(
    node: ScriptedNode, options: dict[str, Any], fields: dict[str, Any], headers: dict[str, str]
) -> None:
    async with (
        running(node.address, max_attempts=1, **options) as (gateway, _),
        RawClient(gateway.http_address) as client,
    ):
        await up(gateway)
        client.post("/v1/completions", completion(request_id="r", **fields), headers)
        await dispatched(node)
        await asyncio.sleep(0.5)
        node.say(part("r", b"", Outcome.ENGINE_FAILED))
        assert (await client.reply()).status == 502


async def test_a_client_that_leaves_among_comments_ends_its_request(node: ScriptedNode) -> None:
    async with running(node.address, stream_comment_s=0.05) as (gateway, _):
        await up(gateway)
        async with RawClient(gateway.http_address) as client:
            client.post("/v1/completions", completion(stream=True, request_id="r"))
            await dispatched(node)
            await client.head()
            await client.chunk()
        await until(lambda: not gateway.pump.streams)


async def test_a_request_that_no_node_has_yet_keeps_its_status() -> None:
    beats: list[str] = []

    class Held:
        def beat(self) -> Beat:
            beats.append("asked")
            return "not yet" if len(beats) < 3 else "over"

    heartbeats = Heartbeats(0.01)
    heartbeats.add(Held())
    await until(lambda: len(beats) == 3)
    await asyncio.sleep(0.05)
    assert len(beats) == 3
