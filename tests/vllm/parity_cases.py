"""What is sent to a vLLM server and to a gateway before it: every kind of body that clients are known to send."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

from tests.vllm.parity import Call

MODEL, ALIAS, ADAPTER = "tiny", "tiny-alias", "tuned"
GREEDY = {"temperature": 0, "seed": 7, "max_tokens": 12}
HELLO = [{"role": "user", "content": "Say hello."}]
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Of a city.", "strict": True, "parameters": CITY},
}
OTHER_TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
CALLED = [
    {"role": "user", "content": "Weather in Oslo?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call-1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "call-1", "content": "Rain."},
]
CALL_REGEX = r'<tool_call>\n\{"name": "weather", "arguments": \{"city": "(Oslo|Rome)", "days": [1-9]\}\}\n</tool_call>'
"""What a model would say that calls a tool; one of random weights has to be made to."""


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": HELLO, **GREEDY, **fields}


def completion(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "Once upon", **GREEDY, **fields}


def response(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": "Say hello.", "temperature": 0, "max_output_tokens": 12, "store": False, **fields}


def message(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": HELLO, "max_tokens": 12, "temperature": 0, **fields}


CHAT: dict[str, dict[str, Any]] = {
    "plain": chat(),
    "alias": chat(model=ALIAS),
    "adapter": chat(model=ADAPTER),
    "no model": {k: v for k, v in chat().items() if k != "model"},
    "null model": chat(model=None),
    "max_completion_tokens": {**chat(max_completion_tokens=5), "max_tokens": None},
    "both limits": chat(max_completion_tokens=4, max_tokens=9),
    "system": chat(messages=[{"role": "system", "content": "Be brief."}, *HELLO]),
    "developer": chat(messages=[{"role": "developer", "content": "Be brief."}, *HELLO]),
    "unknown role": chat(messages=[{"role": "critic", "content": "Hm."}, *HELLO]),
    "names": chat(messages=[{"role": "user", "name": "ann", "content": "Hi."}]),
    "parts": chat(
        messages=[{"role": "user", "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]}]
    ),
    "string parts": chat(messages=[{"role": "user", "content": ["A", "B"]}]),
    "refusal part": chat(messages=[*HELLO, {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}]),
    "image part": chat(
        messages=[
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}
        ]
    ),
    "unknown part": chat(messages=[{"role": "user", "content": [{"type": "smell", "smell": "rose"}]}]),
    "null content": chat(messages=[{"role": "user", "content": None}]),
    "no content": chat(messages=[{"role": "user"}]),
    "empty content": chat(messages=[{"role": "user", "content": ""}]),
    "no messages": chat(messages=[]),
    "conversation": chat(
        messages=[*HELLO, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Bye."}]
    ),
    "unicode": chat(messages=[{"role": "user", "content": "Grüße 🦊 \u0000\u2028 \ud83d\ude00"}]),
    "tool messages": chat(messages=CALLED),
    "tool messages and tools": chat(messages=CALLED, tools=[TOOL]),
    "reasoning of before": chat(
        messages=[*HELLO, {"role": "assistant", "reasoning": "Hm.", "content": "Hello."}, *HELLO]
    ),
    "unknown field in a message": chat(messages=[{**HELLO[0], "mood": "good"}]),
    "top_p top_k min_p": chat(temperature=0.9, top_p=0.8, top_k=5, min_p=0.05),
    "penalties": chat(frequency_penalty=1.5, presence_penalty=-1.5, repetition_penalty=1.3),
    "logit_bias": chat(logit_bias={"65": 100}),
    "min_tokens": chat(min_tokens=6, stop_token_ids=[32], logit_bias={"32": 100}),
    "stop text": chat(stop=["no", "AA"], logit_bias={"32": 100}),
    "stop empty": chat(stop=[]),
    "stop null": chat(stop=None),
    "stop text included": chat(stop="A", include_stop_str_in_output=True, logit_bias={"32": 100}),
    "stop ids": chat(stop_token_ids=[32], logit_bias={"32": 100}),
    "ignore_eos": chat(ignore_eos=True, logit_bias={"257": 100}),
    "eos": chat(logit_bias={"257": 100}),
    "skip_special_tokens off": chat(skip_special_tokens=False, logit_bias={"259": 100}),
    "bad_words": chat(bad_words=["A", "hello"]),
    "allowed_token_ids": chat(allowed_token_ids=[32, 33, 34]),
    "seed of -1": chat(seed=-1, temperature=0),
    "seeded": chat(temperature=1.0, seed=1234),
    "n of 2": chat(n=2, temperature=1.0, seed=5),
    "n of 2, greedy": chat(n=2, temperature=0),
    "logprobs": chat(logprobs=True),
    "top_logprobs": chat(logprobs=True, top_logprobs=3),
    "top_logprobs of 0": chat(logprobs=True, top_logprobs=0),
    "logprobs of broken characters": chat(
        logprobs=True,
        top_logprobs=3,
        temperature=1.0,
        seed=11,
        logit_bias=dict.fromkeys(("158", "224", "105", "32"), 100),
        max_tokens=40,
    ),
    "logprobs and a stop": chat(logprobs=True, top_logprobs=1, stop=["AAA"], logit_bias={"32": 100}),
    "logprobs of the end": chat(logprobs=True, top_logprobs=2, logit_bias={"257": 100}),
    "logprob_token_ids": chat(logprobs=True, logprob_token_ids=[32, 33]),
    "prompt_logprobs": chat(prompt_logprobs=1),
    "tokens as ids": chat(logprobs=True, return_tokens_as_token_ids=True),
    "return_token_ids": chat(return_token_ids=True),
    "return_prompt_text": chat(return_prompt_text=True),
    "echo": chat(messages=[*HELLO, {"role": "assistant", "content": "Hel"}], echo=True, add_generation_prompt=False),
    "continue_final_message": chat(
        messages=[*HELLO, {"role": "assistant", "content": "Hel"}],
        continue_final_message=True,
        add_generation_prompt=False,
    ),
    "continue and generation prompt": chat(continue_final_message=True, add_generation_prompt=True),
    "add_generation_prompt off": chat(add_generation_prompt=False),
    "add_special_tokens": chat(add_special_tokens=True),
    "chat_template_kwargs": chat(chat_template_kwargs={"style": "terse"}),
    "chat_template of its own": chat(chat_template="{{ messages[0].content }}"),
    "documents": chat(documents=[{"title": "a", "text": "b"}]),
    "truncate_prompt_tokens": chat(truncate_prompt_tokens=8),
    "tools, none": chat(tools=[TOOL], tool_choice="none"),
    "tools, auto": chat(tools=[TOOL]),
    "tools, auto, called": chat(
        tools=[TOOL], tool_choice="auto", max_tokens=90, structured_outputs={"regex": CALL_REGEX}
    ),
    "tools, required": chat(tools=[TOOL], tool_choice="required", max_tokens=120),
    "tools, named": chat(
        tools=[TOOL, OTHER_TOOL], tool_choice={"type": "function", "function": {"name": "weather"}}, max_tokens=60
    ),
    "tools, named unknown": chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "nothing"}}),
    "tools, parallel off": chat(
        tools=[TOOL, OTHER_TOOL], tool_choice="required", parallel_tool_calls=False, max_tokens=120
    ),
    "tools, empty": chat(tools=[]),
    "tool_choice without tools": chat(tool_choice="auto"),
    "functions of old": chat(functions=[TOOL["function"]], function_call="auto"),
    "json_object": chat(response_format={"type": "json_object"}, max_tokens=24),
    "json_schema": chat(
        response_format={"type": "json_schema", "json_schema": {"name": "c", "strict": True, "schema": CITY}},
        max_tokens=60,
    ),
    "format text": chat(response_format={"type": "text"}),
    "format unknown": chat(response_format={"type": "poem"}),
    "schema that is none": chat(
        response_format={"type": "json_schema", "json_schema": {"name": "c", "schema": {"type": "banana"}}}
    ),
    "structured choice": chat(structured_outputs={"choice": ["yes", "no"]}),
    "structured regex": chat(structured_outputs={"regex": "[a-c]{3,5}"}),
    "structured grammar": chat(structured_outputs={"grammar": 'root ::= "yes" | "no"'}),
    "structured json": chat(structured_outputs={"json": CITY}, max_tokens=60),
    "structured twice": chat(structured_outputs={"regex": "a", "choice": ["a"]}),
    "guided_choice of old": chat(guided_choice=["yes", "no"]),
    "user and metadata": chat(user="ann", metadata={"a": "b"}, store=False, service_tier="auto"),
    "request_id of its own": chat(request_id="mine"),
    "priority of 0": chat(priority=0),
    "priority of 1": chat(priority=1),
    "cache_salt": chat(cache_salt="salty"),
    "beam search": chat(use_beam_search=True, n=2),
    "unknown field": chat(flavour="vanilla"),
    "reasoning_effort": chat(reasoning_effort="low"),
    "include_reasoning off": chat(include_reasoning=False),
    "vllm_xargs": chat(vllm_xargs={"a": 1}),
    "stream_options without stream": chat(stream_options={"include_usage": True}),
}
"""Each whole and streamed."""
STREAMED: dict[str, dict[str, Any]] = {
    "include_usage": chat(stream_options={"include_usage": True}),
    "continuous usage": chat(stream_options={"include_usage": True, "continuous_usage_stats": True}),
    "continuous usage, no usage": chat(stream_options={"include_usage": False, "continuous_usage_stats": True}),
    "null stream_options": chat(stream_options=None),
    "stream_interval": chat(stream_interval=4),
    "logprobs and usage": chat(logprobs=True, top_logprobs=2, stream_options={"include_usage": True}),
    "n of 2 with usage": chat(n=2, temperature=1.0, seed=5, stream_options={"include_usage": True}),
}
COMPLETIONS: dict[str, dict[str, Any]] = {
    "text": completion(),
    "adapter": completion(model=ADAPTER),
    "ids": completion(prompt=[1, 2, 3]),
    "texts": completion(prompt=["One", "Two two"]),
    "lists of ids": completion(prompt=[[1, 2, 3], [4, 5]]),
    "one text in a list": completion(prompt=["One"]),
    "empty text": completion(prompt=""),
    "empty list": completion(prompt=[]),
    "no prompt": {k: v for k, v in completion().items() if k != "prompt"},
    "null prompt": completion(prompt=None),
    "mixed list": completion(prompt=["One", [1]]),
    "ids out of range": completion(prompt=[1, 999999]),
    "negative id": completion(prompt=[-1]),
    "no limit": {k: v for k, v in completion().items() if k != "max_tokens"},
    "limit of 0": completion(max_tokens=0),
    "echo": completion(echo=True),
    "echo alone": completion(echo=True, max_tokens=0),
    "echo with logprobs": completion(echo=True, logprobs=2),
    "logprobs": completion(logprobs=2),
    "logprobs of 0": completion(logprobs=0),
    "too many logprobs": completion(logprobs=999),
    "logprobs of broken characters": completion(
        logprobs=3, temperature=1.0, seed=11, logit_bias=dict.fromkeys(("158", "224", "105", "32"), 100), max_tokens=40
    ),
    "logprobs and ids": completion(logprobs=1, return_token_ids=True, return_tokens_as_token_ids=True),
    "prompt_logprobs": completion(prompt_logprobs=2),
    "suffix": completion(suffix="the end"),
    "best_of": completion(best_of=2),
    "n of 2": completion(n=2, temperature=1.0, seed=3),
    "stop": completion(stop="\n", logit_bias={"198": 100}),
    "return_token_ids": completion(return_token_ids=True),
    "json_object": completion(response_format={"type": "json_object"}, max_tokens=24),
    "structured regex": completion(structured_outputs={"regex": "[0-9]{4}"}),
    "truncate_prompt_tokens": completion(prompt="A long prompt that is cut", truncate_prompt_tokens=4),
    "add_special_tokens off": completion(add_special_tokens=False),
    "usage": completion(stream_options={"include_usage": True}, stream=True),
    "beam search": completion(use_beam_search=True, n=2),
}
RESPONSES: dict[str, dict[str, Any]] = {
    "text": response(),
    "instructions": response(instructions="Be brief."),
    "messages": response(input=[{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Ho."}, *HELLO]),
    "parts": response(input=[{"role": "user", "content": [{"type": "input_text", "text": "Hi."}]}]),
    "call and output": response(
        input=[
            {"role": "user", "content": "Weather?"},
            {"type": "function_call", "call_id": "call-1", "name": "weather", "arguments": '{"city": "Oslo"}'},
            {"type": "function_call_output", "call_id": "call-1", "output": "Rain."},
        ],
        tools=[{"type": "function", "name": "weather", "strict": True, "parameters": CITY}],
    ),
    "tools required": response(
        tools=[{"type": "function", "name": "weather", "strict": True, "parameters": CITY}],
        tool_choice="required",
        max_output_tokens=120,
    ),
    "json_schema": response(
        text={"format": {"type": "json_schema", "name": "c", "schema": CITY}}, max_output_tokens=60
    ),
    "logprobs": response(include=["message.output_text.logprobs"], top_logprobs=2),
    "metadata": response(metadata={"a": "b"}, user="ann"),
    "previous that is none": response(previous_response_id="resp_none"),
    "truncation": response(truncation="auto"),
    "no input": {k: v for k, v in response().items() if k != "input"},
    "unknown model": response(model="nobody"),
    "background without store": response(background=True, store=False),
    "adapter": response(model=ADAPTER),
}
MESSAGES: dict[str, dict[str, Any]] = {
    "plain": message(),
    "system": message(system="Be brief."),
    "system blocks": message(system=[{"type": "text", "text": "Be brief."}]),
    "blocks": message(messages=[{"role": "user", "content": [{"type": "text", "text": "Hi."}]}]),
    "tools": message(tools=[{"name": "weather", "description": "Of a city.", "strict": True, "input_schema": CITY}]),
    "tools any": message(
        tools=[{"name": "weather", "strict": True, "input_schema": CITY}], tool_choice={"type": "any"}, max_tokens=120
    ),
    "tool named": message(
        tools=[{"name": "weather", "strict": True, "input_schema": CITY}],
        tool_choice={"type": "tool", "name": "weather"},
        max_tokens=60,
    ),
    "tool result": message(
        messages=[
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}}],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "Rain."}]},
        ]
    ),
    "stop_sequences": message(stop_sequences=["A", "e"]),
    "top_k": message(temperature=0.0, top_k=3, top_p=0.9),
    "no max_tokens": {k: v for k, v in message().items() if k != "max_tokens"},
    "unknown model": message(model="nobody"),
    "bad role": message(messages=[{"role": "critic", "content": "Hm."}]),
    "adapter": message(model=ADAPTER),
}
OTHERS: dict[str, Call] = {
    "models": Call("/v1/models", method="GET"),
    "version": Call("/version", method="GET"),
    "tokenize text": Call("/tokenize", {"model": MODEL, "prompt": "Hello."}),
    "tokenize with pieces": Call(
        "/tokenize", {"prompt": "Hello.", "return_token_strs": True, "add_special_tokens": False}
    ),
    "tokenize chat": Call("/tokenize", {"model": MODEL, "messages": HELLO, "tools": [TOOL]}),
    "tokenize nothing": Call("/tokenize", {"model": MODEL}),
    "tokenize for an unknown model": Call("/tokenize", {"model": "nobody", "prompt": "a"}),
    "detokenize": Call("/detokenize", {"model": MODEL, "tokens": [40, 41, 42]}),
    "detokenize nonsense": Call("/detokenize", {"model": MODEL, "tokens": ["a"]}),
    "count_tokens": Call("/v1/messages/count_tokens", {"model": MODEL, "messages": HELLO}),
    "batch of chats": Call(
        "/v1/chat/completions/batch", {"model": MODEL, "messages": [HELLO, HELLO], "temperature": 0, "max_tokens": 5}
    ),
    "embeddings": Call("/v1/embeddings", {"model": MODEL, "input": "Hello."}),
    "rerank": Call("/v1/rerank", {"model": MODEL, "query": "a", "documents": ["b", "c"]}),
    "score": Call("/v1/score", {"model": MODEL, "text_1": "a", "text_2": "b"}),
    "pooling": Call("/pooling", {"model": MODEL, "input": "a"}),
    "classify": Call("/classify", {"model": MODEL, "input": "a"}),
    "transcription": Call(
        "/v1/audio/transcriptions",
        b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\ntiny\r\n--x--\r\n',
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    ),
    "response that is none": Call("/v1/responses/resp_none", method="GET"),
    "cancel of none": Call("/v1/responses/resp_none/cancel"),
}


def odd(**headers: str) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


PLAIN = json.dumps(chat()).encode()
WRONG: dict[str, Call] = {
    "bad JSON": Call("/v1/chat/completions", b'{"model": "tiny", '),
    "no body": Call("/v1/chat/completions", b""),
    "a list": Call("/v1/chat/completions", b"[]"),
    "a number": Call("/v1/chat/completions", b"3"),
    "null": Call("/v1/chat/completions", b"null"),
    "byte order mark": Call("/v1/chat/completions", b"\xef\xbb\xbf" + PLAIN),
    "utf-16": Call("/v1/chat/completions", PLAIN.decode().encode("utf-16")),
    "not utf-8": Call("/v1/chat/completions", PLAIN.replace(b"Say", b"\xff\xfe")),
    "lone surrogate": Call("/v1/chat/completions", PLAIN.replace(b"Say", b"\\ud800")),
    "NaN": Call("/v1/chat/completions", PLAIN.replace(b'"temperature": 0', b'"temperature": NaN')),
    "key twice": Call(
        "/v1/chat/completions", PLAIN.replace(b'"seed": 7', b'"seed": 7, "max_tokens": 3, "max_tokens": 4')
    ),
    "gzip": Call("/v1/chat/completions", gzip.compress(PLAIN, mtime=0), headers=odd(Content_Encoding="gzip")),
    "content type of text": Call("/v1/chat/completions", PLAIN, headers=odd(Content_Type="text/plain")),
    "content type with charset": Call(
        "/v1/chat/completions", PLAIN, headers=odd(Content_Type="application/json; charset=utf-8")
    ),
    "accepts streams": Call("/v1/chat/completions", chat(), headers=odd(Accept="text/event-stream")),
    "origin": Call("/v1/chat/completions", chat(), headers=odd(Origin="http://elsewhere")),
    "preflight": Call(
        "/v1/chat/completions",
        method="OPTIONS",
        headers=odd(Origin="http://elsewhere", Access_Control_Request_Method="POST"),
    ),
    "load metrics": Call("/v1/completions", completion(), headers=odd(endpoint_load_metrics_format="TEXT")),
    "temperature as a string": Call("/v1/chat/completions", chat(temperature="0")),
    "max_tokens as a string": Call("/v1/chat/completions", chat(max_tokens="5")),
    "max_tokens with a fraction": Call("/v1/chat/completions", chat(max_tokens=5.5)),
    "max_tokens as a whole float": Call("/v1/chat/completions", chat(max_tokens=5.0)),
    "max_tokens of 0": Call("/v1/chat/completions", chat(max_tokens=0)),
    "negative max_tokens": Call("/v1/chat/completions", chat(max_tokens=-1)),
    "negative temperature": Call("/v1/chat/completions", chat(temperature=-1)),
    "temperature too high": Call("/v1/chat/completions", chat(temperature=9)),
    "top_p of 0": Call("/v1/chat/completions", chat(top_p=0)),
    "top_p above 1": Call("/v1/chat/completions", chat(top_p=1.5)),
    "top_k of -2": Call("/v1/chat/completions", chat(top_k=-2)),
    "n of 0": Call("/v1/chat/completions", chat(n=0)),
    "n of 2, greedy completion": Call("/v1/completions", completion(n=2)),
    "penalty out of range": Call("/v1/chat/completions", chat(presence_penalty=3)),
    "seed too large": Call("/v1/chat/completions", chat(seed=2**64)),
    "stream as a string": Call("/v1/chat/completions", chat(stream="yes")),
    "stream as a number": Call("/v1/chat/completions", chat(stream=1)),
    "logprobs too many": Call("/v1/chat/completions", chat(logprobs=True, top_logprobs=99)),
    "top_logprobs alone": Call("/v1/chat/completions", chat(top_logprobs=2)),
    "messages as a string": Call("/v1/chat/completions", chat(messages="Hi.")),
    "message without a role": Call("/v1/chat/completions", chat(messages=[{"content": "Hi."}])),
    "stop of the wrong type": Call("/v1/chat/completions", chat(stop=3)),
    "logit_bias of an unknown token": Call("/v1/chat/completions", chat(logit_bias={"999999": 1})),
    "unknown model": Call("/v1/chat/completions", chat(model="nobody")),
    "unknown model, completions": Call("/v1/completions", completion(model="nobody")),
    "model of the wrong type": Call("/v1/chat/completions", chat(model=3)),
    "too long": Call("/v1/completions", completion(prompt=[65] * 3000)),
    "too long text": Call("/v1/completions", completion(prompt="word " * 1000)),
    "too long chat": Call("/v1/chat/completions", chat(messages=[{"role": "user", "content": "word " * 1000}])),
    "limit too long": Call("/v1/chat/completions", chat(max_tokens=5000)),
    "prompt of the full length": Call("/v1/completions", completion(prompt=[65] * 2048)),
    "wrong type of many": Call("/v1/chat/completions", chat(max_tokens="a", temperature="b", n="c")),
    "wrong key": Call("/v1/chat/completions", chat(), headers=odd(Authorization="Bearer nobody")),
    "unknown path": Call("/v1/nothing", {}),
    "unknown path, looked at": Call("/nothing", method="GET"),
    "wrong method": Call("/v1/chat/completions", method="GET"),
    "another wrong method": Call("/v1/models", {}),
    "method of no name": Call("/v1/models", method="BREW"),
    "two slashes": Call("//v1/models", method="GET"),
    "slash at the end": Call("/v1/models/", method="GET"),
    "slash at the end, posted": Call("/v1/chat/completions/", chat()),
    "head": Call("/v1/models", method="HEAD"),
    "model by name": Call(f"/v1/models/{MODEL}", method="GET"),
    "query in the path": Call("/v1/chat/completions?api-version=1", chat()),
    "path with escapes": Call("/v1/chat%2Fcompletions", chat()),
    "path with an escaped letter": Call("/v1/%63hat/completions", chat()),
}


def calls() -> Iterator[tuple[str, Call]]:
    """All of them, each with a name of its own."""
    kinds = {
        "chat": ("/v1/chat/completions", CHAT),
        "completions": ("/v1/completions", COMPLETIONS),
        "responses": ("/v1/responses", RESPONSES),
        "messages": ("/v1/messages", MESSAGES),
    }
    for kind, (path, bodies) in kinds.items():
        for name, body in bodies.items():
            yield f"{kind}: {name}", Call(path, body)
            if "stream" not in body:
                yield f"{kind}: {name}, streamed", Call(path, {**body, "stream": True})
    for name, body in STREAMED.items():
        yield f"chat: {name}, streamed", Call("/v1/chat/completions", {**body, "stream": True})
    for kind, named in (("other", OTHERS), ("wrong", WRONG)):
        for name, call in named.items():
            yield f"{kind}: {name}", call


def raw(host: str) -> dict[str, bytes]:
    """Requests as bytes, in ways in which HTTP allows to send them."""
    path = "POST /v1/chat/completions HTTP/1.1\r\n"
    head = f"Host: {host}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    length = f"Content-Length: {len(PLAIN)}\r\n"
    half = len(PLAIN) // 2
    pieces = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (PLAIN[:half], PLAIN[half:]))
    get = f"GET /version HTTP/1.1\r\nHost: {host}\r\n"
    return {
        "chunked": f"{path}{head}Transfer-Encoding: chunked\r\n\r\n".encode() + pieces + b"0\r\n\r\n",
        "expect": f"{path}{head}{length}Expect: 100-continue\r\n\r\n".encode() + PLAIN,
        "HTTP/1.0": f"{path.replace('1.1', '1.0')}{head}{length}\r\n".encode() + PLAIN,
        "header names in capitals": f"{path}{head.upper()}{length}\r\n".encode() + PLAIN,
        "length and chunked": f"{path}{head}{length}Transfer-Encoding: chunked\r\n\r\n".encode()
        + pieces
        + b"0\r\n\r\n",
        "no length": f"{path}{head}\r\n".encode(),
        "pipelined": f"{get}\r\n{get}Connection: close\r\n\r\n".encode(),
        "whole url": f"GET http://{host}/version HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode(),
    }


WHOLE = ", whole"
"""Ends the name of a call that differs only when it is not streamed."""
BY_DESIGN = {
    "chat: alias": "an answer names the model by the name that was asked for; vLLM by the first of its names",
    "chat: tools, empty": "lists of nothing ask for nothing",
    "chat: tool_choice without tools": "without tools there is nothing to choose",
    "other: models": "models belong to the cluster: no paths and permissions of one node",
    "wrong: model by name": "served as OpenAI does; vLLM has no such path",
    "wrong: limit too long": "a limit that no answer can reach is none",
    "wrong: slash at the end": "no path leads to another: the error says which one is meant",
    "completions: ids out of range, streamed": "the status says what is wrong; vLLM has begun the stream by then",
    "wrong: head": "for those that look whether a server is there",
}
"""Calls whose replies differ besides what is known of all, and are meant to."""
TO_MEND: dict[str, str] = {}
"""Calls whose replies differ and should not."""


def expected_to_differ(name: str) -> str:
    """Why; empty if it is not."""
    return next((why for known in (BY_DESIGN, TO_MEND) for kind, why in known.items() if name in both(kind)), "")


def both(kind: str) -> tuple[str, ...]:
    """Names of a call's kinds: whole, and streamed if it differs then too."""
    return (kind.removesuffix(WHOLE),) if kind.endswith(WHOLE) else (kind, f"{kind}, streamed", f"{kind}, posted")
