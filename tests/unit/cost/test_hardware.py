"""GPUs and model shapes by name."""

from __future__ import annotations

import pytest

from simcore.cost.hardware import GPUS, UnknownHardwareError, find_gpu
from simcore.cost.model_shape import MODELS, find_shape


@pytest.mark.parametrize("name", ["a100", "A100", "a100_sxm", "NVIDIA-A100", "nvidia a100"])
def test_a_gpu_answers_to_its_usual_spellings(name: str) -> None:
    assert find_gpu(name).name == "a100"


def test_an_unknown_gpu_or_model_says_what_comes_close() -> None:
    with pytest.raises(UnknownHardwareError, match="did you mean h100"):
        find_gpu("h10")
    with pytest.raises(UnknownHardwareError, match="did you mean llama-2-7b"):
        find_shape("llama-2-7")


@pytest.mark.parametrize("gpu", GPUS.values(), ids=lambda g: g.name)
def test_peaks_are_those_of_a_gpu(gpu: object) -> None:
    known = find_gpu(getattr(gpu, "name"))  # noqa: B009
    # Compute over bandwidth, in operations per byte: every tensor-core GPU lies in this decade and a half.
    assert 60 < known.tensor_flops_per_s / known.memory_bytes_per_s < 600
    assert known.l2_bytes < known.capacity_bytes / 100
    assert known.source


# Parameters as published, in billions.
PUBLISHED = {
    "meta-llama/Llama-2-7b-hf": 6.74,
    "meta-llama/Llama-2-70b-hf": 68.98,
    "meta-llama/Llama-3.1-8B": 8.03,
    "meta-llama/Llama-3.1-70B": 70.55,
    "Qwen/Qwen2-7B": 7.62,
    "Qwen/Qwen3-32B": 32.76,
    "Qwen/Qwen3-30B-A3B-Instruct-2507": 30.53,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_shape_has_the_parameters_of_its_model(name: str) -> None:
    assert find_shape(name).weight_bytes() / 2e9 == pytest.approx(PUBLISHED[name], rel=0.005)


def test_tensor_parallelism_shares_weights_and_kv() -> None:
    shape = find_shape("llama-2-70b")
    assert shape.weight_bytes(4) == pytest.approx(shape.weight_bytes() / 4)
    assert shape.kv_bytes_per_token(4) == shape.kv_bytes_per_token() / 4
    assert shape.kv_bytes_per_token(16) == shape.kv_bytes_per_token(8)  # one KV head is not cut in two
    assert shape.gemms(4)["mlp_up_proj"] == (8192, 14336)


def test_kv_of_llama_2_7b_is_half_a_mebibyte_a_token() -> None:
    shape = find_shape("llama-2-7b")
    assert shape.layers * shape.kv_bytes_per_token() == 2**19
