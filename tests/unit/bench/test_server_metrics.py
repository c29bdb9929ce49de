"""Metrics pages of several vLLM releases as samples and rates."""

from __future__ import annotations

import pytest

from bench.client.server_metrics import ServerSample, rates, read_sample

NEW = """
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:prefix_cache_queries_total{engine="0"} 200.0
vllm:prefix_cache_hits_total{engine="0"} 50.0
vllm:time_to_first_token_seconds_sum{engine="0"} 3.0
vllm:time_to_first_token_seconds_count{engine="0"} 6.0
vllm:inter_token_latency_seconds_sum{engine="0"} 1.0
vllm:inter_token_latency_seconds_count{engine="0"} 50.0
vllm:prompt_tokens_total{engine="0"} 1000.0
vllm:generation_tokens_total{engine="0"} 500.0
vllm:request_success_total{finished_reason="stop"} 4.0
vllm:request_success_total{finished_reason="length"} 2.0
"""
OLD = NEW.replace("kv_cache_usage", "gpu_cache_usage").replace("vllm:prefix_cache", "vllm:gpu_prefix_cache")


@pytest.mark.parametrize("page", [NEW, OLD.replace("inter_token_latency", "time_per_output_token")])
def test_old_and_new_names_are_the_same(page: str) -> None:
    sample = read_sample(page, 7.0)
    assert sample == ServerSample(
        at_s=7.0, kv_use=0.25, prefix_hits=50.0, prefix_queries=200.0, ttft_sum_s=3.0, ttft_count=6.0, tpot_sum_s=1.0,
        tpot_count=50.0, prompt_tokens=1000.0, output_tokens=500.0, requests=6.0,
    )  # fmt: skip


def test_a_gateway_of_ours_is_understood_like_a_server() -> None:
    page = """
astrolabe_node_free_blocks{node="a"} 250.0
astrolabe_node_free_blocks{node="b"} 750.0
astrolabe_node_total_blocks{node="a"} 1000.0
astrolabe_node_total_blocks{node="b"} 1000.0
astrolabe_requests_total{outcome="length"} 6.0
astrolabe_prompt_tokens_total 1000.0
astrolabe_output_tokens_total 500.0
astrolabe_ttft_seconds_count 6.0
astrolabe_ttft_seconds_sum 3.0
astrolabe_tpot_seconds_count 5.0
astrolabe_tpot_seconds_sum 1.0
"""
    assert read_sample(page, 7.0) == ServerSample(
        at_s=7.0, kv_use=0.5, ttft_sum_s=3.0, ttft_count=6.0, tpot_sum_s=1.0, tpot_count=5.0,
        prompt_tokens=1000.0, output_tokens=500.0, requests=6.0,
    )  # fmt: skip


def test_a_foreign_page_knows_nothing() -> None:
    assert read_sample("go_gc_cycles 3\n<html>", 1.0) == ServerSample(at_s=1.0)


def sample(at_s: float, requests: float, tokens: float, ttft_sum_s: float) -> ServerSample:
    return ServerSample(at_s=at_s, requests=requests, output_tokens=tokens, ttft_sum_s=ttft_sum_s, ttft_count=requests)


def test_rates_are_since_the_last_sample_and_averages_since_the_first() -> None:
    first, second = rates([sample(10, 100, 1000, 50), sample(11, 102, 1100, 51), sample(13, 110, 1100, 60)])
    assert (first.at_s, first.requests_per_s, first.output_tokens_per_s, first.ttft_mean_s) == (1.0, 2.0, 100.0, 0.5)
    assert (second.at_s, second.requests_per_s, second.output_tokens_per_s, second.ttft_mean_s) == (3.0, 4.0, 0.0, 1.0)
    assert second.kv_use is None


def test_a_restarted_server_counts_from_its_start() -> None:
    (row,) = rates([sample(10, 100, 1000, 50), sample(12, 4, 40, 1)])
    assert (row.requests_per_s, row.output_tokens_per_s, row.ttft_mean_s) == (2.0, 20.0, 0.25)


def test_too_few_samples_have_no_rates() -> None:
    assert rates([]) == rates([sample(1, 1, 1, 1)]) == []
