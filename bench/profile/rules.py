"""Rules that stand in for operators a table does not hold. Each says so in the source it returns.

Elementwise operators move bytes and the head streams its weights, so the memory roofline is close; efficiency and the
launch time are AIConfigurator's (`mem_bw_empirical_scaling_factor`, `mem_empirical_constant_latency`).
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.profile.kernels import Kernel, Part, gemm_costs
from simcore.cost.hardware import Gpu
from simcore.cost.model_shape import BYTES, ModelShape

MEMORY_EFFICIENCY = 0.8
TENSOR_EFFICIENCY = 0.7
LAUNCH_S = 3e-6
RULE_FILE = "rule"
"""Instead of a file name."""

DECODE_EFFICIENCY = 0.85
PREFILL_EFFICIENCY = 0.5
ATTENTION_LAUNCH_S = 20e-6


def source(rule: str, decode_efficiency: float = DECODE_EFFICIENCY) -> str:
    """What a profile says of a part that a rule made."""
    launch = f"{ATTENTION_LAUNCH_S * 1e6:g} us a launch"
    texts = {
        "gemms": f"weights at {MEMORY_EFFICIENCY:g} of peak bandwidth, or {TENSOR_EFFICIENCY:g} of peak FLOPS",
        "all-reduce": f"rings at {MEMORY_EFFICIENCY:g} of the link's bandwidth, {4 * LAUNCH_S * 1e6:g} us a launch",
        "elementwise": f"elementwise at {MEMORY_EFFICIENCY:g} of peak bandwidth, {LAUNCH_S * 1e6:g} us a launch",
        "head": f"weights at {MEMORY_EFFICIENCY:g} of peak bandwidth, or {TENSOR_EFFICIENCY:g} of peak FLOPS",
        "decode-attention": f"KV read at {decode_efficiency:g} of peak bandwidth, {launch}",
        "prefill-attention": f"{PREFILL_EFFICIENCY:g} of peak FLOPS, {launch}",
    }
    return f"rule {rule}: {texts[rule]}"


TOKEN_COUNTS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


def _product(op: str, part: Part, gpu: Gpu, rows: int, inputs: int, outputs: int) -> Kernel:
    moved, flops = gemm_costs(rows, inputs, outputs)
    streaming = moved / (MEMORY_EFFICIENCY * gpu.memory_bytes_per_s)
    computing = flops / (TENSOR_EFFICIENCY * gpu.tensor_flops_per_s)
    return Kernel(
        part=part,
        op=f"{op} (rule)",
        tokens=rows,
        seqs=rows if part == "head" else 0,
        seconds=LAUNCH_S + max(streaming, computing),
        weight_bytes=moved,
        flops=flops,
        file=RULE_FILE,
        row=0,
    )


def gemms(shape: ModelShape, tp: int, gpu: Gpu, tokens: Sequence[int] = TOKEN_COUNTS) -> list[Kernel]:
    """The matrix products of one layer; with tensor parallelism also its two all-reduces."""
    kernels = [_product(op, "dense", gpu, n, k, m) for op, (k, m) in shape.gemms(tp).items() for n in tokens]
    return kernels + all_reduce(shape, tp, gpu, tokens)


def all_reduce(shape: ModelShape, tp: int, gpu: Gpu, tokens: Sequence[int] = TOKEN_COUNTS) -> list[Kernel]:
    """The two all-reduces of one layer, as rings over the GPU's links; none on one GPU."""
    share = 2.0 * (tp - 1) / tp
    if tp > 1:
        return [
            Kernel(
                part="dense",
                op="all_reduce x2 (rule)",
                tokens=n,
                seconds=2
                * (4 * LAUNCH_S + share * BYTES * n * shape.hidden / (MEMORY_EFFICIENCY * gpu.link_bytes_per_s)),
                file=RULE_FILE,
                row=0,
            )
            for n in tokens
        ]
    return []


def elementwise(shape: ModelShape, tp: int, gpu: Gpu, tokens: Sequence[int]) -> list[Kernel]:
    """Norms (with residual), rotary embedding and gated activation of one layer."""
    heads = (shape.q_heads / tp + shape.kv_heads_on_gpu(tp)) * shape.head_dim
    inner = shape.intermediate * shape.experts_per_token / tp
    # Elements read and written per token.
    moved = {"norms": 2 * 4 * shape.hidden, "rotary": 2 * heads, "activation": 3 * inner}
    launches = {"norms": 2, "rotary": 1, "activation": 1}
    return [
        Kernel(
            part="dense",
            op=f"{op} (rule)",
            tokens=n,
            seconds=launches[op] * LAUNCH_S + BYTES * n * size / (MEMORY_EFFICIENCY * gpu.memory_bytes_per_s),
            file=RULE_FILE,
            row=0,
        )
        for op, size in moved.items()
        for n in tokens
    ]


def head(shape: ModelShape, tp: int, gpu: Gpu, seqs: Sequence[int] = (1, 32, 64, 128, 256)) -> list[Kernel]:
    """The projection to the vocabulary, for so many sequences."""
    return [_product("lm_head", "head", gpu, n, *shape.lm_head(tp)) for n in seqs]


def decode_attention(
    shape: ModelShape, tp: int, gpu: Gpu, *, efficiency: float = DECODE_EFFICIENCY, launch_s: float = ATTENTION_LAUNCH_S
) -> list[Kernel]:
    """Decode attention of one layer that reads its KV at a share of peak bandwidth."""
    return [
        Kernel(
            part="attention",
            op="attn_decode (rule)",
            tokens=batch,
            seqs=batch,
            decode_kv_tokens=batch * context,
            seconds=launch_s
            + shape.kv_bytes_per_token(tp) * batch * context / (efficiency * gpu.memory_bytes_per_s),
            file=RULE_FILE,
            row=0,
        )
        for batch in (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256)
        for context in (64, 256, 1024, 4096)
    ]  # fmt: skip


def prefill_attention(
    shape: ModelShape,
    tp: int,
    gpu: Gpu,
    *,
    efficiency: float = PREFILL_EFFICIENCY,
    launch_s: float = ATTENTION_LAUNCH_S,
) -> list[Kernel]:
    """Prefill attention of one layer at a share of the tensor peak."""
    kernels = []
    for chunk in (64, 256, 512, 1024, 2048):
        for context in (0, 512, 2048):
            work = chunk * (context + chunk / 2)
            flops = 4.0 * (shape.q_heads / tp) * shape.head_dim * work
            kernels.append(
                Kernel(
                    part="attention",
                    op="attn_prefill (rule)",
                    tokens=chunk,
                    seqs=1,
                    prefill_work_tokens2=work,
                    seconds=launch_s + flops / (efficiency * gpu.tensor_flops_per_s),
                    file=RULE_FILE,
                    row=0,
                )
            )
    return kernels
