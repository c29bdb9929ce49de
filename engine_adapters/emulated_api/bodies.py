"""The bodies of calls, as far as an emulated engine obeys them. Other fields are let through unread, as vLLM does."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, TypeVar

import msgspec

from engine_adapters.emulated_api.errors import ApiError, invalid, refused

Ids = list[Annotated[int, msgspec.Meta(ge=0)]]
Prompts = str | list[str | int | Ids]

GREEDY_BELOW = 1e-5
"""Temperatures that vLLM takes for 0."""


class UsageWish(msgspec.Struct, frozen=True):
    """`stream_options`."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class FunctionSaid(msgspec.Struct, frozen=True):
    """A function that a model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ToolSaid(msgspec.Struct, frozen=True):
    """A tool of a chat."""

    function: FunctionSaid
    type: str = "function"


class AdapterCall(msgspec.Struct, frozen=True):
    """`/v1/load_lora_adapter`, `/v1/unload_lora_adapter`."""

    lora_name: str
    lora_path: str = ""
    load_inplace: bool = False


class GenerationCall(msgspec.Struct, frozen=True, kw_only=True):
    """What bodies that ask for text have in common."""

    model: str | None = None
    seed: int | None = None
    priority: int = 0
    stop: str | list[str] | None = None
    stop_token_ids: Ids | None = None
    ignore_eos: bool = False
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = False
    structured_outputs: dict[str, Any] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    emulated_output_tokens: int = 0

    def stops(self) -> tuple[str, ...]:
        """The stop texts; an empty one is refused as vLLM does."""
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if "" in stops:
            raise ApiError("stop cannot contain an empty string.")
        return stops

    def check_sampling(self) -> None:
        """Raises ApiError for numbers that no sampler takes."""
        if self.temperature is not None and self.temperature < 0:
            raise refused(f"temperature must be non-negative, got {self.temperature}.", "temperature", self.temperature)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise refused(f"top_p must be in (0, 1], got {self.top_p}.", "top_p", self.top_p)


class OpenAiCall(GenerationCall, frozen=True, kw_only=True):
    """Chats and completions."""

    max_tokens: int | None = None
    n: int | None = 1
    stream_options: UsageWish | None = None
    min_tokens: int = 0
    include_stop_str_in_output: bool = False
    truncate_prompt_tokens: Annotated[int, msgspec.Meta(ge=-1)] | None = None
    prompt_logprobs: int | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    response_format: dict[str, Any] | None = None
    echo: bool | None = False

    def check(self) -> None:
        """Raises ApiError for fields that contradict each other."""
        self.check_sampling()
        if self.stream_options is not None and not self.stream:
            raise refused("Stream options can only be defined when `stream=True`.", "stream_options")
        if self.n is not None and self.n < 1:
            raise ApiError(f"n must be at least 1, got {self.n}.")
        if self.n is not None and self.n > 1 and self.temperature is not None and self.temperature < GREEDY_BELOW:
            raise ApiError(f"n must be 1 when using greedy sampling, got {self.n}.")
        if self.min_tokens < 0:
            raise ApiError(f"min_tokens must be greater than or equal to 0, got {self.min_tokens}.")
        if self.prompt_logprobs is not None and self.stream and self.prompt_logprobs != 0:
            raise refused("`prompt_logprobs` are not available when `stream=True`.", "prompt_logprobs")
        wanted = self.response_format
        if wanted is not None:
            if wanted.get("type") not in ("text", "json_object", "json_schema"):
                raise ApiError(
                    f"response_format {wanted.get('type')!r} is not supported by an emulated engine",
                    param="response_format",
                )
            if wanted["type"] == "json_schema" and not isinstance(wanted.get("json_schema"), dict):
                raise refused(
                    "When response_format type is 'json_schema', the 'json_schema' field must be provided.",
                    "response_format",
                )

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        options = self.stream_options
        return options is not None and bool(options.include_usage and options.continuous_usage_stats)


class ChatCall(OpenAiCall, frozen=True, kw_only=True):
    """`/v1/chat/completions`."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = 0
    tools: list[ToolSaid] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = True

    def check(self) -> None:
        super().check()
        top = self.top_logprobs or 0
        if top < -1:
            raise refused("`top_logprobs` must be a positive value or -1.", "top_logprobs", top)
        if top and not self.logprobs:
            raise refused("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs")
        if self.tools is not None and not self.tools:
            raise refused(
                "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely.",
                "tools",
            )
        if self.tool_choice not in (None, "none") and not self.tools:
            raise refused("When using `tool_choice`, `tools` must be set.", "tool_choice")


