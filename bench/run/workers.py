"""Where simulated runs are carried out, several at a time: processes of this machine, or of others (`dask_cluster`)."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import Protocol

from bench.run.provenance import machine
from bench.run.simulated import Done, Task, run_task

WORKER_DIED = (
    "a worker process died (killed, or out of memory); what was finished is kept: give the same command again, with "
    "fewer --jobs"
)


class ExecutorError(Exception):
    """Runs that could not be finished. The message is for people."""


class Workers(Protocol):
    """Each carries out one run at a time."""

    @property
    def count(self) -> int:
        """How many there are now."""

    def submit(self, task: Task, *, commit: str, keep_results: bool) -> Future[Done]:
        """The run's future; its exceptions are those of `run_task`, and ExecutorError."""

    def cancel_waiting(self, futures: Sequence[Future[Done]]) -> list[Future[Done]]:
        """Cancels runs that nobody has begun; returns the others, which go on to their end."""

    def drop(self) -> None:
        """Ends those too, at once."""


class LocalWorkers:
    """Processes of this machine."""

    def __init__(self, pool: ProcessPoolExecutor, count: int) -> None:
        self.count = count
        self._pool = pool
        self._machine = machine()

    def submit(self, task: Task, *, commit: str, keep_results: bool) -> Future[Done]:
        with _sigint_held():
            return self._pool.submit(run_task, task, commit=commit, machine=self._machine, keep_results=keep_results)

    def cancel_waiting(self, futures: Sequence[Future[Done]]) -> list[Future[Done]]:
        left = [future for future in futures if not future.cancel()]
        # The pool must forget the cancelled ones: it cannot tell them that it is broken, should it be dropped.
        self._pool.shutdown(wait=False, cancel_futures=True)
        return left

    def drop(self) -> None:
        for worker in multiprocessing.active_children():
            worker.kill()


@contextlib.contextmanager
def local_workers(count: int) -> Iterator[LocalWorkers]:
    """Raises ExecutorError when one of them dies."""
    # Started afresh, not forked: the parent may have threads of its own.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=depend_on_parent) as pool:
        try:
            yield LocalWorkers(pool, count)
        except BrokenProcessPool:
            raise ExecutorError(WORKER_DIED) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextlib.contextmanager
def _sigint_held() -> Iterator[None]:
    """Ctrl-C reaches the whole group, and the parent decides what becomes of it: processes begun meanwhile never see
    it, not even while they import; the parent sees it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def depend_on_parent() -> None:
    """For workers: they end with a parent that is killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
