"""JSON lines: `{"workload": "text"}` or `{"prompt_tokens": n, "output_tokens": m}`, mixed as you like. Pure.

Optional keys in both: `output_tokens`, `predicted_output_tokens`, `predicted_atoms_tokens` (equally likely lengths,
ascending), `arrival_s`, `session`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from bench.workload.dataset_error import DatasetError
from bench.workload.item import DataRow
from bench.workload.rows import STRICT, BadRows, Parsed, plural

_EXPECTED = 'Expected one object a line: {"workload": "text"} or {"prompt_tokens": 12, "output_tokens": 34}.'


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    workload: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    predicted_output_tokens: int | None = None
    predicted_atoms_tokens: tuple[int, ...] = ()
    arrival_s: float | None = None
    session: str = ""


def parse_jsonl(
    lines: Iterable[str],
    source: str,
    *,
    count_tokens: Callable[[str], int],
    default_output_tokens: int,
    bad: BadRows = STRICT,
) -> Parsed:
    """All rows in file order; the text of a `workload` is counted with `count_tokens`.

    Rows that do not say how long their answer is get `default_output_tokens`; the notes say how many did.

    Raises:
        DatasetError: empty file, a line that is no such object, counts below 1.
    """
    rows: list[DataRow] = []
    assumed = 0
    for number, text in enumerate(lines, start=1):
        with bad:
            if not text.strip():
                continue
            try:
                line = msgspec.json.decode(text, type=_Line)
            except (msgspec.DecodeError, UnicodeEncodeError) as error:
                raise DatasetError(source, f"not such an object ({error})", row=number, mend=_EXPECTED) from error
            rows.append(_row(line, number, source, count_tokens, default_output_tokens))
            assumed += line.output_tokens is None
    if not rows:
        raise DatasetError(source, "the file is empty", mend=_EXPECTED)
    notes = [f"{plural(len(rows), 'request')} from JSON lines"]
    if assumed:
        notes.append(f"{plural(assumed, 'row')} without `output_tokens`: {default_output_tokens} each")
    return bad.account(Parsed(rows=rows, counts={"rows": len(rows), "output_assumed": assumed}, notes=notes))


def _row(
    line: _Line, number: int, source: str, count_tokens: Callable[[str], int], default_output_tokens: int
) -> DataRow:
    if line.workload is not None and line.prompt_tokens is not None:
        raise DatasetError(source, "both `workload` and `prompt_tokens`", row=number, mend="Keep one of them.")
    prompt_tokens = count_tokens(line.workload) if line.workload is not None else line.prompt_tokens
    if prompt_tokens is None:
        raise DatasetError(source, "neither `workload` nor `prompt_tokens`", row=number, mend=_EXPECTED)
    if prompt_tokens < 1:
        raise DatasetError(source, "the prompt is empty", row=number, mend="Give it at least one token.")
    if line.workload is None and line.output_tokens is None:
        raise DatasetError(source, "`prompt_tokens` without `output_tokens`", row=number, mend=_EXPECTED)
    output_tokens = default_output_tokens if line.output_tokens is None else line.output_tokens
    predicted, atoms = line.predicted_output_tokens, line.predicted_atoms_tokens
    if atoms != tuple(sorted(atoms)):
        raise DatasetError(source, "`predicted_atoms_tokens` do not ascend", row=number, mend="Sort them.")
    if output_tokens < 1 or (predicted is not None and predicted < 1) or (atoms and atoms[0] < 1):
        raise DatasetError(source, "an output length below 1 token", row=number, mend="It must be >= 1.")
    return DataRow(
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        prompt=line.workload or "",
        predicted_output_tokens=predicted,
        predicted_atoms_tokens=atoms,
        session=line.session,
        arrival_s=line.arrival_s,
    )
