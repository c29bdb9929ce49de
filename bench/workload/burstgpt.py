"""BurstGPT CSV files as published (github.com/HPMLL/BurstGPT): arrivals and lengths of a production service. Pure.

Version 1 has the columns `Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type`; version 2 puts
`Session ID,Elapsed time` after `Timestamp`. Rows with 0 response tokens are requests that failed: they are left out.
"""

from __future__ import annotations

from collections.abc import Iterable

from bench.workload.dataset_error import DatasetError
from bench.workload.item import DataRow
from bench.workload.rows import (
    STRICT,
    BadRows,
    Parsed,
    check_width,
    finite_number,
    header_of,
    plural,
    table_rows,
    whole_number,
)

V1_COLUMNS = ("Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type")
V2_COLUMNS = ("Timestamp", "Session ID", "Elapsed time", *V1_COLUMNS[1:])


def parse_burstgpt(
    lines: Iterable[str],
    source: str,
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
    first_row: int = 1,
    max_rows: int | None = None,
    bad: BadRows = STRICT,
) -> Parsed:
    """The requests of a slice, with `arrival_s` counted from the beginning of the file (its first row).

    Args:
        start_s, duration_s: the slice [start, start + duration) in the trace's own seconds since its first row.
        first_row, max_rows: the same by data rows, counted from 1 below the header; both kinds can be combined.

    Raises:
        DatasetError: empty file, other columns, a row that is short or not numeric, or an empty slice.
    """
    table = table_rows(lines, source)
    header = header_of(table, source, expected=",".join(V1_COLUMNS))
    if header not in (list(V1_COLUMNS), list(V2_COLUMNS)):
        raise DatasetError(
            source,
            f"its header is `{','.join(header)}`",
            mend=f"Expected BurstGPT version 1 `{','.join(V1_COLUMNS)}` or version 2 `{','.join(V2_COLUMNS)}`.",
        )
    version = 1 if len(header) == len(V1_COLUMNS) else 2
    at = {name: header.index(name) for name in header}
    rows: list[DataRow] = []
    seen = failed = no_prompt = disordered = 0
    origin_s: float | None = None
    latest_s = float("-inf")
    for row, fields in table:
        with bad:
            seen += 1
            if max_rows is not None and seen >= first_row + max_rows:
                seen -= 1
                break
            check_width(fields, len(header), source, row)
            recorded_s = finite_number(fields[0], "Timestamp", source, row)
            prompt_tokens = whole_number(fields[at["Request tokens"]], "Request tokens", source, row)
            output_tokens = whole_number(fields[at["Response tokens"]], "Response tokens", source, row)
            origin_s = recorded_s if origin_s is None else origin_s
            arrival_s = recorded_s - origin_s
            if (
                seen < first_row
                or arrival_s < start_s
                or (duration_s is not None and arrival_s >= start_s + duration_s)
            ):
                continue
            if output_tokens == 0:
                failed += 1
                continue
            if prompt_tokens == 0:
                no_prompt += 1
            disordered += arrival_s < latest_s
            latest_s = max(latest_s, arrival_s)
            rows.append(
                DataRow(
                    prompt_tokens=max(1, prompt_tokens),
                    output_tokens=output_tokens,
                    session=fields[at["Session ID"]].strip() if version == 2 else "",
                    arrival_s=arrival_s,
                )
            )
    if not rows:
        raise DatasetError(
            source,
            "there are no rows below the header" if seen == 0 else f"none of its {seen:,} rows falls into the slice",
            mend="Fetch the file again." if seen == 0 else "Choose another start, duration or row range.",
        )
    if disordered:
        rows.sort(key=_arrival_s)
    notes = [f"BurstGPT version {version}: {plural(len(rows), 'request')} kept of {plural(seen, 'row')} read"]
    if failed:
        notes.append(f"{plural(failed, 'failed request')} (0 response tokens) left out")
    if no_prompt:
        notes.append(f"{plural(no_prompt, 'prompt')} of 0 tokens counted as 1 token")
    if disordered:
        notes.append(f"{plural(disordered, 'row')} out of time order: sorted")
    counts = {"version": version, "rows": seen, "kept": len(rows), "failed": failed, "prompt_raised_to_1": no_prompt}
    return bad.account(Parsed(rows=rows, counts=counts, notes=notes))


def _arrival_s(row: DataRow) -> float:
    return row.arrival_s or 0.0
