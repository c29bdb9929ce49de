"""A workload as the command line describes it: rows of a data set placed in time, made anew for each rate and seed."""

from __future__ import annotations

import msgspec

from bench.datasets import DatasetSpec, Progress, load_dataset
from bench.workload.arrivals import ArrivalKind, check_rate
from bench.workload.compose import fitting, generated, recorded
from bench.workload.dataset_error import DatasetError
from bench.workload.item import DataRow, WorkloadItem
from bench.workload.rows import plural


class WorkloadSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything but rate and seed. `requests` and `duration_s` bound a run; with both, the shorter one."""

    dataset: DatasetSpec
    arrivals: ArrivalKind = "gamma"
    burstiness: float = 1.0
    """Shape of the gamma gaps: 1 is Poisson, less is burstier."""
    rate_scale: float = 1.0
    """Density of recorded arrivals: 2 doubles the rate."""
    requests: int | None = None
    duration_s: float | None = None
    """Seconds of the run."""
    shuffle: bool = True
    """Rows in a seeded random order; else in file order."""


class WorkloadSource:
    """Rows in memory, workloads on demand. `notes` say what was kept and what was not."""

    def __init__(self, spec: WorkloadSpec, rows: list[DataRow], notes: list[str]) -> None:
        self.spec = spec
        self.notes = notes
        self._rows = rows
        self._source = spec.dataset.path or spec.dataset.name

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
        if rate_per_s is None:
            if not self.has_arrivals:
                raise ValueError(f"{self._source} has no arrival times: give a rate in requests per second")
            items = recorded(self._rows, rate_scale=spec.rate_scale, count=spec.requests)
        elif spec.requests is None and spec.duration_s is None:
            raise ValueError("say how many requests or how many seconds the run shall have")
        else:
            check_rate(rate_per_s)
            items = generated(
                self._rows,
                seed=seed,
                kind=spec.arrivals,
                rate_per_s=rate_per_s,
                burstiness=spec.burstiness,
                count=spec.requests,
                duration_s=spec.duration_s if spec.requests is None else None,
                shuffle=spec.shuffle,
            )
        if spec.duration_s is not None:
            items = [item for item in items if item.arrival_s < spec.duration_s]
        if not items:
            raise ValueError("no request falls into the run: make it longer or raise the rate")
        return items


def load_source(spec: WorkloadSpec, *, progress: Progress | None = None) -> WorkloadSource:
    """Reads the data set. Raises DatasetError, TokenizerError."""
    parsed = load_dataset(spec.dataset, progress=progress)
    return WorkloadSource(spec, parsed.rows, list(parsed.notes))
