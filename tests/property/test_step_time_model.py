"""More work never takes less time, whatever the coefficients."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from simcore.cost.step_time import StepTimeModel
from simcore.trace import StepBatch

prices = st.floats(min_value=0.0, max_value=1e-3, allow_nan=False)


@st.composite
def models(draw: st.DrawFn, hosts: st.SearchStrategy[float] = prices) -> StepTimeModel:
    tokens = draw(st.lists(st.integers(1, 9000), min_size=2, max_size=30, unique=True).map(sorted))
    rises = draw(st.lists(st.floats(0.0, 0.05), min_size=len(tokens), max_size=len(tokens)))
    seconds, level = [], 0.0
    for rise in rises:
        level += rise
        seconds.append(level)
    return StepTimeModel(
        name="any/model",
        constant_s=draw(prices),
        prefill_work_s_per_token2=draw(prices),
        decode_kv_s_per_token=draw(prices),
        per_seq_s=draw(prices),
        mixed_decode_kv_s_per_token=draw(prices),
        mixed_seq_s=draw(prices),
        prefill_step_s=draw(prices),
        prefill_seq_s=draw(prices),
        host_s=draw(hosts),
        host_seq_s=draw(hosts),
        host_prefill_seq_s=draw(hosts),
        dense_knots_tokens=tuple(tokens),
        dense_knots_s=tuple(seconds),
    )


batches = st.builds(
    StepBatch,
    prefill_tokens=st.integers(0, 10_000),
    prefill_work_tokens2=st.floats(0.0, 1e8),
    prefill_seqs=st.integers(0, 16),
    decode_seqs=st.integers(0, 256),
    decode_kv_tokens=st.integers(0, 500_000),
)
more = st.tuples(
    st.integers(0, 1000), st.floats(0.0, 1e6), st.integers(0, 4), st.integers(0, 16), st.integers(0, 10_000)
)


@given(models(), batches, more)
def test_more_of_anything_never_takes_less_time(
    model: StepTimeModel, batch: StepBatch, extra: tuple[int, float, int, int, int]
) -> None:
    larger = StepBatch(
        prefill_tokens=batch.prefill_tokens + extra[0],
        prefill_work_tokens2=batch.prefill_work_tokens2 + extra[1],
        prefill_seqs=batch.prefill_seqs + extra[2],
        decode_seqs=batch.decode_seqs + extra[3],
        decode_kv_tokens=batch.decode_kv_tokens + extra[4],
    )
    before, after = model.seconds(batch), model.seconds(larger)
    assert after >= before * (1 - 1e-12)


@given(models(), batches, st.floats(0.01, 100.0))
def test_a_slower_gpu_is_slower_by_that_factor(model: StepTimeModel, batch: StepBatch, factor: float) -> None:
    expected = factor * model.seconds(batch)
    assert abs(model.scaled(factor).seconds(batch) - expected) <= 1e-9 * max(expected, 1e-12)
