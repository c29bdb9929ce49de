"""Roofline: what a step costs on a GPU and a model that nobody has measured, from peaks and shapes alone.

Efficiencies and the launch time are those of AIConfigurator 0.12.0 (`mem_bw_empirical_scaling_factor`,
`mem_empirical_constant_latency`) and, for tensor cores and attention, round numbers that the measured tables surround.
Grouped queries, tensor parallelism and mixtures of experts enter through the model's shape.
"""

from __future__ import annotations

from collections.abc import Sequence

from simcore.cost.hardware import Gpu, Link, UnknownHardwareError
from simcore.cost.model_shape import BYTES, ModelShape
from simcore.cost.profile import Coefficient, DenseCurve, FitReport, KvHint, Profile

MEMORY_EFFICIENCY = 0.8
TENSOR_EFFICIENCY = 0.7
DECODE_EFFICIENCY = 0.85
"""Share of peak bandwidth that decode attention reaches."""
PREFILL_EFFICIENCY = 0.5
"""Share of peak FLOPS that prefill attention reaches."""
NVLINK_EFFICIENCY = 0.5
"""Share of the links' bandwidth that an all-reduce reaches, as AIConfigurator measured it on H100."""
PCIE_EFFICIENCY = {2: 0.6, 4: 0.16, 8: 0.045}
"""The same without NVLink, by number of GPUs, as measured there on L40S: two reach each other's memory, more stand in
each other's way."""
SLOWEST_NVLINK_BYTES_PER_S = 100e9
LAUNCH_S = 3e-6
ATTENTION_LAUNCH_S = 20e-6
HOST_S, HOST_SEQ_S = 0.67e-3, 42e-6
"""Host work of a synchronous engine, as of Llama-2-7B in Vidur's CPU overheads."""
TOKEN_COUNTS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 32768)
MEDIAN_ERROR, P90_ERROR = 0.10, 0.25
"""How far these estimates are from the shipped profiles that rest on tables, over typical steps (relative)."""


def product_s(gpu: Gpu, rows: int, inputs: int, outputs: int) -> float:
    """Seconds of C[rows, outputs] = A[rows, inputs] B[inputs, outputs]: streaming B, or computing."""
    streaming = BYTES * inputs * outputs / (MEMORY_EFFICIENCY * gpu.memory_bytes_per_s)
    computing = 2.0 * rows * inputs * outputs / (TENSOR_EFFICIENCY * gpu.tensor_flops_per_s)
    return LAUNCH_S + max(streaming, computing)


def elementwise_s(shape: ModelShape, tp: int, gpu: Gpu, tokens: int) -> dict[str, float]:
    """Seconds of norms (with residual), rotary embedding and gated activation of one layer."""
    heads = (shape.q_heads / tp + shape.kv_heads_on_gpu(tp)) * shape.head_dim
    inner = shape.intermediate * shape.experts_per_token / tp
    # Launches, and elements read and written per token.
    moved = {"norms": (2, 8 * shape.hidden), "rotary": (1, 2 * heads), "activation": (1, 3 * inner)}
    bandwidth = MEMORY_EFFICIENCY * gpu.memory_bytes_per_s
    return {op: launches * LAUNCH_S + BYTES * tokens * size / bandwidth for op, (launches, size) in moved.items()}


def all_reduce_s(shape: ModelShape, tp: int, gpu: Gpu, tokens: int, link: Link | None = None) -> float:
    """Seconds of one all-reduce over the hidden states, as a ring over the GPU's links, or over `link` where the host's
    are known; 0 on one GPU."""
    if tp == 1:
        return 0.0
    moved = 2.0 * (tp - 1) / tp * BYTES * tokens * shape.hidden
    if link is not None:
        return 2 * (tp - 1) * link.latency_s + moved / link.bytes_per_s
    efficiency = NVLINK_EFFICIENCY
    if gpu.link_bytes_per_s < SLOWEST_NVLINK_BYTES_PER_S:
        efficiency = PCIE_EFFICIENCY[min((n for n in PCIE_EFFICIENCY if n >= tp), default=max(PCIE_EFFICIENCY))]
    return 4 * LAUNCH_S + moved / (efficiency * gpu.link_bytes_per_s)


def activated_experts(shape: ModelShape, tokens: int) -> float:
    """Experts of one layer that `tokens` touch when routing is uniform."""
    return shape.experts * (1.0 - (1.0 - shape.experts_per_token / shape.experts) ** tokens)


