"""Step times of made-up engines: a millisecond and a little per token; a second."""

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

SECOND = StepTimeModel(
    name="one second per step",
    constant_s=1.0,
    prefill_work_s_per_token2=0.0,
    decode_kv_s_per_token=0.0,
    per_seq_s=0.0,
    dense_knots_tokens=(1, 2),
    dense_knots_s=(0.0, 0.0),
)
