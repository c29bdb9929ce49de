"""JSON records of requests: a prompt as text, as token ids or as a number of tokens, and how long the answer is. Pure.

One object a line, or one array: `{"workload": "text"}`, `{"prompt_tokens": n, "output_tokens": m}`, vLLM's custom data
set `{"prompt": "text", "output_tokens": m}`, mixed as you like. Optional keys: `predicted_output_tokens`,
`predicted_atoms_tokens` (equally likely lengths, ascending), `arrival_s`, `session`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bench.workload.item import DataRow
from bench.workload.records import JsonObject, objects, unused
from bench.workload.rows import Parsed, Tally, plural, whole_number
from length_model.core.conversation import encodable

_EXPECTED = 'Expected one object a line: {"workload": "text"} or {"prompt_tokens": 12, "output_tokens": 34}.'
TEXT_KEYS = ("workload", "prompt", "text", "question")
PROMPT_KEYS = ("prompt_tokens", "prompt_len", "input_tokens", "input_len")
_OUTPUT_KEYS = ("output_tokens", "output_len", "output_length", "max_tokens", "max_output_tokens", "completion_tokens")
_ANSWER_KEYS = ("completion", "response", "answer", "output")


def is_jsonl(keys: set[str]) -> bool:
    """Whether an object with these keys is such a record."""
    return not keys.isdisjoint((*TEXT_KEYS, *PROMPT_KEYS))


def parse_jsonl(
    lines: Iterable[str],
    source: str,
    *,
    count_tokens: Callable[[str], int],
    default_output_tokens: int,
    skip_bad: bool = False,
) -> Parsed:
    """All rows in file order, by time where they have arrivals; texts are counted with `count_tokens`.

    An answer is as long as its row says or as the answer that it holds; else it gets `default_output_tokens`, and the
    notes say how many did.

    Raises:
        DatasetError: empty file, a record that is no such object, counts below 1.
    """
    tally = Tally(source, skip_bad=skip_bad)
    rows: list[DataRow] = []
    numbers: list[int] = []
    said_in: set[str] = set()
    not_used: set[str] = set()
    for record in objects(lines, tally, expected=_EXPECTED):
        with tally:
            said_in.add(record.key(*TEXT_KEYS) or "")
            rows.append(_row(record, tally, count_tokens, default_output_tokens))
            numbers.append(record.row)
            not_used |= record.unknown
    rows = tally.timed(rows, numbers, "arrival_s")
    texts = ", ".join(f"`{key}`" for key in sorted(said_in - {""}))
    return tally.parsed(
        rows,
        f"{plural(len(rows), 'request')} from JSON records" + (f", prompts under {texts}" if texts else ""),
        unused(not_used),
        empty="the file is empty",
        mend=_EXPECTED,
    )


def _row(record: JsonObject, tally: Tally, count_tokens: Callable[[str], int], default_output_tokens: int) -> DataRow:
    text_key, count_key = record.key(*TEXT_KEYS), record.key(*PROMPT_KEYS)
    if text_key is not None and count_key is not None:
        raise record.error(f"both `{text_key}` and `{count_key}`", mend="Keep one of them.")
    prompt = ""
    if text_key is None:
        prompt_tokens = record.count(*PROMPT_KEYS)
    elif _is_token_ids(record.get(text_key)):
        prompt_tokens = len(record.get(text_key))
    else:
        prompt = record.text(text_key) or ""
        prompt_tokens = count_tokens(prompt)
    if prompt_tokens is None:
        raise record.error("neither `workload` nor `prompt_tokens`", mend=_EXPECTED)
    if prompt_tokens < 1:
        raise record.error("the prompt is empty", mend="Give it at least one token.")
    output_tokens = record.count(*_OUTPUT_KEYS)
    answer = record.get(record.key(*_ANSWER_KEYS) or "")
    if output_tokens is None and isinstance(answer, str) and answer:
        output_tokens = count_tokens(encodable(answer))
        tally.change("output_counted", "answer", detail="counted by its text")
    if output_tokens is None:
        if text_key is None:
            raise record.error(f"`{count_key}` without `output_tokens`", mend=_EXPECTED)
        output_tokens = default_output_tokens
        tally.change("output_assumed", "row", detail=f"without `output_tokens`: {default_output_tokens} each")
    predicted = record.count("predicted_output_tokens")
    atoms = _atoms(record, tally)
    if output_tokens < 1 or (predicted is not None and predicted < 1) or (atoms and atoms[0] < 1):
        raise record.error("an output length below 1 token", mend="It must be >= 1.")
    session = record.get("session")
    return DataRow(
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        prompt=prompt,
        predicted_output_tokens=predicted,
        predicted_atoms_tokens=atoms,
        session="" if session is None else str(session),
        arrival_s=record.number("arrival_s"),
    )


def _atoms(record: JsonObject, tally: Tally) -> tuple[int, ...]:
    given = record.get("predicted_atoms_tokens") or []
    if not isinstance(given, list):
        raise record.error("`predicted_atoms_tokens` is no list", mend="List equally likely lengths, ascending.")
    atoms = tuple(whole_number(atom, "predicted_atoms_tokens", tally.source, record.row) for atom in given)
    if atoms != tuple(sorted(atoms)):
        raise record.error("`predicted_atoms_tokens` do not ascend", mend="Sort them.")
    return atoms


def _is_token_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)
