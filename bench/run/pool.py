"""Many runs on all cores: those already in the log are not run again, each new one is in the log when it is done."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.run.files import CHANGED, commit, machine, write_request_lines
from bench.run.log import RunLog, RunLogError, read_lines
from bench.run.simulated import Done, RunLine, Task, run_task

INTERRUPTED = "interrupted; what was finished is kept: give the same command again to go on"
WORKER_DIED = (
    "a worker process died (killed, or out of memory); what was finished is kept: give the same command again, with "
    "fewer --jobs"
)


class PoolError(Exception):
    """Runs that could not be finished. The message is for people."""


class Interrupted(PoolError):
    """Stopped by the user; everything finished is in the log."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Lines in the order of the tasks, and how many of them were in the log before."""

    lines: list[RunLine]
    reused: int
    other_commits: list[str]
    """Commits of reused lines, where they differ from the present one."""


def run_all(
    tasks: Sequence[Task],
    log_path: Path,
    *,
    console: Console,
    jobs: int = 0,
    fresh: bool = False,
    records: str = "",
    beside: Sequence[Path] = (),
    title: str = "simulating",
) -> Outcome:
    """Runs what the log lacks.

    `records` ("jsonl", "parquet") keeps the requests of each run beside the log. A run that this very commit has
    carried out for one of the logs `beside` is taken from there. Raises PoolError, RunLogError.
    """
    if fresh:
        log_path.unlink(missing_ok=True)
    known = {line.key: line for line in read_lines(log_path) if line.mode == "simulated"}
    keys = [task.spec.key for task in tasks]
    wanted = {key: task for key, task in zip(keys, tasks, strict=True) if key not in known}
    here, where = commit(), machine()
    borrowed = {} if records or fresh else _borrowed(beside, wanted, here)
    with RunLog(log_path) as log:
        for key, line in borrowed.items():
            task = wanted.pop(key)
            known[key] = msgspec.structs.replace(line, group=task.group, variant=task.variant)
            log.add(known[key])
    reused = Counter(key in known for key in keys)[True]
    if reused:
        text = f"{reused:,} of {len(tasks):,} runs are in {log_path} already"
        console.print(f"{text}, {len(borrowed):,} of them from beside it" if borrowed else text, highlight=False)
    with RunLog(log_path) as log, _bar(console) as bar:
        place = bar.add_task(title, total=len(tasks), completed=reused, detail="")

        def finished(done: Done) -> None:
            line = done.line
            log.add(line)
            known[line.key] = line
            if records:
                write_request_lines(log_path.parent / "requests" / line.key, done.results, records)
            bar.update(place, advance=1, detail=f"{line.variant} {_at(line)} {line.wall_s:.1f} s")

        order = sorted(wanted.values(), key=_weight, reverse=True)
        _drain(order, finished, jobs=jobs, commit=here, machine=where, keep=bool(records))
    lines = [
        msgspec.structs.replace(known[key], group=task.group, variant=task.variant)
        for key, task in zip(keys, tasks, strict=True)
    ]
    others = sorted({line.commit for line in lines} - {here})
    return Outcome(lines=lines, reused=reused, other_commits=others)


def _borrowed(logs: Sequence[Path], wanted: Mapping[str, Task], here: str) -> dict[str, RunLine]:
    """Lines for wanted keys. With changes that are not committed nobody knows which code a line is of."""
    if not here or here.endswith(CHANGED):
        return {}
    found: dict[str, RunLine] = {}
    for path in logs:
        # A file that cannot be read is the trouble of the command that it belongs to.
        with contextlib.suppress(RunLogError):
            lines = read_lines(path)
            found |= {line.key: line for line in lines if line.key in wanted and line.commit == here}
    return found


def _drain(
    tasks: Sequence[Task],
    finished: Callable[[Done], None],
    *,
    jobs: int,
    commit: str,
    machine: dict[str, str | int],
    keep: bool,
) -> None:
    workers = min(jobs or os.cpu_count() or 1, len(tasks))
    if workers <= 1:
        try:
            for task in tasks:
                finished(run_task(task, commit=commit, machine=machine, keep_results=keep))
        except KeyboardInterrupt:
            raise Interrupted(INTERRUPTED) from None
        return
    # Started afresh, not forked: the parent may have threads of its own.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=depend_on_parent) as pool:
        futures = [pool.submit(run_task, t, commit=commit, machine=machine, keep_results=keep) for t in tasks]
        collected: set[Future[Done]] = set()
        try:
            for future in as_completed(futures):
                finished(future.result())
                collected.add(future)
        except KeyboardInterrupt:
            _keep_running(futures, collected, finished)
            raise Interrupted(INTERRUPTED) from None
        except BrokenProcessPool:
            raise PoolError(WORKER_DIED) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _keep_running(
    futures: Sequence[Future[Done]], collected: set[Future[Done]], finished: Callable[[Done], None]
) -> None:
    """Waits for the runs under way: seconds of work that need not be done again."""
    left = [future for future in futures if future not in collected and not future.cancel()]
    for future in as_completed(left):
        if future.exception() is None:
            finished(future.result())


def depend_on_parent() -> None:
    """For workers: Ctrl-C reaches the whole group, and the parent decides what becomes of it; if it is killed, they end
    with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _weight(task: Task) -> float:
    """Long runs first, so that the cores end together."""
    spec = task.spec
    fan_out = spec.sample or spec.nodes if "latency" in spec.policy else 1
    return spec.requests * (2.0 + fan_out) * (spec.rate_per_s or 1.0)


def _at(line: RunLine) -> str:
    rate = line.spec.rate_per_s
    return "" if rate is None else f"at {rate:g}/s:"


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


__all__ = ["Interrupted", "Outcome", "PoolError", "RunLogError", "run_all"]
