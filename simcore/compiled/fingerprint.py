"""A fingerprint of compiled code: changes when any kernel, or any number that a kernel takes from a module, changes.

It is of what the code says, not of where it lies or when it was written: two checkouts with the same kernels agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from types import CodeType, ModuleType
from typing import Any


def fingerprint_of(function: Callable[..., Any]) -> str:
    """Over the function, the kernels it calls at any remove, and the numbers they take from modules by name."""
    parts = {repr(function.__defaults__), *_parts(function.__code__, function.__globals__, set())}
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()


def _parts(code: CodeType, names: dict[str, Any], seen: set[CodeType]) -> Iterator[str]:
    if code in seen:
        return
    seen.add(code)
    constants = tuple(c for c in code.co_consts if not isinstance(c, CodeType))
    yield repr((names["__name__"], code.co_name, code.co_code, constants, code.co_names))
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _parts(inner, names, seen)
    modules = [m for n in code.co_names if isinstance(m := names.get(n), ModuleType)]
    for owner in (names, *map(vars, modules)):
        for name in code.co_names:
            value: Any = owner.get(name)
            kernel = getattr(value, "py_func", None)
            if kernel is not None:
                yield repr((name, sorted(value.targetoptions.items()), kernel.__defaults__))
                yield from _parts(kernel.__code__, kernel.__globals__, seen)
            elif isinstance(value, int | float | str | bytes | tuple):
                yield repr((code.co_name, name, value))
