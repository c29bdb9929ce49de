"""Importer for Vidur's layout: `mlp.csv`, `attention.csv`, CPU overheads (also as written by Block and Frontier).

Times are milliseconds of one layer, in columns `time_stats.<op>.{min,max,mean,median,std}`; the median is used. An
attention row is either one prefill chunk over a context, or a batch of decoding requests of equal context.
"""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from bench.profile.kernels import Kernel, Screen, attention_kernel, gemm_costs
from bench.profile.rows import ProfileRow, ProfileTableError, read_rows
from simcore.cost.model_shape import MODELS, ModelShape

ELEMENTWISE = ("input_layernorm", "attn_rope", "post_attention_layernorm", "mlp_act", "add")
MLP_SHAPE = {"n_embd": "hidden", "n_head": "q_heads", "n_kv_head": "kv_heads", "n_expanded_embd": "intermediate"}
ATTENTION_SHAPE = {"n_embd": "hidden", "n_q_head": "q_heads", "n_kv_head": "kv_heads"}
TP = "num_tensor_parallel_workers"
MS = 1e-3


def median(op: str) -> str:
    return f"time_stats.{op}.median"


def _rows_of(
    path: Path, ops: tuple[str, ...], columns: tuple[str, ...], shape: ModelShape, tp: int
) -> list[ProfileRow]:
    fields = ATTENTION_SHAPE if "is_prefill" in columns else MLP_SHAPE
    rows = read_rows(path, [*map(median, ops), *columns, *fields, TP])
    for row in rows:
        for column, attribute in fields.items():
            if row.integer(column) != getattr(shape, attribute):
                found, want = row.integer(column), getattr(shape, attribute)
                raise row.fail(f"{column} is {found}, but {shape.name} has {want}: a table of another model")
    own = [row for row in rows if row.integer(TP) == tp]
    if len(own) < 2:
        degrees = sorted({row.integer(TP) for row in rows})
        raise ProfileTableError(f"{path}: {len(own)} row(s) for tensor parallel {tp}; the table has {degrees}")
    return own


def read_mlp(path: Path, shape: ModelShape, tp: int, screen: Screen) -> list[Kernel]:
    """Dense operators of one layer by number of tokens. Raises `ProfileTableError`."""
    gemms = shape.gemms(tp)
    ops = (*gemms, *ELEMENTWISE)
    kernels = []
    for row in _rows_of(path, ops, ("num_tokens",), shape, tp):
        tokens = row.integer("num_tokens")
        for op in ops:
            moved, flops = gemm_costs(tokens, *gemms[op]) if op in gemms else (0.0, 0.0)
            seconds = row.number_or_nan(median(op)) * MS
            kernels.append(
                Kernel(
                    part="dense",
                    op=op,
                    tokens=tokens,
                    seconds=seconds,
                    weight_bytes=moved,
                    flops=flops,
                    file=row.file,
                    row=row.number,
                )
            )
    return screen(kernels)


def read_mlp_nearest(path: Path, shape: ModelShape, tp: int, screen: Screen) -> list[Kernel]:
    """Dense operators of a model from the table of another on the same GPU: for each matrix product the operator and
    tensor parallel degree of the nearest size, scaled by the work. Raises `ProfileTableError`."""
    ops = (*shape.gemms(tp), *ELEMENTWISE)
    rows = read_rows(path, [*map(median, ops), "num_tokens", *MLP_SHAPE, TP])
    owner = next(
        (s for s in MODELS.values() if all(rows[0].integer(c) == getattr(s, a) for c, a in MLP_SHAPE.items())), None
    )
    if owner is None:
        raise rows[0].fail("a table of a model whose shape is not known")
    degrees = sorted({row.integer(TP) for row in rows})
    measured = {(op, degree): size for degree in degrees for op, size in owner.gemms(degree).items()}
    kernels = [k for degree in degrees for k in _per_degree(read_mlp(path, owner, degree, screen), degree)]
    result = []
    for op, (inputs, outputs) in shape.gemms(tp).items():
        near = min(measured, key=lambda m: _distance(measured[m], (inputs, outputs)))
        factor = inputs * outputs / math.prod(measured[near])
        result += [_scaled(k, op, factor) for degree_op, k in kernels if degree_op == (near[1], near[0])]
    factors = {"mlp_act": shape.intermediate / tp / owner.intermediate}
    for op in ELEMENTWISE:
        factor = factors.get(op, shape.hidden / owner.hidden)
        result += [_scaled(k, op, factor) for degree_op, k in kernels if degree_op == (degrees[0], op)]
    return result


