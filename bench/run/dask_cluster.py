"""Simulated runs on the workers of a Dask cluster that is there already.

Workers must be what this process is: a run's line says nothing of who carried it out, so nobody may be able to tell.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.run.provenance import machine
from bench.run.simulated import Done, Task, run_task
from bench.run.workers import ExecutorError

DECIDE = ("bench", "deploy", "engine_adapters", "gateway", "length_model", "predictor", "protos", "simcore")
"""Packages whose files decide what a run gives."""
FILES = (".py", ".json", ".toml", ".alm")
CONNECT_S = 10.0
KEPT = "what was finished is kept: give the same command again to go on"


class _WrongWorkerError(ExecutorError):
    """A worker cannot give the results that this process would."""


@functools.cache
def identity() -> dict[str, str]:
    """All of a process that decides what a run gives, but the files that the run names."""
    digest = hashlib.sha256()
    for package in DECIDE:
        (folder,) = importlib.import_module(package).__path__
        for path in sorted(p for p in Path(folder).rglob("*") if p.suffix in FILES):
            digest.update(str(path.relative_to(folder)).encode())
            digest.update(path.read_bytes())
    return {
        "astrolabe": version("astrolabe"),
        "code": digest.hexdigest()[:12],
        "python": ".".join(platform.python_version_tuple()[:2]),
        "numpy": version("numpy"),
        "numba": version("numba"),
        "machine": platform.machine(),
    }


def difference(theirs: Mapping[str, str], own: Mapping[str, str]) -> str:
    """What is not the same, for people; empty if nothing is."""
    return ", ".join(
        f"{name} {theirs.get(name, 'none')} (here {value})" for name, value in own.items() if theirs.get(name) != value
    )


def files_of(task: Task) -> dict[str, str]:
    """Hash by path, as the run names it, of every file that it reads."""
    spec = task.spec
    named = [*spec.files, spec.dataset_path]
    return {path: _hash(path) for path in dict.fromkeys(named) if path and Path(path).is_file()}


def _hash(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def run_there(
    task: Task, *, commit: str, keep_results: bool, own: Mapping[str, str], files: Mapping[str, str], folder: str
) -> Done:
    """In a worker: the run, if this is a worker that may. Paths are meant from `folder`."""
    me = f"worker {platform.node()} (process {os.getpid()})"
    if other := difference(identity(), own):
        raise _WrongWorkerError(f"{me} has {other}; install there what is here")
    with contextlib.chdir(folder) if Path(folder).is_dir() else contextlib.nullcontext():
        for path, expected in files.items():
            if not Path(path).is_file():
                raise _WrongWorkerError(f"{me} has no file {Path(folder, path)}; put it there, or share its folder")
            if _hash(path) != expected:
                raise _WrongWorkerError(f"{me} has another {Path(folder, path)} than is here; make them equal")
        return run_task(task, commit=commit, machine=machine(), keep_results=keep_results)


class ClusterWorkers:
    """The workers of a cluster: some may come or go, and a run whose worker dies is given to another."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._executor = client.get_executor(pure=False)
        self._keys: dict[Future[Done], str] = {}
        self._submitted = 0

    @property
    def count(self) -> int:
        return max(1, len(self._client.nthreads()))

    def submit(self, task: Task, *, commit: str, keep_results: bool) -> Future[Done]:
        self._submitted += 1
        key = f"{task.spec.key}-{self._submitted}"
        future: Future[Done] = self._executor.submit(
            run_there,
            task,
            commit=commit,
            keep_results=keep_results,
            own=identity(),
            files=files_of(task),
            folder=os.getcwd(),
            key=key,
        )
        self._keys[future] = key
        future.add_done_callback(lambda done: self._keys.pop(done, None))
        return future

    def cancel_waiting(self, futures: Sequence[Future[Done]]) -> list[Future[Done]]:
        # Of all that runs there: asked for a run that it does not know yet, or any more, the scheduler fails.
        stacks = self._client.call_stack() or {}
        running = {key for worker in stacks.values() for key in worker}
        left = [future for future in futures if self._keys.get(future) in running or future.done()]
        for future in futures:
            if future not in left:
                future.cancel()
        return left

    def drop(self) -> None:
        for future in list(self._keys):
            future.cancel()


@contextlib.contextmanager
def cluster_workers(address: str) -> Iterator[ClusterWorkers]:
    """The workers of the scheduler at `address`. Raises ExecutorError for one that is not there, for workers that are
    not what this process is, and when the cluster is lost."""
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise ExecutorError("--cluster needs the package distributed: pip install 'astrolabe[distributed]'") from None
    try:
        client = Client(address, timeout=CONNECT_S, set_as_default=False)  # type: ignore[no-untyped-call, unused-ignore]
    except (OSError, TimeoutError, ValueError) as error:
        raise ExecutorError(
            f"no Dask scheduler answers at {address} ({_first_line(error)}); start one: dask scheduler"
        ) from None
    with client:
        _check(client, address)
        try:
            yield ClusterWorkers(client)
        except KilledWorker as error:
            raise ExecutorError(
                f"a run has lost every worker that took it, the last at {error.last_worker.address}: are they out of "
                f"memory? {KEPT}"
            ) from None
        except CancelledError:
            raise ExecutorError(f"the cluster at {address} is lost; {KEPT}") from None


def _check(client: Any, address: str) -> None:
    """Raises ExecutorError, before any run, for workers that cannot do."""
    try:
        client.wait_for_workers(1, timeout=CONNECT_S)
    except TimeoutError:
        raise ExecutorError(
            f"the scheduler at {address} has no worker; start some: dask worker {address} --nthreads 1 --nworkers auto"
        ) from None
    busy = [worker for worker, threads in client.nthreads().items() if threads > 1]
    if busy:
        raise ExecutorError(
            f"worker {busy[0]} runs several tasks in one process, which share one interpreter; start it with "
            "--nthreads 1 --nworkers auto"
        )
    for worker, found in client.run(identity, on_error="return").items():
        if isinstance(found, ModuleNotFoundError):
            raise ExecutorError(f"worker {worker} has no astrolabe ({found}); install there what is here")
        if isinstance(found, BaseException):
            raise ExecutorError(f"worker {worker} cannot be asked what it is: {_first_line(found)}")
        if other := difference(found, identity()):
            raise ExecutorError(f"worker {worker} has {other}; install there what is here")


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
