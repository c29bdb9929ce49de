"""From what clients send to the token ids that an engine computes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from engine_adapters.chat_template import Message, TemplateError
from engine_adapters.emulated_api.bodies import Prompts
from engine_adapters.emulated_api.errors import ApiError, invalid, refused
from engine_adapters.tokenizer import Tokenizer
from simcore.types import EngineConfig

_TEXTS = {"text", "input_text", "output_text", "refusal", "thinking", "summary_text"}


def content_text(content: Any, model: str) -> str:
    """The text of a message's content. Raises ApiError for images, sound and video: the model reads text only."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        raise invalid("content must be a string or a list of parts", "body.messages", kind="type_error")
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in _TEXTS or (kind is None and isinstance(part, dict) and "text" in part):
            texts.append(str(part.get("text") or part.get("refusal") or part.get("thinking") or ""))
        elif kind == "tool_result":
            texts.append(content_text(part.get("content"), model))
        elif kind == "tool_use":
            texts.append(json.dumps({"name": part.get("name"), "arguments": part.get("input")}))
        elif kind is not None or isinstance(part, dict):
            raise ApiError(f"{model} is not a multimodal model")
        else:
            raise invalid("a part of a content must be an object", "body.messages", kind="type_error")
    return "\n".join(texts)


def conversation(
    messages: Sequence[dict[str, Any]], tokenizer: Tokenizer, model: str, *, tools: Sequence[Any] = ()
) -> tuple[int, ...]:
    """Token ids of a conversation with its tools. Raises ApiError."""
    turns = []
    for message in messages:
        role = message.get("role")
        if not isinstance(role, str):
            raise invalid("Field required", "body.messages.role", kind="missing")
        text = content_text(message.get("content"), model)
        calls = message.get("tool_calls")
        if calls:
            text += "".join(f"\n{json.dumps(call.get('function'))}" for call in calls if isinstance(call, dict))
        name = message.get("name")
        turns.append(Message(role, text, name if isinstance(name, str) else ""))
    try:
        return tuple(tokenizer.apply_chat_template(turns, tools))
    except TemplateError as refused:
        raise ApiError(str(refused)) from None


def prompt_list(prompts: Prompts, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """Token ids of each: a text, ids, or a list of either. Raises ApiError."""
    if isinstance(prompts, str):
        return [tuple(tokenizer.encode(prompts))]
    if not prompts:
        raise ApiError("Please provide at least one prompt")
    if all(isinstance(p, int) for p in prompts):
        prompts = [[p for p in prompts if isinstance(p, int)]]
    found = []
    for prompt in prompts:
        if isinstance(prompt, int):
            raise ApiError("Mixed prompt types are not supported in one call", param="prompt")
        found.append(tuple(tokenizer.encode(prompt) if isinstance(prompt, str) else prompt))
    return found


def fitting(
    prompt: tuple[int, ...],
    config: EngineConfig,
    *,
    max_tokens: int | None,
    truncate: int | None = None,
    vocab_size: int = 0,
    name: str = "max_tokens",
) -> tuple[tuple[int, ...], int]:
    """(prompt, limit of the answer), the prompt cut to its last `truncate` tokens where that is asked (-1: to what
    fits) and the limit to what the context has left. Raises ApiError, in vLLM's words, for what it cannot hold.
    `name`: how the body calls `max_tokens`."""
    longest = config.max_model_len_tokens
    if max_tokens is not None and max_tokens > longest:
        message = (
            f"{name}={max_tokens} cannot be greater than max_model_len={longest}. Please request fewer output tokens."
        )
        raise refused(message, name, max_tokens)
    if truncate is not None:
        keep = truncate if truncate >= 0 else longest - 1
        prompt = prompt[len(prompt) - keep :] if 0 < keep < len(prompt) else prompt
    if not prompt:
        raise ApiError("The decoder prompt cannot be empty")
    if vocab_size and max(prompt) >= vocab_size:
        raise ApiError(f"Token id {max(prompt)} is out of vocabulary")
    if len(prompt) > longest:
        raise refused(
            f"This model's maximum context length is {longest} tokens. However, your prompt contains {len(prompt)} "
            "input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the "
            "input prompt.",
            "input_tokens",
            len(prompt),
        )
    room = longest - len(prompt)
    limit = room if max_tokens is None else min(max_tokens, room)
    if limit < 1:
        raise refused(f"max_tokens must be at least 1, got {limit}.", "max_tokens", limit)
    return prompt, limit
