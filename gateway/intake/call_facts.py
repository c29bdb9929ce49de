"""What a call that is handed on asks for, as far as placement must know: read from a body that nobody changes. Pure.

Nothing is refused here. What cannot be read is not known, and its engine will say what is wrong with it.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import msgspec
import orjson

from engine_adapters.chat_template import Message, Tool
from gateway.core.events import Resume, Slo
from gateway.core.outcomes import Denial
from gateway.intake.call_paths import CallKind
from gateway.intake.client_request import DEFAULT_COMPLETION_TOKENS
from gateway.intake.denied import Denied
from gateway.intake.resumable_answer import can_go_on
from length_model.core.conversation import Turn

Body = bytes | bytearray

READ_BYTES = 1024 * 1024
"""Longer bodies are not taken apart, as that would hold up everybody else: their prompts are estimated by length."""
MEDIA_TOKENS = {"image": 1024, "audio": 512, "video": 4096}
"""What a picture, a recording, a film is taken to be in a prompt."""
MOST_ANSWERS = 1024
LONGEST_S = 1e9
RESUME = "x-astrolabe-resume"
VLLM_PRIORITY = "x-vllm-priority"

_ANSWERS_ALL_PROMPTS: frozenset[CallKind] = frozenset({"completions"})
_PROMPT_FIELDS = (
    "messages", "prompt", "input", "instructions", "system", "suffix", "query", "documents", "queries", "text_1",
    "text_2", "data_1", "data_2", "texts", "inputs", "items", "state", "questions", "token_ids", "tools", "functions",
)  # fmt: skip
_SLO_HEADERS = tuple((f"x-astrolabe-{name.replace('_', '-')}", name) for name in ("ttft_s", "tpot_s", "deadline_s"))
_NAMES = frozenset({"model", "request_id", "session", "policy", "idempotency_key"})
"""Fields of bodies that are called the same in `CallFacts`."""
_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
_TEMPLATE_FIELDS = (
    "messages", "tools", "chat_template", "chat_template_kwargs", "add_generation_prompt", "continue_final_message",
    "add_special_tokens",
)  # fmt: skip
_MODEL = re.compile(rb'"model"\s*:\s*("(?:[^"\\]|\\.)*")')
_MULTIPART_MODEL = re.compile(rb'name="?model"?\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]*)\r\n')
_BEGINS_MEDIA = (b'"data:', b'"data":"', b'"data": "')


class Prompt(msgspec.Struct):
    """What must be counted."""

    texts: list[str] = []
    token_ids: list[int] = []
    """Of all prompts that come as ids."""
    media_tokens: int = 0
    unread_bytes: int = 0
    """Text that is not looked at."""
    count: int = 1
    """How many prompts there are."""


class CallFacts(msgspec.Struct, kw_only=True):
    """What is known of a call."""

    model: str = ""
    prompt: Prompt = msgspec.field(default_factory=Prompt)
    turns: list[Message] = []
    """A conversation of text alone, for the chat template; empty: there is none."""
    tools: list[Tool] = []
    """Its tools, for the same."""
    offers_tools: bool = False
    """Whether the answer may be the call of a tool, of whatever kind."""
    chat: dict[str, Any] = {}
    """What of a chat's body decides how its template writes it out, as it came."""
    question: str = ""
    """The last turn, for the length model; empty: the prompt."""
    history: list[Turn] = []
    max_output_tokens: int | None = None
    """Limit on one answer; None: what the context leaves."""
    answers: int = 1
    is_light: bool = False
    """Whether the engine has no part in it."""
    runs_to_limit: bool = False
    request_id: str = ""
    session: str = ""
    priority: int = 0
    slo: Slo = Slo()
    policy: str = ""
    idempotency_key: str = ""
    belief_tokens: list[int] = []
    previous_response: str = ""
    """The response that this one goes on from, which one node holds."""
    resume: Resume | None = None
    can_go_on: bool = False
    """Whether another node could go on with a begun answer, by its text."""


