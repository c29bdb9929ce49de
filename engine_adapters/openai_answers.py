"""What OpenAI-compatible servers answer, read leniently. Pure.

Servers and the proxies before them leave fields out, send null for "nothing", numbers as text, one thing where others
send a list. What has a sane reading is read; what has none raises an `EngineError` that names the field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from engine_adapters.base import EngineError, FinishReason, RequestRefused
from simcore.types import TokenLogprobs

EXCERPT_CHARS = 200

_FINISH: dict[str, FinishReason] = {
    **dict.fromkeys(("stop", "stop_sequence", "stop_token", "stop_str", "eos", "eos_token", "end_turn"), "stop"),
    **dict.fromkeys(("repetition", "content_filter", "tool_calls", "function_call", "complete", "completed"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "max_length", "max_new_tokens", "max_output_tokens"), "length"),
    "model_length": "length",
    **dict.fromkeys(("abort", "aborted", "cancel", "cancelled", "canceled"), "aborted"),
}
"""The words for an end: OpenAI's and vLLM's, TGI's, SGLang's, Mistral's, Gemini's and Anthropic's."""
_MODEL_LENGTHS = ("max_model_len", "max_model_length", "context_length", "max_context_length", "context_window")


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a streamed answer, or a whole answer. None: it does not say."""

    token_ids: tuple[int, ...] | None = None
    text: str = ""
    finish: FinishReason | None = None
    completion_tokens: int | None = None
    """How many tokens the server has counted so far."""
    cached_tokens: int | None = None
    stop_token_id: int | None = None
    """Which token ended the answer, if one did that is no plain end-of-sequence token."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each of `token_ids`, if `read_piece` was asked for them."""


class EngineModel(msgspec.Struct, frozen=True):
    """An entry of `/v1/models`."""

    id: str
    max_model_len_tokens: int | None = None


class _Choice(msgspec.Struct):
    text: str
    token_ids: tuple[int, ...] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    index: int = 0
    logprobs: msgspec.Raw = msgspec.Raw(b"null")
    """Of any form, since most answers have none that anybody wants."""


class _Logprobs(msgspec.Struct):
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float] | None] | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int
    prompt_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None
    error: None = None


_chunks = msgspec.json.Decoder(_Chunk)
_TOKEN_ID = "token_id:"
"""Before the ids of tokens that vLLM names by them (`return_tokens_as_token_ids`)."""


def read_piece(data: bytes, *, with_logprobs: bool = False) -> Piece:
    """An event's data, or a body; `with_logprobs`: those of tokens that are named by their ids are read too.

    Raises RequestRefused for an error of the request that it tells, EngineError for another one and for what cannot be
    read."""
    try:
        chunk = _chunks.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _piece(_object(data), with_logprobs)
    if len(chunk.choices) > 1 or any(choice.index for choice in chunk.choices):
        return _piece(_object(data), with_logprobs)
    text, ids, word, stop = "", None, None, None
    for choice in chunk.choices:
        text, ids, word, stop = choice.text, choice.token_ids, choice.finish_reason, choice.stop_reason
    if ids and min(ids) < 0:
        return _piece(_object(data), with_logprobs)
    logprobs = msgspec.json.decode(chunk.choices[0].logprobs) if with_logprobs and ids else None
    usage = chunk.usage
    details = None if usage is None else usage.prompt_tokens_details
    return Piece(
        token_ids=ids,
        text=text,
        finish=_finish(word),
        completion_tokens=None if usage is None else usage.completion_tokens,
        cached_tokens=None if details is None else details.cached_tokens,
        stop_token_id=stop if isinstance(stop, int) and stop >= 0 else None,
        logprobs=() if logprobs is None else _logprobs(ids or (), logprobs),
    )


def read_models(body: bytes) -> list[EngineModel]:
    """The entries of `/v1/models`, those without a name left out beside others; empty when it serves none. Raises
    EngineError."""
    tree = _json(body)
    if isinstance(tree, dict):
        if fault := _fault(tree):
            raise EngineError(fault)
        entries = next((tree[key] for key in ("data", "models") if tree.get(key) is not None), None)
    else:
        entries = tree
    if isinstance(entries, dict):
        entries = [entries]
    if not isinstance(entries, list):
        raise EngineError(f"data: expected a list of models, got {_shown(entries)}")
    models: dict[str, EngineModel] = {}
    nameless = ""
    for position, entry in enumerate(entries):
        fields = entry if isinstance(entry, dict) else {"id": entry}
        name = next((fields[k] for k in ("id", "name", "model") if isinstance(fields.get(k), str) and fields[k]), "")
        if not name:
            nameless = nameless or f"data[{position}].id: expected a name, got {_shown(fields.get('id'))}"
            continue
        said = next(((k, fields[k]) for k in _MODEL_LENGTHS if fields.get(k) is not None), None)
        length = None if said is None else _count(said[1], f"data[{position}].{said[0]}")
        models.setdefault(name, EngineModel(name, length or None))
    if nameless and not models:
        raise EngineError(nameless)
    return list(models.values())


def read_fault(body: bytes) -> str:
    """What an error's body says, for people."""
    try:
        tree = _json(body)
    except EngineError:
        tree = None
    said = _fault(tree) if isinstance(tree, dict) else ""
    return said or body[:EXCERPT_CHARS].decode(errors="replace").strip()


