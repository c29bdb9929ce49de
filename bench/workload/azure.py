"""Azure LLM inference traces of 2023 and 2024 (github.com/Azure/AzurePublicDataset): arrivals and lengths. Pure.

Both years have the columns `TIMESTAMP,ContextTokens,GeneratedTokens`; times are UTC dates, in 2024 with an offset
behind them, with up to seven digits of a second.
"""

from __future__ import annotations

from collections.abc import Iterable

from bench.workload.item import DataRow
from bench.workload.rows import Moments, Parsed, Table, Tally, plain_names, plural, whole_number

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def is_azure(header: Iterable[str]) -> bool:
    """Whether a table with this header is such a trace."""
    return plain_names(COLUMNS) <= plain_names(header)


def parse_azure(lines: Iterable[str], source: str, *, skip_bad: bool = False) -> Parsed:
    """All rows in time order, `arrival_s` counted from the earliest. Rows with 0 generated tokens are left out.

    Raises:
        DatasetError: empty file, other columns, a row that is short, not numeric or without a date.
    """
    tally = Tally(source, skip_bad=skip_bad)
    table = Table(lines, tally, expected=",".join(COLUMNS))
    at_time, at_prompt, at_output = (table.need(name, expected=",".join(COLUMNS)) for name in COLUMNS)
    moments = Moments()
    timed: list[tuple[float, int, int]] = []
    for row, fields in table:
        with tally:
            unix_s = moments.read_s(fields[at_time], COLUMNS[0], source, row)
            prompt_tokens = whole_number(fields[at_prompt], COLUMNS[1], source, row)
            output_tokens = whole_number(fields[at_output], COLUMNS[2], source, row)
            if output_tokens == 0:
                tally.leave_out("no_output", "row", detail="with 0 generated tokens")
                continue
            timed.append((unix_s, tally.at_least_one_token(prompt_tokens), output_tokens))
    first_s = min((entry[0] for entry in timed), default=0.0)
    rows = [
        DataRow(prompt_tokens=timed[at][1], output_tokens=timed[at][2], arrival_s=timed[at][0] - first_s)
        for at in tally.order([entry[0] for entry in timed])
    ]
    span_s = rows[-1].arrival_s or 0.0 if rows else 0.0
    return tally.parsed(
        rows,
        f"Azure trace: {plural(len(rows), 'request')} over {span_s:,.0f} s",
        table.note,
        moments.note,
        empty="there are no usable rows below the header",
        mend="Fetch the file again.",
    )
