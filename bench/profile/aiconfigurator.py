"""Importer for NVIDIA AIConfigurator's tables (as CSV slices): GEMM by (m, n, k), attention by heads, all-reduce.

Latencies are milliseconds of one kernel. The tables are not made for one model: a GEMM whose (n, k) is not on the grid
is interpolated between its four neighbours, and attention of a head layout that is absent is taken from the nearest
layout of the same head size, in units of equal operations and equal KV bytes.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from pathlib import Path

import msgspec

from bench.profile.kernels import Kernel, Part, Screen, attention_kernel, gemm_costs, in_units_of
from bench.profile.rows import ProfileTableError, read_rows
from simcore.cost.model_shape import BYTES, ModelShape

MS = 1e-3
LATENCY = "latency_ms"
TWO_ALL_REDUCES = "all_reduce x2"
TOKEN_COUNTS = tuple(sorted({1 << i for i in range(15)} | {3 << i for i in range(13)}))
Grid = dict[tuple[int, int], dict[int, Kernel]]
"""GEMM kernels by (outputs n, inputs k), then by rows m."""


def read_gemm(path: Path, shape: ModelShape, tp: int, screen: Screen, *, dtype: str = "bfloat16") -> list[Kernel]:
    """The dense operators of one layer, and the head, at every tabulated number of rows. Raises `ProfileTableError`."""
    wanted = {**shape.gemms(tp), "lm_head": shape.lm_head(tp)}
    grid = _gemm_grid(path, screen, dtype)
    kernels = []
    for op, (inputs, outputs) in wanted.items():
        kernels += _interpolated(grid, op, inputs, outputs, path)
    return kernels


def _gemm_grid(path: Path, screen: Screen, dtype: str) -> Grid:
    raw: dict[tuple[str, int], tuple[int, int]] = {}
    kernels = []
    for row in read_rows(path, ("gemm_dtype", "m", "n", "k", LATENCY)):
        if row.cells["gemm_dtype"] != dtype:
            continue
        m, n, k = row.integer("m"), row.integer("n"), row.integer("k")
        moved, flops = gemm_costs(m, k, n)
        if dtype != "bfloat16":
            moved, flops = moved / 2, flops / 2  # 8-bit: half the bytes, twice the peak
        op = f"gemm {n}x{k}"
        raw[op, row.number] = (n, k)
        kernels.append(
            Kernel(
                part="dense",
                op=op,
                tokens=m,
                seconds=row.number_or_nan(LATENCY) * MS,
                weight_bytes=moved,
                flops=flops,
                file=row.file,
                row=row.number,
            )
        )
    if not kernels:
        raise ProfileTableError(f"{path}: no rows of gemm_dtype {dtype!r}")
    grid: defaultdict[tuple[int, int], dict[int, Kernel]] = defaultdict(dict)
    for kernel in screen(kernels):
        grid[raw[kernel.op, kernel.row]][kernel.tokens] = kernel
    return dict(grid)


def _around(values: list[int], wanted: int) -> tuple[int, int, float]:
    """Neighbours of `wanted` on the grid and the share of the upper one; beyond the end the last one, scaled."""
    i = bisect_left(values, wanted)
    if i < len(values) and values[i] == wanted:
        return wanted, wanted, 0.0
    if i == 0 or i == len(values):
        end = values[0] if i == 0 else values[-1]
        return end, end, 0.0
    low, high = values[i - 1], values[i]
    return low, high, (wanted - low) / (high - low)


def _interpolated(grid: Grid, op: str, inputs: int, outputs: int, path: Path) -> list[Kernel]:
    n0, n1, n_share = _around(sorted({n for n, _ in grid}), outputs)
    k0, k1, k_share = _around(sorted({k for _, k in grid}), inputs)
    corners = [
        (grid.get((n, k), {}), wn * wk)
        for n, wn in ((n0, 1 - n_share), (n1, n_share))
        for k, wk in ((k0, 1 - k_share), (k1, k_share))
        if wn * wk > 0
    ]
    shared = set.intersection(*(set(table) for table, _ in corners))
    if len(shared) < 10:
        raise ProfileTableError(f"{path}: {op} needs n={outputs}, k={inputs}; only {len(shared)} rows around it")
    # Outside the grid time grows with the work.
    beyond = (outputs / n0 if n0 == n1 else 1.0) * (inputs / k0 if k0 == k1 else 1.0)
    part: Part = "head" if op == "lm_head" else "dense"
    kernels = []
    for m in sorted(shared):
        moved, flops = gemm_costs(m, inputs, outputs)
        kernels.append(
            Kernel(
                part=part,
                op=op,
                tokens=m,
                seqs=m if part == "head" else 0,
                seconds=beyond * sum(weight * table[m].seconds for table, weight in corners),
                weight_bytes=moved,
                flops=flops,
                file=str(path),
                row=corners[0][0][m].row,
            )
        )
    return [k for k in kernels if part == "dense" or k.tokens <= 256]


def read_attention(path: Path, shape: ModelShape, tp: int, screen: Screen) -> list[Kernel]:
    """Attention of one layer: a context table (column `isl`) or a generation table (column `kv_len`).

    Raises `ProfileTableError`.
    """
    heads_columns = ("num_heads", "num_key_value_heads", "head_dim")
    rows = read_rows(path, ("batch_size", *heads_columns, "kv_cache_dtype", LATENCY))
    length = "isl" if "isl" in rows[0].cells else "kv_len"
    if length not in rows[0].cells:
        raise ProfileTableError(f"{path}: row 1: neither column isl (context) nor kv_len (generation)")
    own = [
        r for r in rows if r.cells["kv_cache_dtype"] == "bfloat16" and r.integer("head_dim") == shape.head_dim
    ]  # fmt: skip
    layouts = {(r.integer("num_heads"), r.integer("num_key_value_heads")) for r in own}
    if not layouts:
        raise ProfileTableError(f"{path}: no 16-bit rows of head_dim {shape.head_dim}")
    q, kv = shape.q_heads / tp, shape.kv_heads_on_gpu(tp)
    q_near, kv_near = min(layouts, key=lambda x: (abs(math.log(x[0] / q)) + abs(math.log(x[1] / kv)), x))
    measured = msgspec.structs.replace(shape, q_heads=q_near, kv_heads=kv_near)
    kernels = []
    for row in own:
        if (row.integer("num_heads"), row.integer("num_key_value_heads")) != (q_near, kv_near):
            continue
        kernels.append(
            attention_kernel(
                measured,
                1,
                batch=row.integer("batch_size"),
                chunk=row.integer("isl") if length == "isl" else 0,
                context=0 if length == "isl" else row.integer("kv_len"),
                seconds=row.number_or_nan(LATENCY) * MS,
                file=row.file,
                row=row.number,
            )
        )
    return [in_units_of(k, measured=measured, measured_tp=1, wanted=shape, tp=tp) for k in screen(kernels)]


def read_all_reduce(path: Path, shape: ModelShape, tp: int, screen: Screen) -> list[Kernel]:
    """The two all-reduces of one layer, by tokens: vLLM's own kernel launched from a graph, or NCCL.

    `message_size` counts 16-bit elements. Token counts in between are interpolated. Raises `ProfileTableError`.
    """
    is_nccl = "nccl" in path.name
    kind = "nccl_dtype" if is_nccl else "backend"
    sizes = []
    for row in read_rows(path, ("num_gpus", "message_size", kind, LATENCY)):
        chosen = row.cells[kind] == "half" if is_nccl else row.cells[kind].endswith("graph")
        if chosen and row.integer("num_gpus") == tp:
            sizes.append(
                Kernel(
                    part="dense",
                    op="all_reduce",
                    tokens=row.integer("message_size"),
                    seconds=row.number_or_nan(LATENCY) * MS,
                    weight_bytes=float(BYTES * row.integer("message_size")),
                    file=row.file,
                    row=row.number,
                )
            )
    # NCCL's rows do not name the collective; an all-reduce moves twice what the others do, so it is the slowest.
    slowest = {k.tokens: k for k in sorted(screen(sizes), key=lambda k: k.seconds)}
    sizes = sorted(slowest.values(), key=lambda k: k.tokens)
    if len(sizes) < 2:
        raise ProfileTableError(f"{path}: {len(sizes)} row(s) for {tp} GPUs")
    elements = [k.tokens for k in sizes]
    kernels = []
    for tokens in TOKEN_COUNTS:
        wanted = tokens * shape.hidden
        if not elements[0] <= wanted <= elements[-1]:
            continue
        i = max(1, bisect_left(elements, wanted))
        below, above = sizes[i - 1], sizes[i]
        share = (wanted - below.tokens) / (above.tokens - below.tokens)
        seconds = below.seconds + share * (above.seconds - below.seconds)
        kernels.append(
            msgspec.structs.replace(
                below, op=TWO_ALL_REDUCES, tokens=tokens, seconds=2 * seconds, weight_bytes=2.0 * BYTES * wanted
            )
        )
    return kernels


def faster(one: list[Kernel], other: list[Kernel]) -> list[Kernel]:
    """Of two implementations of the same operator the faster at each token count that both have."""
    by_tokens = {k.tokens: k for k in other}
    return [min(k, by_tokens.get(k.tokens, k), key=lambda x: x.seconds) for k in one]
