"""Gets compiled kernels ready before a process serves.

Compiling takes most of a minute and leaves 150 MB behind in the process that does it, so one that finds no cache
lets a child do it and then loads the result. Processes that start together agree by a lock: one compiles, all others
wait. A stamp says that all is compiled; without it nothing worse happens than a child that finds everything compiled.
It lies in the folder that `NUMBA_CACHE_DIR` names, beside what it speaks of, or else in the user's cache folder: a
service has a folder of the first kind and often no home.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import importlib
import importlib.resources
import os
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.metadata import version
from importlib.resources.abc import Traversable
from pathlib import Path

import structlog

log = structlog.get_logger("kernels")

POLL_S = 0.05
WARMING = "simcore.warmup"
LAST_WORDS = 500


class KernelError(RuntimeError):
    """Compiling has failed; the message says how."""


async def kernels_ready(of: str) -> None:
    """Returns when the kernels that a function of `simcore.warmup` uses are compiled and loaded. Raises KernelError."""
    stamp = _cache_folder() / f"kernels-{of}-{_fingerprint()}"
    if not stamp.exists():
        async with _locked(stamp.with_suffix(".lock")):
            if not stamp.exists():
                await _compile(of)
                stamp.touch()
    with _without_scipy():
        await _aside(lambda: getattr(importlib.import_module(WARMING), of)())


async def _aside(work: Callable[[], object]) -> None:
    """Runs it in a thread that nobody waits for at the end: where a cache is lost behind its stamp, a process that is
    told to stop must not compile to the end first."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def tell(error: BaseException | None) -> None:
        if not done.done():
            done.set_exception(error) if error is not None else done.set_result(None)

    def run() -> None:
        error: BaseException | None = None
        try:
            work()
        except BaseException as failed:
            error = failed
        # The loop may have ended meanwhile.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(tell, error)

    threading.Thread(target=run, name="warm-up", daemon=True).start()
    await done


@contextlib.contextmanager
def _without_scipy() -> Iterator[None]:
    """numba loads scipy's linear algebra, 16 MB, merely because it is installed; the kernels have no use for it."""
    name = "scipy.linalg"
    blocked = name not in sys.modules
    if blocked:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if blocked:
            del sys.modules[name]


async def _compile(of: str) -> None:
    log.info("compiling the simulator's kernels, or finding them compiled; the first time takes up to a minute")
    began_s = time.monotonic()
    flags = ["-" + "O" * sys.flags.optimize] if sys.flags.optimize else []
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *flags,
        "-c",
        f"from {WARMING} import {of}; {of}()",
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, err = await child.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
        raise
    if child.returncode:
        words = err.decode(errors="replace").strip()[-LAST_WORDS:]
        raise KernelError(f"compiling the simulator's kernels failed with exit code {child.returncode}: {words}")
    log.info("kernels are compiled", took_s=round(time.monotonic() - began_s, 1))


@contextlib.asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    """Holds the file's lock; waits for it without blocking the loop."""
    with path.open("wb") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(POLL_S)
        yield


def _cache_folder() -> Path:
    """That of numba where one is named, else the user's; a new one, shared with nobody, where none can be written."""
    users = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "astrolabe"
    for named in (os.environ.get("NUMBA_CACHE_DIR"), users):
        if not named:
            continue
        # A user that has no home, a folder that cannot be made.
        with contextlib.suppress(OSError, RuntimeError):
            folder = Path(named).expanduser()
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    return Path(tempfile.mkdtemp(prefix="astrolabe-"))


def _fingerprint() -> str:
    """Hash of all that decides whether numba's cache fits: sources, their place, versions, numba's settings."""
    digest = hashlib.sha256()
    for source in _sources(importlib.resources.files("simcore")):
        digest.update(str(source).encode())
        digest.update(source.read_bytes())
    settings = sorted((k, v) for k, v in os.environ.items() if k.startswith("NUMBA_"))
    # Without its assertions a kernel is another one.
    digest.update(repr((sys.version, sys.flags.optimize, version("numba"), settings)).encode())
    return digest.hexdigest()[:16]


def _sources(folder: Traversable) -> Iterator[Traversable]:
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.is_dir():
            yield from _sources(entry)
        elif entry.name.endswith(".py"):
            yield entry
