"""A made-up model has the shape of the one that it stands for."""

from __future__ import annotations

import pytest

from bench.vllm_checks.real_device import architecture_of
from simcore.cost.model_shape import MODELS, ModelShape, find_shape


def test_the_architecture_is_that_of_the_shape() -> None:
    shape = find_shape("qwen3-32b")
    found = architecture_of(shape)
    assert found["architectures"] == ["Qwen3ForCausalLM"]
    assert (found["hidden_size"], found["num_hidden_layers"], found["head_dim"]) == (5120, 64, 128)
    assert (found["num_attention_heads"], found["num_key_value_heads"]) == (64, 8)


@pytest.mark.parametrize("shape", MODELS.values(), ids=lambda shape: shape.short_name)
def test_dense_models_of_the_shipped_shapes_can_be_made_up_and_others_say_why(shape: ModelShape) -> None:
    if shape.experts == 1:
        assert architecture_of(shape)["intermediate_size"] == shape.intermediate
    else:
        with pytest.raises(ValueError, match="only dense models"):
            architecture_of(shape)
