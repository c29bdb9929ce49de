"""Mooncake traces (github.com/kvcache-ai/Mooncake, FAST'25): arrivals, lengths and who shares a prefix with whom. Pure.

One object a line, or one array: `{"timestamp": ms, "input_length": n, "output_length": m, "hash_ids": [...]}`. A hash
id stands for 512 prompt tokens and everything before them, so equal ids are equal prefixes. aiperf's traces may have
the prompt itself, `{"text_input": "text", "output_length": m}`, and leave times out. Those of Qwen-Bailian (`chat_id`,
`parent_chat_id`) count time in seconds and have an id for every 16 tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import msgspec

from bench.workload.item import DataRow
from bench.workload.records import JsonObject, objects, unused
from bench.workload.rows import Parsed, Tally, plural, whole_number

BLOCK_TOKENS = 512
_BAILIAN_BLOCK_TOKENS = 16
_EXPECTED = 'Expected one object a line: {"timestamp": 0, "input_length": 6755, "output_length": 500, "hash_ids": [0]}.'
_TEXT_KEYS = ("text_input", "input_text")


def is_mooncake(keys: set[str]) -> bool:
    """Whether an object with these keys is a request of such a trace."""
    return {"input_length", "output_length"} <= keys or not keys.isdisjoint(_TEXT_KEYS)


def parse_mooncake(
    lines: Iterable[str],
    source: str,
    *,
    count_tokens: Callable[[str], int] = len,
    default_output_tokens: int = 1,
    skip_bad: bool = False,
) -> Parsed:
    """All rows in time order, `arrival_s` counted from the first.

    The published conversation trace knows its times to 3 s only. Requests of one moment are spread evenly until the
    next moment that the trace knows (the last ones over the median of those distances), else every such batch would
    look like a burst. Rows with an answer of 0 tokens are left out; texts are counted with `count_tokens`.

    Raises:
        DatasetError: empty file, a record that is no such object, negative counts, more hash ids than the prompt has
            blocks.
    """
    tally = Tally(source, skip_bad=skip_bad)
    found: list[DataRow] = []
    numbers: list[int] = []
    not_used: set[str] = set()
    bailian = False
    for record in objects(lines, tally, expected=_EXPECTED):
        with tally:
            in_seconds = record.has("parent_chat_id")
            row = _row(record, tally, count_tokens, default_output_tokens, in_seconds=in_seconds)
            not_used |= record.unknown
            bailian |= in_seconds
            if row.output_tokens == 0:
                tally.leave_out("no_output", "row", detail="with 0 output tokens")
                continue
            found.append(row)
            numbers.append(record.row)
    rows = tally.timed(found, numbers, "timestamp")
    times_s = [row.arrival_s for row in rows if row.arrival_s is not None]
    moments = len(set(times_s))
    spread = ""
    if 0 < moments < len(rows):
        spread = f"{plural(len(rows), 'arrival')} at {plural(moments, 'moment')}: spread until the next moment"
    if moments:
        rows = [
            msgspec.structs.replace(row, arrival_s=at_s) for row, at_s in zip(rows, _spread_s(times_s), strict=True)
        ]
    over = f" over {rows[-1].arrival_s or 0.0:,.0f} s" if moments else ", without times"
    return tally.parsed(
        rows,
        f"{'Qwen-Bailian' if bailian else 'Mooncake'} trace: {plural(len(rows), 'request')}{over}",
        f"its times are taken as seconds, its ids as {_BAILIAN_BLOCK_TOKENS} tokens each" if bailian else "",
        spread,
        unused(not_used),
        empty="the file is empty",
        mend=_EXPECTED,
        moments=moments,
    )


def _row(
    record: JsonObject,
    tally: Tally,
    count_tokens: Callable[[str], int],
    default_output_tokens: int,
    *,
    in_seconds: bool,
) -> DataRow:
    timestamp = record.number("timestamp")
    if timestamp is not None and timestamp < 0:
        raise record.error("a negative time", mend=_EXPECTED)
    block_tokens = _BAILIAN_BLOCK_TOKENS if in_seconds else BLOCK_TOKENS
    ids = _hash_ids(record, tally)
    prompt = record.text(*_TEXT_KEYS)
    if prompt is not None:
        prompt_tokens = count_tokens(prompt)
        record.key("input_length")
        if ids:
            # The ids of a text that is sent would have to be those of its own blocks.
            tally.change("ids_not_used", "row", detail="with a text: its `hash_ids` are not used")
            ids = ()
        if prompt_tokens < 1:
            raise record.error("the prompt is empty", mend="Give it at least one token.")
    else:
        length = record.count("input_length")
        if length is None:
            raise record.error("not such an object (no `input_length`)", mend=_EXPECTED)
        if len(ids) * block_tokens >= length + block_tokens:
            raise record.error(
                f"{plural(len(ids), 'hash id')} for a prompt of {length:,} tokens",
                mend=f"One id stands for {block_tokens} tokens.",
            )
        prompt_tokens = length
    output_tokens = record.count("output_length")
    if output_tokens is None:
        if prompt is None:
            raise record.error("not such an object (no `output_length`)", mend=_EXPECTED)
        output_tokens = default_output_tokens
        tally.change("output_assumed", "row", detail=f"without `output_length`: {default_output_tokens} each")
    session = record.get("session_id")
    return DataRow(
        prompt_tokens=tally.at_least_one_token(prompt_tokens) if output_tokens else prompt_tokens,
        output_tokens=output_tokens,
        prompt=prompt or "",
        session="" if session is None else str(session),
        arrival_s=None if timestamp is None else timestamp / (1.0 if in_seconds else 1000.0),
        prefix_ids=ids,
        prefix_block_tokens=block_tokens if prompt is None else 0,
    )


def _hash_ids(record: JsonObject, tally: Tally) -> tuple[int, ...]:
    given = record.get("hash_ids")
    if given is None:
        return ()
    if not isinstance(given, list):
        raise record.error("`hash_ids` is no list", mend=_EXPECTED)
    if all(type(one) is int and one >= 0 for one in given):
        return tuple(given)
    return tuple(whole_number(one, "hash_ids", tally.source, record.row) for one in given)


def _spread_s(times_s: list[float]) -> list[float]:
    batches = [(at_s, len(list(group))) for at_s, group in itertools.groupby(times_s)]
    gaps_s = sorted(b[0] - a[0] for a, b in itertools.pairwise(batches))
    last_gap_s = gaps_s[len(gaps_s) // 2] if gaps_s else 0.0
    ends_s = [at_s for at_s, _ in batches[1:]] + [batches[-1][0] + last_gap_s]
    first_s = batches[0][0]
    return [
        at_s - first_s + (end_s - at_s) * k / count
        for (at_s, count), end_s in zip(batches, ends_s, strict=True)
        for k in range(count)
    ]
