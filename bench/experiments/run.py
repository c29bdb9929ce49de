"""Carries out an experiment: its runs on all cores, then claims, tables and figures from the lines in its folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from bench.data.named import check_there, note_on
from bench.experiments.agreement import AGREEMENT_FILE, simulate_again
from bench.experiments.agreement import as_markdown as as_agreement
from bench.experiments.catalogue import ExperimentError, published
from bench.experiments.claims import Evaluated, claim_text, evaluate, evaluate_points
from bench.experiments.figures import draw, draw_front
from bench.experiments.fronts import as_markdown as front_as_markdown
from bench.experiments.fronts import systems_of
from bench.experiments.matrix import Matrix, matrix_of
from bench.experiments.peers import against_peers
from bench.experiments.peers import as_markdown as peers_as_markdown
from bench.experiments.schema import Experiment, Grid
from bench.experiments.tables import as_markdown, as_rich, matrix_as_markdown, matrix_as_rich
from bench.run.executor import run_all
from bench.run.files import FILE_NAME, RunLog, records_writer
from bench.run.grid import make_tasks
from bench.run.provenance import commit
from bench.run.simulated import RunLine, Task
from bench.run.spec import RunSpec, with_values
from bench.show.tables import print_table
from bench.workload.dataset_error import DatasetError
from bench.workload.rate_profile import parse_steps
from bench.workload.rows import plural

MOST_DATA_SETS = 2
"""As many as a caption has room for."""
MOST_SIZES = 4
LiveRunner = Callable[[Experiment, Sequence[int], Console], list[RunLine]]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What an experiment left behind."""

    name: str
    folder: str
    runs: int
    reused: int
    wall_s: float
    cpu_s: float
    """Processor time of all runs, those that were there too."""
    claims: list[Evaluated]
    matrices: list[Matrix] = []
    files: list[str]


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How large: what `--seeds`, `--requests` and `--jobs` say; 0 leaves the experiment's own."""

    seeds: int = 0
    requests: int = 0
    jobs: int = 0
    cluster: str = ""
    """Address of a Dask scheduler; empty: this machine."""
    fresh: bool = False
    records: str = ""


def tasks_of(experiment: Experiment, size: Size) -> list[Task]:
    """All runs. Raises SpecError, PolicyError, DatasetError."""
    seeds = range(size.seeds or experiment.seeds)
    base = with_values(RunSpec(), experiment.base)
    found: list[Task] = []
    for grid in experiment.grids:
        start = with_values(base, grid.base)
        if size.requests:
            start = with_values(start, {"requests": size.requests})
        found += make_tasks(
            start,
            group=_group(experiment, grid),
            variants=_variants(experiment, grid),
            axes=grid.axes,
            seeds=list(seeds),
        )
    return found


def settings_of(experiment: Experiment) -> dict[str, RunSpec]:
    """What every variant is put into, by title: runs that say all but the policy. Raises SpecError."""
    base = with_values(RunSpec(), experiment.base)
    grids = {grid.name: grid for grid in experiment.grids}
    return {
        setting.title: with_values(base, {**grids[setting.grid].base, **setting.at}) for setting in experiment.settings
    }


def run_experiment(
    experiment: Experiment, folder: Path, size: Size, *, console: Console, live: LiveRunner | None = None
) -> tuple[Report, list[RunLine]]:
    """Runs what `folder` lacks and writes claims, tables, figures there.

    `live` carries the experiment out on real processes instead.

    Raises ExperimentError, ExecutorError, ResultFileError, SpecError, PolicyError, DatasetError, OSError.
    """
    if experiment.status == "live" and live is None:
        raise ExperimentError(f"{experiment.name} needs real processes: add --live")
    started_s = time.perf_counter()
    if live is not None:
        lines, reused = live(experiment, range(size.seeds or 1), console), 0
        (folder / FILE_NAME).unlink(missing_ok=True)
        with RunLog(folder / FILE_NAME) as log:
            for line in lines:
                log.add(line)
    else:
        tasks = with_data(tasks_of(experiment, size), console)
        check_warm_up(tasks)
        executed = run_all(
            tasks,
            folder / FILE_NAME,
            console=console,
            jobs=size.jobs,
            fresh=size.fresh,
            on_results=records_writer(folder, size.records),
            beside=sorted(path for path in folder.parent.glob(f"*/{FILE_NAME}") if path.parent != folder),
            title=experiment.name,
            cluster=size.cluster,
        )
        lines, reused = executed.lines, executed.reused
        if executed.other_commits:
            others = ", ".join(c[:12] for c in executed.other_commits)
            text = f"[yellow]note:[/] some runs are of other commits ({others}); --fresh runs all again"
            console.print(text, highlight=False)
    claims, files = write_outcome(experiment, lines, folder)
    if live is not None:
        assert experiment.live is not None, "a live run has a [live] part"
        scale = experiment.live.time_scale
        agreed = simulate_again(lines, folder, time_scale=scale, console=console)
        files.append(folder / AGREEMENT_FILE)
        files[-1].write_text(as_agreement(agreed, lines, time_scale=scale), encoding="utf-8")
    report = Report(
        name=experiment.name,
        folder=str(folder),
        runs=len(lines),
        reused=reused,
        wall_s=time.perf_counter() - started_s,
        cpu_s=sum(line.cpu_s for line in lines),
        claims=claims,
        matrices=[matrix_of(experiment, spec, lines) for spec in experiment.matrices],
        files=[str(file) for file in files],
    )
    return report, lines


