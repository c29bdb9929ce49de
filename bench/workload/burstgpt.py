"""BurstGPT CSV files as published (github.com/HPMLL/BurstGPT): arrivals and lengths of a production service. Pure.

Version 1 has the columns `Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type`; version 2 puts
`Session ID,Elapsed time` after `Timestamp`. Rows with 0 response tokens are requests that failed: they are left out.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from bench.workload.dataset_error import DatasetError
from bench.workload.item import DataRow
from bench.workload.rows import Moments, Parsed, Table, Tally, plain_names, plural, whole_number

V1_COLUMNS = ("Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type")
V2_COLUMNS = ("Timestamp", "Session ID", "Elapsed time", *V1_COLUMNS[1:])
_TIME, _PROMPT, _OUTPUT, _SESSION = "Timestamp", "Request tokens", "Response tokens", "Session ID"


def is_burstgpt(header: Iterable[str]) -> bool:
    """Whether a table with this header is such a trace."""
    return plain_names((_TIME, _PROMPT, _OUTPUT)) <= plain_names(header)


def parse_burstgpt(
    lines: Iterable[str],
    source: str,
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
    first_row: int = 1,
    max_rows: int | None = None,
    skip_bad: bool = False,
) -> Parsed:
    """The requests of a slice in time order, with `arrival_s` counted from the earliest row of the file.

    Args:
        start_s, duration_s: the slice [start, start + duration) in the trace's own seconds since its earliest row.
        first_row, max_rows: the same by data rows, counted from 1 below the header; both kinds can be combined.

    Raises:
        DatasetError: empty file, other columns, a row that is short or not numeric, or an empty slice.
    """
    tally = Tally(source, skip_bad=skip_bad)
    table = Table(lines, tally, expected=",".join(V1_COLUMNS))
    if not is_burstgpt(table.header):
        raise DatasetError(
            source,
            f"its header is `{','.join(table.header)}`",
            mend=f"Expected BurstGPT version 1 `{','.join(V1_COLUMNS)}` or version 2 `{','.join(V2_COLUMNS)}`.",
        )
    at_time, at_prompt, at_output = (table.need(name, expected="") for name in (_TIME, _PROMPT, _OUTPUT))
    at_session = table.find(_SESSION)
    moments = Moments()
    # Columns of plain numbers: all rows must be known before the earliest is, and a trace has over a million.
    numbers, times_s, prompts, outputs = array("q"), array("d"), array("q"), array("q")
    sessions: list[str] = []
    for row, fields in table:
        if max_rows is not None and tally.seen >= first_row + max_rows:
            tally.seen -= 1
            break
        with tally:
            at_s = moments.read_s(fields[at_time], _TIME, source, row)
            prompt_tokens = whole_number(fields[at_prompt], _PROMPT, source, row)
            output_tokens = whole_number(fields[at_output], _OUTPUT, source, row)
            numbers.append(tally.seen)
            times_s.append(at_s)
            prompts.append(prompt_tokens)
            outputs.append(output_tokens)
            if at_session is not None:
                sessions.append(fields[at_session].strip())
    origin_s = min(times_s, default=0.0)
    end_s = float("inf") if duration_s is None else start_s + duration_s
    rows: list[DataRow] = []
    outside = 0
    for at in tally.order(times_s):
        arrival_s = times_s[at] - origin_s
        if numbers[at] < first_row or not start_s <= arrival_s < end_s:
            outside += 1
        elif outputs[at] == 0:
            tally.leave_out("failed", "failed request", detail="(0 response tokens)")
        else:
            rows.append(
                DataRow(
                    prompt_tokens=tally.at_least_one_token(prompts[at]),
                    output_tokens=outputs[at],
                    session=sessions[at] if at_session is not None else "",
                    arrival_s=arrival_s,
                )
            )
    tally.leave_out("outside", "row", detail="outside of the slice", rows=outside)
    if not rows and outside and outside == len(times_s):
        raise DatasetError(
            source,
            f"none of its {tally.seen:,} rows falls into the slice",
            mend="Choose another start, duration or row range.",
        )
    version = 1 if at_session is None else 2
    return tally.parsed(
        rows,
        f"BurstGPT version {version}: {plural(len(rows), 'request')} kept of {plural(tally.seen, 'row')} read",
        table.note,
        moments.note,
        empty="there are no rows below the header",
        mend="Fetch the file again.",
        version=version,
    )
