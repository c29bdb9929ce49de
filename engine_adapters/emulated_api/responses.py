"""`/v1/responses`: answers that are kept, and may be made in the background."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from engine_adapters.base import EngineError
from engine_adapters.emulated_api.api_call import ApiCall
from engine_adapters.emulated_api.bodies import ResponsesCall
from engine_adapters.emulated_api.chat import CALL_ID
from engine_adapters.emulated_api.errors import ApiError, invalid, refused
from engine_adapters.emulated_api.logprobs import Likelihoods
from engine_adapters.emulated_api.pieces import CallBegun, CallWords, Part, SaidText, Segment
from engine_adapters.emulated_api.prompts import conversation, fitting
from engine_adapters.emulated_api.reply import Reply
from engine_adapters.emulated_api.scripts import chosen_tools, constrained, constraint, luck, tool_calls
from engine_adapters.emulated_api.work import AnswerWish, Choice, Work

KEPT = 1000
"""Responses that are kept; the oldest goes first."""

Event = dict[str, Any]


class _Kept:
    """One response that can be asked for."""

    def __init__(self, response: dict[str, Any], turns: list[dict[str, Any]]) -> None:
        self.response = response
        self.turns = turns
        """The conversation that led to it."""
        self.events: list[Event] = []
        """Those of a response that is streamed from the background."""
        self.readers: list[Reply] = []
        self.work: Work | None = None
        """What makes it, while that goes on in the background."""


class ResponseBook:
    """The responses of one engine: made, kept, retrieved, cancelled."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    def create(self, call: ApiCall) -> None:
        """Answers a call, or begins to. Raises ApiError."""
        body = call.read(ResponsesCall)
        body.check()
        model = call.model(body.model)
        before: list[dict[str, Any]] = []
        if body.previous_response_id is not None:
            before = [*self._known(body.previous_response_id).turns]
        turns = [*before, *_turns(body)]
        instructions = [{"role": "system", "content": body.instructions}] if body.instructions else []
        tools = [tool for tool in body.tools if tool.get("type") == "function"]
        prompt = conversation([*instructions, *turns], call.tokenizer, model, tools=tools)
        prompt, limit = fitting(prompt, call.config, max_tokens=body.max_output_tokens, name="max_output_tokens")
        sampling = AnswerWish(
            max_tokens=limit,
            stop=body.stops(),
            stop_token_ids=tuple(body.stop_token_ids or ()),
            ignore_eos=body.ignore_eos,
            seed=body.seed or 0,
            priority=body.priority,
            emulated_output_tokens=body.emulated_output_tokens,
        )
        answer = _Answer(call, body, model, limit, turns, self)
        script = _script(body, prompt, tools)
        call.generate([prompt], sampling, answer, scripts=[script], failed=answer.failed)
        answer.begin()

    def retrieve(self, call: ApiCall) -> None:
        """Gives back a response that was kept. Raises ApiError."""
        kept = self._known(call.path["response_id"])
        if call.query.get("stream", "").lower() not in ("1", "true"):
            call.reply.json(200, kept.response)
            return
        if not kept.events:
            raise ApiError(f"Unknown response_id: {call.path['response_id']}")
        after = call.query.get("starting_after")
        call.reply.begin_events()
        for event in kept.events:
            if after is None or event["sequence_number"] > int(after):
                call.reply.event(event, event["type"])
        if kept.work is None:
            call.reply.end()
        else:
            kept.readers.append(call.reply)

    def cancel(self, call: ApiCall) -> None:
        """Ends the making of a response in the background. Raises ApiError."""
        kept = self._known(call.path["response_id"])
        if kept.response["status"] not in ("queued", "in_progress"):
            raise ApiError("Cannot cancel a synchronous response.", kind="invalid_request_error", param="response_id")
        self._stop(kept)
        call.reply.json(200, kept.response)

    def keep(self, response: dict[str, Any], turns: list[dict[str, Any]]) -> _Kept:
        """Keeps a response, or its next state."""
        name = response["id"]
        kept = self._kept.get(name)
        if kept is None:
            kept = self._kept[name] = _Kept(response, turns)
            while len(self._kept) > KEPT:
                _, oldest = self._kept.popitem(last=False)
                self._stop(oldest)
        kept.response, kept.turns = response, turns
        return kept

    def close(self) -> None:
        """Ends what is made in the background."""
        for kept in self._kept.values():
            self._stop(kept)

    def _stop(self, kept: _Kept) -> None:
        if kept.work is not None:
            kept.work.drop()
            kept.work = None
            kept.response = {**kept.response, "status": "cancelled"}
            for reader in kept.readers:
                reader.end()
            kept.readers.clear()

    def _known(self, name: str) -> _Kept:
        kept = self._kept.get(name)
        if kept is None:
            raise ApiError(
                f"Response with id '{name}' not found.",
                status=404,
                kind="invalid_request_error",
                param="response_id",
            )
        return kept


