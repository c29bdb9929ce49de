"""A workload as the command line describes it: rows of a data set placed in time, made anew for each rate and seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

from bench.data.datasets import DatasetSpec, Progress, load_dataset
from bench.data.named import NamedDraws, drawn_rows, found_for, note_on
from bench.data.own_file import fitting_items, function_of, items_of_file
from bench.workload.arrivals import ArrivalKind, check_rate
from bench.workload.compose import fitting, generated, recorded, shaped
from bench.workload.dataset_error import DatasetError
from bench.workload.drawn import TimedRows
from bench.workload.item import DataRow, WorkloadItem
from bench.workload.rate_profile import RateStep, day_curve
from bench.workload.rows import plural

NO_LIMIT_TOKENS = 2**31
STAND_IN_SEED = 3
"""A trace is the same for all runs, and so is what stands in for one."""
MOST_KEPT = 8
"""Data sets in memory."""


class WorkloadSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything but rate and seed. `requests` and `duration_s` bound a run; with both, the shorter one."""

    dataset: DatasetSpec
    file: str = ""
    """A workload file of one's own, which makes requests and arrivals itself; goes before `dataset`."""
    named: str = ""
    """A word of `bench.data.named`; goes before `dataset`."""
    arrivals: ArrivalKind | Literal["recorded"] = "gamma"
    """`recorded`: the data set's own times, made denser or sparser until their mean rate is the one asked for."""
    burstiness: float = 1.0
    """Shape of the gamma gaps: 1 is Poisson, less is burstier."""
    rate_scale: float = 1.0
    """Density of recorded arrivals: 2 doubles the rate."""
    requests: int | None = None
    duration_s: float | None = None
    """Seconds of the run."""
    rate_steps: tuple[RateStep, ...] = ()
    """A rate that changes; goes before any other."""
    day_peak_to_valley: float | None = None
    """The run is one day, squeezed into `duration_s`, whose rate swings by this factor around the one asked for."""
    shuffle: bool | None = None
    """Rows in a seeded random order, or in file order. None: in file order where prompts share beginnings, since those
    that do belong close together in time."""


class WorkloadSource:
    """Rows in memory, workloads on demand. `notes` say what was kept and what was not."""

    def __init__(self, spec: WorkloadSpec, rows: list[DataRow], notes: list[str]) -> None:
        self.spec = spec
        self.notes = notes
        self._rows = rows
        self._source = spec.named or spec.dataset.path or spec.dataset.name

    @property
    def has_arrivals(self) -> bool:
        """Whether the data set says when its requests came."""
        return self._rows[0].arrival_s is not None

    def keep_fitting(self, max_total_tokens: int) -> None:
        """Leaves out rows that no engine with this context length could run; the notes say how many.

        Raises DatasetError when none is left.
        """
        rows = fitting(self._rows, max_total_tokens)
        dropped = len(self._rows) - len(rows)
        if not rows:
            raise DatasetError(
                self._source,
                f"every row is longer than {max_total_tokens:,} tokens, prompt and answer together",
                mend="Use an engine with a longer context or another data set.",
            )
        if dropped:
            self.notes.append(f"{plural(dropped, 'row')} longer than {max_total_tokens:,} tokens left out")
        self._rows = rows

    def workload(self, *, rate_per_s: float | None, seed: int) -> list[WorkloadItem]:
        """The run's requests: at `rate_per_s`, or at the data set's own times when it is None. Raises ValueError."""
        spec = self.spec
        if rate_per_s is not None:
            check_rate(rate_per_s)
        if steps := self._steps(rate_per_s):
            items = shaped(
                self._rows,
                steps,
                seed=seed,
                kind=self._kind(),
                burstiness=spec.burstiness,
                shuffle=self._shuffled(),
            )[: spec.requests]
        elif rate_per_s is None or spec.arrivals == "recorded":
            if not self.has_arrivals:
                raise ValueError(f"{self._source} has no arrival times: give a rate in requests per second")
            scale = spec.rate_scale if rate_per_s is None else rate_per_s / self._recorded_rate_per_s()
            items = recorded(self._rows, rate_scale=scale, count=spec.requests)
        elif spec.requests is None and spec.duration_s is None:
            raise ValueError("say how many requests or how many seconds the run shall have")
        else:
            items = generated(
                self._rows,
                seed=seed,
                kind=self._kind(),
                rate_per_s=rate_per_s,
                burstiness=spec.burstiness,
                count=spec.requests,
                duration_s=spec.duration_s if spec.requests is None else None,
                shuffle=self._shuffled(),
            )
        if spec.duration_s is not None:
            items = [item for item in items if item.arrival_s < spec.duration_s]
        if not items:
            raise ValueError("no request falls into the run: make it longer or raise the rate")
        if len(items) > len(self._rows):
            self._note(f"{plural(len(items), 'request')} of {plural(len(self._rows), 'row')}: rows come more than once")
        return items

    def _shuffled(self) -> bool:
        """Whether rows at generated times are shuffled; what that means for shared beginnings is noted.

        Conversations are, as wholes: who shares a beginning with whom stays.
        """
        shared = any(row.prefix_ids for row in self._rows)
        if not shared or any(row.think_s is not None for row in self._rows):
            return self.spec.shuffle is not False
        if self.spec.shuffle:
            self._note("shuffled, as asked: prompts that share beginnings no longer follow each other as recorded")
            return True
        self._note("rows in file order, since prompts share beginnings; their recorded times are not used")
        return False

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _kind(self) -> ArrivalKind:
        return "gamma" if self.spec.arrivals == "recorded" else self.spec.arrivals

    def _steps(self, rate_per_s: float | None) -> list[RateStep]:
        spec = self.spec
        if spec.day_peak_to_valley is None:
            return list(spec.rate_steps)
        if rate_per_s is None or spec.duration_s is None:
            raise ValueError("a day curve needs a mean rate and a duration")
        return day_curve(mean_rate_per_s=rate_per_s, peak_to_valley=spec.day_peak_to_valley, day_s=spec.duration_s)

    def _recorded_rate_per_s(self) -> float:
        times = [row.arrival_s for row in self._rows if row.arrival_s is not None]
        span_s = max(times) - min(times)
        if span_s <= 0:
            raise ValueError(f"all requests of {self._source} come at one moment: they have no rate to scale")
        return (len(times) - 1) / span_s


