"""How likely the tokens of an answer were, as OpenAI's answers tell it and vLLM words it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import orjson

from engine_adapters.tokenizer import Tokenizer
from gateway.http.chunks import Style
from simcore.types import TokenLogprobs

LEAST = -9999.0
"""What stands for minus infinity, which JSON has not."""
CONTEXT_TOKENS = 4
"""Tokens before one that may hold the beginning of its character: no character has more bytes."""
_BROKEN = "\ufffd"


class AnswerLogprobs:
    """Those of one answer. Mutable; `add` tokens as they come, `take` what is to be sent."""

    __slots__ = (
        "_as_ids",
        "_before",
        "_entries",
        "_is_chat",
        "_names",
        "_offset",
        "_offsets",
        "_spell",
        "_top",
        "_values",
    )

    def __init__(self, tokenizer: Tokenizer, *, style: Style, top: int, as_ids: bool = False) -> None:
        """`top`: how many tokens are told of each place. `as_ids`: tokens are named by their ids, `token_id:17`."""
        self._spell = tokenizer.spell
        self._is_chat = style.is_chat
        self._top = top
        self._as_ids = as_ids
        self._before: list[int] = []
        """The last tokens of the answer so far."""
        self._offset = 0
        """Where the next token begins, in characters of the names before it."""
        self._entries: list[bytes] = []
        """One per token: of a chat all that is told of it, of a completion the likeliest tokens."""
        self._names: list[str] = []
        self._offsets: list[int] = []
        self._values: list[float] = []

    def add(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> None:
        """The next tokens, and what is told of each."""
        for token_id, told in zip(token_ids, logprobs, strict=True):
            # Both forms begin with the token itself, whatever its rank.
            ids = (token_id, *told.other_ids)
            values = [max(value, LEAST) for value in (told.logprob, *told.other_logprobs)]
            if self._is_chat:
                entry, *_ = entries = [
                    self._entry(i, value) for i, value in zip(ids[: max(1, self._top)], values, strict=False)
                ]
                entry["top_logprobs"] = [dict(e) for e in entries[: self._top]]
                self._entries.append(orjson.dumps(entry))
            else:
                names = [self._name(i, self._text(i)) for i in ids[: self._top + 1]]
                self._entries.append(orjson.dumps(dict(zip(names, values, strict=False))))
                self._names.append(names[0])
                self._values.append(values[0])
                self._offsets.append(self._offset)
                self._offset += len(names[0])
            self._before = [*self._before, token_id][-CONTEXT_TOKENS:]

    def take(self) -> bytes:
        """JSON of what was added since the last time."""
        entries, self._entries = b",".join(self._entries), []
        if self._is_chat:
            return b'{"content":[%b]}' % entries
        told = {
            "text_offset": self._offsets,
            "token_logprobs": self._values,
            "tokens": self._names,
            "top_logprobs": orjson.Fragment(b"[%b]" % entries),
        }
        self._names, self._offsets, self._values = [], [], []
        return orjson.dumps(told)

    def _entry(self, token_id: int, logprob: float) -> dict[str, object]:
        text = self._text(token_id)
        return {"token": self._name(token_id, text), "logprob": logprob, "bytes": list(text.encode())}

    def _name(self, token_id: int, text: str) -> str:
        return f"token_id:{token_id}" if self._as_ids else text

    def _text(self, token_id: int) -> str:
        """What the token adds to the text: of a character that several tokens make up the last one has all."""
        text = _alone(self._spell, token_id)
        return self._completed(token_id) if text.endswith(_BROKEN) else text

    def _completed(self, token_id: int) -> str:
        spell, before = self._spell, self._before
        for count in range(1, len(before) + 1):
            context = before[-count:]
            whole = spell([*context, token_id])
            if whole.endswith(_BROKEN):
                continue
            while context and _alone(self._spell, context[-1]).endswith(_BROKEN):
                context.pop()
            return whole.removeprefix(spell(context))
        return ""


@functools.lru_cache(maxsize=1 << 16)
def _alone(spell: Callable[[Sequence[int]], str], token_id: int) -> str:
    return spell([token_id])
