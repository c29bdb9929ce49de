"""The roofline check: a table that claims more than the hardware can do is not a measurement.

A kernel in a timing loop may find its operands in the L2 cache, so memory is charged for the bytes beyond L2 only, and
all bytes are charged at a generous multiple of the DRAM bandwidth.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from bench.profile.kernels import Kernel
from bench.profile.rows import ProfileTableError
from simcore.cost.hardware import Gpu, find_gpu
from simcore.cost.model_shape import BYTES, find_shape
from simcore.cost.profile import Profile
from simcore.trace import StepBatch

L2_OVER_DRAM = 8.0
"""No GPU listed has an L2 cache more than this many times faster than its memory."""
TIMER_SLACK = 0.97
"""Share of the physical bound that a measured time must reach; timers are not exact."""
MOST_DROPPED = 0.5
"""Share of an operator's rows that may be dropped; beyond it nobody can say that the rest is right."""


class Violation(msgspec.Struct, frozen=True):
    """One kernel that cannot be true."""

    file: str
    row: int
    op: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: row {self.row}: {self.op}: {self.reason}"


def violation(kernel: Kernel, gpu: Gpu) -> Violation | None:
    """Why this kernel cannot have been measured on this GPU, or None."""
    reason = _reason(kernel, gpu)
    return Violation(kernel.file, kernel.row, kernel.op, reason) if reason else None


def _reason(kernel: Kernel, gpu: Gpu) -> str:
    seconds = kernel.seconds
    if math.isnan(seconds):
        return "no value (empty cell or NaN)"
    if not math.isfinite(seconds) or seconds <= 0:
        return f"time must be above 0, found {seconds:g} s"
    bandwidth, peak = gpu.memory_bytes_per_s, gpu.tensor_flops_per_s
    beyond_l2 = max(0.0, kernel.weight_bytes - gpu.l2_bytes)
    memory_s = max(beyond_l2 / bandwidth, kernel.weight_bytes / (L2_OVER_DRAM * bandwidth))
    if seconds < TIMER_SLACK * memory_s:
        return (
            f"{kernel.weight_bytes / 1e6:.1f} MB in {seconds * 1e6:.2f} us is "
            f"{kernel.weight_bytes / seconds / 1e12:.1f} TB/s; {gpu.name} has {bandwidth / 1e12:.2f} TB/s"
        )
    if seconds < TIMER_SLACK * kernel.flops / peak:
        return (
            f"{kernel.flops / 1e9:.1f} GFLOP in {seconds * 1e6:.2f} us is "
            f"{kernel.flops / seconds / 1e12:.0f} TFLOPS; {gpu.name} has {peak / 1e12:.0f} TFLOPS"
        )
    return ""


def violations(kernels: Iterable[Kernel], gpu: Gpu) -> list[Violation]:
    """All kernels that break physics, in table order."""
    return [v for k in kernels if (v := violation(k, gpu)) is not None]


def accept(kernels: Sequence[Kernel], gpu: Gpu, *, drop_bad_rows: bool) -> tuple[list[Kernel], list[Violation]]:
    """The kernels that may be fitted, and those dropped.

    Without `drop_bad_rows` a single violation refuses the table. With it, bad rows are left out as long as every
    operator keeps half of its rows. Raises `ProfileTableError` naming file, row and reason.
    """
    bad = violations(kernels, gpu)
    if not bad:
        return list(kernels), []
    if not drop_bad_rows:
        more = (
            f" ({len(bad)} such rows of {len(kernels)}; the roofline check refuses the table)" if len(bad) > 1 else ""
        )
        raise ProfileTableError(f"{bad[0]}{more}")
    total = Counter((k.file, k.op) for k in kernels)
    by_op: defaultdict[tuple[str, str], list[Violation]] = defaultdict(list)
    for v in bad:
        by_op[v.file, v.op].append(v)
    for key, own in by_op.items():
        if len(own) > MOST_DROPPED * total[key]:
            raise ProfileTableError(
                f"{own[0]} ({len(own)} of the {total[key]} rows of {key[1]} are bad; too many to trust the rest)"
            )
    dropped = {(v.file, v.row, v.op) for v in bad}
    return [k for k in kernels if (k.file, k.row, k.op) not in dropped], bad


def impossible_steps(profile: Profile) -> list[str]:
    """Steps that a fitted profile makes faster than the hardware could: one line each, none for an honest profile."""
    gpu, shape, tp = find_gpu(profile.gpu), find_shape(profile.model), profile.tensor_parallel
    model = profile.step_time_model()
    per_token = 2.0 * shape.layers * sum(k * n for k, n in shape.gemms(tp).values())
    weights = BYTES * shape.layers * sum(k * n for k, n in shape.gemms(tp).values())
    kv_bytes = shape.layers * shape.kv_bytes_per_token(tp)
    found = []
    for prefill, decodes, context in (
        (0, 1, 128),
        (0, 48, 350),
        (0, 256, 100),
        (512, 0, 0),
        (464, 48, 350),
        (8192, 0, 0),
    ):
        batch = StepBatch(
            prefill_tokens=prefill,
            prefill_work_tokens2=prefill * prefill / 2,
            prefill_seqs=min(prefill, 1),
            decode_seqs=decodes,
            decode_kv_tokens=decodes * context,
        )
        seconds = model.seconds(batch)
        attention = 4.0 * shape.q_heads / tp * shape.head_dim * shape.layers * batch.prefill_work_tokens2
        moving = (weights + kv_bytes * batch.decode_kv_tokens) / gpu.memory_bytes_per_s
        computing = (per_token * batch.total_tokens + attention) / gpu.tensor_flops_per_s
        if seconds < max(moving, computing):
            found.append(
                f"{prefill} prefill tokens and {decodes} x {context} decoding in {seconds * 1e3:.3f} ms; "
                f"{gpu.name} needs {moving * 1e3:.3f} ms to move and {computing * 1e3:.3f} ms to compute"
            )
    return found
