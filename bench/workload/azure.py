"""Azure LLM inference traces of 2023 and 2024 (github.com/Azure/AzurePublicDataset): arrivals and lengths. Pure.

Both years have the columns `TIMESTAMP,ContextTokens,GeneratedTokens`; times are UTC dates, in 2024 with an offset
behind them, with up to seven digits of a second.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from bench.workload.dataset_error import DatasetError
from bench.workload.item import DataRow
from bench.workload.rows import STRICT, BadRows, Parsed, check_width, header_of, plural, table_rows, whole_number

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(\.\d+)?(?:Z|([+-])(\d\d):?(\d\d))?")


def parse_azure(lines: Iterable[str], source: str, *, bad: BadRows = STRICT) -> Parsed:
    """All rows in time order, `arrival_s` counted from the earliest. Rows with 0 generated tokens are left out.

    Raises:
        DatasetError: empty file, other columns, a row that is short, not numeric or without a date.
    """
    table = table_rows(lines, source)
    header = header_of(table, source, expected=",".join(COLUMNS))
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise DatasetError(
            source,
            f"no column `{missing[0]}` in its header `{','.join(header)}`",
            mend=f"Expected `{','.join(COLUMNS)}`.",
        )
    at_time, at_prompt, at_output = (header.index(name) for name in COLUMNS)
    timed: list[tuple[float, int, int]] = []
    seen = no_output = 0
    for row, fields in table:
        with bad:
            seen += 1
            check_width(fields, len(header), source, row)
            unix_s = _unix_s(fields[at_time], source, row)
            prompt_tokens = whole_number(fields[at_prompt], COLUMNS[1], source, row)
            output_tokens = whole_number(fields[at_output], COLUMNS[2], source, row)
            if output_tokens == 0:
                no_output += 1
                continue
            timed.append((unix_s, max(1, prompt_tokens), output_tokens))
    if not timed:
        raise DatasetError(source, "there are no usable rows below the header", mend="Fetch the file again.")
    timed.sort(key=lambda entry: entry[0])
    first_s = timed[0][0]
    rows = [DataRow(prompt_tokens=p, output_tokens=o, arrival_s=at_s - first_s) for at_s, p, o in timed]
    notes = [f"Azure trace: {plural(len(rows), 'request')} over {rows[-1].arrival_s:,.0f} s"]
    if no_output:
        notes.append(f"{plural(no_output, 'row')} with 0 generated tokens left out")
    return bad.account(Parsed(rows=rows, counts={"rows": seen, "kept": len(rows), "no_output": no_output}, notes=notes))


def _unix_s(text: str, source: str, row: int) -> float:
    match = _TIME.fullmatch(text.strip())
    try:
        if match is None:
            raise ValueError
        date, clock, fraction, sign, hours, minutes = match.groups()
        whole_s = int(np.datetime64(f"{date}T{clock}", "s").astype(np.int64))
    except ValueError:
        raise DatasetError(
            source,
            f"column `TIMESTAMP` holds `{text.strip()}`",
            row=row,
            mend="It must be a date like 2023-11-16 18:15:46.6805900.",
        ) from None
    offset_s = 0 if sign is None else (1 if sign == "+" else -1) * (3600 * int(hours) + 60 * int(minutes))
    return whole_s - offset_s + float(fraction or 0.0)
