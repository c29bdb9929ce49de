"""What an emulated engine says: made-up text that depends on the token sequence so far and on nothing else. Pure.

So a stream that breaks can be resumed anywhere with prompt + tokens so far as the prompt: the next tokens and the
natural end are those of the unbroken stream. The end is the harder half, since a resumed prompt hides where the
original one ended. It is found again: the longest tail of the prompt that this very rule would have produced is taken
for an answer in progress, and the length is drawn from the hash of what stands before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from length_model.core.belief import DEFAULT_PRIOR
from simcore.types import TokenLogprobs

_MASK = (1 << 64) - 1
_FACTOR = 0x5851F42D4C957F2D
_DRAW_LENGTH = 0x9E3779B97F4A7C15


def rolling(tokens: Iterable[int], start: int = 0) -> int:
    """Hash of a token sequence; `rolling(b, rolling(a))` is the hash of a followed by b."""
    h = start
    for token in tokens:
        h = (h * _FACTOR + token + 1) & _MASK
    return h


def mix(h: int) -> int:
    """Spreads every bit of a 64-bit value over all others (finaliser of SplitMix64)."""
    h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & _MASK
    return h ^ (h >> 31)


class Answer:
    """The tokens of one answer, one after another."""

    def __init__(self, prompt_token_ids: Sequence[int], text_ids: range) -> None:
        self._text_ids = text_ids
        self._hash = rolling(prompt_token_ids)

    def next_token(self) -> int:
        """The next token id, out of `text_ids`."""
        h = self._hash
        token = self._text_ids[mix(h) % len(self._text_ids)]
        self._hash = (h * _FACTOR + token + 1) & _MASK
        return token


def made_up_logprobs(token: int, others: int, text_ids: range) -> TokenLogprobs:
    """How likely a token was, and up to `others` that were less likely: the same for the same token."""
    h = mix(token)
    # Multiples of 1/1024, so that single precision holds them.
    logprob = -(h % 700) / 1024
    found = {}
    for i in range(others):
        other = text_ids[(h + i) % len(text_ids)]
        if other != token:
            found[other] = logprob - 0.5 - 0.25 * i
    return TokenLogprobs(logprob, tuple(found), tuple(found.values()))


def natural_length(prompt_token_ids: Sequence[int], text_ids: range, *, wanted_tokens: int = 0) -> int:
    """Tokens (>= 1) until the answer to this prompt ends by itself, drawn from the default prior; `wanted_tokens` if
    that is given.

    When the prompt ends with k tokens of such an answer, what is left of it.
    """
    hashes = [0]
    for token in prompt_token_ids:
        hashes.append((hashes[-1] * _FACTOR + token + 1) & _MASK)
    origin = len(prompt_token_ids)
    while origin > 1 and text_ids[mix(hashes[origin - 1]) % len(text_ids)] == prompt_token_ids[origin - 1]:
        origin -= 1
    atoms = DEFAULT_PRIOR.atoms_tokens
    total = wanted_tokens or atoms[mix(hashes[origin] ^ _DRAW_LENGTH) % len(atoms)]
    return max(1, total - (len(prompt_token_ids) - origin))
