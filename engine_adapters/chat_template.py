"""From the messages of a conversation to the text that a model was trained to answer."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import Any

import msgspec


class Message(msgspec.Struct, frozen=True):
    """One turn."""

    role: str
    content: str
    name: str = ""
    """Of who speaks, for templates that look at it; empty: not said."""


class TemplateError(ValueError):
    """The template does not take this conversation (roles in another order, say). The message is the template's."""


def plain_prompt(messages: Sequence[Message]) -> str:
    """The plain prompt for models of which no template is known."""
    return "".join(f"{m.role}: {m.content}\n\n" for m in messages) + "assistant:"


def compiled(template: str, special_tokens: dict[str, str]) -> Callable[[Sequence[Message]], str]:
    """A Jinja template as models bring it along, with what transformers lets templates use; sandboxed.

    Needs the package jinja2. Raises TemplateError for a template that is not well formed; so does the function.
    """
    import jinja2
    import jinja2.sandbox

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now(tz=datetime.UTC).strftime(form)
    try:
        parsed = environment.from_string(template)
    except jinja2.TemplateError as error:
        raise TemplateError(f"the chat template is not well formed: {error}") from None

    def render(messages: Sequence[Message]) -> str:
        turns: list[dict[str, Any]] = [{"role": m.role, "content": m.content} for m in messages]
        for turn, message in zip(turns, messages, strict=True):
            if message.name:
                turn["name"] = message.name
        try:
            return parsed.render(messages=turns, add_generation_prompt=True, **special_tokens)
        except jinja2.TemplateError as error:
            raise TemplateError(f"the chat template does not take this conversation: {error}") from None

    return render