def _piece(tree: Mapping[str, Any], with_logprobs: bool) -> Piece:
    if fault := _fault(tree):
        # What a server finds out about a request when its answer has begun: the status is in the error then.
        error = tree.get("error")
        if isinstance(error, dict) and error.get("code") in (400, 422):
            raise RequestRefused(fault)
        raise EngineError(f"the engine failed: {fault}")
    choice = _choice(tree.get("choices"))
    usage = _dict(tree.get("usage"), "usage")
    details = _dict(usage.get("prompt_tokens_details"), "usage.prompt_tokens_details")
    message = _dict(choice.get("delta") or choice.get("message"), "choices[0].delta")
    ids = choice.get("token_ids", message.get("token_ids"))
    text = choice.get("text")
    word = choice.get("finish_reason")
    stop = choice.get("stop_reason")
    token_ids = None if ids is None else _token_ids(ids)
    logprobs = choice.get("logprobs") if with_logprobs else None
    produced, cached = usage.get("completion_tokens"), details.get("cached_tokens", usage.get("cached_tokens"))
    return Piece(
        token_ids=token_ids,
        text=_text(message.get("content") if text is None else text),
        finish=_finish(word.get("type") if isinstance(word, dict) else word),
        completion_tokens=None if produced is None else _count(produced, "usage.completion_tokens"),
        cached_tokens=None if cached is None else _count(cached, "usage.prompt_tokens_details.cached_tokens"),
        # What ended it is more than we need to know: a value that makes no sense is none.
        stop_token_id=stop if type(stop) is int and stop >= 0 else None,
        logprobs=() if logprobs is None else _logprobs(token_ids or (), logprobs),
    )


def _logprobs(token_ids: Sequence[int], tree: Any) -> tuple[TokenLogprobs, ...]:
    """What is told of each token. Raises EngineError."""
    try:
        told = msgspec.convert(tree, _Logprobs)
        tops = told.top_logprobs or [None] * len(token_ids)
        return tuple(
            [
                _token_logprobs(token_id, logprob, top or {})
                for token_id, logprob, top in zip(token_ids, told.token_logprobs, tops, strict=True)
            ]
        )
    except ValueError as bad:
        raise EngineError(f"choices[0].logprobs: {bad}") from None


def _token_logprobs(token_id: int, logprob: float, top: Mapping[str, float]) -> TokenLogprobs:
    """Raises ValueError for tokens that are not named by their ids."""
    others = {int(name.removeprefix(_TOKEN_ID)): value for name, value in top.items()}
    others.pop(token_id, None)
    return TokenLogprobs(logprob, tuple(others), tuple(others.values()))


def _choice(choices: Any) -> Mapping[str, Any]:
    """The one that was asked for; empty when there is none."""
    if choices is None:
        return {}
    if isinstance(choices, dict):
        return choices
    if not isinstance(choices, list):
        raise EngineError(f"choices: expected a list, got {_shown(choices)}")
    for choice in choices:
        if choice is None:
            continue
        if not isinstance(choice, dict):
            raise EngineError(f"choices[0]: expected an object, got {_shown(choice)}")
        if choice.get("index") in (None, 0, "0"):
            return choice
    return {}


def _finish(word: Any) -> FinishReason | None:
    if word is None or word == "" or word is False:
        return None
    known = _FINISH.get(word.strip().lower()) if isinstance(word, str) else None
    if known is None and isinstance(word, str) and word.strip().lower() in ("null", "none"):
        return None
    if known is None:
        raise EngineError(f"the engine ended the request with finish_reason {_shown(word)}")
    return known


def _token_ids(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(_count(v, f"choices[0].token_ids[{i}]") for i, v in enumerate(values) if v is not None)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(_text(part.get("text") if isinstance(part, dict) else part) for part in value)
    raise EngineError(f"choices[0].text: expected a text, got {_shown(value)}")


def _count(value: Any, field: str) -> int:
    """A whole number >= 0, also as `12.0` or `"12"`. Raises EngineError."""
    number = value
    if isinstance(value, str):
        plain = value.strip()
        number = int(plain) if plain.isascii() and plain.isdecimal() and len(plain) < 20 else None
    elif isinstance(value, float):
        number = int(value) if value.is_integer() else None
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**63:
        raise EngineError(f"{field}: expected a whole number, got {_shown(value)}")
    return number


def _dict(value: Any, field: str) -> Mapping[str, Any]:
    """An object; empty for null, and for the empty list or text that some languages make of one."""
    if not value:
        return {}
    if not isinstance(value, dict):
        raise EngineError(f"{field}: expected an object, got {_shown(value)}")
    return value


def _fault(tree: Mapping[str, Any]) -> str:
    """What went wrong, if that is what it tells; else empty."""
    error = tree.get("error")
    if not error and (tree.get("object") == "error" or ("choices" not in tree and "data" not in tree)):
        error = next((tree[key] for key in ("message", "detail", "msg", "error_message") if tree.get(key)), None)
        if error is None and tree.get("object") == "error":
            error = "no reason given"
    if not error:
        return ""
    if isinstance(error, dict):
        error = next((error[key] for key in ("message", "detail", "msg", "type", "code") if error.get(key)), error)
    return error if isinstance(error, str) else json.dumps(error)[:EXCERPT_CHARS]


def _object(data: bytes) -> Mapping[str, Any]:
    tree = _json(data)
    if not isinstance(tree, dict):
        raise EngineError(f"expected a JSON object, got {_shown(tree)}")
    return tree


def _json(data: bytes) -> Any:
    try:
        # Not `orjson`: servers write NaN for numbers that nobody asked for.
        return json.loads(data.decode("utf-8-sig", errors="replace"))
    except (ValueError, RecursionError):
        raise EngineError(f"it is no JSON: {data[:EXCERPT_CHARS].decode(errors='replace')!r}") from None


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= EXCERPT_CHARS else f"{text[:EXCERPT_CHARS]}..."
