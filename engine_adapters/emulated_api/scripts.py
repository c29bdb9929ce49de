"""Answers whose form a call prescribes: JSON, a choice, a pattern, calls of tools. Only the words are made up.

The same call gets the same words: they are drawn from its prompt and its seed.
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from engine_adapters.emulated_answer import mix, rolling
from engine_adapters.emulated_api.errors import ApiError
from engine_adapters.emulated_api.json_values import an_object, made_up
from engine_adapters.emulated_api.patterns import matching_text
from engine_adapters.emulated_api.pieces import CallBegun, Segment

_OPEN = '<tool_call>\n{{"name": {name}, "arguments": '
_CLOSE = "}\n</tool_call>"


def luck(prompt: Sequence[int], seed: int, variant: int) -> random.Random:
    """Where the words of an answer are drawn from."""
    return random.Random(mix(rolling(prompt)) ^ (seed * 1_000_003 + variant))


def constraint(
    response_format: Mapping[str, Any] | None,
    structured: Mapping[str, Any] | None,
    *,
    guided_json: Any = None,
    guided_regex: str | None = None,
    guided_choice: Sequence[str] | None = None,
    guided_grammar: str | None = None,
) -> dict[str, Any]:
    """What an answer is held to: one of `json`, `json_object`, `regex`, `choice`; empty: nothing. Raises ApiError."""
    held = {k: v for k, v in (structured or {}).items() if v is not None and v is not False}
    guided = {"json": guided_json, "regex": guided_regex, "choice": guided_choice, "grammar": guided_grammar}
    held |= {key: value for key, value in guided.items() if value is not None}
    kind = (response_format or {}).get("type")
    if response_format is not None and kind == "json_schema":
        # Responses have the schema beside the type, chats one level below.
        holder = response_format.get("json_schema", response_format)
        held["json"] = holder.get("schema", {})
    elif kind == "json_object":
        held["json_object"] = True
    known = [key for key in ("json", "json_object", "regex", "choice") if key in held]
    if len(known) > 1:
        raise ApiError(
            "You can only use one kind of constraints for structured outputs ('json', 'regex' or 'choice').",
            param="structured_outputs",
        )
    for key in ("grammar", "structural_tag"):
        if key in held:
            raise ApiError(f"an emulated engine does not follow a {key}", param="structured_outputs")
    return {key: held[key] for key in known}


def constrained(held: Mapping[str, Any], rng: random.Random) -> list[Segment]:
    """An answer that keeps to it; empty where nothing holds it. Raises ApiError."""
    if not held:
        return []
    if "choice" in held:
        if not isinstance(held["choice"], list) or not held["choice"]:
            raise ApiError("choice must be a list with something in it", param="structured_outputs")
        text = str(rng.choice(held["choice"]))
    elif "regex" in held:
        text = matching_text(str(held["regex"]), rng, whole=True)
    elif "json" in held:
        schema = held["json"]
        try:
            schema = json.loads(schema) if isinstance(schema, str) else schema
        except ValueError as bad:
            raise ApiError(f"Invalid JSON schema: {bad}", param="structured_outputs") from None
        text = json.dumps(made_up(schema, rng), ensure_ascii=False)
    else:
        text = json.dumps(an_object(rng), ensure_ascii=False)
    return [Segment("text", text)] if text else []


def chosen_tools(tools: Mapping[str, Any], choice: Any, rng: random.Random, *, parallel: bool) -> list[str]:
    """Names of the tools that an answer calls. `choice`: "none", "auto" (every other answer calls one), "required" or
    the name of one (in a one-tuple). Raises ApiError for a name that is not among them."""
    if not tools or choice == "none":
        return []
    if isinstance(choice, tuple):
        if choice[0] not in tools:
            raise ApiError(f"Tool choice {choice[0]!r} is not among the tools", param="tool_choice")
        return [choice[0]]
    if choice == "auto" and rng.random() < 0.5:
        return []
    names = list(tools)
    return [rng.choice(names) for _ in range(2 if parallel and rng.random() < 0.25 else 1)]


def tool_calls(names: Sequence[str], tools: Mapping[str, Any], rng: random.Random, *, call_id: str) -> list[Segment]:
    """An answer that calls these tools, with arguments for their schemas. `call_id`: what ids of calls begin with.
    Raises ApiError."""
    segments = []
    for index, name in enumerate(names):
        schema = tools[name]
        arguments = made_up(schema, rng) if schema else {}
        begun = CallBegun(index, f"{call_id}{uuid.uuid4().hex}", name)
        segments += [
            Segment("silent", _OPEN.format(name=json.dumps(name)), begins=begun),
            Segment("arguments", json.dumps(arguments, ensure_ascii=False), index=index),
            Segment("silent", _CLOSE if index == len(names) - 1 else _CLOSE + "\n"),
        ]
    return segments
