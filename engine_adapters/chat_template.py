"""From the messages of a conversation to the text that a model was trained to answer."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec


class Message(msgspec.Struct, frozen=True):
    """One turn."""

    role: str
    content: str
    name: str = ""
    """Of who speaks, for templates that look at it; empty: not said."""


Tool = Mapping[str, Any]
"""A function that the model may call, as OpenAI's chat API describes it."""


class Render(Protocol):
    """Writes a conversation out. Raises TemplateError for one that the template does not take."""

    def __call__(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str: ...


class TemplateError(ValueError):
    """The template does not take this conversation (roles in another order, say). The message is the template's."""


def plain_prompt(messages: Sequence[Message]) -> str:
    """The plain prompt for models of which no template is known."""
    return "".join(f"{m.role}: {m.content}\n\n" for m in messages) + "assistant:"


def with_tools(messages: Sequence[Message], tools: Sequence[Tool]) -> Sequence[Message]:
    """The conversation with its tools in a system turn of their own, for models of which it is not known how they get
    to see them."""
    return [Message("system", "\n".join(map(json.dumps, tools))), *messages] if tools else messages


def compiled(template: str, special_tokens: dict[str, str]) -> Render:
    """A Jinja template as models bring it along, with what transformers lets templates use; sandboxed.

    Needs the package jinja2. Raises TemplateError for a template that is not well formed.
    """
    import jinja2
    import jinja2.sandbox

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now(tz=datetime.UTC).strftime(form)
    try:
        parsed = environment.from_string(template)
    except jinja2.TemplateError as error:
        raise TemplateError(f"the chat template is not well formed: {error}") from None

    def render(messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str:
        turns: list[dict[str, Any]] = [{"role": m.role, "content": m.content} for m in messages]
        for turn, message in zip(turns, messages, strict=True):
            if message.name:
                turn["name"] = message.name
        try:
            return parsed.render(
                messages=turns,
                tools=list(tools) or None,
                documents=None,
                add_generation_prompt=True,
                **special_tokens,
            )
        except jinja2.TemplateError as error:
            raise TemplateError(f"the chat template does not take this conversation: {error}") from None

    return render


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: Jinja's own escapes what HTML would read."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
