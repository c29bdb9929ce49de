"""`/v1/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from engine_adapters.emulated_api.api_call import ApiCall
from engine_adapters.emulated_api.bodies import CompletionCall
from engine_adapters.emulated_api.chat import held_to, sampling, usage, whole_usage
from engine_adapters.emulated_api.logprobs import Likelihoods
from engine_adapters.emulated_api.pieces import Part, SaidText
from engine_adapters.emulated_api.prompts import fitting, prompt_list
from engine_adapters.emulated_api.scripts import constrained, luck
from engine_adapters.emulated_api.work import Choice


def complete(call: ApiCall) -> None:
    """Answers a completion. Raises ApiError."""
    body = call.read(CompletionCall)
    body.check()
    model = call.model(body.model)
    assert body.prompt is not None
    limit = 16 if body.max_tokens is None else body.max_tokens
    # Nothing but the prompt is wanted back: the engine computes it and one token more.
    prompt_only = limit == 0 and bool(body.echo)
    fitted = [
        fitting(
            prompt,
            call.config,
            max_tokens=1 if prompt_only else limit,
            truncate=body.truncate_prompt_tokens,
            vocab_size=call.tokenizer.vocab_size,
        )
        for prompt in prompt_list(body.prompt, call.tokenizer)
    ]
    prompts = [prompt for prompt, _ in fitted]
    # The engine cuts each answer to what its own prompt leaves.
    limit = max(room for _, room in fitted)
    held, n = held_to(body), body.n or 1
    scripts = [constrained(held, luck(p, body.seed or 0, i)) for p in prompts for i in range(n)] if held else []
    if prompt_only:
        body = msgspec.structs.replace(body, ignore_eos=True, stop=None, stop_token_ids=None)
    answer = _Stream(call, body, model, prompt_only) if body.stream else _Whole(call, body, model, prompt_only)
    call.generate(prompts, sampling(body, limit), answer, n=n, scripts=scripts)
    if body.stream:
        call.reply.begin_events()


class _Answer:
    def __init__(self, call: ApiCall, body: CompletionCall, model: str, prompt_only: bool) -> None:
        self._call = call
        self._body = body
        self._prompt_only = prompt_only
        self._likely = Likelihoods(call.tokenizer, as_ids=bool(body.return_tokens_as_token_ids))
        self._base = {
            "id": call.answer_id("cmpl"),
            "object": "text_completion",
            "created": call.created,
            "model": model,
        }

    def _echo(self, choice: Choice) -> str:
        # Who asks for ids gets the prompt as ids.
        wanted = self._body.echo and not self._body.return_token_ids
        return self._call.tokenizer.decode(choice.prompt) if wanted else ""

    def _logprobs(self, tokens: Sequence[int], *, offset: int, first: bool) -> dict[str, Any] | None:
        if self._body.logprobs is None:
            return None
        return self._likely.completion(tokens, max(0, self._body.logprobs), offset=offset, first=first)


class _Whole(_Answer):
    def step(self, choice: Choice, token_ids: Sequence[int], parts: Sequence[Part]) -> None:
        pass

    def done(self) -> None:
        work = self._call.work
        self._call.answer(
            "completion",
            {
                **self._base,
                "choices": [self._choice(choice) for choice in work.choices],
                "service_tier": None,
                "system_fingerprint": None,
                "usage": whole_usage(work.prompt_tokens, work.output_tokens),
                "kv_transfer_params": None,
                "ec_transfer_params": None,
                "metrics": None,
            },
        )

    def _choice(self, choice: Choice) -> dict[str, Any]:
        body = self._body
        text, tokens = ("", []) if self._prompt_only else (choice.text, choice.token_ids)
        told = [*choice.prompt, *tokens] if body.echo else tokens
        likely = body.prompt_logprobs if body.prompt_logprobs is not None else body.logprobs if body.echo else None
        return {
            "index": choice.index,
            "text": self._echo(choice) + text,
            "logprobs": self._logprobs(told, offset=0, first=bool(body.echo)),
            "finish_reason": choice.finish,
            "stop_reason": choice.stop_reason,
            "token_ids": list(choice.token_ids) if body.return_token_ids else None,
            "prompt_logprobs": None if likely is None else self._likely.prompt(choice.prompt, likely),
            "prompt_token_ids": list(choice.prompt) if body.return_token_ids else None,
            "routed_experts": None,
        }


class _Stream(_Answer):
    def __init__(self, call: ApiCall, body: CompletionCall, model: str, prompt_only: bool) -> None:
        super().__init__(call, body, model, prompt_only)
        self._offsets: dict[int, int] = {}

    def step(self, choice: Choice, token_ids: Sequence[int], parts: Sequence[Part]) -> None:
        body, reply = self._body, self._call.reply
        reply.count(len(token_ids))
        first = choice.index not in self._offsets
        offset = self._offsets.get(choice.index, 0)
        text = "" if self._prompt_only else "".join(part.text for part in parts if isinstance(part, SaidText))
        told = [] if self._prompt_only else list(token_ids)
        if first and body.echo:
            text, told = self._echo(choice) + text, [*choice.prompt, *told]
        logprobs = self._logprobs(told, offset=offset, first=first and bool(body.echo))
        if logprobs is not None and logprobs["tokens"]:
            offset = logprobs["text_offset"][-1] + len(logprobs["tokens"][-1])
        self._offsets[choice.index] = offset
        said = {
            "index": choice.index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": choice.finish,
            "stop_reason": choice.stop_reason,
            "prompt_token_ids": list(choice.prompt) if first and (body.echo or body.return_token_ids) else None,
            "token_ids": list(token_ids) if body.return_token_ids else None,
        }
        chunk: dict[str, Any] = {**self._base, "choices": [said]}
        if body.continuous_usage:
            chunk["usage"] = usage(len(choice.prompt), len(choice.token_ids))
        reply.event(chunk)

    def done(self) -> None:
        work, reply = self._call.work, self._call.reply
        if self._body.include_usage:
            reply.event({**self._base, "choices": [], "usage": usage(work.prompt_tokens, work.output_tokens)})
        reply.data(b"data: [DONE]\n\n")
        reply.end(work.end(says_usage=self._body.include_usage))
