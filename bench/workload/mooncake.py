"""Mooncake traces (github.com/kvcache-ai/Mooncake, FAST'25): arrivals, lengths and who shares a prefix with whom. Pure.

One object a line: `{"timestamp": ms, "input_length": n, "output_length": m, "hash_ids": [...]}`. A hash id stands for
512 prompt tokens and everything before them, so equal ids are equal prefixes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import msgspec

from bench.workload.dataset_error import DatasetError
from bench.workload.item import DataRow
from bench.workload.rows import STRICT, BadRows, Parsed, plural

BLOCK_TOKENS = 512
_EXPECTED = 'Expected one object a line: {"timestamp": 0, "input_length": 6755, "output_length": 500, "hash_ids": [0]}.'


class _Line(msgspec.Struct, frozen=True):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()


def parse_mooncake(lines: Iterable[str], source: str, *, bad: BadRows = STRICT) -> Parsed:
    """All rows in time order, `arrival_s` counted from the first.

    The published conversation trace knows its times to 3 s only. Requests of one moment are spread evenly until the
    next moment that the trace knows (the last ones over the median of those distances), else every such batch would
    look like a burst. Rows with an answer of 0 tokens are left out.

    Raises:
        DatasetError: empty file, a line that is no such object, negative counts, more hash ids than the prompt has
            blocks.
    """
    entries: list[_Line] = []
    seen = no_output = 0
    for number, text in enumerate(lines, start=1):
        with bad:
            if not text.strip():
                continue
            seen += 1
            try:
                line = msgspec.json.decode(text, type=_Line)
            except (msgspec.DecodeError, UnicodeEncodeError) as error:
                raise DatasetError(source, f"not such an object ({error})", row=number, mend=_EXPECTED) from error
            if line.timestamp < 0 or line.input_length < 0 or line.output_length < 0:
                raise DatasetError(source, "a negative time or length", row=number, mend=_EXPECTED)
            if len(line.hash_ids) * BLOCK_TOKENS >= line.input_length + BLOCK_TOKENS:
                raise DatasetError(
                    source,
                    f"{plural(len(line.hash_ids), 'hash id')} for a prompt of {line.input_length:,} tokens",
                    row=number,
                    mend=f"One id stands for {BLOCK_TOKENS} tokens.",
                )
            if line.output_length == 0:
                no_output += 1
                continue
            entries.append(line)
    if not entries:
        raise DatasetError(source, "there are no usable rows" if seen else "the file is empty", mend=_EXPECTED)
    entries.sort(key=lambda entry: entry.timestamp)
    rows = [
        DataRow(
            prompt_tokens=max(1, entry.input_length),
            output_tokens=entry.output_length,
            arrival_s=at_s,
            prefix_ids=entry.hash_ids,
            prefix_block_tokens=BLOCK_TOKENS,
        )
        for entry, at_s in zip(entries, _spread_s([e.timestamp / 1000.0 for e in entries]), strict=True)
    ]
    notes = [f"Mooncake trace: {plural(len(rows), 'request')} over {rows[-1].arrival_s or 0.0:,.0f} s"]
    moments = len({entry.timestamp for entry in entries})
    if moments < len(entries):
        notes.append(f"{plural(len(entries), 'arrival')} at {plural(moments, 'moment')}: spread until the next moment")
    if no_output:
        notes.append(f"{plural(no_output, 'row')} with 0 output tokens left out")
    counts = {"rows": seen, "kept": len(rows), "moments": moments, "no_output": no_output}
    return bad.account(Parsed(rows=rows, counts=counts, notes=notes))


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