class _Answer:
    """Makes one response, whole or in events."""

    def __init__(
        self,
        call: ApiCall,
        body: ResponsesCall,
        model: str,
        limit: int,
        turns: list[dict[str, Any]],
        book: ResponseBook,
    ) -> None:
        self._call = call
        self._body = body
        self._model = model
        self._limit = limit
        self._turns = turns
        self._book = book
        self._id = call.answer_id("resp").replace("-", "_", 1)
        self._likely = Likelihoods(call.tokenizer)
        self._kept: _Kept | None = None
        self._sequence = 0
        self._output: list[dict[str, Any]] = []
        self._item: dict[str, Any] | None = None
        self._text = ""
        self._words: list[int] = []

    def begin(self) -> None:
        """Says what can be said before the first token."""
        body, reply = self._body, self._call.reply
        if body.background:
            response = self._response("queued", [], None)
            self._kept = self._book.keep(response, self._turns)
            self._kept.work = self._call.work
            self._call.detached = True
            if not body.stream:
                reply.json(200, response)
                return
            self._kept.readers.append(reply)
        if body.stream:
            reply.begin_events()
            response = self._response("in_progress", [], None)
            self._tell("response.created", response=response)
            self._tell("response.in_progress", response=response)

    def step(self, choice: Choice, token_ids: Sequence[int], parts: Sequence[Part]) -> None:
        if self._body.stream:
            self._call.reply.count(len(token_ids))
        if self._kept is not None and self._kept.response["status"] == "queued":
            self._kept.response = {**self._kept.response, "status": "in_progress"}
        self._words.extend(token_ids)
        for part in parts:
            if isinstance(part, SaidText):
                self._say(part.text)
            elif isinstance(part, CallBegun):
                self._close()
                self._open(
                    {
                        "arguments": "",
                        "call_id": part.call_id,
                        "name": part.name,
                        "type": "function_call",
                        "id": f"fc_{uuid.uuid4().hex}",
                        "namespace": None,
                        "status": "in_progress",
                    }
                )
            elif isinstance(part, CallWords):
                self._text += part.text
                self._tell("response.function_call_arguments.delta", **self._place(), delta=part.text)

    def done(self) -> None:
        work, reply = self._call.work, self._call.reply
        choice = work.choices[0]
        self._close()
        status = "incomplete" if choice.finish == "length" else "completed"
        taken, made = work.prompt_tokens, work.output_tokens
        usage = {
            "input_tokens": taken,
            "input_tokens_details": {
                "cached_tokens": work.cached_tokens,
                "cache_write_tokens": 0,
                "input_tokens_per_turn": [],
                "cached_tokens_per_turn": [],
            },
            "output_tokens": made,
            "output_tokens_details": {
                "reasoning_tokens": 0,
                "tool_output_tokens": 0,
                "output_tokens_per_turn": [],
                "tool_output_tokens_per_turn": [],
            },
            "total_tokens": taken + made,
        }
        response = self._response(status, self._output, usage)
        if self._body.store:
            said = {
                "role": "assistant",
                "content": choice.text,
                "tool_calls": [{"function": {"name": c.name, "arguments": c.arguments}} for c in choice.calls],
            }
            self._book.keep(response, [*self._turns, said])
        if self._body.stream:
            self._tell("response.completed", response=response)
        if self._kept is not None:
            self._kept.work = None
            for reader in self._kept.readers:
                reader.end(self._call.work.end())
            self._kept.readers.clear()
        elif self._body.stream:
            reply.end(self._call.work.end())
        else:
            self._call.answer("response", response)

    def failed(self, error: EngineError) -> None:
        """The engine failed."""
        if self._kept is None:
            self._call.reply.fail(error)
            return
        self._kept.work = None
        self._kept.response = {**self._kept.response, "status": "failed"}
        for reader in self._kept.readers:
            reader.fail(error)
        self._kept.readers.clear()

    def _say(self, text: str) -> None:
        if self._item is None:
            self._open({"id": f"msg_{uuid.uuid4().hex}", "content": [], "role": "assistant", "type": "message"})
            self._tell("response.content_part.added", **self._place(content_index=0), part=self._part(""))
        self._text += text
        logprobs = self._logprobs()
        self._words.clear()
        self._tell("response.output_text.delta", **self._place(content_index=0), delta=text, logprobs=logprobs)

    def _open(self, item: dict[str, Any]) -> None:
        self._item = {**item, "status": "in_progress"}
        self._text = ""
        self._tell("response.output_item.added", output_index=len(self._output), item=self._item)

    def _close(self) -> None:
        if self._item is None:
            return
        item: dict[str, Any] = {**self._item, "status": "completed"}
        if item["type"] == "message":
            part = self._part(self._text)
            item["content"] = [part]
            place = self._place(content_index=0)
            self._tell("response.output_text.done", **place, text=self._text, logprobs=[])
            self._tell("response.content_part.done", **place, part=part)
        else:
            item["arguments"] = self._text
            self._tell(
                "response.function_call_arguments.done", **self._place(), arguments=self._text, name=item["name"]
            )
        self._tell("response.output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)
        self._item = None

    def _part(self, text: str) -> dict[str, Any]:
        return {"annotations": [], "text": text, "type": "output_text", "logprobs": []}

    def _place(self, **more: int) -> dict[str, Any]:
        item = self._item or {}
        return {"item_id": item.get("id"), "output_index": len(self._output), **more}

    def _logprobs(self) -> list[dict[str, Any]]:
        if "message.output_text.logprobs" not in (self._body.include or ()):
            return []
        told = self._likely.responses(self._words, self._body.top_logprobs or 0)
        keep = ("token", "logprob")
        return [
            {**{k: t[k] for k in keep}, "top_logprobs": [{k: o[k] for k in keep} for o in t["top_logprobs"]]}
            for t in told
        ]

    def _tell(self, event: str, **fields: Any) -> None:
        if not self._body.stream:
            return
        told = {**fields, "sequence_number": self._sequence, "type": event}
        self._sequence += 1
        if self._kept is None:
            self._call.reply.event(told, event)
            return
        self._kept.events.append(told)
        for reader in self._kept.readers:
            reader.event(told, event)

    def _response(self, status: str, output: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
        body = self._body
        return {
            "id": self._id,
            "created_at": self._call.created,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "metadata": body.metadata,
            "model": self._model,
            "object": "response",
            "output": list(output),
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "tool_choice": body.tool_choice if body.tools else "none",
            "tools": body.tools,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "background": bool(body.background),
            "max_output_tokens": self._limit,
            "max_tool_calls": body.max_tool_calls,
            "previous_response_id": body.previous_response_id,
            "prompt": None,
            "reasoning": body.reasoning,
            "service_tier": body.service_tier,
            "status": status,
            "text": body.text,
            "top_logprobs": body.top_logprobs if body.include else None,
            "truncation": body.truncation or "disabled",
            "usage": usage,
            "user": body.user,
            "presence_penalty": body.presence_penalty or 0.0,
            "frequency_penalty": body.frequency_penalty or 0.0,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "input_messages": None,
            "output_messages": None,
        }


def _turns(body: ResponsesCall) -> list[dict[str, Any]]:
    """The input as messages of a chat."""
    if isinstance(body.input, str):
        return [{"role": "user", "content": body.input}]
    turns = []
    for item in body.input:
        kind = item.get("type", "message")
        if kind == "message":
            turns.append({"role": item.get("role", "user"), "content": item.get("content")})
        elif kind == "function_call":
            call = {"name": item.get("name"), "arguments": item.get("arguments")}
            turns.append({"role": "assistant", "content": "", "tool_calls": [{"function": call}]})
        elif kind == "function_call_output":
            turns.append({"role": "tool", "content": item.get("output")})
        elif kind == "reasoning":
            continue
        else:
            raise invalid(f"an input of type {kind!r} is beyond an emulated engine", "body.input")
    return turns


def _script(body: ResponsesCall, prompt: tuple[int, ...], tools: Sequence[dict[str, Any]]) -> list[Segment]:
    schemas = {str(tool.get("name")): tool.get("parameters") for tool in tools}
    choice: Any = body.tool_choice
    if isinstance(choice, dict):
        name = choice.get("name")
        if choice.get("type") != "function" or name not in schemas:
            raise refused("Tool choice 'function' not found in 'tools' parameter.", "tool_choice")
        choice = (name,)
    elif choice not in ("none", "auto", "required"):
        raise refused(f"Invalid value for `tool_choice`: {choice}!", "tool_choice")
    held = constraint(
        (body.text or {}).get("format"),
        body.structured_outputs,
        guided_json=body.guided_json,
        guided_regex=body.guided_regex,
        guided_choice=body.guided_choice,
        guided_grammar=body.guided_grammar,
    )
    rng = luck(prompt, body.seed or 0, 0)
    names = chosen_tools(schemas, choice, rng, parallel=body.parallel_tool_calls is not False)
    if names and not (held and choice == "auto"):
        return tool_calls(names, schemas, rng, call_id=CALL_ID)
    return constrained(held, rng)
