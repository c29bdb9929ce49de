"""Kernels run by Python, as they are written: what a process computes with until they are compiled.

They are plain functions over arrays, so the same code gives the same results, a hundred times slower. Only the kernels
that a kernel calls have to be found in this form too, wherever its module has them by name.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np

WRAPS_BITS = 32
"""Numbers of a module that are longer are factors of hashes: what they are multiplied with must wrap around, as it does
in machine code and not with Python's own integers."""

_names_of: dict[int, dict[str, Any]] = {}
"""What names stand for in a module, by the identity of its own."""


def interpreted(kernel: Any) -> Callable[..., Any]:
    """The function that a kernel compiles, with all under it."""
    function = _plain(kernel)

    def run(*args: Any) -> Any:
        with np.errstate(over="ignore"):
            return function(*args)

    return run


def _names(compiled: dict[str, Any]) -> dict[str, Any]:
    names = _names_of.get(id(compiled))
    if names is None:
        names = _names_of[id(compiled)] = {}
        names.update((name, _plain(value)) for name, value in compiled.items())
    return names


def _plain(value: Any) -> Any:
    if function := getattr(value, "py_func", None):
        return FunctionType(function.__code__, _names(function.__globals__), function.__name__, function.__defaults__)
    if isinstance(value, ModuleType) and any(hasattr(it, "py_func") for it in vars(value).values()):
        return SimpleNamespace(**_names(vars(value)))
    if isinstance(value, int) and value.bit_length() > WRAPS_BITS:
        return np.int64(value)
    return value
