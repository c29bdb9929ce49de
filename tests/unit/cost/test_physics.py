"""The roofline check on single kernels."""

from __future__ import annotations

import math

import pytest

from bench.profile.kernels import Kernel, attention_kernel, in_units_of
from bench.profile.physics import accept, violation
from bench.profile.rows import ProfileTableError
from simcore.cost.hardware import find_gpu
from simcore.cost.model_shape import find_shape

A100 = find_gpu("a100")


def kernel(seconds: float, *, weight_bytes: float = 0.0, flops: float = 0.0, row: int = 2, op: str = "gemm") -> Kernel:
    return Kernel(
        part="dense",
        op=op,
        tokens=1,
        seconds=seconds,
        weight_bytes=weight_bytes,
        flops=flops,
        file="t.csv",
        row=row,
    )


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (kernel(math.nan), "no value"),
        (kernel(0.0), "above 0"),
        (kernel(-1e-6), "above 0"),
        (kernel(math.inf), "above 0"),
        (kernel(1e-5, weight_bytes=1e9), "100.0 TB/s; a100 has 2.04 TB/s"),
        (kernel(1e-5, flops=1e11), "10000 TFLOPS; a100 has 312 TFLOPS"),
        (kernel(1e-6, weight_bytes=3e7), "30.0 TB/s"),
    ],
)
def test_what_cannot_be_is_named(bad: Kernel, reason: str) -> None:
    found = violation(bad, A100)
    assert found is not None
    assert reason in found.reason
    assert str(found).startswith("t.csv: row 2: gemm: ")


@pytest.mark.parametrize(
    "honest",
    [
        kernel(1e9 / 2.0e12, weight_bytes=1e9),  # 98 % of peak bandwidth
        kernel(1e11 / 3.0e14, flops=1e11),  # 96 % of peak FLOPS
        kernel(8e-6, weight_bytes=3e7),  # out of L2, faster than memory
        kernel(2e-6),
    ],
)
def test_what_can_be_passes(honest: Kernel) -> None:
    assert violation(honest, A100) is None


def test_one_bad_row_refuses_the_table() -> None:
    kernels = [kernel(1e-5, row=i) for i in range(2, 40)] + [kernel(0.0, row=40)]
    with pytest.raises(ProfileTableError, match=r"t\.csv: row 40: gemm: time must be above 0"):
        accept(kernels, A100, drop_bad_rows=False)
    kept, dropped = accept(kernels, A100, drop_bad_rows=True)
    assert len(kept) == 38
    assert [v.row for v in dropped] == [40]


def test_too_many_bad_rows_refuse_the_table_even_when_dropping() -> None:
    kernels = [kernel(1e-5, row=i) for i in range(2, 10)] + [kernel(0.0, row=i) for i in range(10, 20)]
    with pytest.raises(ProfileTableError, match="10 of the 18 rows of gemm are bad"):
        accept(kernels, A100, drop_bad_rows=True)


def test_bad_rows_of_one_operator_are_no_excuse_for_another() -> None:
    kernels = [kernel(1e-5, row=i) for i in range(2, 100)] + [kernel(0.0, row=i, op="rope") for i in range(2, 4)]
    with pytest.raises(ProfileTableError, match="2 of the 2 rows of rope"):
        accept(kernels, A100, drop_bad_rows=True)


def test_attention_of_a_sister_model_counts_equal_work() -> None:
    seven, qwen = find_shape("llama-2-7b"), find_shape("qwen2-7b")
    decode = attention_kernel(qwen, 1, batch=8, chunk=0, context=1000, seconds=1e-4, file="t", row=2)
    prefill = attention_kernel(qwen, 1, batch=1, chunk=512, context=512, seconds=1e-4, file="t", row=3)
    as_seven = in_units_of(decode, measured=qwen, measured_tp=1, wanted=seven, tp=1)
    # 4 KV heads read an eighth of what 32 do.
    assert as_seven.decode_kv_tokens == 1000
    again = in_units_of(prefill, measured=qwen, measured_tp=1, wanted=seven, tp=1)
    assert again.prefill_work_tokens2 == pytest.approx(prefill.prefill_work_tokens2 * 28 / 32)
    assert again.tokens == prefill.tokens
