"""Idempotency keys that all workers of a gateway share: one file per key in a common folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from gateway.intake.claims import taken


class SharedClaims:
    """The claims of all workers: a file each, linked under its name, which one process alone can win. Its text is the
    worker's number, so that what a crashed one left can be cleared, and the request's id."""

    def __init__(self, folder: Path, worker: int) -> None:
        self._folder = folder
        self._worker = str(worker)
        folder.mkdir(mode=0o700, exist_ok=True)
        for path in folder.iterdir():
            if _text_of(path).partition(" ")[0] == self._worker:
                path.unlink(missing_ok=True)

    def claim(self, key: str, request_id: str) -> None:
        # Linked when it is whole: a worker that is killed on the way must not leave a claim that says of nobody.
        draft = self._folder / f"draft-{self._worker}"
        draft.write_text(f"{self._worker} {request_id}")
        try:
            os.link(draft, self._path(key))
        except FileExistsError:
            raise taken(key, _text_of(self._path(key)).partition(" ")[2]) from None
        finally:
            draft.unlink()

    def release(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / hashlib.sha256(key.encode()).hexdigest()


def _text_of(path: Path) -> str:
    """Empty when another worker has given the claim back meanwhile."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
