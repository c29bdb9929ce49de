"""Chat messages to a prompt.

A tokenizer that knows its model's chat template renders with that. For the others one plain template serves: a header
line per message and the answer's header at the end,

    system: You are terse.

    user: Why is the sky blue?

    assistant:

Text of messages never turns into control tokens, so nobody can forge a turn of another role by spelling them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from gateway.admission import Refused, invalid
from gateway.core.outcomes import Denial
from length_model.sharegpt import Turn

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_MESSAGE_FIELDS = frozenset({"role", "content", "name", "refusal"})
_EMPTY: tuple[Any, ...] = (None, [], "")


class Message(NamedTuple):
    role: str
    content: str


def messages_of(raw: list[dict[str, Any]]) -> list[Message]:
    """The messages, content as one text. Raises Refused naming the message and field at fault."""
    if not raw:
        raise invalid("messages is empty; send at least one", param="messages")
    return [_message(one, f"messages[{position}]") for position, one in enumerate(raw)]


def plain_prompt(messages: list[Message]) -> str:
    """The prompt by the plain template."""
    return "".join(f"{m.role}: {m.content}\n\n" for m in messages) + "assistant:"


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
            raise Refused(Denial.UNSUPPORTED, f"{where}.{field} is not supported", param=f"{where}.{field}")
    return Message(ROLES[role], _text(raw.get("content"), f"{where}.content"))


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(f"{where} must be a text or a list of parts", param=where)
    texts = []
    for position, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise Refused(
                Denial.UNSUPPORTED, f"{where}[{position}] is not a text part; only text is supported", param=where
            )
        texts.append(part["text"])
    return "".join(texts)
