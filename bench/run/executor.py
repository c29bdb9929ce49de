"""Carries out simulated runs on all cores, here or of a cluster: lists, and searches whose next run needs the last one.

Both are chains of runs; a list is many chains of one. A run that the log has is not carried out again, each new one is
in the log when it is done.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import TypeVar

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.run.files import ResultFileError, RunLog, read_lines
from bench.run.provenance import CHANGED, commit, machine
from bench.run.simulated import Done, RunLine, Task, run_task
from bench.run.spec import router_config
from bench.run.workers import ExecutorError, Workers, local_workers
from bench.workload.rows import plural
from gateway.core.decision.policies.registry import needs_forecasts
from gateway.policy_files import policy_name

INTERRUPTED = "interrupted; what was finished is kept: give the same command again to go on"
FINISHING = "finishing {runs} under way; Ctrl-C again drops them"
ESTIMATE_S = 24 * 3600.0
WAITING_PER_WORKER = 2
"""Runs handed to the pool ahead of time."""

R = TypeVar("R")
Chain = Generator[Task, RunLine, R]
"""Yields the run it wants, is sent its line, returns what it found."""


class Interrupted(ExecutorError):
    """Stopped by the user; everything finished is in the log."""


class Executed(msgspec.Struct, frozen=True, kw_only=True):
    """Lines in the order of the tasks, and how many of them were in the log before."""

    lines: list[RunLine]
    reused: int
    other_commits: list[str]
    """Commits of reused lines, where they differ from the present one."""


def run_all(
    tasks: Sequence[Task],
    log_path: Path | None = None,
    *,
    console: Console,
    jobs: int = 0,
    fresh: bool = False,
    on_results: Callable[[Done], None] | None = None,
    beside: Sequence[Path] = (),
    title: str = "simulating",
    cluster: str = "",
) -> Executed:
    """Runs what the log lacks; all of them without a log. `cluster`: the address of a Dask scheduler, whose workers
    take the place of this machine's cores.

    `on_results` gets the requests of each run carried out. A run that this very commit has carried out for one of the
    logs `beside` is taken from there, unless requests are wanted. Raises ExecutorError, ResultFileError.
    """
    if fresh and log_path is not None:
        log_path.unlink(missing_ok=True)
    here = commit()
    known = _known(log_path)
    keys = [_key(task, index) for index, task in enumerate(tasks)]
    wanted = {key: task for key, task in zip(keys, tasks, strict=True) if key not in known}
    borrowed = {} if fresh or on_results else _borrowed(beside, wanted, here)
    if log_path is not None and borrowed:
        with RunLog(log_path) as log:
            for key, line in borrowed.items():
                known[key] = _named(line, wanted.pop(key))
                log.add(known[key])
    reused = Counter(key in known for key in keys)[True]
    if reused:
        text = f"{reused:,} of {len(tasks):,} runs are in {log_path} already"
        console.print(f"{text}, {len(borrowed):,} of them from beside it" if borrowed else text, highlight=False)
    with _bar(console) as bar:
        shown = bar.add_task(title, total=len(tasks), completed=reused, detail="")

        def on_done(done: Done) -> None:
            line = done.line
            if on_results is not None:
                on_results(done)
            detail = f"{line.variant} {_at(line)}{line.wall_s:.1f} s"
            bar.update(shown, advance=1, detail=detail)
            if log_path is None and not console.is_terminal:
                console.print(f"{title}: {detail}", highlight=False)

        order = sorted(wanted, key=lambda key: _weight(wanted[key]), reverse=True)
        found = _drive(
            {key: _single(wanted[key]) for key in order},
            log_path,
            known={},
            here=here,
            console=console,
            jobs=jobs,
            keep_results=on_results is not None,
            on_done=lambda _, done: on_done(done),
            cluster=cluster,
        )
    known |= found
    lines = [_named(known[key], task) for key, task in zip(keys, tasks, strict=True)]
    return Executed(lines=lines, reused=reused, other_commits=sorted({line.commit for line in lines} - {here}))


def run_chains(
    chains: Mapping[str, Chain[R]], log_path: Path, *, console: Console, jobs: int = 0
) -> tuple[dict[str, R], list[RunLine]]:
    """What each chain found, and all lines used. Raises ExecutorError, ResultFileError."""
    used: dict[str, RunLine] = {}
    bar = _bar(console)
    shown = bar.add_task("searching", total=len(chains), detail="")

    def noted(chain: Chain[R]) -> Chain[R]:
        line = None
        while True:
            try:
                task = next(chain) if line is None else chain.send(line)
            except StopIteration as stop:
                bar.advance(shown)
                return stop.value
            line = yield task
            used[line.key] = line

    with bar:
        found = _drive(
            {name: noted(chain) for name, chain in chains.items()},
            log_path,
            known=_known(log_path),
            here=commit(),
            console=console,
            jobs=jobs,
            keep_results=False,
            on_done=lambda _, done: bar.update(
                shown,
                detail=f"{plural(len(used) + 1, 'run')}, last {_at(done.line)}{plural(done.line.spec.size, 'node')}",
            ),
        )
    return found, list(used.values())


def _drive(
    chains: Mapping[str, Chain[R]],
    log_path: Path | None,
    *,
    known: dict[str, RunLine],
    here: str,
    console: Console,
    jobs: int,
    keep_results: bool,
    on_done: Callable[[str, Done], None],
    cluster: str = "",
) -> dict[str, R]:
    """Every chain to its end. Lines in `known` answer at once; the others are run, logged and kept there."""
    found: dict[str, R] = {}
    ready: deque[tuple[str, Task]] = deque()

    def go_on(name: str, line: RunLine | None) -> None:
        """Until the chain wants a run that is not known, or has ended."""
        chain = chains[name]
        while True:
            try:
                task = next(chain) if line is None else chain.send(line)
            except StopIteration as stop:
                found[name] = stop.value
                return
            line = known.get(task.spec.key) if task.items is None and known else None
            if line is None:
                ready.append((name, task))
                return

    for name in chains:
        go_on(name, None)
    count = min(jobs or os.cpu_count() or 1, len(ready))
    with contextlib.nullcontext() if log_path is None else RunLog(log_path) as log:

        def collect(name: str, done: Done) -> None:
            if log is not None:
                log.add(done.line)
                known[done.line.key] = done.line
            on_done(name, done)

        if not ready:
            return found
        if count <= 1 and not cluster:
            try:
                while ready:
                    name, task = ready.popleft()
                    done = run_task(task, commit=here, machine=machine(), keep_results=keep_results)
                    collect(name, done)
                    go_on(name, done.line)
            except KeyboardInterrupt:
                raise Interrupted(INTERRUPTED) from None
            return found
        under_way: dict[Future[Done], str] = {}
        with _workers(cluster, count) as workers:
            try:
                while ready or under_way:
                    while ready and len(under_way) < WAITING_PER_WORKER * workers.count:
                        name, task = ready.popleft()
                        under_way[workers.submit(task, commit=here, keep_results=keep_results)] = name
                    finished, _ = wait(under_way, return_when=FIRST_COMPLETED)
                    for future in finished:
                        done = future.result()
                        name = under_way.pop(future)
                        collect(name, done)
                        go_on(name, done.line)
            except KeyboardInterrupt:
                # Runs under way are work that need not be done again, if the user has the time.
                try:
                    left = {future: under_way[future] for future in workers.cancel_waiting(list(under_way))}
                    if not all(future.done() for future in left):
                        console.print(FINISHING.format(runs=plural(len(left), "run")), highlight=False)
                    wait(left)
                except KeyboardInterrupt:
                    workers.drop()
                    raise Interrupted(INTERRUPTED) from None
                for future, name in left.items():
                    if future.exception() is None:
                        collect(name, future.result())
                raise Interrupted(INTERRUPTED) from None
    return found


def _workers(cluster: str, count: int) -> contextlib.AbstractContextManager[Workers]:
    if not cluster:
        return local_workers(count)
    from bench.run.dask_cluster import cluster_workers  # its package is an extra

    return cluster_workers(cluster)


def _single(task: Task) -> Chain[RunLine]:
    return (yield task)


def _named(line: RunLine, task: Task) -> RunLine:
    """A line that may have been made under another name."""
    return msgspec.structs.replace(line, group=task.group, variant=task.variant)


def _key(task: Task, index: int) -> str:
    """Requests of its own are not in a task's spec: such a task equals no other."""
    return task.spec.key if task.items is None else f"{task.spec.key}-{index}"


