"""`/v1/audio/transcriptions` and `/translations`: words for as long as the sound lasts."""

from __future__ import annotations

import email.parser
import email.policy
import io
import math
import wave
from collections.abc import Sequence
from email.message import Message as MimeMessage
from typing import Any

import msgspec

from engine_adapters.emulated_api.api_call import ApiCall
from engine_adapters.emulated_api.chat import usage
from engine_adapters.emulated_api.errors import ApiError, invalid
from engine_adapters.emulated_api.pieces import Part, SaidText
from engine_adapters.emulated_api.prompts import fitting
from engine_adapters.emulated_api.work import AnswerWish, Choice

BYTES_PER_S = 16_000
"""Of sound whose length its head does not tell: 128 kbit/s."""
TOKENS_PER_S = 3
FORMATS = ("text", "json", "verbose_json")


class _Form(msgspec.Struct):
    fields: dict[str, str]
    file: bytes | None = None


def transcribe(call: ApiCall) -> None:
    """Makes up what was said. Raises ApiError."""
    form = _form(call)
    fields = form.fields
    if form.file is None:
        if "file" in fields:
            raise ApiError(
                "Expected 'file' to be a file-like object, not 'str'.", status=422, kind="Unprocessable Entity"
            )
        raise invalid("Field required", "body.file", kind="missing")
    model = call.model(fields.get("model"))
    wanted = fields.get("response_format", "json")
    if wanted not in FORMATS:
        raise ApiError("Currently only support response_format: `text`, `json` or `verbose_json`")
    stream = fields.get("stream", "").lower() in ("1", "true")
    if stream and wanted == "verbose_json":
        raise ApiError("verbose_json format doesn't support streaming case")
    seconds = _seconds(form.file)
    heard = call.tokenizer.encode(f"<{call.call.target}> {fields.get('prompt', '')}")
    prompt, room = fitting((*heard, len(form.file)), call.config, max_tokens=None)
    tokens = min(room, max(1, math.ceil(seconds * TOKENS_PER_S)))
    answer = _Stream(call, model, fields) if stream else _Whole(call, wanted, seconds)
    # The end is that of the sound.
    call.generate([prompt], AnswerWish(max_tokens=room, emulated_output_tokens=tokens), answer)
    if stream:
        call.reply.begin_events()


class _Whole:
    def __init__(self, call: ApiCall, wanted: str, seconds: float) -> None:
        self._call = call
        self._wanted = wanted
        self._seconds = seconds

    def step(self, choice: Choice, token_ids: Sequence[int], parts: Sequence[Part]) -> None:
        pass

    def done(self) -> None:
        text = self._call.work.choices[0].text
        if self._wanted != "verbose_json":
            usage = {"type": "duration", "seconds": math.ceil(self._seconds)}
            self._call.answer("transcription", {"text": text, "usage": usage})
            return
        segment = {
            "id": 0,
            "avg_logprob": -0.3,
            "compression_ratio": 1.2,
            "end": self._seconds,
            "no_speech_prob": None,
            "seek": 0,
            "start": 0.0,
            "temperature": 0.0,
            "text": text,
            "tokens": list(self._call.work.choices[0].token_ids),
        }
        whole = {
            "duration": self._seconds,
            "language": "en",
            "text": text,
            "segments": [segment],
            "words": None,
        }
        self._call.answer("transcription verbose", whole)


class _Stream:
    def __init__(self, call: ApiCall, model: str, fields: dict[str, str]) -> None:
        kind = "translation" if call.call.target.startswith("/v1/audio/translations") else "transcription"
        prefix = "trsl" if kind == "translation" else "trsc"
        self._call = call
        self._with_usage = fields.get("stream_include_usage", "").lower() in ("1", "true")
        self._base = {
            "id": call.answer_id(prefix),
            "object": f"{kind}.chunk",
            "created": call.created,
            "model": model,
        }

    def step(self, choice: Choice, token_ids: Sequence[int], parts: Sequence[Part]) -> None:
        reply = self._call.reply
        reply.count(len(token_ids))
        said: dict[str, Any] = {"delta": {"content": "".join(p.text for p in parts if isinstance(p, SaidText))}}
        if choice.finish is not None:
            said |= {"finish_reason": choice.finish, "stop_reason": choice.stop_reason}
        reply.event({**self._base, "choices": [said]})

    def done(self) -> None:
        work, reply = self._call.work, self._call.reply
        if self._with_usage:
            reply.event({**self._base, "choices": [], "usage": usage(work.prompt_tokens, work.output_tokens)})
        reply.data(b"data: [DONE]\n\n")
        reply.end(work.end(says_usage=self._with_usage))


def _form(call: ApiCall) -> _Form:
    kind = call.header("content-type")
    if not kind.lower().startswith("multipart/form-data"):
        raise invalid("Field required", "body.file", kind="missing")
    head = b"Content-Type: " + kind.encode("latin-1") + b"\r\n\r\n"
    mime: MimeMessage = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + call.body)
    if not mime.is_multipart():
        raise ApiError("There was an error parsing the body", kind="Bad Request")
    form = _Form({})
    for part in mime.get_payload():
        if not isinstance(part, MimeMessage):
            continue
        name = part.get_param("name", header="content-disposition")
        data = part.get_payload(decode=True)
        if not isinstance(name, str) or not isinstance(data, bytes):
            continue
        if part.get_filename() is not None and name == "file":
            form.file = data
        else:
            form.fields[name] = data.decode(errors="replace")
    return form


def _seconds(sound: bytes) -> float:
    try:
        with wave.open(io.BytesIO(sound)) as wav:
            return float(wav.getnframes()) / float(wav.getframerate())
    except (wave.Error, EOFError, ZeroDivisionError):
        return max(0.1, len(sound) / BYTES_PER_S)
