"""Gets compiled kernels ready for a process.

Compiling takes half a minute and leaves 150 MB behind in the process that does it, so one that finds no cache lets a
child do it and then loads the result. A process that serves does not wait for that: meanwhile Python runs its kernels.
Processes that start together agree by a lock: one compiles, all others wait. A stamp says that all is compiled; without
it nothing worse happens than a child that finds everything compiled. It lies beside the kernels that it speaks of:
those compiled here, or those that came with the product.

`python -m protos.runtime.kernels` compiles all kernels into where the installed product ships them from: a step of
building a wheel, a package or an image. What was compiled for another Python, numba or CPU is never taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import importlib
import importlib.resources
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.resources.abc import Traversable
from pathlib import Path

import structlog

from protos.runtime import compiling
from protos.runtime.imports import without
from simcore import kernel_files

log = structlog.get_logger("kernels")

POLL_S = 0.05
AGAIN_S = 60.0
"""From a compiler that failed beside a process that serves to the next try; twice that after each further one, up to
LONGEST_S: what ends it may pass (memory, a full disk) or not."""
LONGEST_S = 3600.0
FLEET = "warm_fleet"
"""The only ones without what-ifs."""
ALL = ("warm_all", "warm", "warm_node", "warm_node_of_all_rules", FLEET)
"""What is shipped: the first compiles everything, the others find it compiled and leave a stamp of their own."""
BESIDE = "warm_what_if"
"""Half of all others: compiled in a second process at the same time."""
KERNEL_CACHE = "simcore.kernel_cache"
"""Loaded where it is needed: numba comes with it."""
LAST_WORDS = 500
UNUSED = "scipy.linalg"
"""numba loads it, 16 MB, merely because it is installed; the kernels have no use for it."""

_loading = asyncio.Lock()
_loaded: set[str] = set()
_meanwhile: dict[str, asyncio.Task[None]] = {}
"""What has begun interpreted."""


class KernelError(RuntimeError):
    """Compiling has failed; the message says how."""


async def kernels_ready(of: str) -> None:
    """Returns when the kernels that a function of `simcore.warmup` uses are compiled and loaded, for which the first
    call of a process does it all. Raises KernelError."""
    async with _loading:
        if of not in _loaded:
            await _load(of)
            _loaded.add(of)


async def kernels_usable(of: str) -> None:
    """As `kernels_ready`, for a process that serves: where they are not compiled it returns at once. Until another
    process has compiled them, and they are loaded, Python runs them."""
    if of in _meanwhile:
        return
    async with _loading:
        if of in _loaded or of in _meanwhile:
            return
        if _is_stamped(await _stamp(of)):
            await _load(of)
            _loaded.add(of)
            return
        interpreting = contextlib.ExitStack()
        interpreting.enter_context(importlib.import_module(KERNEL_CACHE).interpreting())
        _meanwhile[of] = asyncio.create_task(_compile_meanwhile(of, interpreting), name="compiling kernels")


async def _compile_meanwhile(of: str, interpreting: contextlib.ExitStack) -> None:
    began_s, again_in_s = time.monotonic(), AGAIN_S
    log.info("kernels are interpreted until they are compiled")
    with interpreting:
        while True:
            try:
                await kernels_ready(of)
                break
            # Whatever a compiler may raise: requests are served all the same.
            except Exception as bad:
                log.error("kernels are not compiled, and interpreted still", detail=str(bad), again_in_s=again_in_s)
            await asyncio.sleep(again_in_s)
            again_in_s = min(2 * again_in_s, LONGEST_S)
    log.info("kernels are not interpreted any more", after_s=round(time.monotonic() - began_s, 1))


async def kernels_compiled(of: str) -> None:
    """Returns when the kernels that a function of `simcore.warmup` uses are compiled, by whichever process, or can be
    kept nowhere. Raises KernelError."""
    folder = kernel_files.folder()
    # Where nothing can be kept, a child would compile for itself alone.
    if folder is not None:
        stamp = await _stamp(of)
        if not _is_stamped(stamp):
            async with _locked(folder / f"{stamp}.lock"):
                if not _is_stamped(stamp):
                    await _compile(of)
                    (folder / stamp).touch()


async def _load(of: str) -> None:
    await kernels_compiled(of)

    def load() -> None:
        with importlib.import_module(KERNEL_CACHE).compiling():
            getattr(importlib.import_module(compiling.WARMING), of)()

    with without(UNUSED):
        await _aside(load)


async def _stamp(of: str) -> str:
    stamps: list[str] = []
    with without(UNUSED):
        await _aside(lambda: stamps.append(f"kernels-{of}-{_fingerprint()}"))
    return stamps[0]


def _is_stamped(stamp: str) -> bool:
    places = (kernel_files.folder(), kernel_files.SHIPPED)
    return any((place / stamp).exists() for place in places if place is not None)


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


async def _compile(of: str) -> None:
    log.info("compiling the simulator's kernels, or finding them compiled; the first time takes up to a minute")
    began_s = time.monotonic()
    with contextlib.ExitStack() as beside:
        if of != FLEET:
            beside.enter_context(compiling_beside(BESIDE))
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(*_command(of), stdin=pipe, stderr=pipe)
        try:
            assert child.stderr is not None, "it is a pipe"
            err = await child.stderr.read()
            await child.wait()
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
            raise
    if child.returncode:
        words = err.decode(errors="replace").strip()[-LAST_WORDS:]
        raise KernelError(f"compiling the simulator's kernels failed with exit code {child.returncode}: {words}")
    log.info("kernels are compiled", took_s=round(time.monotonic() - began_s, 1))


@contextlib.contextmanager
def compiling_beside(of: str) -> Iterator[None]:
    """Meanwhile another process compiles what a function of `simcore.warmup` uses: on a second core, where processes of
    the caller compile as well. Who needs a kernel that is being compiled waits for it."""
    quiet = subprocess.DEVNULL
    with subprocess.Popen(_command(of), stdin=subprocess.PIPE, stdout=quiet, stderr=quiet) as child:
        try:
            yield
        finally:
            child.terminate()


def _command(of: str) -> list[str]:
    flags = ["-" + "O" * sys.flags.optimize] if sys.flags.optimize else []
    return [sys.executable, *flags, "-m", compiling.__name__, of]


@contextlib.asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    """Holds the file's lock; waits for it without blocking the loop, until its holder leaves it or dies, or for as long
    as one waits for a kernel."""
    until_s = time.monotonic() + kernel_files.WAIT_S
    with path.open("wb") as file:
        while time.monotonic() < until_s:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(POLL_S)
        yield


def _fingerprint() -> str:
    """Hash of all that decides whether compiled kernels fit: what sources say, wherever they are, and what compiles."""
    made_by = importlib.import_module("simcore.kernel_cache").made_by
    # Without its assertions a kernel is another one.
    digest = hashlib.sha256(repr((made_by(), sys.flags.optimize)).encode())
    for source in _sources(importlib.resources.files("simcore")):
        digest.update(source.name.encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _sources(folder: Traversable) -> Iterator[Traversable]:
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.is_dir():
            yield from _sources(entry)
        elif entry.name.endswith(".py"):
            yield entry


def _ship() -> None:
    folder = kernel_files.SHIPPED
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    for of in ALL:
        asyncio.run(kernels_ready(of))
    for lock in folder.glob("*.lock"):
        lock.unlink()


if __name__ == "__main__":
    _ship()
