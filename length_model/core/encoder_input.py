"""How a query becomes token ids of a BERT-like encoder: prompt, then the end of the conversation before it. Pure.

Shared by training and inference, so that both see the same.
"""

from __future__ import annotations

from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from length_model.core.conversation import encodable
from length_model.core.query import LengthQuery

_CHARS_PER_TOKEN_AT_MOST = 12
"""Text beyond this many characters per wanted token is not even tokenized."""


class Encoding(Protocol):
    """A text's encoding, as `tokenizers` returns it."""

    @property
    def ids(self) -> list[int]: ...


class FastTokenizer(Protocol):
    """The part of `tokenizers.Tokenizer` used here."""

    def encode(self, sequence: str, *, add_special_tokens: bool = True) -> Encoding: ...


class SpecialIds(msgspec.Struct, frozen=True):
    """Vocabulary ids of the marks around the parts."""

    begin: int
    separator: int
    pad: int


class InputSizes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many tokens are read of each part of a query. Part of the trained model: no others fit it."""

    prompt_head: int = 48
    prompt_tail: int = 24
    answer: int = 16
    """Tokens of the beginning of the answer before the prompt."""
    question: int = 8
    """Tokens of the beginning of the question before that."""


def token_ids(
    tokenizer: FastTokenizer, special: SpecialIds, query: LengthQuery, sizes: InputSizes | None = None
) -> list[int]:
    """begin, prompt (its beginning and end), separator [, last answer, last question, separator]."""
    sizes = sizes or InputSizes()
    room = sizes.prompt_head + sizes.prompt_tail
    text = query.prompt
    limit = room * _CHARS_PER_TOKEN_AT_MOST
    if len(text) > 2 * limit:
        head = _ids(tokenizer, text[:limit])[: sizes.prompt_head]
        prompt = head + _ids(tokenizer, text[-limit:])[-sizes.prompt_tail :]
    else:
        prompt = _ids(tokenizer, text)
        if len(prompt) > room:
            prompt = prompt[: sizes.prompt_head] + prompt[-sizes.prompt_tail :]
    ids = [special.begin, *prompt, special.separator]
    answer = next((t.text for t in reversed(query.history) if t.role == "assistant"), "")
    question = next((t.text for t in reversed(query.history) if t.role == "user"), "")
    if answer or question:
        ids += _ids(tokenizer, answer[: sizes.answer * _CHARS_PER_TOKEN_AT_MOST])[: sizes.answer]
        ids += _ids(tokenizer, question[: sizes.question * _CHARS_PER_TOKEN_AT_MOST])[: sizes.question]
        ids.append(special.separator)
    return ids


def _ids(tokenizer: FastTokenizer, text: str) -> list[int]:
    return tokenizer.encode(encodable(text), add_special_tokens=False).ids if text else []


def padded(rows: list[list[int]], pad: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """ids [n, longest], and where they are real."""
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), pad, dtype=np.int64)
    real = np.zeros((len(rows), longest), dtype=np.bool_)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        real[i, : len(row)] = True
    return ids, real
