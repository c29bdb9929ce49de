"""Calls of every API that the emulated engine answers, for checks of the answers' shapes by other people's models."""

from __future__ import annotations

from typing import Any, NamedTuple

TOOL = {
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
HELLO = [{"role": "user", "content": "hello"}]
LOGPROBS = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
CHAT_TOOL = {"type": "function", "function": TOOL}
RESPONSES_TOOL = {"type": "function", "strict": True, **TOOL}
MESSAGES_TOOL = {"name": "weather", "input_schema": TOOL["parameters"]}
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


class Sample(NamedTuple):
    """One call. `request` names the record of its body, `answer` vLLM's model of what comes back."""

    path: str
    body: dict[str, Any]
    request: str
    answer: str


def _of(path: str, request: str, answer: str, base: dict[str, Any], *more: dict[str, Any]) -> list[Sample]:
    return [Sample(path, {"model": "m", **base, **one}, request, answer) for one in more]


CHAT_PATH = "/v1/chat/completions"
CHAT_KINDS: tuple[dict[str, Any], ...] = (
    {"max_tokens": 5},
    {"max_tokens": 5, "n": 2, "logprobs": True, "top_logprobs": 3, "prompt_logprobs": 1, "return_token_ids": True},
    {"tools": [CHAT_TOOL], "tool_choice": "required"},
    {"tools": [CHAT_TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
    {"response_format": {"type": "json_object"}},
)
STREAMED: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
COMPLETION_KINDS: tuple[dict[str, Any], ...] = (
    {"prompt": "hi", "max_tokens": 4},
    {"prompt": ["hi", "there"], "max_tokens": 4, "n": 2, "echo": True, "logprobs": 2},
    {"prompt": [97, 98], "max_tokens": 4, "return_token_ids": True},
    {"prompt": "hi", "max_tokens": 30, "structured_outputs": {"choice": ["one", "two"]}},
)
SAMPLES = [
    *_of(CHAT_PATH, "ChatCall", "chat", {"messages": HELLO}, *CHAT_KINDS),
    *_of(
        CHAT_PATH,
        "ChatCall",
        "chat chunk",
        {"messages": HELLO, **STREAMED},
        *({k: v for k, v in kind.items() if k != "prompt_logprobs"} for kind in CHAT_KINDS),
    ),
    *_of("/v1/completions", "CompletionCall", "completion", {}, *COMPLETION_KINDS),
    *_of("/v1/completions", "CompletionCall", "completion chunk", STREAMED, *COMPLETION_KINDS),
    *(
        sample
        for stream, answer in ((False, "response"), (True, "response event"))
        for sample in _of(
            "/v1/responses",
            "ResponsesCall",
            answer,
            {"stream": stream},
            {"input": "hello", "max_output_tokens": 5, **LOGPROBS},
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}]},
            {"input": "hello", "tools": [RESPONSES_TOOL], "tool_choice": "required"},
            {"input": "hello", "text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}},
        )
    ),
    *(
        sample
        for stream, answer in ((False, "message"), (True, "message event"))
        for sample in _of(
            "/v1/messages",
            "MessagesCall",
            answer,
            {"messages": HELLO, "max_tokens": 300, "stream": stream},
            {"max_tokens": 4, "system": "be brief"},
            {"tools": [MESSAGES_TOOL], "tool_choice": {"type": "any"}},
            {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        )
    ),
    Sample("/v1/messages/count_tokens", {"model": "m", "messages": HELLO}, "MessagesCount", "message count"),
    *_of(
        "/v1/embeddings",
        "PoolingCall",
        "embeddings",
        {"input": ["a", "b"]},
        {"dimensions": 4},
        {"encoding_format": "base64"},
    ),
    Sample("/pooling", {"model": "m", "input": "a b"}, "PoolingCall", "pooling"),
    Sample("/classify", {"model": "m", "input": ["a", "b"]}, "PoolingCall", "classes"),
    Sample("/score", {"model": "m", "queries": "a", "documents": ["b", "c"]}, "ScoreCall", "scores"),
    Sample("/rerank", {"model": "m", "query": "a", "documents": ["b", "c"], "top_n": 1}, "RerankCall", "ranks"),
    Sample("/tokenize", {"model": "m", "prompt": "abc", "return_token_strs": True}, "TokenizeCall", "tokens"),
    Sample("/tokenize", {"model": "m", "messages": HELLO}, "TokenizeCall", "tokens"),
    Sample("/detokenize", {"model": "m", "tokens": [97, 98]}, "DetokenizeCall", "detokenized"),
]

REFUSED = [
    Sample(CHAT_PATH, {"messages": 3}, "ChatCall", "error"),
    Sample(CHAT_PATH, {"messages": HELLO, "model": "nobody"}, "", "error"),
    Sample(CHAT_PATH, {"messages": HELLO, "stream_options": {"include_usage": True}}, "ChatCall", "error"),
    Sample(CHAT_PATH, {"messages": HELLO, "top_logprobs": 2}, "ChatCall", "error"),
    Sample(CHAT_PATH, {"messages": HELLO, "tools": []}, "ChatCall", "error"),
    Sample(CHAT_PATH, {"messages": HELLO, "tool_choice": "required"}, "ChatCall", "error"),
    Sample(CHAT_PATH, {"messages": HELLO, "tools": [CHAT_TOOL], "tool_choice": "maybe"}, "ChatCall", "error"),
    Sample(CHAT_PATH, {"messages": HELLO, "response_format": {"type": "json_schema"}}, "ChatCall", "error"),
    Sample("/v1/completions", {"prompt": ""}, "CompletionCall", "error"),
    Sample("/v1/completions", {"prompt": "a", "logprobs": -2}, "CompletionCall", "error"),
    Sample("/v1/responses", {"input": "a", "background": True, "store": False}, "ResponsesCall", "error"),
    Sample("/v1/responses", {"input": "a", "tool_choice": "required"}, "ResponsesCall", "error"),
    Sample("/v1/messages", {"model": "m", "messages": HELLO}, "MessagesCall", "error"),
    Sample("/v1/messages", {"model": "nobody", "messages": HELLO, "max_tokens": 4}, "", "message error"),
    Sample("/v1/messages", {"model": "m", "messages": HELLO, "max_tokens": 0}, "MessagesCall", "error"),
    Sample("/rerank", {"query": "a"}, "RerankCall", "error"),
    Sample("/score", {"queries": "a"}, "ScoreCall", "error"),
    Sample("/tokenize", {}, "TokenizeCall", "error"),
    Sample("/detokenize", {"tokens": [-1]}, "DetokenizeCall", "error"),
]
"""Calls that are refused. `request`: vLLM's model refuses the body too; empty: it does not look at what is wrong."""

SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["a"]},
    {"type": "object", "properties": {"a": {"enum": [1, "x", None]}}, "required": ["a"], "additionalProperties": False},
    {"type": "object", "required": ["nobody described it"]},
    {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 3},
    {"type": "object", "properties": {"a": {}, "b": {}, "c": {}}, "maxProperties": 1},
    {"type": "array", "items": {"type": "number", "minimum": 2, "exclusiveMaximum": 3}, "minItems": 4},
    {"type": "array", "items": {"enum": [1, 2, 3, 4]}, "uniqueItems": True, "minItems": 3, "maxItems": 4},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "null"}], "items": False, "minItems": 2},
    {"type": "array", "contains": {"const": "here"}, "maxItems": 2},
    {"type": "string", "minLength": 30, "maxLength": 31},
    {"type": "string", "maxLength": 2},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,5}$"},
    {"type": "string", "pattern": "(ab|cd)+x?", "maxLength": 6},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "uuid"},
    {"type": "integer", "minimum": -5, "maximum": -5},
    {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5},
    {"type": "integer", "multipleOf": 7, "minimum": 50, "maximum": 60},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 0.001},
    {"type": "number", "maximum": -10},
    {"type": ["string", "null"]},
    {"const": {"fixed": [1, 2]}},
    {"anyOf": [{"type": "integer"}, {"type": "object", "properties": {"x": {"const": 1}}, "required": ["x"]}]},
    {"oneOf": [{"type": "string", "maxLength": 3}, {"type": "boolean"}]},
    {"allOf": [{"properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"required": ["b"]}], "type": "object"},
    {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                    "many": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                },
                "required": ["name", "next", "many"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    },
]
