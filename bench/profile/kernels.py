"""Measured kernels: the one form that every importer turns its tables into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from simcore.cost.model_shape import BYTES, ModelShape

Part = Literal["dense", "attention", "head"]
"""What time depends on. `dense`: the tokens; `attention`: the KV of the batch; `head`: the sequences that sample."""


class Kernel(msgspec.Struct, frozen=True, kw_only=True):
    """One execution of one operator on one GPU."""

    part: Part
    op: str
    tokens: int
    """Rows of the activations: all tokens of the step, or for `head` the sequences."""
    seqs: int = 0
    prefill_work_tokens2: float = 0.0
    decode_kv_tokens: float = 0.0
    seconds: float
    """NaN when the table has no value."""
    weight_bytes: float = 0.0
    """Bytes that must be read, at least (weights, or KV)."""
    flops: float = 0.0
    file: str
    row: int


Screen = Callable[[Sequence[Kernel]], list[Kernel]]
"""The roofline check: returns the kernels that may be used, or raises `ProfileTableError`."""


def gemm_costs(tokens: int, inputs: int, outputs: int) -> tuple[float, float]:
    """(bytes read of the weights, floating point operations) of one product."""
    return BYTES * inputs * outputs, 2.0 * tokens * inputs * outputs


def attention_kernel(
    shape: ModelShape,
    tp: int,
    *,
    batch: int,
    chunk: int,
    context: int,
    seconds: float,
    file: str,
    row: int,
) -> Kernel:
    """Attention of one layer over `batch` equal requests: prefill chunks after `context` tokens, or decoding if `chunk`
    is 0 (then `context` is what each reads)."""
    work = batch * chunk * (context + chunk / 2)
    return Kernel(
        part="attention",
        op="attn_prefill" if chunk else "attn_decode",
        tokens=batch * max(chunk, 1),
        seqs=batch,
        prefill_work_tokens2=work,
        decode_kv_tokens=0 if chunk else batch * context,
        seconds=seconds,
        weight_bytes=shape.kv_bytes_per_token(tp) * batch * (context + chunk),
        flops=4.0 * (shape.q_heads / tp) * shape.head_dim * work,
        file=file,
        row=row,
    )


def in_units_of(kernel: Kernel, *, measured: ModelShape, measured_tp: int, wanted: ModelShape, tp: int) -> Kernel:
    """The same attention kernel with its features counted as the wanted model would: equal operations, equal bytes.

    A kernel's time follows the operations of its prefill part and the KV bytes of its decode part, so a table of one
    head layout serves another of the same head size.
    """
    work = measured.q_heads * measured.head_dim / measured_tp / (wanted.q_heads * wanted.head_dim / tp)
    kv = measured.kv_bytes_per_token(measured_tp) / wanted.kv_bytes_per_token(tp)
    return msgspec.structs.replace(
        kernel,
        prefill_work_tokens2=kernel.prefill_work_tokens2 * work,
        decode_kv_tokens=kernel.decode_kv_tokens * kv,
    )
