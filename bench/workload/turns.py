"""Tables of the lengths of turns, `conv,turn,role,tokens`: each answer is a request that holds all said before. Pure.

Such data tells neither when people write nor what their application puts before a conversation: a time to think and a
beginning that all share are assumed, and the notes say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from bench.workload.dataset_error import DatasetError
from bench.workload.item import DataRow
from bench.workload.rows import Parsed, Table, Tally, plain_names, plural, whole_number
from length_model.core.conversation import Role, role_of, root_of

THINK_MEAN_S = 5.0
"""From an answer to the next question; exponential."""
SYSTEM_TOKENS = 1024
BLOCK_TOKENS = 64
OWN_NAMES = 2**40
"""Names of blocks below it are those of a pool, from it on those of one row or conversation."""
_SEED = 0
_COLUMNS = ("conv", "turn", "role")
_TOKENS = ("tokens", "qwen_tokens", "mistral_v1_tokens")
_EXPECTED = ",".join((*_COLUMNS, _TOKENS[0]))


class _Turn(msgspec.Struct, frozen=True, order=True, gc=False):
    place: tuple[int, int]
    """Number of its part, number in it."""
    role: Role
    tokens: int


def is_turns(header: Iterable[str]) -> bool:
    """Whether a table with this header is one of turns."""
    names = plain_names(header)
    return plain_names(_COLUMNS) <= names and not names.isdisjoint(plain_names(_TOKENS))


def parse_turns(lines: Iterable[str], source: str, *, skip_bad: bool = False) -> Parsed:
    """A row for each answer that follows a question, conversation by conversation in the order of the file.

    Where there is a column `id` too, the parts `abc_0`, `abc_1`, ... that ShareGPT cuts long conversations into are put
    together again.

    Raises:
        DatasetError: empty file, other columns, a row that is short or not numeric, nothing that is answered.
    """
    tally = Tally(source, skip_bad=skip_bad)
    table = Table(lines, tally, expected=_EXPECTED)
    at_conversation, at_turn, at_role = (table.need(name, expected=_EXPECTED) for name in _COLUMNS)
    at_tokens, at_id = table.need(*_TOKENS, expected=_EXPECTED), table.find("id")
    conversations: dict[str, list[_Turn]] = {}
    for row, fields in table:
        with tally:
            name, part = fields[at_conversation], 0
            if at_id is not None:
                name, part = root_of(fields[at_id])
            turn = whole_number(fields[at_turn], _COLUMNS[1], source, row)
            tokens = whole_number(fields[at_tokens], table.header[at_tokens], source, row)
            conversations.setdefault(name, []).append(_Turn((part, turn), role_of(fields[at_role]), tokens))
    rng = np.random.default_rng(_SEED)
    rows: list[DataRow] = []
    first_name, talks = OWN_NAMES, 0
    for name, turns in conversations.items():
        asked_tokens, answer_tokens = _requests(sorted(turns))
        thinking_s = rng.exponential(THINK_MEAN_S, size=len(answer_tokens)).tolist()
        found = conversation_rows(name, asked_tokens, answer_tokens, thinking_s, first_name=first_name)
        if found:
            talks += 1
            first_name += len(found[-1].prefix_ids)
            rows += found
    if not rows:
        reason = "; ".join(["no turn of a person is answered", *tally.account()]) if tally.seen else "there are no rows"
        raise DatasetError(source, reason, mend=f"Expected `{_EXPECTED}`, roles as `human` and `gpt`.")
    return Parsed(
        rows=rows,
        counts={"rows": tally.seen, "conversations": talks, "kept": len(rows)},
        notes=[
            f"turns: {plural(len(rows), 'answer')} in {plural(talks, 'conversation')}, of {plural(tally.seen, 'turn')}",
            f"assumed: the same {SYSTEM_TOKENS:,} tokens before each conversation, {THINK_MEAN_S:g} s (mean) to think",
            *([table.note] if table.note else []),
            *tally.account(),
        ],
    )


def conversation_rows(
    session: str,
    asked_tokens: Sequence[int],
    answer_tokens: Sequence[int],
    thinking_s: Sequence[float],
    *,
    first_name: int,
    system_tokens: int = SYSTEM_TOKENS,
    block_tokens: int = BLOCK_TOKENS,
) -> list[DataRow]:
    """The requests of one conversation: what is new in each prompt, and its answer.

    Prompts begin with `system_tokens` that all conversations share, named from 0 on; what is its own is named from
    `first_name` on. The first request comes by the clock, the others so long after the answer before them.
    """
    system = tuple(range(system_tokens // block_tokens))
    longest = system_tokens + sum(asked_tokens) + sum(answer_tokens[:-1])
    # One object for each name, shared by all prompts that have it.
    names = (*system, *range(first_name, first_name + max(0, longest // block_tokens - len(system))))
    rows: list[DataRow] = []
    history = system_tokens
    for turn, (asked, answer) in enumerate(zip(asked_tokens, answer_tokens, strict=True)):
        tokens = history + asked
        rows.append(
            DataRow(
                prompt_tokens=tokens,
                output_tokens=answer,
                session=session,
                prefix_ids=names[: tokens // block_tokens],
                prefix_block_tokens=block_tokens,
                think_s=thinking_s[turn] if turn else None,
            )
        )
        history = tokens + answer
    return rows


def _requests(turns: Sequence[_Turn]) -> tuple[list[int], list[int]]:
    """What each prompt has that was not in the one before it or its answer, and the answers."""
    asked_tokens: list[int] = []
    answer_tokens: list[int] = []
    new = 0
    for at, turn in enumerate(turns):
        before = turns[at - 1] if at else None
        if turn.role == "assistant" and turn.tokens and before and before.role == "user" and before.tokens:
            asked_tokens.append(new)
            answer_tokens.append(turn.tokens)
            new = 0
        else:
            new += turn.tokens
    return asked_tokens, answer_tokens