class DrawnSource(WorkloadSource):
    """Rows that are drawn anew for each seed."""

    def __init__(self, spec: WorkloadSpec, draws: NamedDraws) -> None:
        super().__init__(spec, [], [note_on(spec.named)])
        self._draws = draws
        self._longest_tokens = NO_LIMIT_TOKENS

    @property
    def has_arrivals(self) -> bool:
        return False

    def keep_fitting(self, max_total_tokens: int) -> None:
        self._longest_tokens = min(max_total_tokens, self._longest_tokens)
        self._note(f"drawn again where prompt and answer have more than {self._longest_tokens:,} tokens together")

    def workload(self, *, rate_per_s: float | None, seed: int) -> list[WorkloadItem]:
        spec = self.spec
        count = spec.requests
        if spec.rate_steps:
            # Half as many again: how many come is drawn too, and rows that run out would come twice.
            come = math.ceil(1.5 * sum(step.duration_s * step.rate_per_s for step in spec.rate_steps))
            count = come if count is None else min(count, come)
        if count is None:
            raise ValueError("say how many requests the run shall have")
        rows = drawn_rows(spec.named, self._draws, seed=seed, count=count, longest_tokens=self._longest_tokens)
        return WorkloadSource(spec, rows, []).workload(rate_per_s=rate_per_s, seed=seed)


class FileSource(WorkloadSource):
    """The requests that a workload file makes."""

    def __init__(self, spec: WorkloadSpec) -> None:
        super().__init__(spec, [], [f"requests and arrivals of {spec.file}"])
        self._longest_tokens: int | None = None

    @property
    def has_arrivals(self) -> bool:
        return True

    def keep_fitting(self, max_total_tokens: int) -> None:
        self._longest_tokens = min(max_total_tokens, self._longest_tokens or max_total_tokens)

    def workload(self, *, rate_per_s: float | None, seed: int) -> list[WorkloadItem]:
        """What the file makes at this rate and seed. Raises DatasetError, ValueError."""
        spec = self.spec
        if spec.requests is None:
            raise ValueError("say how many requests the run shall have")
        items = items_of_file(spec.file, rate_per_s=rate_per_s, requests=spec.requests, seed=seed)
        if self._longest_tokens is not None:
            fit = fitting_items(items, self._longest_tokens, spec.file)
            if len(fit) < len(items):
                dropped = plural(len(items) - len(fit), "request")
                self._note(f"{dropped} of the file longer than {self._longest_tokens:,} tokens left out")
            items = fit
        return [item for item in items if spec.duration_s is None or item.arrival_s < spec.duration_s]


def load_source(spec: WorkloadSpec, *, progress: Progress | None = None) -> WorkloadSource:
    """Reads the data set; what was read last is kept in memory. Raises DatasetError, TokenizerError."""
    if spec.file:
        function_of(spec.file)
        return FileSource(spec)
    dataset, distinct = spec.dataset, False
    if spec.named:
        found = found_for(spec.named)
        if isinstance(found, NamedDraws):
            return DrawnSource(spec, found)
        if isinstance(found, TimedRows):
            return WorkloadSource(spec, found.draw(np.random.default_rng(STAND_IN_SEED)), [note_on(spec.named)])
        dataset, distinct = found
    rows, notes = _read(dataset, distinct, progress)
    return WorkloadSource(spec, list(rows), [note_on(spec.named), *notes] if spec.named else list(notes))


_kept: dict[tuple[DatasetSpec, bool], tuple[Sequence[DataRow], Sequence[str]]] = {}


def _read(dataset: DatasetSpec, distinct: bool, progress: Progress | None) -> tuple[Sequence[DataRow], Sequence[str]]:
    key = dataset, distinct
    if key not in _kept:
        parsed = load_dataset(dataset, progress=progress)
        if len(_kept) == MOST_KEPT:
            del _kept[next(iter(_kept))]
        rows, notes = parsed.rows, parsed.notes
        if distinct:
            rows = list(dict.fromkeys(rows))
            notes = [*notes, f"{plural(len(parsed.rows) - len(rows), 'row')} equal to others left out"]
        _kept[key] = rows, notes
    return _kept[key]
