"""Searches whose next run depends on the last one, several side by side on all cores, every run kept in the log."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Generator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from bench.run.files import commit, machine
from bench.run.log import RunLog, read_lines
from bench.run.pool import INTERRUPTED, WORKER_DIED, Interrupted, PoolError, depend_on_parent
from bench.run.simulated import Done, RunLine, Task, run_task
from bench.run.spec import RunSpec

R = TypeVar("R")
Chain = Generator[Task, RunLine, R]
"""Yields the run it wants, is sent its line, returns what it found."""


def _point(spec: RunSpec) -> str:
    rate = "the data set's own arrivals" if spec.rate_per_s is None else f"{spec.rate_per_s:g}/s"
    return f"{rate} on {spec.nodes} nodes"


def run_chains(
    chains: Mapping[str, Chain[R]], log_path: Path, *, console: Console, jobs: int = 0
) -> tuple[dict[str, R], list[RunLine]]:
    """What each chain found, and all lines used. Raises PoolError, RunLogError."""
    known = {line.key: line for line in read_lines(log_path) if line.mode == "simulated"}
    here, where = commit(), machine()
    found: dict[str, R] = {}
    used: dict[str, RunLine] = {}
    under_way: dict[Future[Done], str] = {}
    workers = min(jobs or os.cpu_count() or 1, max(1, len(chains)))
    context = multiprocessing.get_context("spawn")
    with (
        RunLog(log_path) as log,
        ProcessPoolExecutor(workers, mp_context=context, initializer=depend_on_parent) as pool,
    ):

        def go_on(name: str, line: RunLine | None) -> None:
            """Until the chain wants a run that is not known."""
            chain = chains[name]
            while True:
                try:
                    task = next(chain) if line is None else chain.send(line)
                except StopIteration as stop:
                    found[name] = stop.value
                    return
                line = known.get(task.spec.key)
                if line is None:
                    under_way[pool.submit(run_task, task, commit=here, machine=where)] = name
                    return
                used[line.key] = line

        def collect(future: Future[Done]) -> RunLine:
            line = future.result().line
            log.add(line)
            known[line.key] = used[line.key] = line
            return line

        try:
            with console.status("searching") as status:
                for name in chains:
                    go_on(name, None)
                while under_way:
                    done, _ = wait(under_way, return_when=FIRST_COMPLETED)
                    for future in done:
                        name = under_way.pop(future)
                        line = collect(future)
                        status.update(f"searching: {len(used)} runs, last {name} at {_point(line.spec)}")
                        go_on(name, line)
        except KeyboardInterrupt:
            for future in [future for future in under_way if not future.cancel()]:
                collect(future)
            raise Interrupted(INTERRUPTED) from None
        except BrokenProcessPool:
            raise PoolError(WORKER_DIED) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found, list(used.values())
