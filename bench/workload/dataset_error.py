"""What is wrong with a data set, where, and how to mend it. Pure."""

from __future__ import annotations


class DatasetError(ValueError):
    """A data set cannot be used. The message names the file, the row (if it is one row's fault) and the way out."""

    def __init__(self, source: str, reason: str, *, mend: str, row: int | None = None) -> None:
        where = source if row is None else f"{source}, row {row:,}"
        super().__init__(f"{where}: {reason}. {mend}")
        self.source = source
        self.row = row
        self.reason = reason
        self.mend = mend
