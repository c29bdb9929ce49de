"""Where compiled code is kept: beside the sources, in a folder for each version of numba.

numba keeps one index for a source file and starts it anew when another version of numba comes by. Two environments over
one checkout (vLLM pins its numba) would so make each other compile for half a minute at every start. Where the folder
cannot be written, numba goes on to the places of its own; `NUMBA_CACHE_DIR` is obeyed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def cached(function: F) -> F:
    """Compiles the function, or finds it compiled; it runs without the interpreter's lock."""
    return cast(F, numba.njit(cache=True, nogil=True)(function))


if not numba.config.CACHE_DIR:  # type: ignore[attr-defined]
    HERE = __file__.removesuffix("kernel_cache.py")
    numba.config.CACHE_DIR = f"{HERE}__pycache__/numba-{numba.__version__}"  # type: ignore[attr-defined]
