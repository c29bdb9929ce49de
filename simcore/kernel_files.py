"""The files of compiled kernels: the one module of `simcore` that does I/O.

A name says all that its file was made of, so a file is never stale: it is there or it is not. Kernels that came with
the product lie beside the sources and are never written; those compiled here lie in the folder that `NUMBA_CACHE_DIR`
names, else in the user's cache folder, where all checkouts and environments of a user find them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SHIPPED = Path(__file__).parent / "compiled" / "shipped"
"""Of the wheel, package or image: see `protos.runtime.kernels`."""

SUFFIX, LOCK_SUFFIX = ".kernel", ".lock"
WAIT_S = 600.0
"""How long one waits for another process that compiles what it needs: on a busy machine that takes minutes. After it
both compile, and nothing worse happens."""
POLL_S = 0.05
UNUSED_DAYS = 30.0
"""What nobody has loaded for that long goes: each change of a kernel leaves a file behind."""
DAY_S = 86_400.0


def folder() -> Path | None:
    """Where kernels are kept that are compiled here; made if it is not there. None where no place can be written."""
    users = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "astrolabe" / "kernels"
    for named in (os.environ.get("NUMBA_CACHE_DIR"), users):
        if not named:
            continue
        # A user that has no home, a folder that cannot be made.
        with contextlib.suppress(OSError, RuntimeError):
            place = Path(named).expanduser()
            place.mkdir(parents=True, exist_ok=True)
            if os.access(place, os.W_OK):
                return place
    return None


def find(name: str) -> Path | None:
    """Where it has been saved under that name, or shipped."""
    own = folder()
    places = (SHIPPED,) if own is None else (own, SHIPPED)
    return next((path for place in places if (path := place / (name + SUFFIX)).exists()), None)


def load(name: str) -> bytes | None:
    """What `find` finds."""
    path = find(name)
    if path is None:
        return None
    # Another process may drop it just now; what was shipped may not be touched.
    with contextlib.suppress(OSError):
        data = path.read_bytes()
        if path.parent != SHIPPED and time.time() - path.stat().st_mtime > DAY_S:
            os.utime(path)
        return data
    return None


def save(name: str, data: bytes) -> None:
    """Keeps it, whole or not at all. Where it cannot be kept, the next process compiles again."""
    place = folder()
    if place is None:
        return
    with contextlib.suppress(OSError):
        handle, path = tempfile.mkstemp(dir=place, prefix=f".{name}-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            # As other files are made; temporary ones are for their owner alone.
            os.chmod(path, 0o644)
            os.replace(path, place / (name + SUFFIX))
        except OSError:
            Path(path).unlink(missing_ok=True)
            raise
        _drop_unused(place)


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """Of the processes that are in here with the same name all but one wait: for it to leave, to die, or for WAIT_S."""
    place = folder()
    with contextlib.ExitStack() as held:
        if place is not None:
            # A folder that is full, or of a file system without locks.
            with contextlib.suppress(OSError):
                path = place / (name + LOCK_SUFFIX)
                _wait_for(held.enter_context(path.open("wb")).fileno())
                # Who has waited for it finds the kernel; who comes later finds it before it asks for the lock.
                held.callback(path.unlink, missing_ok=True)
        yield


def _wait_for(handle: int) -> None:
    until_s = time.monotonic() + WAIT_S
    while time.monotonic() < until_s:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(POLL_S)
        else:
            return


def _drop_unused(place: Path) -> None:
    before_s = time.time() - UNUSED_DAYS * DAY_S
    # Stamps too (`protos.runtime.kernels`): one must not outlive what it speaks of.
    for pattern in (f"*{SUFFIX}", f"*{LOCK_SUFFIX}", "kernels-*"):
        for path in place.glob(pattern):
            # Another process may be about the same.
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < before_s:
                    path.unlink()
