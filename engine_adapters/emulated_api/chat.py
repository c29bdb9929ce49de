"""`/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from engine_adapters.emulated_api.api_call import ApiCall
from engine_adapters.emulated_api.bodies import ChatCall, OpenAiCall
from engine_adapters.emulated_api.errors import refused
from engine_adapters.emulated_api.logprobs import Likelihoods
from engine_adapters.emulated_api.pieces import CallBegun, CallWords, Part, SaidText, Segment
from engine_adapters.emulated_api.prompts import content_text, conversation, fitting
from engine_adapters.emulated_api.scripts import chosen_tools, constrained, constraint, luck, tool_calls
from engine_adapters.emulated_api.work import AnswerWish, Choice

CALL_ID = "chatcmpl-tool-"


def chat(call: ApiCall) -> None:
    """Answers a chat. Raises ApiError."""
    body = call.read(ChatCall)
    body.check()
    model = call.model(body.model)
    tools = [msgspec.to_builtins(tool) for tool in body.tools or ()]
    prompt = conversation(body.messages, call.tokenizer, model, tools=tools)
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    prompt, limit = fitting(prompt, call.config, max_tokens=limit, truncate=body.truncate_prompt_tokens)
    answer = _Stream(call, body, model, prompt) if body.stream else _Whole(call, body, model, prompt)
    call.generate([prompt], sampling(body, limit), answer, n=body.n or 1, scripts=_scripts(body, prompt))
    if body.stream:
        call.reply.begin_events()


def sampling(body: OpenAiCall, limit: int) -> AnswerWish:
    """What a body says of how answers are made."""
    return AnswerWish(
        max_tokens=limit,
        stop=body.stops(),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        keep_stop=body.include_stop_str_in_output,
        ignore_eos=body.ignore_eos,
        min_tokens=body.min_tokens,
        seed=body.seed or 0,
        priority=body.priority,
        emulated_output_tokens=body.emulated_output_tokens,
    )


def held_to(body: OpenAiCall) -> dict[str, Any]:
    """What the answer is held to. Raises ApiError."""
    return constraint(
        body.response_format,
        body.structured_outputs,
        guided_json=body.guided_json,
        guided_regex=body.guided_regex,
        guided_choice=body.guided_choice,
        guided_grammar=body.guided_grammar,
    )


def usage(prompt_tokens: int, output_tokens: int) -> dict[str, Any]:
    """What a call has taken, as chunks tell it."""
    total = prompt_tokens + output_tokens
    return {"prompt_tokens": prompt_tokens, "total_tokens": total, "completion_tokens": output_tokens}


def whole_usage(prompt_tokens: int, output_tokens: int) -> dict[str, Any]:
    """What a call has taken, as whole answers tell it."""
    details = {"prompt_tokens_details": None, "completion_tokens_details": None}
    return {**usage(prompt_tokens, output_tokens), **details}


def _scripts(body: ChatCall, prompt: tuple[int, ...]) -> list[list[Segment]]:
    held = held_to(body)
    tools = {tool.function.name: tool.function.parameters for tool in body.tools or ()}
    choice = _tool_choice(body)
    scripts = []
    for variant in range(body.n or 1):
        rng = luck(prompt, body.seed or 0, variant)
        names = chosen_tools(tools, choice, rng, parallel=bool(body.parallel_tool_calls))
        if names and not (held and choice == "auto"):
            scripts.append(tool_calls(names, tools, rng, call_id=CALL_ID))
        else:
            scripts.append(constrained(held, rng))
    return scripts


def _tool_choice(body: ChatCall) -> Any:
    """A word, or the name of the one that is forced in a tuple. Raises ApiError."""
    choice = body.tool_choice
    if choice is None:
        return "auto"
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or not name:
            raise refused(f"Invalid value for `function`: `{function}` in `tool_choice`!", "tool_choice.function")
        if all(tool.function.name != name for tool in body.tools or ()):
            raise refused(
                "The tool specified in `tool_choice` does not match any of the specified `tools`", "tool_choice"
            )
        return (name,)
    if choice not in ("none", "auto", "required"):
        raise refused(
            f'Invalid value for `tool_choice`: {choice}! Only named tools, "none", "auto" or "required" are supported.',
            "tool_choice",
        )
    return choice


class _Answer:
    def __init__(self, call: ApiCall, body: ChatCall, model: str, prompt: tuple[int, ...]) -> None:
        self._call = call
        self._body = body
        self._prompt = prompt
        self._likely = Likelihoods(call.tokenizer, as_ids=bool(body.return_tokens_as_token_ids))
        self._base = {"id": call.answer_id("chatcmpl"), "object": "", "created": call.created, "model": model}
        last = body.messages[-1] if body.echo and body.messages else {}
        self._echo = content_text(last.get("content"), model) if last.get("role") == "assistant" else ""

    def _logprobs(self, tokens: Sequence[int]) -> dict[str, Any] | None:
        return self._likely.chat(tokens, max(0, self._body.top_logprobs or 0)) if self._body.logprobs else None

    def _why(self, choice: Choice) -> str:
        """A forced call of a named tool ends with `stop`, others with `tool_calls`: so does vLLM."""
        if choice.calls and choice.finish == "stop" and not isinstance(self._body.tool_choice, dict):
            return "tool_calls"
        return str(choice.finish)


class _Whole(_Answer):
    def step(self, choice: Choice, token_ids: Sequence[int], parts: Sequence[Part]) -> None:
        pass

    def done(self) -> None:
        body, work = self._body, self._call.work
        likely = body.prompt_logprobs
        self._call.answer(
            "chat",
            {
                **self._base,
                "object": "chat.completion",
                "choices": [self._choice(choice) for choice in work.choices],
                "service_tier": None,
                "system_fingerprint": None,
                "usage": whole_usage(work.prompt_tokens, work.output_tokens),
                "prompt_logprobs": None if likely is None else self._likely.prompt(self._prompt, likely),
                "prompt_token_ids": list(self._prompt) if body.return_token_ids else None,
                "prompt_text": None,
                "kv_transfer_params": None,
                "ec_transfer_params": None,
                "metrics": None,
            },
        )

    def _choice(self, choice: Choice) -> dict[str, Any]:
        calls = choice.calls if choice.finish == "stop" else []
        forced = self._body.tools and self._body.tool_choice not in (None, "auto", "none")
        # Calls that were cut off are no calls: what was said of them is the content.
        text = choice.text if calls else choice.raw
        message: dict[str, Any] = {
            "role": "assistant",
            "content": self._echo + text if text or forced or not calls else None,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
        }
        if calls:
            message["tool_calls"] = [
                {"id": c.call_id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for c in calls
            ]
        message["reasoning"] = None
        return {
            "index": choice.index,
            "message": message,
            "logprobs": self._logprobs(choice.token_ids),
            "finish_reason": self._why(choice),
            "stop_reason": choice.stop_reason,
            "token_ids": list(choice.token_ids) if self._body.return_token_ids else None,
            "routed_experts": None,
        }


class _Stream(_Answer):
    def __init__(self, call: ApiCall, body: ChatCall, model: str, prompt: tuple[int, ...]) -> None:
        super().__init__(call, body, model, prompt)
        self._base["object"] = "chat.completion.chunk"
        self._begun = False
        self._usage = body.continuous_usage

    def step(self, choice: Choice, token_ids: Sequence[int], parts: Sequence[Part]) -> None:
        reply = self._call.reply
        if not self._begun:
            self._begin()
        reply.count(len(token_ids))
        content = "".join(part.text for part in parts if isinstance(part, SaidText))
        deltas: list[dict[str, Any]] = []
        for part in parts:
            if isinstance(part, CallBegun):
                function = {"name": part.name, "arguments": ""}
                deltas.append({"id": part.call_id, "type": "function", "index": part.index, "function": function})
            elif isinstance(part, CallWords):
                deltas.append({"index": part.index, "function": {"arguments": part.text}})
        logprobs = self._logprobs(token_ids)
        kept = choice.finish is not None or logprobs is not None or self._body.return_token_ids
        delta: dict[str, Any] = {"tool_calls": deltas} if deltas else {"content": content} if content else {}
        if not delta and not choice.calls_tools:
            delta = {"content": ""}
        elif not delta and not kept:
            return
        said: dict[str, Any] = {
            "index": choice.index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": None if choice.finish is None else self._why(choice),
        }
        if choice.finish is not None:
            said["stop_reason"] = choice.stop_reason
        said["token_ids"] = list(token_ids) if self._body.return_token_ids else None
        self._tell(said, choice)

    def done(self) -> None:
        work, reply = self._call.work, self._call.reply
        if self._body.include_usage:
            reply.event({**self._base, "choices": [], "usage": usage(work.prompt_tokens, work.output_tokens)})
        reply.data(b"data: [DONE]\n\n")
        reply.end(work.end(says_usage=self._body.include_usage))

    def _begin(self) -> None:
        self._begun = True
        ids = list(self._prompt) if self._body.return_token_ids else None
        for choice in self._call.work.choices:
            said = {
                "index": choice.index,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
            self._tell(said, None, prompt_token_ids=ids, prompt_text=None)
        if self._echo:
            for choice in self._call.work.choices:
                said = {
                    "index": choice.index,
                    "delta": {"content": self._echo},
                    "logprobs": None,
                    "finish_reason": None,
                }
                self._tell(said, None)

    def _tell(self, said: dict[str, Any], choice: Choice | None, **more: Any) -> None:
        chunk = {**self._base, "choices": [said], **more}
        if self._usage:
            made = 0 if choice is None else len(choice.token_ids)
            chunk["usage"] = usage(len(self._prompt), made)
        self._call.reply.event(chunk)
