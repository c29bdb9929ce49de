"""OpenAI's request bodies: what is understood, what may be there without effect, what is refused by name.

A field is never ignored in silence. `UNDERSTOOD` has an effect, of `NEUTRAL` only the values that change nothing are
taken, `WITHOUT_EFFECT` is for the caller's own books; everything else is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from ctypes import c_float
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import orjson

from gateway.core.events import Slo
from gateway.core.outcomes import Denial
from gateway.intake.call_facts import said_priority, said_resume
from gateway.intake.client_request import DEFAULT_COMPLETION_TOKENS, ClientRequest, Sampling
from gateway.intake.denied import Denied, invalid
from length_model.core.conversation import Turn

TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
Count32 = Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]
Seed = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

FOR_ENGINES = ("endpoint-load-metrics-format", "x-data-parallel-rank")
"""Headers by which vLLM's server answers otherwise, and of which tokens know nothing."""

_NOTHING: tuple[Any, ...] = (None,)
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "echo": (None, False),
    "top_logprobs": (None, 0),
    "prompt_logprobs": _NOTHING,
    "length_penalty": (None, 1),
    "suffix": (None, ""),
    "use_beam_search": (None, False),
    "include_stop_str_in_output": (None, False),
    "skip_special_tokens": (None, True),
    "spaces_between_special_tokens": (None, True),
    "add_special_tokens": (None, True, False),
    "add_generation_prompt": (None, True),
    "continue_final_message": (None, False),
    "truncate_prompt_tokens": _NOTHING,
    "response_format": (None, {"type": "text"}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "modalities": (None, ["text"]),
    "audio": _NOTHING,
    "prediction": _NOTHING,
    "reasoning_effort": (None, "none"),
    "moderation": _NOTHING,
    "web_search_options": _NOTHING,
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "verbosity": (None, "medium"),
    "chat_template": _NOTHING,
    "chat_template_kwargs": (None, {}),
    "documents": (None, []),
    "guided_json": _NOTHING,
    "guided_regex": _NOTHING,
    "guided_choice": _NOTHING,
    "guided_grammar": _NOTHING,
    "structured_outputs": _NOTHING,
}
"""Fields of OpenAI's and vLLM's API that are not supported, with the values that ask for nothing."""
WITHOUT_EFFECT = frozenset(
    {"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"}
)


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False


class SloBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Our extension `slo`; seconds, 0 for none."""

    ttft_s: float = 0.0
    tpot_s: float = 0.0
    deadline_s: float = 0.0


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """What completions and chat completions have in common. The fields from `top_k` on to
    `return_tokens_as_token_ids` are vLLM's or OpenAI's own, those after them ours."""

    model: str = ""
    max_tokens: Count32 | None = None
    n: Count32 | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: Seed | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    top_k: Count32 | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    min_tokens: Count32 | None = None
    logit_bias: dict[TokenId, float] | None = None
    bad_words: list[str] | None = None
    priority: Count32 | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    request_id: str = ""
    session: str = ""
    slo: SloBody = SloBody()
    policy: str = ""
    resume: Literal["exact", "best_effort", "off"] | None = None
    idempotency_key: str = ""
    belief_tokens: list[TokenId] = []

    def answer_limit(self) -> tuple[str, int | None]:
        """The limit on the answer, in tokens, and the field that sets it."""
        return "max_tokens", self.max_tokens


class CompletionBody(Body, frozen=True, kw_only=True):
    prompt: Any
    """A text or a list of token ids, alone or as the only item of a list: see `prompt_of`."""
    logprobs: Count32 | None = None

    def answer_limit(self) -> tuple[str, int | None]:
        """As OpenAI and vLLM have it, a completion is short unless more is asked for; a chat may take all there is."""
        return "max_tokens", DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens

    def asked_logprobs(self) -> int | None:
        """With how many others each token's likelihood is to be told; None: not at all."""
        return self.logprobs


