"""CSV files of lengths: `num_prefill_tokens,num_decode_tokens`, as the Vidur and Block traces have them. Pure.

Optional columns: `num_predicted_decode_tokens` (a prediction made elsewhere), `arrived_at` (seconds). Others are not
looked at. The columns of Splitwise's simulator (`arrival_timestamp,prompt_size,token_size`) mean the same.
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

_PROMPT, _OUTPUT = "num_prefill_tokens", "num_decode_tokens"
_PREDICTED, _ARRIVED = "num_predicted_decode_tokens", "arrived_at"
_SPLITWISE = {"prompt_size": _PROMPT, "token_size": _OUTPUT, "arrival_timestamp": _ARRIVED}


def parse_lengths(lines: Iterable[str], source: str, *, bad: BadRows = STRICT) -> Parsed:
    """All rows in file order.

    A prompt of 0 tokens becomes 1 (an engine cannot run an empty prompt); an answer of 0 tokens cannot be asked for, so
    such rows are left out. Both are counted.

    Raises:
        DatasetError: empty file, missing column, short or non-numeric row, no usable row.
    """
    table = table_rows(lines, source)
    named = header_of(table, source, expected=f"{_PROMPT},{_OUTPUT}")
    header = [_SPLITWISE.get(name, name) for name in named]
    missing = [name for name in (_PROMPT, _OUTPUT) if name not in header]
    if missing:
        raise DatasetError(
            source,
            f"no column `{missing[0]}` in its header `{','.join(named)}`",
            mend=f"Expected at least `{_PROMPT},{_OUTPUT}`.",
        )
    at = {name: header.index(name) for name in (_PROMPT, _OUTPUT, _PREDICTED, _ARRIVED) if name in header}
    rows: list[DataRow] = []
    seen = no_prompt = no_output = 0
    for row, fields in table:
        with bad:
            seen += 1
            check_width(fields, len(header), source, row)
            prompt_tokens = whole_number(fields[at[_PROMPT]], _PROMPT, source, row)
            output_tokens = whole_number(fields[at[_OUTPUT]], _OUTPUT, source, row)
            predicted = (
                max(1, whole_number(fields[at[_PREDICTED]], _PREDICTED, source, row)) if _PREDICTED in at else None
            )
            arrival_s = finite_number(fields[at[_ARRIVED]], _ARRIVED, source, row) if _ARRIVED in at else None
            if output_tokens == 0:
                no_output += 1
                continue
            no_prompt += prompt_tokens == 0
            rows.append(
                DataRow(
                    prompt_tokens=max(1, prompt_tokens),
                    output_tokens=output_tokens,
                    predicted_output_tokens=None if predicted is None else max(1, predicted),
                    arrival_s=arrival_s,
                )
            )
    if not rows:
        raise DatasetError(source, "there are no usable rows below the header", mend="Fetch the file again.")
    notes = [f"{plural(len(rows), 'row')} of lengths"]
    if no_prompt:
        notes.append(f"{plural(no_prompt, 'prompt')} of 0 tokens counted as 1 token")
    if no_output:
        notes.append(f"{plural(no_output, 'row')} with 0 output tokens left out")
    counts = {"rows": seen, "kept": len(rows), "prompt_raised_to_1": no_prompt, "no_output": no_output}
    return bad.account(Parsed(rows=rows, counts=counts, notes=notes))
