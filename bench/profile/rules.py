"""Rules that stand in for operators a table does not hold: the roofline of `simcore.cost.roofline` as kernels."""

from __future__ import annotations

from collections.abc import Sequence

from bench.profile.kernels import Kernel, attention_kernel, gemm_costs
from simcore.cost import roofline
from simcore.cost.hardware import Gpu, Link
from simcore.cost.model_shape import ModelShape
from simcore.cost.roofline import ATTENTION_LAUNCH_S, DECODE_EFFICIENCY, LAUNCH_S

RULE_FILE = "rule"
"""Instead of a file name."""
EXPERT_EXCHANGE = "expert exchange (rule)"


def source(rule: str, decode_efficiency: float = DECODE_EFFICIENCY, link: Link | None = None) -> str:
    """What a profile says of a part that a rule made."""
    memory, tensor = (
        f"{roofline.MEMORY_EFFICIENCY:g} of peak bandwidth",
        f"{roofline.TENSOR_EFFICIENCY:g} of peak FLOPS",
    )
    launch = f"{ATTENTION_LAUNCH_S * 1e6:g} us a launch"
    links = f"{4 * LAUNCH_S * 1e6:g} us a launch"
    if link is not None:
        links = f"{link.bytes_per_s / 1e9:g} GB/s, {link.latency_s * 1e6:g} us a message ({link.source})"
    texts = {
        "all-reduce": f"rings over the links, {links}",
        "expert-exchange": f"one all-reduce of all replicas' tokens, {links}",
        "elementwise": f"bytes at {memory}, {LAUNCH_S * 1e6:g} us a launch",
        "head": f"weights at {memory}, or {tensor}",
        "decode-attention": f"KV read at {decode_efficiency:g} of peak bandwidth, {launch}",
        "prefill-attention": f"{roofline.PREFILL_EFFICIENCY:g} of peak FLOPS, {launch}",
    }
    return f"rule {rule}: {texts[rule]}"


def all_reduce(shape: ModelShape, tp: int, gpu: Gpu, tokens: Sequence[int], link: Link | None = None) -> list[Kernel]:
    """The two all-reduces of one layer; none on one GPU."""
    if tp == 1:
        return []
    return [_dense("all_reduce x2 (rule)", n, 2 * roofline.all_reduce_s(shape, tp, gpu, n, link)) for n in tokens]


def expert_exchange(
    shape: ModelShape, replicas: int, gpu: Gpu, tokens: Sequence[int], link: Link | None = None
) -> list[Kernel]:
    """What replicas that share the experts of one layer send each other when each has so many tokens: hidden states are
    gathered before and summed up after, which is what an all-reduce does. None for one replica."""
    if replicas == 1:
        return []
    return [_dense(EXPERT_EXCHANGE, n, roofline.all_reduce_s(shape, replicas, gpu, n * replicas, link)) for n in tokens]


def elementwise(shape: ModelShape, tp: int, gpu: Gpu, tokens: Sequence[int]) -> list[Kernel]:
    """Norms (with residual), rotary embedding and gated activation of one layer."""
    return [
        _dense(f"{op} (rule)", n, seconds)
        for n in tokens
        for op, seconds in roofline.elementwise_s(shape, tp, gpu, n).items()
    ]


def _dense(op: str, tokens: int, seconds: float) -> Kernel:
    return Kernel(part="dense", op=op, tokens=tokens, seconds=seconds, file=RULE_FILE, row=0)


def head(shape: ModelShape, tp: int, gpu: Gpu, seqs: Sequence[int] = (1, 32, 64, 128, 256)) -> list[Kernel]:
    """The projection to the vocabulary, for so many sequences."""
    kernels = []
    for n in seqs:
        moved, flops = gemm_costs(n, *shape.lm_head(tp))
        kernels.append(
            Kernel(
                part="head",
                op="lm_head (rule)",
                tokens=n,
                seqs=n,
                seconds=roofline.product_s(gpu, n, *shape.lm_head(tp)),
                weight_bytes=moved,
                flops=flops,
                file=RULE_FILE,
                row=0,
            )
        )
    return kernels


def decode_attention(shape: ModelShape, tp: int, gpu: Gpu, *, efficiency: float = DECODE_EFFICIENCY) -> list[Kernel]:
    """Decode attention of one layer that reads its KV at a share of peak bandwidth."""
    per_token_s = roofline.decode_kv_s(shape, tp, gpu, efficiency=efficiency)
    return [
        attention_kernel(
            shape,
            tp,
            batch=batch,
            chunk=0,
            context=context,
            seconds=ATTENTION_LAUNCH_S + per_token_s * batch * context,
            file=RULE_FILE,
            row=0,
        )
        for batch in (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256)
        for context in (64, 256, 1024, 4096)
    ]


def prefill_attention(shape: ModelShape, tp: int, gpu: Gpu) -> list[Kernel]:
    """Prefill attention of one layer at a share of the tensor peak."""
    per_pair_s = roofline.prefill_work_s(shape, tp, gpu)
    return [
        attention_kernel(
            shape,
            tp,
            batch=1,
            chunk=chunk,
            context=context,
            seconds=ATTENTION_LAUNCH_S + per_pair_s * chunk * (context + chunk / 2),
            file=RULE_FILE,
            row=0,
        )
        for chunk in (64, 256, 512, 1024, 2048)
        for context in (0, 512, 2048)
    ]
