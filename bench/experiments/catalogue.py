"""The experiments there are, by name. Reads and checks their files."""

from __future__ import annotations

import difflib
import functools
import re
import tomllib
from pathlib import Path

import msgspec

from bench.experiments.schema import Experiment, PublishedFile
from bench.measure.measures import check_measure
from bench.run.spec import SpecError, check_field

FOLDER = Path(__file__).resolve().parent


class ExperimentError(Exception):
    """An experiment that is not there or does not make sense. The message is for people."""


@functools.cache
def all_experiments() -> dict[str, Experiment]:
    """By name, in the order of the files. Raises ExperimentError."""
    found = [load_experiment(path) for path in sorted(FOLDER.glob("*.toml"))]
    return {experiment.name: experiment for experiment in found}


def find(name: str) -> Experiment:
    """By name, or from a TOML file of one's own. Raises ExperimentError with what was perhaps meant."""
    if name.endswith(".toml"):
        return load_experiment(Path(name))
    known = all_experiments()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ExperimentError(f"unknown experiment {name!r}: {hint}`astrolabe bench experiment list` shows all")
    return known[name]


def load_experiment(path: Path) -> Experiment:
    """Raises ExperimentError naming file and key."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        experiment = msgspec.convert(document, Experiment)
    except OSError as error:
        raise ExperimentError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ExperimentError(f"{path}: {error}; bench/experiments/schema.py says what may stand there") from None
    try:
        _check(experiment)
    except (SpecError, ValueError) as error:
        raise ExperimentError(f"{path}: {error}") from None
    return experiment


def published(experiment: Experiment) -> PublishedFile | None:
    """The experiment's file of published points."""
    if experiment.published is None:
        return None
    return msgspec.json.decode((FOLDER / "published" / experiment.published.file).read_bytes(), type=PublishedFile)


def _check(experiment: Experiment) -> None:
    """Raises ValueError: a name that nothing has."""
    names = {variant.name for variant in experiment.variants}
    grids = {grid.name for grid in experiment.grids}
    for values in [experiment.base, *(v.values for v in experiment.variants), *(g.base for g in experiment.grids)]:
        for key in values:
            check_field(key)
    for grid in experiment.grids:
        for axis in grid.axes:
            check_field(axis)
        _known("variant", grid.variants, names)
    for figure in experiment.figures:
        _known("variant", figure.variants, names)
        _known("grid", [figure.grid, *(p.grid for p in figure.panels)], grids | {""})
        for panel in figure.panels:
            if figure.kind != "course":
                check_measure(panel.measure)
    for table in experiment.tables:
        _known("variant", table.variants, names)
        for column in table.columns:
            check_measure(column.measure)
            _known("grid", [column.grid], grids | {""})
    titles = {setting.title for setting in experiment.settings}
    for setting in experiment.settings:
        _known("grid", [setting.grid], grids)
        for axis in setting.at:
            check_field(axis)
    for matrix in experiment.matrices:
        check_measure(matrix.measure)
        _known("variant", matrix.variants, names)
        _known("setting", matrix.settings, titles)
    for front in experiment.fronts:
        check_measure(front.x)
        check_measure(front.y)
        _known("variant", [line.variant for line in front.systems], names)
        _known("grid", [grid for line in front.systems for grid in line.grids], grids)
        _known("system", [front.against] if front.against else [], {line.name for line in front.systems})
    if experiment.peers is not None:
        _known("variant", [experiment.peers.ours, *experiment.peers.bounds], names)
        for measure in (experiment.peers.cost, experiment.peers.misses, experiment.peers.unrest):
            check_measure(measure)
    for claim in experiment.claims:
        check_measure(claim.measure)
        _known("variant", [claim.variant, *([claim.against] if claim.against else [])], names)
        _known("grid", [claim.grid], grids | {""})


def _known(what: str, wanted: list[str], there: set[str]) -> None:
    for name in wanted:
        if name not in there:
            near = difflib.get_close_matches(name, there, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {sorted(there)}"
            raise ValueError(f"unknown {what} {name!r}; {hint}")


def on_fleet(experiment: Experiment, fleet: str) -> Experiment:
    """The same experiment over the nodes of `fleet` (as `RunSpec.fleet`), by a name of its own.

    Raises ExperimentError for one whose grids or variants say themselves which nodes there are.
    """
    said = {key for grid in experiment.grids for key in (*grid.base, *grid.axes)}
    said |= {key for variant in experiment.variants for key in variant.values}
    if clash := sorted(said & {"fleet", "nodes", "profile"}):
        raise ExperimentError(
            f"experiment {experiment.name} says {' and '.join(clash)} for each grid: leave --fleet out"
        )
    name = f"{experiment.name}-on-{re.sub(r'[^A-Za-z0-9]+', '-', Path(fleet).stem or fleet).strip('-')}"
    return msgspec.structs.replace(experiment, name=name, base={**experiment.base, "fleet": fleet})
