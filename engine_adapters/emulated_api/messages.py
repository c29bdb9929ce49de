"""`/v1/messages`, Anthropic's API, as vLLM speaks it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from engine_adapters.emulated_api.api_call import ApiCall
from engine_adapters.emulated_api.bodies import MessagesCall, MessagesCount
from engine_adapters.emulated_api.chat import CALL_ID
from engine_adapters.emulated_api.errors import ApiError, invalid
from engine_adapters.emulated_api.pieces import CallBegun, CallWords, Part, SaidText, Segment
from engine_adapters.emulated_api.prompts import content_text, conversation, fitting
from engine_adapters.emulated_api.scripts import chosen_tools, constrained, constraint, luck, tool_calls
from engine_adapters.emulated_api.work import AnswerWish, Choice, MadeCall


def answer_messages(call: ApiCall) -> None:
    """Answers a conversation. Raises ApiError."""
    body = call.read(MessagesCall)
    model = call.model(body.model)
    prompt = _prompt(call, body, model)
    prompt, limit = fitting(prompt, call.config, max_tokens=body.max_tokens)
    stops = tuple(body.stop_sequences or ())
    if "" in stops:
        raise ApiError("stop cannot contain an empty string.")
    answer = _Stream(call, model) if body.stream else _Whole(call, model)
    wanted = AnswerWish(max_tokens=limit, stop=stops, emulated_output_tokens=body.emulated_output_tokens)
    call.generate([prompt], wanted, answer, scripts=[_script(body, prompt)])
    if body.stream:
        call.reply.begin_events()


def count_messages(call: ApiCall) -> None:
    """How many tokens a conversation has. Raises ApiError."""
    body = call.read(MessagesCount)
    tokens = len(_prompt(call, body, call.model(body.model)))
    call.answer(
        "message count",
        {"input_tokens": tokens, "context_management": {"original_input_tokens": tokens}},
    )


def _prompt(call: ApiCall, body: MessagesCount, model: str) -> tuple[int, ...]:
    system = content_text(body.system, model)
    turns = [{"role": "system", "content": system}] if system else []
    tools = [msgspec.to_builtins(tool) for tool in body.tools or ()]
    return conversation([*turns, *body.messages], call.tokenizer, model, tools=tools)


def _script(body: MessagesCall, prompt: tuple[int, ...]) -> list[Segment]:
    said = body.tool_choice or {"type": "auto"}
    kind = said.get("type")
    if kind not in ("auto", "any", "tool", "none"):
        raise invalid(f"{kind!r} is no kind of tool_choice", "body.tool_choice.type", kind="literal_error")
    if kind == "tool" and not said.get("name"):
        raise invalid("tool_choice.name is required when type is 'tool'", "body.tool_choice")
    choice: Any = {"any": "required", "tool": (said.get("name"),)}.get(kind, kind)
    tools = {tool.name: tool.input_schema for tool in body.tools or ()}
    rng = luck(prompt, 0, 0)
    parallel = not said.get("disable_parallel_tool_use")
    if kind == "tool" and not tools:
        raise ApiError(f"Tool choice {said['name']!r} is not among the tools", param="tool_choice")
    names = chosen_tools(tools, choice, rng, parallel=parallel)
    if names:
        return tool_calls(names, tools, rng, call_id=CALL_ID)
    return constrained(constraint((body.output_config or {}).get("format"), None), rng)


def _why(choice: Choice, calls: Sequence[MadeCall]) -> tuple[str, str | None]:
    """(stop_reason, stop_sequence)"""
    if choice.finish == "length":
        return "max_tokens", None
    if calls:
        return "tool_use", None
    if isinstance(choice.stop_reason, str):
        return "stop_sequence", choice.stop_reason
    return "end_turn", None


class _Answer:
    def __init__(self, call: ApiCall, model: str) -> None:
        self._call = call
        self._base = {"id": call.answer_id("chatcmpl"), "type": "message", "role": "assistant"}
        self._model = model

    def _usage(self) -> dict[str, int]:
        work = self._call.work
        return {"input_tokens": work.prompt_tokens, "output_tokens": work.output_tokens}


class _Whole(_Answer):
    def step(self, choice: Choice, token_ids: Sequence[int], parts: Sequence[Part]) -> None:
        pass

    def done(self) -> None:
        choice = self._call.work.choices[0]
        calls = choice.calls if choice.finish == "stop" else []
        text = choice.text if calls else choice.raw
        content: list[dict[str, Any]] = [{"type": "text", "text": text}] if text or not calls else []
        for call in calls:
            arguments = msgspec.json.decode(call.arguments)
            content.append({"type": "tool_use", "id": call.call_id, "name": call.name, "input": arguments})
        reason, sequence = _why(choice, calls)
        said = {**self._base, "content": content, "model": self._model, "stop_reason": reason}
        # Fields without a value are left out here, and only here.
        if sequence is not None:
            said["stop_sequence"] = sequence
        self._call.answer("message", {**said, "usage": self._usage()})


class _Stream(_Answer):
    def __init__(self, call: ApiCall, model: str) -> None:
        super().__init__(call, model)
        self._block = -1
        self._kind = ""
        self._begun = False

    def step(self, choice: Choice, token_ids: Sequence[int], parts: Sequence[Part]) -> None:
        if not self._begun:
            self._begun = True
            message: dict[str, Any] = {
                **self._base,
                "content": [],
                "model": self._model,
                "stop_reason": None,
                "stop_sequence": None,
                "usage": {"input_tokens": self._call.work.prompt_tokens, "output_tokens": 0},
            }
            self._tell({"type": "message_start", "message": message})
        self._call.reply.count(len(token_ids))
        for part in parts:
            if isinstance(part, SaidText):
                if self._kind != "text":
                    self._open({"type": "text", "text": ""})
                self._delta({"type": "text_delta", "text": part.text})
            elif isinstance(part, CallBegun):
                self._open({"type": "tool_use", "id": part.call_id, "name": part.name, "input": {}})
            elif isinstance(part, CallWords):
                self._delta({"type": "input_json_delta", "partial_json": part.text})

    def done(self) -> None:
        self._close()
        choice, reply = self._call.work.choices[0], self._call.reply
        reason, sequence = _why(choice, choice.calls)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        self._tell({"type": "message_delta", "delta": delta, "usage": self._usage()})
        self._tell({"type": "message_stop"})
        reply.end(self._call.work.end())

    def _open(self, block: dict[str, Any]) -> None:
        self._close()
        self._block += 1
        self._kind = str(block["type"])
        self._tell({"type": "content_block_start", "content_block": block, "index": self._block})

    def _close(self) -> None:
        if self._kind:
            self._kind = ""
            self._tell({"type": "content_block_stop", "index": self._block})

    def _delta(self, delta: dict[str, Any]) -> None:
        self._tell({"type": "content_block_delta", "delta": delta, "index": self._block})

    def _tell(self, event: dict[str, Any]) -> None:
        self._call.reply.event(event, event["type"])
