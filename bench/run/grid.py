"""From axes to runs: every combination, each checked before the first one starts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from bench.run.simulated import Task
from bench.run.spec import RunSpec, SpecError, check_field, check_spec, with_values
from gateway.policy_files import policy_name

MOST_RUNS = 100_000


def make_tasks(
    base: RunSpec,
    *,
    group: str,
    variants: Mapping[str, Mapping[str, Any]],
    axes: Mapping[str, Sequence[Any]],
    seeds: Sequence[int],
) -> list[Task]:
    """Variants x axes x seeds; the seed varies fastest. Raises SpecError, PolicyError, DatasetError."""
    for axis, values in axes.items():
        check_field(axis)
        if not values:
            raise SpecError(f"the axis {axis!r} has no values")
        if len({repr(value) for value in values}) < len(values):
            raise SpecError(f"the axis {axis!r} has a value twice: {', '.join(str(v) for v in values)}")
    combinations = list(itertools.product(*axes.values()))
    count = len(combinations) * len(variants) * len(seeds)
    if count > MOST_RUNS:
        raise SpecError(f"this grid has {count:,} runs; more than {MOST_RUNS:,} are not meant: leave out values")
    tasks: list[Task] = []
    for values in combinations:
        point = dict(zip(axes, values, strict=True))
        for name, own in variants.items():
            for seed in seeds:
                spec = with_values(base, {**point, **own, "seed": seed})
                check_spec(spec)
                tasks.append(Task(group=group, variant=name, spec=spec))
    for policy in dict.fromkeys(task.spec.policy_path for task in tasks):
        policy_name(policy)
    return tasks
