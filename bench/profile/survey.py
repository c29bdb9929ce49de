"""All bad rows of a table, without refusing it: what `astrolabe bench profile check` prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from bench.profile.kernels import Kernel, Screen
from bench.profile.physics import Violation, violations
from bench.profile.rows import ProfileTableError
from simcore.cost.hardware import Gpu
from simcore.cost.model_shape import ModelShape


def survey(
    importer: Callable[[Path, ModelShape, int, Screen], list[Kernel]],
    table: Path,
    gpu: Gpu,
    shape: ModelShape,
    tp: int,
) -> tuple[int, list[Violation]]:
    """(kernels in the table, those that cannot be true). Raises `ProfileTableError` for a table of another layout."""
    seen: list[Kernel] = []
    bad: list[Violation] = []

    def screen(kernels: Sequence[Kernel]) -> list[Kernel]:
        seen.extend(kernels)
        bad.extend(violations(kernels, gpu))
        wrong = {(v.row, v.op) for v in bad}
        return [k for k in kernels if (k.row, k.op) not in wrong]

    try:
        importer(table, shape, tp, screen)
    except ProfileTableError:
        if not bad:
            raise
    return len(seen), bad
