"""CSV files of lengths: `num_prefill_tokens,num_decode_tokens`, as the Vidur and Block traces have them. Pure.

Optional columns: `num_predicted_decode_tokens` (a prediction made elsewhere), `arrived_at` (seconds, or a date). Others
are not looked at. The columns of Splitwise's simulator (`arrival_timestamp,prompt_size,token_size`) mean the same.
"""

from __future__ import annotations

from collections.abc import Iterable

from bench.workload.item import DataRow
from bench.workload.rows import Moments, Parsed, Table, Tally, plain_names, plural, whole_number

_PROMPT = ("num_prefill_tokens", "prompt_size")
_OUTPUT = ("num_decode_tokens", "token_size")
_PREDICTED = ("num_predicted_decode_tokens",)
_ARRIVED = ("arrived_at", "arrival_timestamp")
_EXPECTED = f"{_PROMPT[0]},{_OUTPUT[0]}"


def is_lengths(header: Iterable[str]) -> bool:
    """Whether a table with this header is one of lengths."""
    names = plain_names(header)
    return all(names & plain_names(spellings) for spellings in (_PROMPT, _OUTPUT))


def parse_lengths(lines: Iterable[str], source: str, *, skip_bad: bool = False) -> Parsed:
    """All rows in file order; by time, counted from the earliest, where they have arrivals.

    A prompt of 0 tokens becomes 1 (an engine cannot run an empty prompt); an answer of 0 tokens cannot be asked for, so
    such rows are left out. Both are counted.

    Raises:
        DatasetError: empty file, missing column, short or non-numeric row, no usable row.
    """
    tally = Tally(source, skip_bad=skip_bad)
    table = Table(lines, tally, expected=_EXPECTED)
    at_prompt, at_output = (table.need(*names, expected=f"at least {_EXPECTED}") for names in (_PROMPT, _OUTPUT))
    at_predicted, at_arrived = table.find(*_PREDICTED), table.find(*_ARRIVED)
    moments = Moments()
    rows: list[DataRow] = []
    numbers: list[int] = []
    for row, fields in table:
        with tally:
            prompt_tokens = whole_number(fields[at_prompt], table.header[at_prompt], source, row)
            output_tokens = whole_number(fields[at_output], table.header[at_output], source, row)
            predicted = (
                None
                if at_predicted is None
                else max(1, whole_number(fields[at_predicted], table.header[at_predicted], source, row))
            )
            arrival_s = (
                None
                if at_arrived is None
                else moments.read_s(fields[at_arrived], table.header[at_arrived], source, row)
            )
            if output_tokens == 0:
                tally.leave_out("no_output", "row", detail="with 0 output tokens")
                continue
            numbers.append(row)
            rows.append(
                DataRow(
                    prompt_tokens=tally.at_least_one_token(prompt_tokens),
                    output_tokens=output_tokens,
                    predicted_output_tokens=predicted,
                    arrival_s=arrival_s,
                )
            )
    rows = tally.timed(rows, numbers, _ARRIVED[0])
    return tally.parsed(
        rows,
        f"{plural(len(rows), 'row')} of lengths",
        table.note,
        moments.note,
        empty="there are no usable rows below the header",
        mend="Fetch the file again.",
    )
