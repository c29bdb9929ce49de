"""OpenAI's answer bodies, put together from bytes: a streamed chunk is a template with the text in its middle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import orjson

from gateway.intake.client_stream import Usage
from simcore.types import Outcome

DONE = b"data: [DONE]\n\n"
_FINISH = b',"finish_reason":'
_UNSAID = dict.fromkeys(("service_tier", "system_fingerprint", "kv_transfer_params", "ec_transfer_params", "metrics"))
_UNSAID_IN_CHATS = dict.fromkeys(("prompt_logprobs", "prompt_text"))
_UNSAID_IN_MESSAGES = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
"""What vLLM's answers have and tokens do not tell: clients look at the fields, whether or not something is in them."""


class Style(msgspec.Struct, frozen=True, kw_only=True):
    """How an endpoint words its answers."""

    id_prefix: str
    chunk_object: str
    whole_object: str
    before_text: bytes
    """Bytes of a chunk from inside the choice to the text."""
    before_first_text: bytes
    after_text: bytes
    """Bytes of a chunk from the text to what may follow in the choice."""
    is_chat: bool


COMPLETION = Style(
    id_prefix="cmpl-",
    chunk_object="text_completion",
    whole_object="text_completion",
    before_text=b'"text":',
    before_first_text=b'"text":',
    after_text=b"",
    is_chat=False,
)
CHAT = Style(
    id_prefix="chatcmpl-",
    chunk_object="chat.completion.chunk",
    whole_object="chat.completion",
    before_text=b'"delta":{"content":',
    before_first_text=b'"delta":{"role":"assistant","content":',
    after_text=b"}",
    is_chat=True,
)


class Chunks:
    """The chunks of one streamed answer."""

    __slots__ = (
        "_after",
        "_before",
        "_before_logprobs",
        "_choice",
        "_counts",
        "_head",
        "_ids",
        "_prompt_ids",
        "_prompt_tokens",
        "_style",
        "_usage",
    )

    def __init__(
        self,
        style: Style,
        *,
        request_id: str,
        model: str,
        created: int,
        prompt_tokens: int,
        prompt_token_ids: Sequence[int],
        with_ids: bool,
        with_usage: bool,
        with_counts: bool,
        index: int = 0,
    ) -> None:
        """`with_ids`: token ids beside the text, those of the prompt in the first chunk; `with_usage`: a chunk with the
        usage at the end; `with_counts`: the usage so far in every chunk; `index`: which of several answers it is."""
        self._style = style
        self._ids = with_ids
        self._prompt_ids = b',"prompt_token_ids":' + orjson.dumps(prompt_token_ids) if with_ids else b""
        self._usage = with_usage
        self._counts = with_counts
        self._prompt_tokens = prompt_tokens
        self._head = b'data: {"id":%b,"object":"%b","created":%d,"model":%b,"choices":[' % (
            orjson.dumps(style.id_prefix + request_id),
            style.chunk_object.encode(),
            created,
            orjson.dumps(model),
        )
        self._choice = self._head + b'{"index":%d,' % index
        self._before = self._choice + style.before_first_text
        self._before_logprobs = style.after_text + b',"logprobs":'
        self._after = self._before_logprobs + b"null" + _FINISH

    def chunk(
        self,
        text: str,
        token_ids: Sequence[int],
        output_tokens: int,
        finish: bytes = b"null",
        *,
        stop_reason: str | int | None = None,
        logprobs: bytes | None = None,
    ) -> bytes:
        """One chunk. `finish`, `logprobs`: the finish reason and what is told of the tokens, as JSON."""
        ids = b',"token_ids":' + orjson.dumps(token_ids) if self._ids else b""
        if stop_reason is not None:
            ids += b',"stop_reason":' + orjson.dumps(stop_reason)
        if self._counts:
            tail = b"}]%b}\n\n" % self._so_far(output_tokens)
        else:
            tail = b'}],"usage":null}\n\n' if self._usage else b"}]}\n\n"
        if self._prompt_ids:
            # A chat has them beside its choices, a completion in each.
            if self._style.is_chat:
                tail = b"}]" + self._prompt_ids + tail[2:]
            else:
                ids += self._prompt_ids
            self._prompt_ids = b""
        before = self._before
        # The role comes with the first piece of text only.
        self._before = self._choice + self._style.before_text if self._style.is_chat else before
        after = self._after if logprobs is None else b"%b%b%b" % (self._before_logprobs, logprobs, _FINISH)
        return b"".join((before, orjson.dumps(text), after, finish, ids, tail))

    def end(self, usage: Usage) -> bytes:
        """What follows the last chunk."""
        if not self._usage:
            return DONE
        return b"%b],%b}\n\n%b" % (self._head, b'"usage":' + orjson.dumps(usage_json(usage)), DONE)

    def _so_far(self, output_tokens: int) -> bytes:
        prompt = self._prompt_tokens
        return b',"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}' % (
            prompt,
            output_tokens,
            prompt + output_tokens,
        )


def choice(
    style: Style,
    text: str,
    outcome: Outcome,
    *,
    index: int = 0,
    stop_reason: str | int | None = None,
    logprobs: bytes = b"null",
    token_ids: Sequence[int] | None = None,
    prompt_token_ids: Sequence[int] = (),
) -> dict[str, Any]:
    """One complete answer. `logprobs`: as JSON. `token_ids` None: no ids were asked for, nor those of the prompt."""
    told: dict[str, Any] = {
        "index": index,
        "logprobs": orjson.Fragment(logprobs),
        "finish_reason": outcome.value,
        "stop_reason": stop_reason,
        "token_ids": token_ids,
        "routed_experts": None,
    }
    if style.is_chat:
        told["message"] = {"role": "assistant", "content": text, **_UNSAID_IN_MESSAGES}
    else:
        told |= {
            "text": text,
            "prompt_token_ids": None if token_ids is None else prompt_token_ids,
            "prompt_logprobs": None,
        }
    return told


def whole(
    style: Style,
    choices: Sequence[dict[str, Any]],
    *,
    request_id: str,
    model: str,
    created: int,
    usage: Usage,
    prompt_token_ids: Sequence[int] | None,
) -> bytes:
    """A complete response. `prompt_token_ids` None: they were not asked for."""
    tree: dict[str, Any] = {
        "id": style.id_prefix + request_id,
        "object": style.whole_object,
        "created": created,
        "model": model,
        "choices": choices,
        "usage": usage_json(usage),
        **_UNSAID,
    }
    if style.is_chat:
        tree |= {"prompt_token_ids": prompt_token_ids, **_UNSAID_IN_CHATS}
    return orjson.dumps(tree)


def usage_json(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