class ChatBody(Body, frozen=True, kw_only=True):
    messages: list[dict[str, Any]]
    max_completion_tokens: Count32 | None = None
    logprobs: bool | None = None
    top_logprobs: Count32 | None = None

    def answer_limit(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens

    def asked_logprobs(self) -> int | None:
        """With how many others each token's likelihood is to be told; None: not at all. Raises Denied."""
        if self.logprobs:
            return self.top_logprobs or 0
        if self.top_logprobs:
            raise invalid("top_logprobs needs logprobs: true", param="top_logprobs")
        return None


AnyBody = TypeVar("AnyBody", bound=Body)


def check_headers(headers: Mapping[str, str]) -> None:
    """Raises Denied for headers that ask for what is not done here; `headers` by lower-case name."""
    kind = headers.get("content-type", "application/json")
    if kind.partition(";")[0].lower() != "application/json":
        raise invalid(f"header content-type must be application/json, got {kind[:50]!r}", param="content-type")
    for name in FOR_ENGINES:
        if name in headers:
            raise Denied(Denial.UNSUPPORTED, f"header {name} is not supported; leave it out", param=name)


def completion_body(data: bytes | bytearray) -> CompletionBody:
    """Raises Denied."""
    return _read(data, CompletionBody)


def chat_body(data: bytes | bytearray) -> ChatBody:
    """Raises Denied."""
    return _read(data, ChatBody)


def prompt_of(body: CompletionBody) -> str | Sequence[int]:
    """The one prompt. Raises Denied for several, and for what is none."""
    prompt: Any = body.prompt
    # One prompt may come wrapped in a list, as several would.
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        if len(prompt) != 1:
            raise Denied(
                Denial.UNSUPPORTED, f"prompt holds {len(prompt)} prompts; send one prompt per request", param="prompt"
            )
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    try:
        return msgspec.convert(prompt, list[TokenId])
    except msgspec.ValidationError as bad:
        reason = _PLACE.sub("", str(bad)).replace("`", "'")
        raise invalid(f"prompt is neither a text nor a list of token ids: {reason}", param="prompt") from None


def client_request(
    body: CompletionBody | ChatBody,
    headers: Mapping[str, str],
    prompt: str | Sequence[int],
    *,
    question: str = "",
    history: Sequence[Turn] = (),
) -> ClientRequest:
    """What the client asks for, as the intake takes it. Raises Denied.

    `headers`: HTTP headers by lower-case name; `x-request-id`, `x-session-id`, `idempotency-key`, `x-astrolabe-resume`
    and `traceparent` stand in for absent fields, `x-vllm-priority` goes before the body's. `question` and `history` are
    those of a conversation.
    """
    name, limit = body.answer_limit()
    if limit is not None and limit < 1:
        raise invalid(f"{name} must be >= 1, got {limit}; omit it for as much as the model allows", param=name)
    stop = body.stop
    slo = body.slo
    priority = said_priority(headers)
    return ClientRequest(
        prompt=prompt,
        request_id=body.request_id or headers.get("x-request-id", ""),
        model=body.model,
        sampling=Sampling(
            max_tokens=limit,
            temperature=_single_precision(body.temperature),
            top_p=_single_precision(body.top_p),
            # Both -1 (vLLM) and 0 mean all tokens.
            top_k=0 if body.top_k == -1 else body.top_k,
            seed=body.seed,
            stop=(stop,) if isinstance(stop, str) else stop or (),
            stop_token_ids=body.stop_token_ids or (),
            ignore_eos=bool(body.ignore_eos),
            min_p=_single_precision(body.min_p),
            presence_penalty=_single_precision(body.presence_penalty),
            frequency_penalty=_single_precision(body.frequency_penalty),
            repetition_penalty=_single_precision(body.repetition_penalty),
            min_tokens=body.min_tokens or 0,
            logit_bias=body.logit_bias or {},
            bad_words=body.bad_words or (),
            logprobs=body.asked_logprobs(),
        ),
        answers=1 if body.n is None else body.n,
        priority=body.priority or 0 if priority is None else priority,
        session=body.session or headers.get("x-session-id", ""),
        slo=Slo(ttft_s=slo.ttft_s or None, tpot_s=slo.tpot_s or None, deadline_s=slo.deadline_s or None),
        idempotency_key=body.idempotency_key or headers.get("idempotency-key", ""),
        belief_tokens=body.belief_tokens,
        policy=body.policy,
        resume=body.resume or said_resume(headers) or "exact",
        traceparent=headers.get("traceparent", ""),
        question=question,
        history=history,
    )


def _single_precision(value: float | None) -> float | None:
    """The number as engines get it: what is checked must be what arrives (a tiny one as 0, a huge one as infinite)."""
    return None if value is None else c_float(value).value


_PLACE = re.compile(r" - at `\$\.?([^`]*)`$")
_MISSING = re.compile(r"missing required field `(\w+)`")


def _read(data: bytes | bytearray, kind: type[AnyBody]) -> AnyBody:
    try:
        fields = orjson.loads(data)
    except orjson.JSONDecodeError as bad:
        raise invalid(f"the body is not valid JSON: {bad}") from None
    if not isinstance(fields, dict):
        raise invalid("the body must be a JSON object")
    known = kind.__struct_fields__
    for name in [name for name in fields if name not in known]:
        value = fields.pop(name)
        if name in NEUTRAL:
            if not any(_is(value, neutral) for neutral in NEUTRAL[name]):
                raise Denied(Denial.UNSUPPORTED, f"{name} is not supported; leave it out", param=name)
        elif name not in WITHOUT_EFFECT:
            raise invalid(f"unknown field {name!r}; leave it out", param=name)
    # What clients send as null is what they would rather leave out.
    for name in [name for name, value in fields.items() if value is None]:
        del fields[name]
    if "stream_options" in fields and fields.get("stream", False) is False:
        raise invalid("stream_options needs stream: true; leave it out", param="stream_options")
    try:
        return msgspec.convert(fields, kind, str_keys=True)
    except msgspec.ValidationError as bad:
        text = str(bad)
        place = _PLACE.search(text)
        missing = _MISSING.search(text)
        param = place[1] if place else missing[1] if missing else ""
        message = _PLACE.sub("", text).replace("`", "'")
        raise invalid(f"{param}: {message}" if param else message, param=param) from None


def _is(value: Any, neutral: Any) -> bool:
    """Equality that tells True from 1."""
    return value == neutral and isinstance(value, bool) is isinstance(neutral, bool)
