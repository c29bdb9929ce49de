"""What an engine is said to do outside the proved rules, from attributes that its release may not have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from engine_adapters.vllm import describe
from simcore.proved import PROVED_VLLM_VERSION


class FullAttentionSpec:
    """Named as vLLM's."""


class SlidingWindowSpec:
    """Named as vLLM's."""


def scheduler(*, parallel: dict[str, Any] | None = None, **limits: Any) -> SimpleNamespace:
    """One of an old release: it has few attributes."""
    defaults: dict[str, Any] = {
        "max_num_seqs": 8,
        "max_num_batched_tokens": 512,
        "policy": "fcfs",
        "enable_chunked_prefill": True,
    }
    group = SimpleNamespace(kv_cache_spec=FullAttentionSpec())
    return SimpleNamespace(
        vllm_config=SimpleNamespace(
            scheduler_config=SimpleNamespace(**{**defaults, **limits}),
            parallel_config=SimpleNamespace(
                **{"pipeline_parallel_size": 1, "data_parallel_size": 1, **(parallel or {})}
            ),
            model_config=SimpleNamespace(served_model_name="m", model="m", max_model_len=2048),
            cache_config=SimpleNamespace(block_size=16, num_gpu_blocks=101, enable_prefix_caching=True),
        ),
        kv_cache_config=SimpleNamespace(kv_cache_groups=[group]),
    )


@pytest.fixture(autouse=True)
def _proved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(describe, "vllm_version", lambda: f"{PROVED_VLLM_VERSION}.0")


def notes(of: SimpleNamespace) -> tuple[str, ...]:
    return describe.config_of(of, prefix_cache_traced=False).outside_rules


@pytest.mark.parametrize("place", ["structured_outputs_config", "reasoning_config"])
def test_a_server_with_a_reasoning_parser_words_chats_itself(place: str) -> None:
    of = scheduler()
    assert not describe.config_of(of, prefix_cache_traced=False).own_chats
    for parser, words in (("", False), ("qwen3", True)):
        setattr(of.vllm_config, place, SimpleNamespace(reasoning_parser=parser))
        assert describe.config_of(of, prefix_cache_traced=False).own_chats is words


@pytest.mark.parametrize(
    ("served", "names"),
    [("a", ("a",)), (["a"], ("a",)), (["a", "b", "c"], ("a", "b", "c")), ([], ("m",)), (None, ("m",))],
)
def test_all_names_that_it_is_served_under(served: object, names: tuple[str, ...]) -> None:
    of = scheduler()
    of.vllm_config.model_config.served_model_name = served
    assert describe.config_of(of, prefix_cache_traced=False).names == names


def test_an_engine_without_a_cache_has_room_for_all_its_seats() -> None:
    of = scheduler(runner_type="pooling")
    of.vllm_config.cache_config.num_gpu_blocks = 1
    of.kv_cache_config.kv_cache_groups = []
    config = describe.config_of(of, prefix_cache_traced=False)
    assert config.num_blocks == config.max_num_seqs * 2048 // 16
    assert config.pools
    assert not describe.config_of(scheduler(), prefix_cache_traced=False).pools


def test_a_plain_engine_is_inside_the_rules_whatever_its_release_lacks() -> None:
    assert notes(scheduler()) == ()


@pytest.mark.parametrize(
    ("limits", "word"),
    [
        ({"watermark": 0.05}, "watermark"),
        ({"enable_chunked_prefill": False}, "enable_chunked_prefill"),
        ({"scheduler_reserve_full_isl": False}, "scheduler_reserve_full_isl"),
        ({"runner_type": "pooling"}, "pooling"),
        ({"prefill_schedule_interval": 4, "parallel": {"data_parallel_size": 2}}, "prefill_schedule_interval"),
        ({"parallel": {"pipeline_parallel_size": 2}}, "pipeline"),
        ({"parallel": {"decode_context_parallel_size": 2}}, "context parallel"),
        ({"parallel": {"prefill_context_parallel_size": 2}}, "context parallel"),
    ],
)
def test_each_rule_that_is_not_proved_is_named(limits: dict[str, Any], word: str) -> None:
    (note,) = notes(scheduler(**limits))
    assert word in note