def _known(log_path: Path | None) -> dict[str, RunLine]:
    lines = [] if log_path is None else read_lines(log_path)
    return {line.key: line for line in lines if line.mode == "simulated"}


def _borrowed(logs: Sequence[Path], wanted: Mapping[str, Task], here: str) -> dict[str, RunLine]:
    """Lines for wanted keys. With changes that are not committed nobody knows which code a line is of."""
    if not here or here.endswith(CHANGED):
        return {}
    found: dict[str, RunLine] = {}
    for path in logs:
        # A file that cannot be read is the trouble of the command that it belongs to.
        with contextlib.suppress(ResultFileError):
            lines = read_lines(path)
            found |= {line.key: line for line in lines if line.key in wanted and line.commit == here}
    return found


def _weight(task: Task) -> float:
    """Long runs first, so that the cores end together."""
    spec = task.spec
    fan_out = 0
    if needs_forecasts(policy_name(spec.policy_path)):
        drawn = spec.sample or spec.size
        fan_out = min(drawn, router_config(spec, "random").ask or drawn)
    return (spec.requests or 0) * (3.0 + fan_out) * (spec.rate_per_s or 1.0)


def _at(line: RunLine) -> str:
    rate = line.spec.rate_per_s
    return "" if rate is None else f"at {rate:g}/s: "


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        # As wide as there is room for, so that it is not the remaining time that is cut off.
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        # The mean of all, since runs take longer than rich's window of half a minute.
        speed_estimate_period=ESTIMATE_S,
        disable=not console.is_terminal,
    )