class CompletionCall(OpenAiCall, frozen=True, kw_only=True):
    """`/v1/completions`."""

    prompt: Prompts | None = None
    max_tokens: int | None = 16
    logprobs: int | None = None

    def check(self) -> None:
        super().check()
        if self.prompt is None or self.prompt == "":
            raise refused("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
        if self.logprobs is not None and self.logprobs < -1:
            raise refused("`logprobs` must be a positive value or -1.", "logprobs", self.logprobs)


class ResponsesCall(GenerationCall, frozen=True, kw_only=True):
    """`/v1/responses`."""

    input: str | list[dict[str, Any]]
    background: bool | None = False
    include: list[str] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = True
    previous_response_id: str | None = None
    prompt: Any = None
    reasoning: dict[str, Any] | None = None
    service_tier: str = "auto"
    store: bool | None = True
    text: dict[str, Any] | None = None
    tool_choice: str | dict[str, Any] = "auto"
    tools: list[dict[str, Any]] = []
    top_logprobs: int | None = 0
    truncation: str | None = "disabled"
    user: str | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None

    def check(self) -> None:
        """Raises ApiError for fields that contradict each other."""
        self.check_sampling()
        if self.background and not self.store:
            raise refused("background can only be used when `store` is true", "background")
        if self.prompt is not None:
            raise refused("prompt template is not supported", "prompt")
        if not self.tools and self.tool_choice == "required":
            raise refused("Tool choice 'required' must be specified with 'tools' parameter.", "tool_choice")


class ToolOfMessages(msgspec.Struct, frozen=True):
    """A tool of Anthropic's API."""

    name: str
    input_schema: dict[str, Any]
    description: str | None = None


class MessagesCount(msgspec.Struct, frozen=True, kw_only=True):
    """`/v1/messages/count_tokens`."""

    model: str
    messages: list[dict[str, Any]]
    system: str | list[dict[str, Any]] | None = None
    tools: list[ToolOfMessages] | None = None
    tool_choice: dict[str, Any] | None = None


class MessagesCall(MessagesCount, frozen=True, kw_only=True):
    """`/v1/messages`."""

    max_tokens: Annotated[int, msgspec.Meta(ge=1)]
    output_config: dict[str, Any] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = False
    temperature: float | None = None
    top_p: float | None = None
    emulated_output_tokens: int = 0


class PoolingCall(msgspec.Struct, frozen=True, kw_only=True):
    """Embeddings, `/pooling`, `/classify`."""

    model: str | None = None
    input: str | list[str | int | Ids | dict[str, Any]] | None = None
    messages: list[dict[str, Any]] | None = None
    encoding_format: str = "float"
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None
    truncate_prompt_tokens: Annotated[int, msgspec.Meta(ge=-1)] | None = None
    priority: int = 0
    task: str | None = None


Text = str | dict[str, Any]


class ScoreCall(msgspec.Struct, frozen=True, kw_only=True):
    """`/score`: every text of the one side with every one, or its own one, of the other."""

    model: str | None = None
    queries: Text | list[Text] | None = None
    documents: Text | list[Text] | None = None
    items: Text | list[Text] | None = None
    data_1: Text | list[Text] | None = None
    data_2: Text | list[Text] | None = None
    text_1: Text | list[Text] | None = None
    text_2: Text | list[Text] | None = None
    priority: int = 0


class RerankCall(msgspec.Struct, frozen=True, kw_only=True):
    """`/rerank`."""

    query: Text
    documents: Text | list[Text]
    model: str | None = None
    top_n: Annotated[int, msgspec.Meta(ge=0)] = 0
    priority: int = 0


class TokenizeCall(msgspec.Struct, frozen=True, kw_only=True):
    """`/tokenize`: a text or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[ToolSaid] | None = None
    return_token_strs: bool | None = False


class DetokenizeCall(msgspec.Struct, frozen=True, kw_only=True):
    """`/detokenize`."""

    tokens: Ids
    model: str | None = None


AnyCall = TypeVar("AnyCall")


def read_body(body: bytes, kind: type[AnyCall]) -> AnyCall:
    """As vLLM's server reads it: a byte order mark and other encodings of Unicode are undone, NaN is a number, and what
    is meant by a text ("5", "true") is taken where a number or a truth is asked. Raises ApiError for what is no JSON or
    does not fit."""
    try:
        tree = _json(body)
        try:
            return msgspec.convert(tree, kind)
        except msgspec.ValidationError:
            return msgspec.convert(tree, kind, strict=False)
    except msgspec.ValidationError as bad:
        said = str(bad)
        missing = re.search(r"missing required field `(\w+)`", said)
        where = re.search(r"at `\$\.?(.*?)`", said)
        path = (where.group(1) if where else "").replace("[...]", "").replace("[", ".").replace("]", "")
        if missing:
            field = ".".join(filter(None, ("body", path, missing.group(1))))
            raise invalid("Field required", field, kind="missing") from None
        raise invalid(said, ".".join(filter(None, ("body", path))), kind="type_error") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as bad:
        raise invalid(f"JSON decode error: {bad}", "body", kind="json_invalid") from None


def _json(body: bytes) -> Any:
    """Raises msgspec.DecodeError or UnicodeDecodeError."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        try:
            tree = json.loads(body)
            # Halves of characters are no text that a model could be given.
            json.dumps(tree, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            pass
        else:
            return tree
        raise
