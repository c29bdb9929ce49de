"""Step times of a made-up engine: a millisecond, and a little per token."""

from __future__ import annotations

from simcore.cost.step_time import StepTimeModel

STEP_TIME = StepTimeModel(
    name="test/test",
    constant_s=0.001,
    prefill_work_s_per_token2=0.0,
    decode_kv_s_per_token=0.0,
    per_seq_s=0.0,
    dense_knots_tokens=(1, 64),
    dense_knots_s=(0.0, 0.001),
)
