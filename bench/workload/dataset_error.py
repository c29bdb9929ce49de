"""What is wrong with a data set, where, and how to mend it. Pure."""

from __future__ import annotations


class DatasetError(ValueError):
    """A data set cannot be used. The message names the file, the row (if it is one row's fault) and the way out."""

    def __init__(self, source: str, reason: str, *, mend: str, row: int | None = None) -> None:
        # What it quotes of a file may hold half characters, which no terminal takes.
        reason = reason.encode("utf-8", "replace").decode("utf-8")
        where = source if row is None else f"{source}, row {row:,}"
        super().__init__(f"{where}: {reason}. {mend}")
        self.source = source
        self.row = row
        self.reason = reason
        self.mend = mend

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions are pickled by their message, of which these cannot be made: a worker's error would be lost.
        return _remade, (self.source, self.reason, self.mend, self.row)


def _remade(source: str, reason: str, mend: str, row: int | None) -> DatasetError:
    return DatasetError(source, reason, mend=mend, row=row)