def experts_s(shape: ModelShape, tp: int, gpu: Gpu, tokens: int) -> float:
    """Seconds of the expert MLP of one layer; 0 for a dense model."""
    if shape.experts == 1:
        return 0.0
    one = 3.0 * shape.hidden * shape.intermediate / tp
    streaming = BYTES * one * activated_experts(shape, tokens) / (MEMORY_EFFICIENCY * gpu.memory_bytes_per_s)
    computing = 2.0 * tokens * shape.experts_per_token * one / (TENSOR_EFFICIENCY * gpu.tensor_flops_per_s)
    return 2 * LAUNCH_S + max(streaming, computing)


def layer_s(shape: ModelShape, tp: int, gpu: Gpu, tokens: int) -> float:
    """Seconds of one layer without attention."""
    products = sum(product_s(gpu, tokens, k, n) for k, n in shape.gemms(tp).values())
    elementwise = sum(elementwise_s(shape, tp, gpu, tokens).values())
    return products + elementwise + experts_s(shape, tp, gpu, tokens) + 2 * all_reduce_s(shape, tp, gpu, tokens)


def decode_kv_s(shape: ModelShape, tp: int, gpu: Gpu, *, efficiency: float = DECODE_EFFICIENCY) -> float:
    """Seconds per KV token that decode attention of one layer reads."""
    return shape.kv_bytes_per_token(tp) / (efficiency * gpu.memory_bytes_per_s)


def prefill_work_s(shape: ModelShape, tp: int, gpu: Gpu) -> float:
    """Seconds per token pair of prefill attention of one layer."""
    return 4.0 * (shape.q_heads / tp) * shape.head_dim / (PREFILL_EFFICIENCY * gpu.tensor_flops_per_s)


def kv_hint(gpu: Gpu, shape: ModelShape, tp: int) -> KvHint:
    """KV blocks of 16 tokens that 90 % of the memory leaves beside the weights and 1 GiB of activations.

    Raises `UnknownHardwareError` when they do not fit.
    """
    free = 0.9 * gpu.capacity_bytes - shape.weight_bytes(tp) - 2**30
    block = 16 * shape.layers * shape.kv_bytes_per_token(tp)
    if free < 16 * block:
        raise UnknownHardwareError(
            f"{shape.name} at TP {tp} leaves no room for KV on {gpu.name}: {shape.weight_bytes(tp) / 2**30:.1f} GiB of "
            f"weights in {gpu.capacity_bytes / 2**30:.0f} GiB; use a higher tensor parallel degree"
        )
    return KvHint(num_blocks=int(free // block), source="rule: 0.9 of memory less weights less 1 GiB, blocks of 16")


def profile_name(gpu: Gpu, shape: ModelShape, tp: int) -> str:
    """`gpu/model`, with `-tpN` beyond one GPU."""
    return f"{gpu.name}/{shape.short_name}{f'-tp{tp}' if tp > 1 else ''}"


def estimate(gpu: Gpu, shape: ModelShape, tp: int = 1, *, counts: Sequence[int] = TOKEN_COUNTS) -> Profile:
    """A profile without a measurement, marked `roofline` and carrying its expected error.

    Raises `UnknownHardwareError` when the model does not fit the GPU.
    """
    kv = kv_hint(gpu, shape, tp)
    head_s = product_s(gpu, 1, *shape.lm_head(tp))
    rule = "roofline estimate (simcore.cost.roofline)"

    def number(value: float) -> Coefficient:
        return Coefficient(float(f"{value:.6g}"), rule)

    return Profile(
        name=profile_name(gpu, shape, tp),
        gpu=gpu.name,
        model=shape.name,
        tensor_parallel=tp,
        quality="roofline",
        note=f"No table of this pair. Such estimates are off by {MEDIAN_ERROR:.0%} (median) to {P90_ERROR:.0%} (p90).",
        constant_s=number(head_s + shape.layers * ATTENTION_LAUNCH_S),
        prefill_work_s_per_token2=number(shape.layers * prefill_work_s(shape, tp, gpu)),
        decode_kv_s_per_token=number(shape.layers * decode_kv_s(shape, tp, gpu)),
        per_seq_s=number(0.0),
        mixed_decode_kv_s_per_token=number(0.0),
        mixed_seq_s=number(0.0),
        host_s=number(HOST_S),
        host_seq_s=number(HOST_SEQ_S),
        dense=DenseCurve(
            tuple(counts), tuple(float(f"{shape.layers * layer_s(shape, tp, gpu, n):.6g}") for n in counts), rule
        ),
        kv=kv,
        fit=FitReport(
            rows_fitted=0,
            rows_held_out=0,
            rows_refused=0,
            median_error={"all": MEDIAN_ERROR},
            p90_error={"all": P90_ERROR},
        ),
    )