def _per_degree(kernels: list[Kernel], degree: int) -> list[tuple[tuple[int, str], Kernel]]:
    return [((degree, k.op), k) for k in kernels]


def _distance(one: tuple[int, int], other: tuple[int, int]) -> float:
    return sum(abs(math.log(a / b)) for a, b in zip(one, other, strict=True))


def _scaled(kernel: Kernel, op: str, factor: float) -> Kernel:
    return msgspec.structs.replace(
        kernel,
        op=op,
        seconds=kernel.seconds * factor,
        weight_bytes=kernel.weight_bytes * factor,
        flops=kernel.flops * factor,
    )


def read_attention(path: Path, shape: ModelShape, tp: int, screen: Screen) -> list[Kernel]:
    """Attention of one layer, prefill chunks and decoding batches. Raises `ProfileTableError`."""
    ops = ("attn_prefill", "attn_decode")
    columns = ("batch_size", "prefill_chunk_size", "kv_cache_size", "is_prefill")
    kernels = []
    for row in _rows_of(path, ops, columns, shape, tp):
        batch, chunk, kv = (row.integer(c) for c in columns[:3])
        is_prefill = row.cells["is_prefill"].strip().lower() == "true"
        if is_prefill != (chunk > 0):
            raise row.fail(f"is_prefill is {is_prefill} with a prefill_chunk_size of {chunk}")
        kernels.append(
            attention_kernel(
                shape,
                tp,
                batch=batch,
                chunk=chunk,
                context=kv,
                seconds=row.number_or_nan(median("attn_prefill" if is_prefill else "attn_decode")) * MS,
                file=row.file,
                row=row.number,
            )
        )
    return screen(kernels)


def read_anchors(path: Path, shape: ModelShape, tp: int, screen: Screen) -> list[Kernel]:
    """Attention points copied from a Vidur table: `tp,batch_size,prefill_chunk,kv_len,phase,median_ms_per_layer`."""
    columns = ("tp", "batch_size", "prefill_chunk", "kv_len", "phase", "median_ms_per_layer")
    kernels = []
    for row in read_rows(path, columns):
        degree, batch, chunk, kv = (row.integer(c) for c in columns[:4])
        if degree == tp:
            kernels.append(
                attention_kernel(
                    shape,
                    tp,
                    batch=batch,
                    chunk=chunk if row.cells["phase"] == "prefill" else 0,
                    context=kv,
                    seconds=row.number_or_nan("median_ms_per_layer") * MS,
                    file=row.file,
                    row=row.number,
                )
            )
    if len(kernels) < 2:
        raise ProfileTableError(f"{path}: {len(kernels)} row(s) for tensor parallel {tp}")
    return screen(kernels)


OVERHEAD_PARTS = ("schedule", "prepare_inputs_e2e", "sampler_e2e", "process_model_outputs")
"""Host work of a step that the GPU waits for. Ray's transport is left out: current engines do not use it."""


def read_cpu_overheads(path: Path, model: str, tp: int, lm_head_s: float) -> tuple[list[int], list[float]]:
    """(sequences, seconds of host work per step) of one model. Raises `ProfileTableError`.

    `sampler_e2e` contains the head's projection: `lm_head_s`, its time on the GPU of the table, is taken off.
    """
    columns = [f"{part}_median" for part in OVERHEAD_PARTS]
    rows = read_rows(path, [*columns, "model_name", "batch_size", "tensor_parallel_degree"])
    seqs, seconds = [], []
    for row in rows:
        if row.cells["model_name"] == model and row.integer("tensor_parallel_degree") == tp:
            total = sum(row.number_or_nan(column) for column in columns) * MS
            if not total > lm_head_s:
                raise row.fail(f"host work of {total:g} s is not above the head's {lm_head_s:g} s it must contain")
            seqs.append(row.integer("batch_size"))
            seconds.append(total - lm_head_s)
    if len(seqs) < 2:
        known = sorted({(row.cells["model_name"], row.integer("tensor_parallel_degree")) for row in rows})
        raise ProfileTableError(f"{path}: {len(seqs)} row(s) for {model} at TP {tp}; the table has {known}")
    return seqs, seconds
