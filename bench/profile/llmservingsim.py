"""Importer for LLMServingSim's layout: `attention.csv` (mixed batches), `dense.csv`, `per_sequence.csv`, `moe.csv`.

Times are microseconds; attention, dense and MoE operators are those of one layer, measured inside vLLM. A folder holds
one tensor parallel degree. `attention.csv` has batches of equal contexts only; where `skew.csv` lies beside it, it says
how much longer uneven ones take, as those of an engine always are.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np

from bench.profile.kernels import Kernel, Screen, attention_kernel, gemm_costs
from bench.profile.rows import ProfileTableError, read_rows
from simcore.cost.model_shape import BYTES, ModelShape
from simcore.cost.roofline import activated_experts

US = 1e-6
GEMM_OF = {
    "qkv_proj": "attn_pre_proj",
    "o_proj": "attn_post_proj",
    "gate_up_proj": "mlp_up_proj",
    "down_proj": "mlp_down_proj",
}
TIMES_PER_LAYER = {"layernorm": 2}
ONCE_PER_STEP = ("embedding", "final_layernorm")
TIME = "time_us"


def read_dense(path: Path, shape: ModelShape, tp: int, screen: Screen) -> list[Kernel]:
    """Dense operators by tokens. What runs once a step is shared out over the layers. Raises `ProfileTableError`."""
    gemms = shape.gemms(tp)
    found = set()
    kernels = []
    for row in read_rows(path, ("layer", "tokens", TIME)):
        layer, tokens = row.cells["layer"], row.integer("tokens")
        found.add(layer)
        times = TIMES_PER_LAYER.get(layer, 1) / (shape.layers if layer in ONCE_PER_STEP else 1)
        moved, flops = gemm_costs(tokens, *gemms[GEMM_OF[layer]]) if GEMM_OF.get(layer) in gemms else (0.0, 0.0)
        kernels.append(
            Kernel(
                part="dense",
                op=layer,
                tokens=tokens,
                seconds=row.number_or_nan(TIME) * US * times,
                weight_bytes=moved,
                flops=flops,
                file=row.file,
                row=row.number,
            )
        )
    missing = [layer for layer, op in GEMM_OF.items() if op in gemms and layer not in found]
    if missing:
        raise ProfileTableError(f"{path}: no rows for layer {', '.join(missing)}, which {shape.name} has")
    return screen(kernels)


def read_per_sequence(path: Path, shape: ModelShape, tp: int, screen: Screen) -> list[Kernel]:
    """Head and sampler by sequences. Raises `ProfileTableError`."""
    kernels = []
    for row in read_rows(path, ("layer", "sequences", TIME)):
        seqs, layer = row.integer("sequences"), row.cells["layer"]
        moved, flops = gemm_costs(seqs, *shape.lm_head(tp)) if layer == "lm_head" else (0.0, 0.0)
        kernels.append(
            Kernel(
                part="head",
                op=layer,
                tokens=seqs,
                seqs=seqs,
                seconds=row.number_or_nan(TIME) * US,
                weight_bytes=moved,
                flops=flops,
                file=row.file,
                row=row.number,
            )
        )
    return screen(kernels)


def read_attention(path: Path, shape: ModelShape, tp: int, screen: Screen) -> list[Kernel]:
    """Attention of one layer over a prefill chunk and decoding sequences together, of uneven contexts where the table's
    folder tells of them. Raises `ProfileTableError`."""
    slower = _unevenness(path.with_name(path.name.replace("attention", "skew", 1)))
    columns = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
    kernels = []
    for row in read_rows(path, (*columns, TIME)):
        chunk, context, decodes, kv = (row.integer(c) for c in columns)
        if chunk == 0 and decodes == 0:
            raise row.fail("neither a prefill chunk nor decoding sequences")
        seconds = row.number_or_nan(TIME) * US * (slower[chunk > 0] if decodes > 1 else 1.0)
        prefill, decode = (
            attention_kernel(
                shape, tp, batch=batch, chunk=c, context=k, seconds=seconds, file=row.file, row=row.number
            )
            for batch, c, k in ((1 if chunk else 0, chunk, context), (decodes, 0, kv))
        )  # fmt: skip
        kernels.append(
            Kernel(
                part="attention",
                op="attention",
                tokens=chunk + decodes,
                seqs=prefill.seqs + decodes,
                prefill_work_tokens2=prefill.prefill_work_tokens2,
                decode_kv_tokens=decode.decode_kv_tokens,
                seconds=seconds,
                weight_bytes=prefill.weight_bytes + decode.weight_bytes,
                flops=prefill.flops,
                file=row.file,
                row=row.number,
            )
        )
    return screen(kernels)


def _unevenness(path: Path) -> tuple[float, float]:
    """How many times as long decoding sequences of uneven contexts take, alone and beside a prefill chunk: the median
    ratio over the rows. 1 without the table. Raises `ProfileTableError`."""
    if not path.exists():
        return 1.0, 1.0
    ratios: tuple[list[float], list[float]] = ([], [])
    for row in read_rows(path, ("pc", "t_mean_us", "t_skew_us")):
        even, uneven = row.number_or_nan("t_mean_us"), row.number_or_nan("t_skew_us")
        if not (0.0 < even < np.inf and 0.0 < uneven < np.inf):
            raise row.fail(f"times must be above 0, found {even:g} and {uneven:g} us")
        ratios[row.integer("pc") > 0].append(uneven / even)
    alone, beside = (max(1.0, float(np.median(r))) if r else 1.0 for r in ratios)
    return alone, beside


def read_moe(path: Path, shape: ModelShape, tp: int, screen: Screen, *, expert_parallel: int = 1) -> list[Kernel]:
    """The expert MLP of one layer at the number of experts that uniform routing activates.

    With `expert_parallel` replicas that share the experts out, each GPU holds its part of them and computes what all
    replicas send there: with equal loads as many token-expert pairs as without, on the experts that all their tokens
    together activate in its part. Raises `ProfileTableError`.
    """
    one_expert = 3 * shape.hidden * shape.intermediate / tp
    kernels = []
    experts: dict[int, int] = {}
    for row in read_rows(path, ("tokens", "activated_experts", TIME)):
        tokens, activated = row.integer("tokens"), row.integer("activated_experts")
        experts[row.number] = activated
        kernels.append(
            Kernel(
                part="dense",
                op="experts",
                tokens=tokens,
                seconds=row.number_or_nan(TIME) * US,
                weight_bytes=BYTES * activated * one_expert,
                flops=2.0 * tokens * shape.experts_per_token * one_expert,
                file=row.file,
                row=row.number,
            )
        )
    by_tokens: defaultdict[int, list[Kernel]] = defaultdict(list)
    for kernel in screen(kernels):
        by_tokens[kernel.tokens].append(kernel)
    result = []
    for tokens, own in sorted(by_tokens.items()):
        own.sort(key=lambda k: experts[k.row])
        wanted = activated_experts(shape, tokens * expert_parallel) / expert_parallel
        seconds = float(np.interp(wanted, [experts[k.row] for k in own], [k.seconds for k in own]))
        result.append(
            Kernel(
                part="dense",
                op="experts (uniform routing)",
                tokens=tokens,
                seconds=seconds,
                file=str(path),
                row=own[0].row,
            )
        )
    return result
