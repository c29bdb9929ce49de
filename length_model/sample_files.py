"""Samples and splits on disk: JSON lines of `LengthSample`, or any JSON lines that hold a prompt and a length.

A foreign line needs `output_tokens`, or the text of the `answer` (or `response`, `completion`); it may have `prompt`
(or `text`, `workload`, or chat `messages`), `model`, `request_class`, `conversation` (or `session`), `prompt_tokens`,
and `outcome` (any but `stop` means that the answer was cut) or `censored`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from length_model.core.conversation import Role, Turn, encodable
from length_model.core.query import LengthSample, make_query
from length_model.core.split import SplitManifest

LONGEST_ANSWER_TOKENS = 10_000_000
"""More than this is a mistake in the file."""


class SampleError(ValueError):
    """A file of samples that cannot be used; the message names file, line and what to do."""


class SampleFile(msgspec.Struct, frozen=True, kw_only=True):
    samples: list[LengthSample]
    sha256: str
    skipped: int
    """Lines left out: no tokens were produced, or the length is missing."""


def write_samples(path: Path, samples: Iterable[LengthSample]) -> str:
    """Returns the SHA-256 of the file."""
    encoder = msgspec.json.Encoder()
    hashed = hashlib.sha256()
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as out:
        for sample in samples:
            line = encoder.encode(sample) + b"\n"
            hashed.update(line)
            out.write(line)
    beside.replace(path)
    return hashed.hexdigest()


def read_samples(path: Path, count_tokens: Callable[[str], int] | None = None) -> SampleFile:
    """`count_tokens` measures prompts and answers that come as text.

    Raises SampleError for a file that cannot be read, holds a line that is no JSON object, or nothing usable.
    """
    try:
        data = path.read_bytes()
    except OSError as bad:
        raise SampleError(f"{path}: cannot be read ({bad.strerror}); make one with `astrolabe length sample`") from None
    own, foreign = msgspec.json.Decoder(LengthSample), msgspec.json.Decoder(dict[str, Any])
    samples: list[LengthSample] = []
    skipped = 0
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            sample = (
                own.decode(line)
                if line.startswith(b'{"sample_id"')
                else _foreign(foreign.decode(line), number, count_tokens)
            )
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError, TypeError) as bad:
            raise SampleError(f"{path}: line {number}: {bad}") from None
        if sample is None or not 1 <= sample.output_tokens <= LONGEST_ANSWER_TOKENS:
            skipped += 1
        else:
            samples.append(sample)
    if not samples:
        raise SampleError(f"{path}: no usable rows ({skipped} skipped); each needs output_tokens >= 1")
    return SampleFile(samples=samples, sha256=hashlib.sha256(data).hexdigest(), skipped=skipped)


def _foreign(row: Mapping[str, Any], number: int, count_tokens: Callable[[str], int] | None) -> LengthSample | None:
    tokens = row.get("output_tokens")
    if tokens is None and count_tokens is not None:
        answer = next((row[n] for n in ("answer", "response", "completion") if isinstance(row.get(n), str)), "")
        tokens = count_tokens(encodable(answer))
    if tokens is None or isinstance(tokens, bool) or not isinstance(tokens, (int, float)) or tokens != tokens:
        return None
    prompt, history = _prompt(row)
    outcome = str(row.get("outcome", "stop")).lower()
    prompt_tokens = max(0, int(row.get("prompt_tokens") or 0))
    if prompt_tokens == 0 and prompt and count_tokens is not None:
        prompt_tokens = count_tokens(encodable(prompt))
    return LengthSample(
        sample_id=str(row.get("request_id", row.get("id", number))),
        group=str(row.get("conversation", row.get("session")) or f"line {number}"),
        query=make_query(
            prompt, history, model=str(row.get("model", "")), request_class=str(row.get("request_class", ""))
        ),
        prompt_tokens=prompt_tokens,
        output_tokens=int(min(tokens, LONGEST_ANSWER_TOKENS + 1)),
        censored=bool(row.get("censored", outcome != "stop")),
    )


def _prompt(row: Mapping[str, Any]) -> tuple[str, list[Turn]]:
    messages = row.get("messages")
    if isinstance(messages, list):
        return last_question(messages)
    for name in ("prompt", "text", "workload"):
        if isinstance(row.get(name), str):
            return row[name], []
    return "", []


def last_question(messages: Iterable[Any]) -> tuple[str, list[Turn]]:
    """Prompt and history out of chat messages ({role, content}); contents that are no text are passed over."""
    turns = []
    for message in messages:
        if isinstance(message, Mapping) and isinstance(content := message.get("content"), str):
            role: Role = "other"
            if message.get("role") in ("user", "assistant"):
                role = message["role"]
            turns.append(Turn(role, content))
    if turns and turns[-1].role == "user":
        return turns[-1].text, turns[:-1]
    return "", turns


def write_manifest(path: Path, manifest: SplitManifest) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")


def read_manifest(path: Path) -> SplitManifest:
    """Raises SampleError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=SplitManifest)
    except OSError as bad:
        raise SampleError(f"{path}: cannot be read ({bad.strerror}); `astrolabe length sample` writes it") from None
    except msgspec.DecodeError as bad:
        raise SampleError(f"{path}: no split manifest ({bad})") from None


def manifest_path(samples: Path) -> Path:
    """Where the split of a sample file lies."""
    return samples.with_name(samples.name + ".split.json")
