"""Estimates for pairs that nobody has measured: honest about being estimates, and as close as they say."""

from __future__ import annotations

import numpy as np
import pytest

from bench.profile.physics import impossible_steps
from simcore.cost.hardware import GPUS, Link, UnknownHardwareError, find_gpu
from simcore.cost.model_shape import MODELS, find_shape
from simcore.cost.profile import decode_profile, encode_profile
from simcore.cost.roofline import MEDIAN_ERROR, P90_ERROR, activated_experts, all_reduce_s, estimate
from simcore.cost.shipped import UnknownProfileError, load_or_estimate, load_profile, shipped_names
from simcore.trace import StepBatch


def decode(seqs: int, context: int) -> StepBatch:
    return StepBatch(decode_seqs=seqs, decode_kv_tokens=seqs * context)


def prefill(tokens: int, decodes: int = 0, context: int = 0) -> StepBatch:
    return StepBatch(
        prefill_tokens=tokens,
        prefill_work_tokens2=tokens * tokens / 2,
        prefill_seqs=1,
        decode_seqs=decodes,
        decode_kv_tokens=decodes * context,
    )


STEPS = [decode(1, 570), decode(8, 500), decode(24, 450), decode(48, 350), decode(128, 300)]
STEPS += [prefill(512), prefill(464, 48, 350), prefill(2048), prefill(1984, 64, 400)]


def test_the_stated_error_is_the_error_against_measured_pairs() -> None:
    errors = []
    for name in shipped_names():
        shipped = load_profile(name)
        guessed = estimate(find_gpu(shipped.gpu), find_shape(shipped.model), shipped.tensor_parallel)
        ours, theirs = (p.step_time_model(async_scheduling=True) for p in (guessed, shipped))
        errors += [abs(ours.seconds(step) / theirs.seconds(step) - 1.0) for step in STEPS]
    assert np.median(errors) <= MEDIAN_ERROR
    assert np.quantile(errors, 0.9) <= P90_ERROR


def fits(gpu: str, model: str, tp: int) -> bool:
    """Weights and a little KV in nine tenths of the memory."""
    return find_shape(model).weight_bytes(tp) + 1.5 * 2**30 < 0.9 * find_gpu(gpu).capacity_bytes


@pytest.mark.parametrize("gpu", GPUS)
def test_every_pair_that_fits_has_an_estimate_that_keeps_to_physics(gpu: str) -> None:
    pairs = [(model, tp) for model in MODELS for tp in (1, 2, 4, 8) if fits(gpu, model, tp)]
    assert len(pairs) >= 10
    for model, tp in pairs:
        guessed = estimate(find_gpu(gpu), find_shape(model), tp)
        assert impossible_steps(guessed) == []
        assert guessed.quality == "roofline"
        assert decode_profile(encode_profile(guessed)) == guessed
        step_time = guessed.step_time_model()
        seconds = [step_time.seconds(prefill(n)) for n in (1, 64, 512, 4096, 16_384)]
        assert seconds == sorted(seconds)


def test_a_pair_without_a_table_is_estimated_and_says_so() -> None:
    guessed = load_or_estimate("L4/meta-llama/Llama-3.1-8B")
    assert guessed.name == "l4/llama-3.1-8b"
    assert guessed.quality == "roofline"
    assert "No table of this pair" in guessed.note
    assert guessed.fit.median_error == {"all": MEDIAN_ERROR}
    assert load_or_estimate("a40/qwen3-32b-tp4").tensor_parallel == 4


def test_a_measured_pair_is_preferred_to_an_estimate() -> None:
    assert load_or_estimate("a30/llama-2-7b") is load_profile("a30/llama-2-7b")


@pytest.mark.parametrize("name", ["a30/lama", "z9/llama-2-7b", "llama", "a30/", "", "l4/llama-3.1-8b-tpx"])
def test_a_name_of_nothing_known_is_an_error(name: str) -> None:
    with pytest.raises(UnknownProfileError, match="no shipped step-time profile"):
        load_or_estimate(name)


def test_what_does_not_fit_the_gpu_is_an_error_that_says_how_to_mend_it() -> None:
    with pytest.raises(UnknownHardwareError, match="use a higher tensor parallel degree"):
        load_or_estimate("a30/llama-2-70b")


def test_grouped_queries_read_less() -> None:
    seven, qwen = (estimate(find_gpu("a30"), find_shape(m)) for m in ("llama-2-7b", "qwen2-7b"))
    assert qwen.decode_kv_s_per_token.value < seven.decode_kv_s_per_token.value / 5


def test_more_gpus_make_decoding_faster_but_not_for_nothing() -> None:
    one, two, four = (
        estimate(find_gpu("h100"), find_shape("llama-3.1-70b"), tp).step_time_model().seconds(decode(16, 500))
        for tp in (4, 8, 8)
    )
    assert two == four
    assert one / 2 < two < one


def test_all_reduces_over_pcie_suffer_from_every_further_gpu() -> None:
    shape, l40s = find_shape("llama-3.1-70b"), find_gpu("l40s")
    two, four, eight, sixteen = (all_reduce_s(shape, tp, l40s, 2048) for tp in (2, 4, 8, 16))
    assert 5 < four / two < 7
    assert 3 < eight / four < 5
    assert eight < sixteen < 1.2 * eight


def test_the_links_of_a_known_host_stand_for_those_of_the_data_sheet() -> None:
    shape, gpu = find_shape("llama-3.1-8b"), find_gpu("rtxpro6000")
    link = Link(bytes_per_s=16e9, latency_s=20e-6, source="a host")
    assert all_reduce_s(shape, 1, gpu, 64, link) == 0.0
    moved_s = 2 * 64 * shape.hidden / 16e9
    assert all_reduce_s(shape, 2, gpu, 64, link) == pytest.approx(40e-6 + moved_s)


def test_few_tokens_touch_few_experts() -> None:
    shape = find_shape("Qwen/Qwen3-30B-A3B-Instruct-2507")
    assert activated_experts(shape, 1) == pytest.approx(8)
    assert 100 < activated_experts(shape, 32) < 128
    assert activated_experts(shape, 10_000) == pytest.approx(128)
    model = estimate(find_gpu("h100"), shape).step_time_model()
    assert model.seconds(decode(1, 100)) < model.seconds(decode(32, 100)) / 2