def facts_of(kind: CallKind, headers: Mapping[str, str], body: Body) -> CallFacts:
    """What the call asks for. `headers`: by lower-case name."""
    facts = CallFacts()
    fields = _fields(headers, body, facts)
    if fields is not None:
        _read(kind, fields, facts)
    elif kind == "audio":
        facts.prompt.media_tokens = MEDIA_TOKENS["audio"]
    facts.is_light = kind == "light" or not body or (kind in ("other", "pooled") and not _has_prompt(facts))
    if kind == "pooled" or facts.is_light:
        facts.max_output_tokens = facts.answers = 1
    if facts.is_light:
        facts.prompt, facts.turns, facts.tools = Prompt(), [], []
    return facts


def said_in_headers(headers: Mapping[str, str], facts: CallFacts) -> None:
    """Puts what headers say in the place of what the body leaves open. Raises Denied for numbers that are none."""
    facts.request_id = headers.get("x-request-id", "") or facts.request_id
    facts.session = facts.session or headers.get("x-session-id", "")
    facts.idempotency_key = facts.idempotency_key or headers.get("idempotency-key", "")
    facts.policy = facts.policy or headers.get("x-astrolabe-policy", "")
    if (said := said_priority(headers)) is not None:
        facts.priority = said
    if "x-astrolabe-priority" in headers:
        priority = _header_number(headers, "x-astrolabe-priority")
        if not -(2**31) <= priority < 2**31:
            raise _no_number("x-astrolabe-priority", headers, "a number of 32 bits")
        facts.priority = round(priority)
    slo = facts.slo
    for name, field in _SLO_HEADERS:
        if name in headers and getattr(slo, field) is None:
            slo = msgspec.structs.replace(slo, **{field: _header_number(headers, name)})
    facts.slo = slo
    facts.resume = facts.resume or said_resume(headers)


def said_resume(headers: Mapping[str, str]) -> Resume | None:
    """What the header asks for when a node is lost; None: it says nothing. Raises Denied."""
    said = headers.get(RESUME, "").strip().lower()
    if not said:
        return None
    try:
        resume: Resume = msgspec.convert(said, Resume)
    except msgspec.ValidationError:
        raise Denied(
            Denial.INVALID, f"header {RESUME}: {said[:50]!r} is not exact, best_effort or off", param=RESUME
        ) from None
    return resume


def said_priority(headers: Mapping[str, str]) -> int | None:
    """What vLLM's own header for it says; None: nothing, or what is no number."""
    try:
        return _in_32_bits(int(headers[VLLM_PRIORITY]))
    except (KeyError, ValueError):
        return None


def _header_number(headers: Mapping[str, str], name: str) -> float:
    try:
        return float(headers[name])
    except ValueError:
        raise _no_number(name, headers, "a number") from None


def _no_number(name: str, headers: Mapping[str, str], wanted: str) -> Denied:
    return Denied(Denial.INVALID, f"header {name}: {headers[name][:50]!r} is not {wanted}", param=name)


# --- bodies -----------------------------------------------------------------------------------------------------------


def _fields(headers: Mapping[str, str], body: Body, facts: CallFacts) -> dict[str, Any] | None:
    """The fields of a JSON body; None when there are none to be read."""
    if not body:
        return None
    if headers.get("content-type", "").startswith("multipart/"):
        found = _MULTIPART_MODEL.search(body[:READ_BYTES]) or _MULTIPART_MODEL.search(body[-READ_BYTES:])
        facts.model = found[1].decode("utf-8", errors="replace") if found is not None else ""
        return None
    if headers.get("content-encoding", "identity").lower() not in ("identity", ""):
        body = _inflated(body)
    if len(body) > READ_BYTES:
        return _outer_fields(body, facts)
    if (fields := _json(body)) is None and (model := _MODEL.search(body)) is not None:
        # Cut off, or not quite JSON: a node of that model may say what is wrong with it.
        facts.model = str(_json(model[1]) or "")
    return fields if isinstance(fields, dict) else None


