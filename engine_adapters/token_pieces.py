"""What bytes a piece of a vocabulary stands for, in the two spellings that Hugging Face's tokenizers have."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

REPLACEMENT = "\ufffd".encode()
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def byte_characters() -> list[str]:
    """The printable character that stands for each byte in byte-level vocabularies (GPT-2's mapping)."""
    plain = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    shifted = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(shifted)) for b in range(256)]


def piece_bytes(layout: dict[str, Any]) -> Callable[[str], bytes]:
    """Bytes of the pieces of a `tokenizer.json`: byte-level pieces, or sentences' pieces with `▁` for the space."""
    if '"ByteLevel"' in json.dumps([layout.get("pre_tokenizer"), layout.get("decoder")]):
        codes = {character: byte for byte, character in enumerate(byte_characters())}

        def byte_level(piece: str) -> bytes:
            try:
                return bytes([codes[c] for c in piece])
            except KeyError:
                return piece.encode()

        return byte_level

    def sentence_piece(piece: str) -> bytes:
        byte = _BYTE.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()

    return sentence_piece
