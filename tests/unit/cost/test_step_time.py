"""The step-time model: what it promises to the simulator and to people."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from simcore.cost.step_time import N_HEADER, StepTimeModel, step_seconds, waited_s
from simcore.trace import StepBatch
from tests.helpers.kernels import callable_from_python

MODEL = StepTimeModel(
    name="test/model",
    constant_s=0.001,
    prefill_work_s_per_token2=1e-8,
    decode_kv_s_per_token=5e-7,
    per_seq_s=4e-5,
    mixed_decode_kv_s_per_token=3e-7,
    mixed_seq_s=1e-5,
    prefill_step_s=0.002,
    prefill_seq_s=3e-4,
    host_s=0.004,
    host_seq_s=2e-4,
    host_prefill_seq_s=5e-4,
    dense_knots_tokens=(1, 64, 65, 512, 2048),
    dense_knots_s=(0.018, 0.020, 0.024, 0.070, 0.270),
)


def dense_of(tokens: int) -> float:
    """The curve, written down a second time: flat before the first knot, the last slope beyond the last."""
    x, y = MODEL.dense_knots_tokens, MODEL.dense_knots_s
    if tokens > x[-1]:
        return y[-1] + (y[-1] - y[-2]) / (x[-1] - x[-2]) * (tokens - x[-1])
    return float(np.interp(tokens, x, y))


@pytest.mark.parametrize("tokens", [0, 1, 2, 63, 64, 65, 66, 300, 512, 2047, 2048, 2049, 8192])
def test_the_dense_curve_goes_through_its_knots_and_on(tokens: int) -> None:
    bare = msgspec.structs.replace(MODEL, constant_s=0.0, per_seq_s=0.0, host_s=0.0)
    assert bare.seconds(StepBatch(prefill_tokens=tokens)) == pytest.approx(dense_of(tokens), rel=1e-12)


def test_each_feature_has_its_price() -> None:
    batch = StepBatch(prefill_tokens=400, prefill_work_tokens2=80_000.0, prefill_seqs=2)
    assert MODEL.seconds(batch) == pytest.approx(0.001 + dense_of(400) + 80_000 * 1e-8 + 2 * 4e-5 + 0.002 + 2 * 3e-4)
    batch = StepBatch(decode_seqs=48, decode_kv_tokens=17_000)
    assert MODEL.seconds(batch) == pytest.approx(0.001 + dense_of(48) + 17_000 * 5e-7 + 48 * 4e-5)


def test_a_mixed_step_costs_more_than_its_parts() -> None:
    batch = StepBatch(
        prefill_tokens=464, prefill_work_tokens2=107_648.0, prefill_seqs=1, decode_seqs=48, decode_kv_tokens=17_000
    )
    parts = 0.001 + dense_of(512) + 107_648 * 1e-8 + 17_000 * 5e-7 + 49 * 4e-5 + 0.002 + 3e-4
    assert MODEL.seconds(batch) == pytest.approx(parts + 17_000 * 3e-7 + 49 * 1e-5)


def test_a_prefill_alone_pays_no_mixed_price() -> None:
    plain = msgspec.structs.replace(MODEL, mixed_decode_kv_s_per_token=0.0, mixed_seq_s=0.0)
    batch = StepBatch(prefill_tokens=100, prefill_work_tokens2=5000.0, prefill_seqs=1)
    assert MODEL.seconds(batch) == plain.seconds(batch)


def test_no_step_is_shorter_than_the_work_of_the_host_beside_it() -> None:
    idle = msgspec.structs.replace(MODEL, dense_knots_s=(0.0, 0.0, 0.0, 0.0, 0.0))
    assert idle.seconds(StepBatch(decode_seqs=40, decode_kv_tokens=40)) == pytest.approx(0.004 + 40 * 2e-4)
    both = StepBatch(prefill_tokens=4, prefill_work_tokens2=8.0, prefill_seqs=2, decode_seqs=38, decode_kv_tokens=38)
    assert idle.seconds(both) == pytest.approx(0.004 + 40 * 2e-4 + 2 * 5e-4)
    busy = StepBatch(decode_seqs=40, decode_kv_tokens=40_000)
    assert idle.seconds(busy) == pytest.approx(0.001 + 40_000 * 5e-7 + 40 * 4e-5), "the device is slower: nothing waits"


@pytest.mark.parametrize("kv", [40, 15_000, 18_759, 18_760])
@pytest.mark.parametrize("steps", [0, 1, 2, 30, 1000])
def test_what_decoding_steps_wait_for_the_host_sums_in_closed_form(kv: int, steps: int) -> None:
    model = msgspec.structs.replace(MODEL, dense_knots_s=(0.0, 0.0, 0.0, 0.0, 0.0))
    device = msgspec.structs.replace(model, host_s=0.0, host_seq_s=0.0)
    batches = [StepBatch(decode_seqs=40, decode_kv_tokens=kv + 40 * i) for i in range(steps)]
    one_by_one = sum(model.seconds(b) - device.seconds(b) for b in batches)
    short_s = 0.004 + 40 * 2e-4 - device.seconds(StepBatch(decode_seqs=40, decode_kv_tokens=kv))
    assert short_s > 0.0
    assert callable_from_python(waited_s)(short_s, 40 * 5e-7, steps) == pytest.approx(one_by_one, rel=1e-9, abs=1e-12)


def test_scaling_scales_every_step() -> None:
    batch = StepBatch(
        prefill_tokens=464, prefill_work_tokens2=107_648.0, prefill_seqs=1, decode_seqs=48, decode_kv_tokens=17_000
    )
    assert MODEL.scaled(0.1).seconds(batch) == pytest.approx(0.1 * MODEL.seconds(batch), rel=1e-12)
    assert MODEL.scaled(1.0) == MODEL


def test_packing_holds_every_coefficient() -> None:
    packed = MODEL.pack()
    knots = len(MODEL.dense_knots_tokens)
    assert packed.dtype == np.float64
    assert packed.tolist() == [
        MODEL.constant_s,
        MODEL.prefill_work_s_per_token2,
        MODEL.decode_kv_s_per_token,
        MODEL.per_seq_s,
        knots,
        MODEL.mixed_decode_kv_s_per_token,
        MODEL.mixed_seq_s,
        MODEL.prefill_step_s,
        MODEL.prefill_seq_s,
        MODEL.host_s,
        MODEL.host_seq_s,
        MODEL.host_prefill_seq_s,
        *MODEL.dense_knots_tokens,
        *MODEL.dense_knots_s,
    ]
    assert len(packed) == N_HEADER + 2 * knots


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"constant_s": -1e-9}, "not negative"),
        ({"per_seq_s": math.nan}, "finite"),
        ({"mixed_seq_s": -1.0}, "not negative"),
        ({"host_seq_s": -1e-9}, "not negative"),
        ({"prefill_step_s": math.nan}, "finite"),
        ({"decode_kv_s_per_token": math.inf}, "finite"),
        ({"dense_knots_s": (0.018, 0.020)}, "equal number"),
        ({"dense_knots_tokens": (1,), "dense_knots_s": (0.1,)}, "two or more"),
        ({"dense_knots_tokens": (1, 64, 64, 512, 2048)}, "ascending"),
        ({"dense_knots_tokens": (0, 64, 65, 512, 2048)}, "from 1 up"),
        ({"dense_knots_s": (0.018, 0.020, 0.019, 0.070, 0.270)}, "must not fall"),
    ],
)
def test_impossible_coefficients_are_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        msgspec.structs.replace(MODEL, **change).pack()
    assert "test/model" in str(caught.value)


@pytest.mark.parametrize("work", [0.0, 50_000.0])
def test_time_is_affine_in_the_kv_of_a_fixed_batch(work: float) -> None:
    """What lets the simulator sum runs of pure decode steps in closed form."""
    packed = MODEL.pack()
    kv = np.array([1, 1_000, 17_000, 400_000], dtype=np.float64)
    seconds = np.array([step_seconds(packed, 48.0, work, x, 48.0, 1.0 if work else 0.0) for x in kv])
    slopes = np.diff(seconds) / np.diff(kv)
    expected = MODEL.decode_kv_s_per_token + (MODEL.mixed_decode_kv_s_per_token if work else 0.0)
    assert slopes == pytest.approx([expected] * 3, rel=1e-9)