def _json(data: Body) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass
    try:
        return _writable(json.loads(bytes(data).decode("utf-8-sig")))
    except (ValueError, RecursionError):
        return None


def _writable(value: Any) -> Any:
    """The same without what cannot be written again: halves of characters, numbers of more than 64 bits."""
    if isinstance(value, str):
        return value.encode("utf-8", errors="replace").decode()
    if isinstance(value, list):
        return [_writable(item) for item in value]
    if isinstance(value, dict):
        return {_writable(name): _writable(item) for name, item in value.items()}
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return float(value) if abs(value) < 2**1000 else None
    return value


def _inflated(body: Body) -> bytes:
    try:
        # 47: gzip or zlib, whichever it is.
        return zlib.decompressobj(47).decompress(body, READ_BYTES)
    except zlib.error:
        return b""


_outer = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _outer_fields(body: Body, facts: CallFacts) -> dict[str, Any] | None:
    """The small fields of a long body; its prompt is only measured."""
    try:
        raw = _outer.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    fields = {}
    for name, value in raw.items():
        if len(bytes(value)) <= 4096:
            fields[name] = _json(bytes(value))
        elif name in _PROMPT_FIELDS:
            _measure(bytes(value), facts.prompt)
    return fields


def _measure(data: bytes, prompt: Prompt) -> None:
    """Counts text and pictures by length alone."""
    media_bytes = media = 0
    for begin in _BEGINS_MEDIA:
        at = data.find(begin)
        while at >= 0:
            end = data.find(b'"', at + len(begin))
            end = len(data) if end < 0 else end
            media, media_bytes = media + 1, media_bytes + end - at
            at = data.find(begin, end)
    prompt.media_tokens += media * MEDIA_TOKENS["image"]
    prompt.unread_bytes += max(0, len(data) - media_bytes)


def _read(kind: CallKind, fields: dict[str, Any], facts: CallFacts) -> None:
    for name in _NAMES.intersection(fields):
        setattr(facts, name, _text(fields[name]))
    facts.previous_response = _text(fields.get("previous_response_id"))
    if (resume := fields.get("resume")) and resume in get_args(Resume):
        facts.resume = resume
    facts.can_go_on = can_go_on(kind, fields)
    facts.priority = _in_32_bits(_whole(fields.get("priority")) or 0)
    facts.belief_tokens = _ids(fields.get("belief_tokens"))
    if "slo" in fields:
        facts.slo = _slo(fields["slo"])
    if kind == "tokens" and isinstance(sampling := fields.get("sampling_params"), dict):
        # Everybody else has these beside the prompt.
        fields = {**sampling, **fields}
    facts.runs_to_limit = fields.get("ignore_eos") is True and not fields.get("stop")
    limits = (_whole(fields[name]) for name in _LIMITS if name in fields)
    facts.max_output_tokens = next((limit for limit in limits if limit is not None and limit > 0), None)
    if kind == "completions":
        facts.max_output_tokens = facts.max_output_tokens or DEFAULT_COMPLETION_TOKENS
    prompts = fields.get("prompt") if kind in _ANSWERS_ALL_PROMPTS else None
    if isinstance(prompts, list) and prompts and not isinstance(prompts[0], int):
        facts.prompt.count = len(prompts)
    several = max(_whole(fields.get("n")) or 1, _whole(fields.get("best_of")) or 1, 1)
    facts.answers = min(several * facts.prompt.count, MOST_ANSWERS)
    facts.turns = _turns(fields.get("messages")) if "messages" in fields else []
    if kind == "chat":
        facts.chat = {name: fields[name] for name in _TEMPLATE_FIELDS if name in fields}
    facts.tools = _tools(fields.get("tools")) if facts.turns else []
    facts.offers_tools = bool(fields.get("tools")) and fields.get("tool_choice") != "none"
    for name in _PROMPT_FIELDS:
        if name in fields and not (name == "messages" and facts.turns) and not (name == "tools" and facts.tools):
            _gather(fields[name], facts.prompt)
    if facts.turns:
        *before, last = facts.turns
        facts.question = last.content
        facts.history = [
            Turn(role="user" if turn.role == "user" else "assistant", text=turn.content)
            for turn in before
            if turn.role in ("user", "assistant")
        ]


