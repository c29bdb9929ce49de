"""An engine's own streamed answer that another node may go on with, read along as it goes by. Pure.

Whole events only are let through, so that a break never leaves half a one. The next node gets what the client asked
with the text so far at its end, and its events are made to look like the first node's: they are the only ones that are
written anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from gateway.intake.call_paths import CallKind
from gateway.intake.client_request import DEFAULT_COMPLETION_TOKENS

LONGEST_EVENT_BYTES = 1024 * 1024
"""What is longer without an end is no event, and is not waited for."""

_ASKS_MORE = frozenset({
    "echo", "logprobs", "prompt_logprobs", "use_beam_search", "suffix", "prompt_embeds", "truncate_prompt_tokens",
    "return_token_ids", "return_tokens_as_token_ids", "continue_final_message", "audio", "structured_outputs",
    "guided_json", "guided_regex", "guided_choice", "guided_grammar", "kv_transfer_params",
})  # fmt: skip
"""What makes more of an answer than text, or counts along it."""
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "add_generation_prompt": (True,),
}
_NOTHING: tuple[Any, ...] = (None, "", [], {})
_LIMITS = ("max_completion_tokens", "max_tokens")
_COUNTS = frozenset({*_LIMITS, "min_tokens"})


def can_go_on(kind: CallKind, fields: Mapping[str, Any]) -> bool:
    """Whether the body asks for one streamed answer of plain text, which another node could go on with."""
    if kind == "chat":
        is_plain = isinstance(fields.get("messages"), list)
    else:
        is_plain = kind == "completions" and isinstance(fields.get("prompt"), str)
    return (
        is_plain
        and fields.get("stream") is True
        and all(fields[name] is False or fields[name] in _NOTHING for name in _ASKS_MORE.intersection(fields))
        and all(fields[name] in (None, *_HARMLESS[name]) for name in _HARMLESS.keys() & fields.keys())
        and all(fields[name] is None or type(fields[name]) is int for name in _COUNTS.intersection(fields))
    )


class ResumableAnswer:
    """One answer, from whatever nodes: `begin` each node's part, `read` what comes, ask for the `body_for` the next."""

    def __init__(self, body: bytes | bytearray) -> None:
        """`body`: of a call that `can_go_on`. Raises ValueError if it cannot be written anew as it was."""
        fields = orjson.loads(body)
        if not isinstance(fields, dict):
            raise ValueError("the body is no JSON object")
        self.is_tied = False
        """Whether no other node can go on any more: something besides text has come, or the end."""
        self._fields: dict[str, Any] = fields
        self._is_chat = "messages" in fields
        self._text: list[str] = []
        self._first: dict[str, Any] | None = None
        """What all events of an answer have alike, from the first."""
        self._has_role = False
        self._prompt_tokens: int | None = None
        self._came_tokens = 0
        """Of the nodes before this one."""
        self._is_later = False
        self._rest = b""

    def begin(self, status: int, content_type: str, content_encoding: str) -> bool:
        """A node's part of it begins; whether it can be read. If not, what the first node says is tied to it."""
        self._rest = b""
        is_events = content_type.lower().startswith("text/event-stream")
        is_readable = status == 200 and is_events and content_encoding.lower() in ("", "identity")
        if not self._is_later:
            self.is_tied = not is_readable
        return is_readable

    def read(self, data: bytes) -> bytes:
        """What the client gets of the next bytes: whole events, those of later nodes in the first one's name."""
        whole = self._rest + data if self._rest else data
        self._rest = b""
        if self.is_tied and not self._is_later:
            return whole
        if not whole.endswith(b"\n\n"):
            ends = [at + len(end) for end in (b"\n\n", b"\n\r\n") if (at := whole.rfind(end)) >= 0]
            cut = max(ends, default=0)
            whole, self._rest = whole[:cut], whole[cut:]
            if len(self._rest) > LONGEST_EVENT_BYTES:
                self.is_tied = True
                return whole + self.end()
        shown = [self._event(event) for event in whole.replace(b"\r\n", b"\n").split(b"\n\n")[:-1]]
        return b"".join(shown) if self._is_later else whole

    def end(self) -> bytes:
        """What has come behind the last whole event, of an answer that is complete."""
        rest, self._rest = self._rest, b""
        return rest

    def body_for(self, came_tokens: int) -> bytes:
        """What the next node is asked, after an answer of `came_tokens`."""
        self._is_later = True
        self._came_tokens = came_tokens
        fields = dict(self._fields)
        text = "".join(self._text)
        if not self._is_chat:
            fields["prompt"] += text
            if fields.get("max_tokens") is None:
                fields["max_tokens"] = DEFAULT_COMPLETION_TOKENS
        elif text:
            fields["messages"] = [*fields["messages"], {"role": "assistant", "content": text}]
            fields["continue_final_message"] = True
            fields["add_generation_prompt"] = False
        for name in _LIMITS:
            if fields.get(name) is not None:
                fields[name] = max(1, fields[name] - came_tokens)
        if fields.get("min_tokens"):
            fields["min_tokens"] = max(0, fields["min_tokens"] - came_tokens)
        return orjson.dumps(fields)

    def _event(self, event: bytes) -> bytes:
        """Takes one event in; how the client gets it, if it is a later node's."""
        as_it_is = event + b"\n\n"
        lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
        data = b"\n".join(lines)
        if not data:
            return as_it_is
        try:
            said = orjson.loads(data)
        except orjson.JSONDecodeError:
            # The end, or what nobody can go on with.
            self.is_tied = True
            return as_it_is
        choices = said.get("choices") if isinstance(said, dict) else None
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            self.is_tied = True
            return as_it_is
        if self._first is None:
            self._first = {name: said[name] for name in ("id", "created", "model") if name in said}
        had_role = self._has_role
        for choice in choices:
            self._take(choice)
        self._take_usage(said.get("usage"))
        if not self._is_later:
            return as_it_is
        if had_role and any(_drop_role(choice) for choice in choices):
            return b""
        return b"data: %b\n\n" % orjson.dumps(said | self._first)

    def _take(self, choice: dict[str, Any]) -> None:
        delta = choice.get("delta") if self._is_chat else {"content": choice.get("text")}
        if not isinstance(delta, dict):
            self.is_tied = True
            return
        self._has_role = self._has_role or "role" in delta
        text = delta.get("content")
        if isinstance(text, str):
            self._text.append(text)
        more = any(value for name, value in delta.items() if name not in ("role", "content"))
        is_odd = more or not (text is None or isinstance(text, str)) or choice.get("logprobs") is not None
        if is_odd or choice.get("index", 0) != 0 or choice.get("finish_reason") is not None:
            self.is_tied = True

    def _take_usage(self, usage: Any) -> None:
        """Makes a later node's usage one of the whole answer: what came before is in its prompt."""
        if not isinstance(usage, dict) or not isinstance(usage.get("prompt_tokens"), int):
            return
        if not self._is_later:
            self._prompt_tokens = usage["prompt_tokens"]
            return
        if self._prompt_tokens is None:
            self._prompt_tokens = max(0, usage["prompt_tokens"] - self._came_tokens)
        usage["prompt_tokens"] = self._prompt_tokens
        if isinstance(usage.get("completion_tokens"), int):
            usage["completion_tokens"] += self._came_tokens
            usage["total_tokens"] = self._prompt_tokens + usage["completion_tokens"]


def _drop_role(choice: dict[str, Any]) -> bool:
    """Takes the word of who speaks out of a choice; whether nothing else was in it."""
    delta = choice.get("delta")
    if not isinstance(delta, dict) or delta.pop("role", None) is None:
        return False
    return not any(delta.values()) and choice.get("finish_reason") is None
