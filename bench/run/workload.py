"""The requests of a run: what its spec says of the workload, read and placed in time."""

from __future__ import annotations

import re

import msgspec

from bench.data.datasets import DATASET_NAMES, DatasetSpec
from bench.data.named import NAMED
from bench.data.own_file import is_workload_file
from bench.data.source import WorkloadSource, WorkloadSpec, load_source
from bench.run.spec import RunSpec, SpecError
from bench.workload.item import WorkloadItem
from bench.workload.models import with_models
from bench.workload.priorities import with_high
from bench.workload.rate_profile import parse_steps
from engine_adapters.tokenizer import default_tokenizer


def workload_spec(spec: RunSpec) -> WorkloadSpec:
    """What of a run decides its requests. Raises SpecError."""
    try:
        steps = tuple(parse_steps(spec.rate_steps)) if spec.rate_steps else ()
    except ValueError as error:
        raise SpecError(f"rate_steps: {error}") from None
    first_row, max_rows = row_range(spec.rows)
    of_trace = spec.rate_per_s is None and not steps and spec.duration_s is not None
    return WorkloadSpec(
        file=spec.dataset if is_workload_file(spec.dataset) else "",
        named=spec.dataset if spec.dataset in NAMED else "",
        dataset=DatasetSpec(
            name=next((name for name in DATASET_NAMES if name == spec.dataset), "sharegpt"),
            path=spec.dataset_path,
            tokenizer=spec.tokenizer or default_tokenizer(),
            start_s=spec.start_s,
            duration_s=(spec.duration_s or 0.0) * spec.rate_scale if of_trace else None,
            first_row=first_row,
            max_rows=max_rows,
            default_prompt_tokens=spec.prompt_tokens,
            default_output_tokens=spec.output_tokens,
            skip_bad=spec.skip_bad,
            shape=spec.shape,
        ),
        arrivals=spec.arrivals,
        burstiness=spec.burstiness,
        rate_scale=spec.rate_scale,
        requests=spec.requests,
        duration_s=spec.duration_s,
        rate_steps=steps,
        day_peak_to_valley=spec.day_curve,
        shuffle=None if spec.in_order is None else not spec.in_order,
    )


def requests_of(spec: RunSpec) -> list[WorkloadItem]:
    """The requests of a run that its nodes can take. Raises DatasetError, SpecError, ValueError."""
    source = load_source(workload_spec(spec))
    source.keep_fitting(spec.longest_tokens)
    items = items_of(source, spec)
    # Simulated nodes read lengths only; texts would fill the memory of every process for nothing.
    return [msgspec.structs.replace(item, prompt="") if item.prompt else item for item in items]


def items_of(source: WorkloadSource, spec: RunSpec) -> list[WorkloadItem]:
    """The run's requests from a source that is read. Raises DatasetError, ValueError."""
    rate_per_s = spec.rate_per_s
    if spec.concurrency is not None and not source.has_arrivals:
        # A closed loop takes the order alone from the times.
        rate_per_s = 1.0
    items = with_models(source.workload(rate_per_s=rate_per_s, seed=spec.seed), spec.model_shares, spec.seed)
    return with_high(items, spec.high_share, spec.seed)


def row_range(text: str) -> tuple[int, int | None]:
    """`A:B` as the first row and how many. Raises SpecError."""
    if not text:
        return 1, None
    match = re.fullmatch(r"(\d*):(\d*)", text)
    first = int(match[1] or 1) if match else 0
    last = int(match[2]) if match and match[2] else None
    if first < 1 or (last is not None and last < first):
        raise SpecError(f"rows: write A:B with 1 <= A <= B, for example 1:5000; got {text!r}")
    return first, None if last is None else last - first + 1