def _has_prompt(facts: CallFacts) -> bool:
    prompt = facts.prompt
    return bool(facts.turns or prompt.texts or prompt.token_ids or prompt.media_tokens or prompt.unread_bytes)


def _turns(messages: Any) -> list[Message]:
    """The conversation, if a chat template could take it: text alone."""
    if not isinstance(messages, list):
        return []
    turns = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return []
        content = message.get("content")
        if isinstance(content, list):
            texts = [part.get("text") if isinstance(part, dict) and "text" in part else None for part in content]
            if not all(isinstance(text, str) for text in texts):
                return []
            content = "\n".join(map(str, texts))
        calls = message.get("tool_calls")
        said = f"{content or ''}{orjson.dumps(calls).decode() if calls else ''}"
        if content is not None and not isinstance(content, str):
            return []
        name = message.get("name")
        turns.append(Message(message["role"], said, name if isinstance(name, str) else ""))
    return turns


def _tools(value: Any) -> list[Tool]:
    """The tools, if a chat template could take them all."""
    if not isinstance(value, list) or not all(
        isinstance(tool, dict) and isinstance(tool.get("function"), dict) and tool["function"].get("name")
        for tool in value
    ):
        return []
    return value


def _gather(value: Any, prompt: Prompt, depth: int = 0) -> None:
    """Texts, ids and pictures, wherever an API has them."""
    if isinstance(value, str):
        prompt.texts.append(value)
    elif isinstance(value, list):
        if value and isinstance(value[0], int) and not isinstance(value[0], bool):
            prompt.token_ids.extend(_ids(value))
        elif depth < 6:
            for item in value:
                _gather(item, prompt, depth + 1)
    elif isinstance(value, dict) and depth < 6:
        kind = _text(value.get("type"))
        media = next((name for name in MEDIA_TOKENS if name in kind), None)
        if media is not None:
            prompt.media_tokens += MEDIA_TOKENS[media]
        elif isinstance(value.get("text"), str):
            prompt.texts.append(value["text"])
        elif "content" in value:
            _gather(value["content"], prompt, depth + 1)
        else:
            # Tools, and what else a template writes out in full.
            prompt.texts.append(orjson.dumps(value).decode())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _whole(value: Any) -> int | None:
    """A number, also as engines take it from a text; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return int(float(value))
    except (ValueError, OverflowError):
        return None


def _in_32_bits(number: int) -> int:
    return max(-(2**31), min(2**31 - 1, number))


def _ids(value: Any) -> list[int]:
    if not isinstance(value, list) or not all(isinstance(i, int) and 0 <= i < 2**32 for i in value):
        return []
    return value


def _slo(value: Any) -> Slo:
    def seconds(name: str) -> float | None:
        number = value.get(name)
        # A time beyond all times is none; so is one that is no number.
        return float(number) if isinstance(number, int | float) and 0 < number < LONGEST_S else None

    if not isinstance(value, dict):
        return Slo()
    return Slo(ttft_s=seconds("ttft_s"), tpot_s=seconds("tpot_s"), deadline_s=seconds("deadline_s"))


def written_out(facts: CallFacts) -> list[str]:
    """The texts of a conversation and its tools, without what a template puts between them."""
    return [*(orjson.dumps(tool).decode() for tool in facts.tools), *(turn.content for turn in facts.turns)]


def estimated_tokens(texts: Sequence[str], unread_bytes: int) -> int:
    """Tokens of text that nobody counts: four bytes each."""
    return (sum(len(text) for text in texts) + unread_bytes) // 4
