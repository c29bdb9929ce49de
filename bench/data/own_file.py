"""A workload of one's own: a Python file with a function `workload(*, rate_per_s, requests, seed)`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.workload.dataset_error import DatasetError
from bench.workload.item import WorkloadItem
from gateway.python_file import run_file

SUFFIX = ".py"


def is_workload_file(name: str) -> bool:
    """Whether `name` is meant as a path and not as a data set's word."""
    return name.endswith(SUFFIX)


def check_workload_file(path: str) -> None:
    """Raises DatasetError when it is not there."""
    if not Path(path).is_file():
        raise DatasetError(path, "there is no such workload file", mend="Check the path.")


def items_of_file(path: str, *, rate_per_s: float | None, requests: int, seed: int) -> list[WorkloadItem]:
    """What its function makes, checked. The file is run. Raises DatasetError."""
    make = function_of(path)
    try:
        items = list(make(rate_per_s=rate_per_s, requests=requests, seed=seed))
    except Exception as error:
        raise DatasetError(
            path, f"its workload() failed: {type(error).__name__}: {error}", mend="Mend the file."
        ) from error
    for index, item in enumerate(items):
        if not isinstance(item, WorkloadItem):
            raise DatasetError(
                path,
                f"item {index} is a {type(item).__name__}",
                mend="Return bench.workload.item.WorkloadItem objects.",
            )
    return items


def fitting_items(items: Sequence[WorkloadItem], longest_tokens: int, path: str) -> list[WorkloadItem]:
    """Those that an engine can run, prompt and answer together. Raises DatasetError when none is left."""
    fit = [item for item in items if item.prompt_tokens + item.output_tokens <= longest_tokens]
    if not fit:
        raise DatasetError(path, "it made no request that fits the engine", mend="Make shorter ones.")
    return fit


@functools.lru_cache(maxsize=8)
def function_of(path: str) -> Callable[..., Sequence[Any]]:
    """The file's `workload`; the file is run once. Raises DatasetError."""
    check_workload_file(path)
    try:
        module = run_file(path, "workload")
    except Exception as error:
        raise DatasetError(path, f"cannot be run: {type(error).__name__}: {error}", mend="Mend the file.") from error
    make = getattr(module, "workload", None)
    if not callable(make):
        raise DatasetError(
            path, "it has no function `workload`", mend="Define workload(*, rate_per_s, requests, seed)."
        )
    return make