def write_outcome(experiment: Experiment, lines: Sequence[RunLine], folder: Path) -> tuple[list[Evaluated], list[Path]]:
    """Claims, tables and figures from lines that are there. Raises OSError."""
    points = published(experiment)
    claims = [evaluate(claim, lines) for claim in experiment.claims]
    if points is not None:
        claims += evaluate_points(experiment, points, lines)
    seeds = len({line.spec.seed for line in lines})
    header = _header(lines)
    files: list[Path] = []
    if claims:
        claim_path = folder / f"{experiment.name}.claim"
        claim_path.write_text(claim_text(experiment, claims, seeds=seeds, header=header), encoding="utf-8")
        json_path = folder / f"{experiment.name}.claim.json"
        json_path.write_bytes(msgspec.json.format(msgspec.json.encode(claims), indent=1) + b"\n")
        files += [claim_path, json_path]
    matrices = [matrix_of(experiment, spec, lines) for spec in experiment.matrices]
    if matrices:
        matrix_path = folder / f"{experiment.name}.matrices.json"
        matrix_path.write_bytes(msgspec.json.format(msgspec.json.encode(matrices), indent=1) + b"\n")
        files.append(matrix_path)
    if experiment.tables or matrices or experiment.fronts:
        table_path = folder / f"{experiment.name}.md"
        texts = [matrix_as_markdown(matrix) for matrix in matrices]
        texts += [as_markdown(experiment, table, lines) for table in experiment.tables]
        texts += [front_as_markdown(front, lines) for front in experiment.fronts]
        if experiment.peers is not None:
            texts.append(peers_as_markdown(experiment.peers, against_peers(experiment, experiment.peers, lines)))
        table_path.write_text(f"{header}\n\n" + "\n".join(texts), encoding="utf-8")
        files.append(table_path)
    for figure in experiment.figures:
        files += draw(figure, experiment, lines, folder, caption=header, published=points)
    for front in experiment.fronts:
        files += draw_front(front, systems_of(front, lines), folder, caption=header)
    return claims, files


def show_tables(experiment: Experiment, lines: Sequence[RunLine], console: Console) -> None:
    """For people."""
    for spec in experiment.matrices:
        print_table(console, matrix_as_rich(matrix_of(experiment, spec, lines)))
    for table in experiment.tables:
        print_table(console, as_rich(experiment, table, lines))


def with_data(tasks: Sequence[Task], console: Console) -> list[Task]:
    """Those whose rows are on this machine, or made here; of the others it says how many there are, and how to get the
    rows. Raises ExperimentError if none is left."""
    lacking: dict[str, DatasetError] = {}
    for word in dict.fromkeys(task.spec.dataset for task in tasks):
        try:
            check_there(word)
        except DatasetError as error:
            lacking[word] = error
    there = [task for task in tasks if task.spec.dataset not in lacking]
    if not there:
        raise ExperimentError("\n".join(map(str, lacking.values())))
    for word, why in lacking.items():
        left_out = plural(sum(task.spec.dataset == word for task in tasks), "run")
        console.print(f"[yellow]{left_out} left out:[/] {why}", highlight=False)
    return there


def check_warm_up(tasks: Sequence[Task]) -> None:
    """Raises ExperimentError, before any run, for those that would be over within their warm-up."""
    needed = [_warming_requests(task.spec) for task in tasks]
    short = [
        (task, most)
        for task, most in zip(tasks, needed, strict=True)
        if task.spec.requests is not None and task.spec.requests <= most
    ]
    if short:
        first = short[0][0]
        raise ExperimentError(
            f"{first.group}, {first.variant}: {first.spec.requests:,} requests have all come within the warm-up of "
            f"{first.spec.warm_up_s:g} s, which is not measured: give more than --requests "
            f"{max(most for _, most in short):.0f}"
        )


def _warming_requests(spec: RunSpec) -> float:
    """How many come within the warm-up, by the rates that are asked for."""
    if not spec.warm_up_s:
        return 0.0
    if not spec.rate_steps:
        return spec.warm_up_s * (spec.rate_per_s or 0.0)
    came, left_s = 0.0, spec.warm_up_s
    for step in parse_steps(spec.rate_steps):
        came += step.rate_per_s * min(step.duration_s, left_s)
        left_s = max(0.0, left_s - step.duration_s)
    return came


def _header(lines: Sequence[RunLine]) -> str:
    first = lines[0]
    # Steps of a rate bring what they bring; the number asked for is their limit then.
    requests = sorted(
        {
            line.summary.requests if line.spec.rate_steps else line.spec.requests or line.summary.requests
            for line in lines
        }
    )
    seeds = len({line.spec.seed for line in lines})
    data = sorted({note_on(line.spec.dataset, line.spec.dataset_path) for line in lines})
    if len(data) > MOST_DATA_SETS:
        data = [*data[:MOST_DATA_SETS], f"and {len(data) - MOST_DATA_SETS} more"]
    sizes = "/".join(f"{number:,}" for number in requests)
    if len(requests) > MOST_SIZES:
        sizes = f"{requests[0]:,} to {requests[-1]:,}"
    return (
        f"{len(lines)} {first.mode} runs, {plural(seeds, 'seed')}, {sizes} requests each; "
        f"{'; '.join(data)}; commit {(commit() or 'unknown')[:12]}"
    )


def _group(experiment: Experiment, grid: Grid) -> str:
    return f"{experiment.name}/{grid.name}" if grid.name else experiment.name


def _variants(experiment: Experiment, grid: Grid) -> dict[str, dict[str, object]]:
    names = grid.variants or [variant.name for variant in experiment.variants]
    return {name: experiment.variant(name).values for name in names}
