"""What a length model is asked and what it learns from. Pure."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import msgspec

from length_model.core.conversation import Conversation, Role, Turn, answered_turns, encodable

HISTORY_TURNS = 8
"""Earlier turns that a query keeps, the latest ones."""

HISTORY_CHARS = 400
"""Characters that a query keeps of an earlier turn; its full length stays in `PastTurn.chars`."""

PROMPT_HEAD_CHARS = 4000
PROMPT_TAIL_CHARS = 2000
"""What samples keep of a long prompt: its beginning and its end. Models look at no more than that."""

PER_CONVERSATION = 16
"""Questions sampled of one conversation at most: some have hundreds, and would otherwise stand for all users."""

DEFAULT_CLASSES = ("first_turn", "later_turn")
"""Of queries without a class of their own: those without turns before them, and those with some."""

TOOLS_CLASS = "tools"
"""Of queries whose answer may be the call of a tool."""

Key = tuple[str, str]
"""Model and class of a query; an empty string stands for any."""

Scope = Literal["first", "all"]
"""`first`: the first question of a conversation, alone. `all`: every question, with what came before it."""


class PastTurn(msgspec.Struct, frozen=True):
    """An earlier turn of the conversation."""

    role: Role
    text: str
    """Its beginning."""
    chars: int
    """Its full length, in characters."""


class LengthQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt whose answer's length is asked for."""

    prompt: str
    """The last user turn, or the whole prompt where turns are not told apart."""
    history: tuple[PastTurn, ...] = ()
    """Oldest first."""
    model: str = ""
    """Model that will answer; empty when unknown."""
    request_class: str = ""
    """Any label that groups requests with similar answers (a product, an API key); empty when unknown."""
    prompt_chars: int = 0
    """Full length of the prompt when `prompt` was clipped; 0: it was not."""

    @property
    def chars(self) -> int:
        return max(self.prompt_chars, len(self.prompt))


class LengthSample(msgspec.Struct, frozen=True, kw_only=True):
    """One answered prompt."""

    sample_id: str
    group: str
    """Conversation it belongs to; samples of one group stay on one side of a split."""
    query: LengthQuery
    prompt_tokens: int = 0
    """Of the last user turn; 0 when unknown."""
    output_tokens: int
    """Tokens of the answer, >= 1; the tokens produced before the cut if `censored`."""
    censored: bool = False
    """The answer was cut (limit, abort): its true length is `output_tokens` or more."""


def past_turn(role: Role, text: str) -> PastTurn:
    return PastTurn(role, encodable(text[:HISTORY_CHARS]), len(text))


def make_query(prompt: str, history: Iterable[Turn] = (), *, model: str = "", request_class: str = "") -> LengthQuery:
    """A query clipped to what models look at. Without a class of its own it is `first_turn` or `later_turn`."""
    turns = tuple(history)[-HISTORY_TURNS:]
    clipped = prompt
    if len(prompt) > PROMPT_HEAD_CHARS + PROMPT_TAIL_CHARS:
        clipped = prompt[:PROMPT_HEAD_CHARS] + "\n" + prompt[-PROMPT_TAIL_CHARS:]
    return LengthQuery(
        prompt=encodable(clipped),
        history=tuple(past_turn(t.role, t.text) for t in turns),
        model=model,
        request_class=request_class or DEFAULT_CLASSES[bool(turns)],
        prompt_chars=len(prompt) if clipped is not prompt else 0,
    )


def samples_from_conversations(
    conversations: Iterable[Conversation],
    count_tokens: Callable[[str], int],
    *,
    scope: Scope,
    model: str,
    max_output_tokens: int = 2048,
    per_conversation: int = PER_CONVERSATION,
    seed: int = 0,
) -> Iterator[LengthSample]:
    """The usable questions of every conversation; the class is `first_turn` or `later_turn`.

    A conversation with more than `per_conversation` of them (all its parts together) gives that many, drawn at random.
    Exact duplicates (same prompt, same previous turn, same answer) come once. Answers of more than `max_output_tokens`
    are left out: in ShareGPT they are pasted documents, not answers.
    """
    seen: set[bytes] = set()
    places: dict[str, list[tuple[Conversation, int]]] = {}
    for whole in conversations:
        spoken = tuple(turn for turn in whole.turns if turn.text)
        conversation = Conversation(conversation_id=whole.conversation_id, turns=spoken)
        asked = list(answered_turns(conversation))[: 1 if scope == "first" else None]
        places.setdefault(conversation.root_id, []).extend((conversation, i) for i in asked)
    rng = random.Random(seed)
    for group in sorted(places):
        for conversation, i in rng.sample(places[group], len(places[group]))[:per_conversation]:
            prompt, answer = conversation.turns[i].text, conversation.turns[i + 1].text
            before = () if scope == "first" else conversation.turns[:i]
            previous = before[-1].text if before else ""
            key = hashlib.blake2b(f"{prompt}\0{previous}\0{answer}".encode(errors="replace"), digest_size=12).digest()
            tokens = count_tokens(answer) if key not in seen else 0
            if 1 <= tokens <= max_output_tokens:
                seen.add(key)
                yield LengthSample(
                    sample_id=f"{conversation.conversation_id}:{i}",
                    group=conversation.root_id,
                    query=make_query(prompt, before, model=model),
                    prompt_tokens=max(1, count_tokens(prompt)),
                    output_tokens=tokens,
                )
