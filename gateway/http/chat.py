"""Chat messages to a prompt.

A tokenizer that knows its model's chat template renders with that (`--tokenizer ./folder`, `qwen2`). For the others one
plain template serves: a header line per message and the answer's header at the end,

    system: You are terse.

    user: Why is the sky blue?

    assistant:

Text of messages never turns into control tokens, so nobody can forge a turn of another role by spelling them.
"""

from __future__ import annotations

import asyncio
from typing import Any

from engine_adapters.chat_template import Message, TemplateError
from engine_adapters.tokenizer import Tokenizer
from gateway.core.outcomes import Denial
from gateway.intake.checks import MAX_TEXT_CHARS_INLINE
from gateway.intake.denied import Denied, invalid
from length_model.core.conversation import Turn

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_MESSAGE_FIELDS = frozenset({"role", "content", "name", "refusal"})
_EMPTY: tuple[Any, ...] = (None, [], "")


def messages_of(raw: list[dict[str, Any]]) -> list[Message]:
    """The messages, content as one text. Raises Denied naming the message and field at fault."""
    if not raw:
        raise invalid("messages is empty; send at least one", param="messages")
    return [_message(one, f"messages[{position}]") for position, one in enumerate(raw)]


async def prompt_of_chat(tokenizer: Tokenizer, messages: list[Message]) -> list[int]:
    """The prompt by the template of the model's tokenizer. Raises Denied for a conversation that it does not take."""
    try:
        if sum(len(m.content) for m in messages) > MAX_TEXT_CHARS_INLINE:
            return await asyncio.to_thread(tokenizer.apply_chat_template, messages)
        return tokenizer.apply_chat_template(messages)
    except TemplateError as no:
        raise invalid(str(no), param="messages") from None


def question_and_history(messages: list[Message]) -> tuple[str, list[Turn]]:
    """The last message and the turns of user and assistant before it: what the length model looks at."""
    history = [
        Turn(role="user" if m.role == "user" else "assistant", text=m.content)
        for m in messages[:-1]
        if m.role in ("user", "assistant")
    ]
    return messages[-1].content, history


def _message(raw: dict[str, Any], where: str) -> Message:
    role = raw.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise invalid(f"{where}.role must be one of {', '.join(ROLES)}, got {role!r}", param=f"{where}.role")
    for field, value in raw.items():
        if field not in _MESSAGE_FIELDS and not any(value == empty for empty in _EMPTY):
            raise Denied(Denial.UNSUPPORTED, f"{where}.{field} is not supported", param=f"{where}.{field}")
    name = raw.get("name") or ""
    if not isinstance(name, str):
        raise invalid(f"{where}.name must be a text", param=f"{where}.name")
    return Message(ROLES[role], _text(raw.get("content"), f"{where}.content"), name)


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(f"{where} must be a text or a list of parts", param=where)
    texts = []
    for position, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise Denied(
                Denial.UNSUPPORTED, f"{where}[{position}] is not a text part; only text is supported", param=where
            )
        texts.append(part["text"])
    # As vLLM does for templates that take a content as one text.
    return "\n".join(texts)