@pytest.mark.parametrize(
    "limits",
    [
        {"long_prefill_token_threshold": 0, "long_prefill_token_threshold_adaptive": True},
        {"prefill_schedule_interval": 4},
        {"watermark": 0.0, "scheduler_reserve_full_isl": True, "runner_type": "generate"},
    ],
)
def test_settings_without_effect_are_not_held_against_it(limits: dict[str, Any]) -> None:
    assert notes(scheduler(**limits)) == ()


def test_parts_that_change_the_schedule_are_named() -> None:
    odd = scheduler()
    odd.vllm_config.kv_transfer_config = object()
    assert len(notes(odd)) == 1


def test_drafts_are_limits_and_only_some_ways_of_drafting_are_outside_the_rules() -> None:
    of = scheduler()
    of.num_spec_tokens = of.num_lookahead_tokens = 3
    of.use_eagle_block_drop = True
    of.dynamic_sd_lookup = None
    of.num_prefill_lookahead = 1
    of.vllm_config.speculative_config = SimpleNamespace(max_num_new_slots_for_drafting=0)
    config = describe.config_of(of, prefix_cache_traced=False)
    assert (config.num_speculative_tokens, config.num_lookahead_tokens, config.drops_cached_block) == (3, 3, True)
    assert config.outside_rules == ()
    of.vllm_config.speculative_config.max_num_new_slots_for_drafting = 1
    assert "draft model" in notes(of)[0]
    of.num_spec_tokens, of.dynamic_sd_lookup, of.num_prefill_lookahead = 21, [3], 3
    assert len(notes(of)) == 4


def test_places_for_lora_adapters_are_a_limit_and_no_rule_outside() -> None:
    of = scheduler()
    assert describe.config_of(of, prefix_cache_traced=False).max_loras == 0
    of.vllm_config.lora_config = SimpleNamespace(max_loras=4)
    config = describe.config_of(of, prefix_cache_traced=False)
    assert (config.max_loras, config.outside_rules) == (4, ())


def test_an_adaptive_prefill_threshold_is_outside_the_rules_only_where_budgets_differ() -> None:
    of = scheduler(long_prefill_token_threshold=64, long_prefill_token_threshold_adaptive=True)
    config = describe.config_of(of, prefix_cache_traced=False)
    assert (config.long_prefill_adaptive, config.outside_rules) == (True, ())
    of.max_num_scheduled_tokens = 256
    (note,) = notes(of)
    assert "long_prefill" in note


def test_one_group_of_sliding_windows_is_named_also_within_layers_of_one_size() -> None:
    sliding = scheduler()
    sliding.kv_cache_config.kv_cache_groups[0].kv_cache_spec = SlidingWindowSpec()
    (note,) = notes(sliding)
    assert "SlidingWindowSpec" in note
    layers = {"a": FullAttentionSpec(), "b": FullAttentionSpec()}
    sliding.kv_cache_config.kv_cache_groups[0].kv_cache_spec = SimpleNamespace(kv_cache_specs=layers)
    assert notes(sliding) == ()


def test_several_groups_are_named() -> None:
    hybrid = scheduler()
    hybrid.kv_cache_config.kv_cache_groups *= 2
    (note,) = notes(hybrid)
    assert "several kinds" in note


def test_an_encoder_with_a_budget_is_named() -> None:
    odd = scheduler()
    odd.max_num_encoder_input_tokens = 0
    assert notes(odd) == ()
    odd.max_num_encoder_input_tokens = 512
    (note,) = notes(odd)
    assert "encoder" in note


def test_the_seats_are_those_that_may_be_active() -> None:
    fewer = scheduler()
    fewer.max_num_active_reqs = 3
    assert describe.config_of(fewer, prefix_cache_traced=False).max_num_seqs == 3
    assert describe.config_of(scheduler(), prefix_cache_traced=False).max_num_seqs == 8
