"""What a server answers without its engine: tokens of a text, its version, whether it is well."""

from __future__ import annotations

from typing import Any

import msgspec

from engine_adapters.emulated_api.api_call import ApiCall
from engine_adapters.emulated_api.bodies import DetokenizeCall, TokenizeCall
from engine_adapters.emulated_api.errors import ApiError, invalid
from engine_adapters.emulated_api.prompts import conversation
from engine_adapters.forwarding import Headers

VERSION = "0.0.0+emulated"
"""Told where the engine's configuration names none."""


def tokenize(call: ApiCall) -> None:
    """`/tokenize`. Raises ApiError."""
    body = call.read(TokenizeCall)
    model = call.model(body.model)
    tokenizer = call.tokenizer
    if body.messages is not None:
        tools = [msgspec.to_builtins(tool) for tool in body.tools or ()]
        ids = list(conversation(body.messages, tokenizer, model, tools=tools))
    elif body.prompt is not None:
        ids = tokenizer.encode(body.prompt)
    else:
        raise invalid("Field required", "body.prompt", kind="missing")
    call.answer(
        "tokens",
        {
            "count": len(ids),
            "max_model_len": call.config.max_model_len_tokens,
            "tokens": ids,
            "token_strs": [tokenizer.decode([i]) for i in ids] if body.return_token_strs else None,
        },
    )


def detokenize(call: ApiCall) -> None:
    """`/detokenize`. Raises ApiError."""
    body = call.read(DetokenizeCall)
    call.model(body.model)
    beyond = max(body.tokens, default=0)
    if beyond >= call.tokenizer.vocab_size:
        raise ApiError(f"Token id {beyond} is out of vocabulary")
    call.answer("detokenized", {"prompt": call.tokenizer.decode(body.tokens)})


def version(call: ApiCall) -> None:
    """`/version`."""
    call.reply.json(200, {"version": call.config.engine_version or VERSION})


def healthy(call: ApiCall) -> None:
    """`/health` and `/ping`: an empty answer."""
    none: Headers = ()
    call.reply.whole(200, b"", none)


def model_card(name: str, *, root: str, parent: str | None, max_model_len: int | None, created: int) -> dict[str, Any]:
    """An entry of `/v1/models`."""
    permission = {
        "id": f"modelperm-{name}",
        "object": "model_permission",
        "created": created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "vllm",
        "root": root,
        "parent": parent,
        "max_model_len": max_model_len,
        "permission": [permission],
    }
