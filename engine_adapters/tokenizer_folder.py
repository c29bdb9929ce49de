"""The tokenizer of any model that brings a `tokenizer.json` along (Hugging Face's format), from its folder.

Needs the packages `tokenizers` and `jinja2`. Text is plain text: special tokens that it spells become their letters,
also within the messages of a chat. Special tokens decode to nothing, as in vLLM's answers.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine_adapters.chat_template import Message, Render, Tool, compiled, plain_prompt, with_tools
from engine_adapters.token_pieces import REPLACEMENT, piece_bytes

_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
_HOLE = "\ue000{}\ue001"
"""Stands in a rendered template for what a message says. Private-use characters: no template has them."""
_HOLES = re.compile("\ue000(\\d+)\ue001")


class FolderTokenizer:
    """The `Tokenizer` of a model's folder."""

    def __init__(self, name: str, folder: Path) -> None:
        """Raises OSError and ValueError for a folder that holds no tokenizer, ImportError without the packages."""
        from tokenizers import Tokenizer

        self.name = name
        self._inner = Tokenizer.from_file(str(folder / "tokenizer.json"))
        layout = json.loads((folder / "tokenizer.json").read_bytes())
        # Not to be switched per call: long texts are encoded on other threads.
        self._inner.encode_special_tokens = True
        self._special = {t["content"]: t["id"] for t in layout.get("added_tokens", ()) if t.get("special")}
        vocabulary: dict[str, int] = self._inner.get_vocab(with_added_tokens=True)
        self.vocab_size = 1 + max(vocabulary.values())
        added = {t["content"] for t in layout.get("added_tokens", ())}
        decode = piece_bytes(layout)
        pieces = {i: text.encode() if text in added else decode(text) for text, i in vocabulary.items()}
        for i in self._special.values():
            pieces[i] = b""
        self._pieces: dict[int, bytes] = pieces
        self._spelled = {i: text.encode() for text, i in self._special.items()}
        self._control = re.compile("|".join(map(re.escape, sorted(self._special, key=len, reverse=True))) or "(?!)")
        self._render = _template(folder, "default")
        self._render_tools = _template(folder, "tool_use") or self._render

    def encode(self, text: str) -> list[int]:
        """With what the model wants before every prompt (a beginning-of-sequence token, for some)."""
        return self._plain(text, before_prompts=True)

    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join([self._pieces.get(i, REPLACEMENT) for i in ids])

    def spell(self, ids: Sequence[int]) -> str:
        spelled = b"".join([self._spelled.get(i) or self._pieces.get(i, b"") for i in ids])
        return spelled.decode("utf-8", errors="replace")

    def apply_chat_template(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """Token ids of a conversation by the model's own template. Raises TemplateError."""
        render = self._render_tools if tools else self._render
        if render is None:
            return self.encode(plain_prompt(with_tools(messages, tools)))
        if not any(self._control.search(m.content) or self._control.search(m.name) for m in messages):
            return self._with_control(render(messages, tools))
        # Somebody spells control tokens. The template and what messages say are encoded apart: letters stay letters.
        said = [text for m in messages for text in (m.content, m.name)]
        holes = [
            Message(m.role, _HOLE.format(2 * i), _HOLE.format(2 * i + 1) if m.name else "")
            for i, m in enumerate(messages)
        ]
        ids: list[int] = []
        for position, part in enumerate(_HOLES.split(render(holes, tools))):
            ids += self._plain(said[int(part)]) if position % 2 else self._with_control(part)
        return ids

    def _with_control(self, text: str) -> list[int]:
        ids: list[int] = []
        at = 0
        for found in self._control.finditer(text):
            ids += [*self._plain(text[at : found.start()]), self._special[found[0]]]
            at = found.end()
        return ids + self._plain(text[at:])

    def _plain(self, text: str, *, before_prompts: bool = False) -> list[int]:
        valid = text.encode("utf-8", errors="replace").decode()
        ids: list[int] = self._inner.encode(valid, add_special_tokens=before_prompts).ids
        return ids


def folder_sizes(folder: Path) -> tuple[int, range]:
    """Size of the vocabulary, and the longest run of ids that are no added tokens. Raises OSError, ValueError."""
    layout = json.loads((folder / "tokenizer.json").read_bytes())
    added = {int(t["id"]) for t in layout.get("added_tokens", ())}
    vocabulary = layout["model"]["vocab"]
    ids = set(range(len(vocabulary))) if isinstance(vocabulary, list) else set(vocabulary.values())
    edges = sorted({-1, max(ids) + 1, *(added & ids)})
    runs = [range(a + 1, b) for a, b in itertools.pairwise(edges)]
    return 1 + max(ids | added), max(runs, key=len)


def _template(folder: Path, name: str) -> Render | None:
    """The template, of several the one of that name; None if there is none."""
    config: dict[str, Any] = {}
    path = folder / "tokenizer_config.json"
    if path.exists():
        config = json.loads(path.read_bytes())
    source = config.get("chat_template")
    if isinstance(source, list):
        source = next((t["template"] for t in source if t.get("name") == name), None)
    apart = folder / "chat_template.jinja"
    if apart.exists():
        source = apart.read_text()
    if not source:
        return None
    special: dict[str, str] = {}
    for token in _SPECIAL:
        value = config.get(token)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            special[token] = text
    return compiled(source, special)
