"""Kernels that other kernels call, called by a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def callable_from_python(kernel: F) -> F:
    """The same kernel, compiled once more with what Python needs to call it."""
    inner: Any = kernel
    return cast(F, numba.njit(inner.py_func))
