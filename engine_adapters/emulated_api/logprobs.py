"""Made-up probabilities of tokens, in the shapes of chats, completions and responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine_adapters.emulated_answer import made_up_logprobs
from engine_adapters.tokenizer import Tokenizer, tokenizer_info


class Likelihoods:
    """What an emulated engine says of the likelihood of its tokens: the same for the same tokens."""

    def __init__(self, tokenizer: Tokenizer, *, as_ids: bool = False) -> None:
        """`as_ids`: tokens are named by their ids, `token_id:17`."""
        self._tokenizer = tokenizer
        self._text_ids = tokenizer_info(tokenizer.name).text_ids
        self._as_ids = as_ids

    def name(self, token: int) -> str:
        """How a token is told."""
        return f"token_id:{token}" if self._as_ids else self._tokenizer.decode([token])

    def ranked(self, token: int, others: int) -> list[tuple[int, float]]:
        """The token, then `others` that were less likely, with logarithms of probabilities."""
        told = made_up_logprobs(token, others, self._text_ids)
        return [(token, told.logprob), *zip(told.other_ids, told.other_logprobs, strict=True)]

    def chat(self, tokens: Sequence[int], top: int) -> dict[str, Any]:
        """As chats have it; `top` most likely tokens beside each."""
        content = []
        for token in tokens:
            ranked = self.ranked(token, top)
            content.append({**self._entry(*ranked[0]), "top_logprobs": [self._entry(*r) for r in ranked[:top]]})
        return {"content": content}

    def responses(self, tokens: Sequence[int], top: int) -> list[dict[str, Any]]:
        """As responses have it."""
        content: list[dict[str, Any]] = self.chat(tokens, top)["content"]
        return content

    def completion(self, tokens: Sequence[int], top: int, *, offset: int, first: bool = False) -> dict[str, Any]:
        """As completions have it. `offset`: characters before these tokens; `first`: nothing is before them, so the
        first one has no probability."""
        offsets, names = [], []
        values: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        for position, token in enumerate(tokens):
            name = self.name(token)
            ranked = self.ranked(token, top)
            offsets.append(offset)
            names.append(name)
            if first and not position:
                values.append(None)
                tops.append(None)
            else:
                values.append(ranked[0][1])
                tops.append({self.name(t): value for t, value in ranked})
            offset += len(name)
        return {"text_offset": offsets, "token_logprobs": values, "tokens": names, "top_logprobs": tops}

    def prompt(self, tokens: Sequence[int], top: int) -> list[dict[str, Any] | None]:
        """`prompt_logprobs`."""
        said: list[dict[str, Any] | None] = [None]
        said += [
            {
                str(t): {"logprob": value, "rank": rank, "decoded_token": self._tokenizer.decode([t])}
                for rank, (t, value) in enumerate(self.ranked(token, top), start=1)
            }
            for token in tokens[1:]
        ]
        return said

    def _entry(self, token: int, value: float) -> dict[str, Any]:
        name = self.name(token)
        return {"token": name, "logprob": value, "bytes": list(name.encode())}
