"""What a serving engine's Prometheus page says of its cache, latencies and throughput, and how it changes. Pure.

Names changed between vLLM releases (KV use and prefix cache lost `gpu_` in 0.9, time per output token became
inter-token latency); the newest name that is there counts. What a page does not have stays None.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec

from engine_adapters.metrics_page import Samples, mean, parse_page, total

_KV_USE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage")
_HITS = ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total")
_QUERIES = ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total")
_PROMPT = (
    "vllm:prompt_tokens_total",
    "sglang:prompt_tokens_total",
    "tgi_request_input_length_sum",
    "astrolabe_prompt_tokens_total",
)
_OUTPUT = (
    "vllm:generation_tokens_total",
    "sglang:generation_tokens_total",
    "tgi_request_generated_tokens_sum",
    "astrolabe_output_tokens_total",
)
_DONE = (
    "vllm:request_success_total",
    "sglang:num_requests_total",
    "tgi_request_success",
    "astrolabe_requests_total",
)
_TTFT = ("vllm:time_to_first_token_seconds", "sglang:time_to_first_token_seconds", "astrolabe_ttft_seconds")
_TPOT = (
    "vllm:inter_token_latency_seconds",
    "vllm:time_per_output_token_seconds",
    "sglang:inter_token_latency_seconds",
    "tgi_request_mean_time_per_token_duration",
    "astrolabe_tpot_seconds",
)
_FREE, _TOTAL = ("astrolabe_node_free_blocks",), ("astrolabe_node_total_blocks",)
"""Of a gateway of ours: all of its nodes' blocks."""


class ServerSample(msgspec.Struct, frozen=True, kw_only=True):
    """One page, read. Counters count since the server's start."""

    at_s: float
    kv_use: float | None = None
    """Share of the KV cache in use, 0 to 1."""
    prefix_hits: float | None = None
    """Prompt tokens found in the prefix cache."""
    prefix_queries: float | None = None
    """Prompt tokens looked up there."""
    ttft_sum_s: float | None = None
    ttft_count: float | None = None
    tpot_sum_s: float | None = None
    tpot_count: float | None = None
    prompt_tokens: float | None = None
    output_tokens: float | None = None
    requests: float | None = None


class ServerRates(msgspec.Struct, frozen=True, kw_only=True):
    """A server between two samples. Averages run since the first sample, rates since the previous one."""

    at_s: float
    """Since the first sample."""
    kv_use: float | None
    prefix_hit_ratio: float | None
    ttft_mean_s: float | None
    tpot_mean_s: float | None
    prompt_tokens_per_s: float | None
    output_tokens_per_s: float | None
    requests_per_s: float | None


def read_sample(text: str, at_s: float) -> ServerSample:
    """The page as a sample; a page of something else has None everywhere."""
    samples = parse_page(text)
    ttft_sum, ttft_count = _histogram(samples, _TTFT)
    tpot_sum, tpot_count = _histogram(samples, _TPOT)
    return ServerSample(
        at_s=at_s,
        kv_use=_kv_use(samples),
        prefix_hits=total(samples, _HITS),
        prefix_queries=total(samples, _QUERIES),
        ttft_sum_s=ttft_sum,
        ttft_count=ttft_count,
        tpot_sum_s=tpot_sum,
        tpot_count=tpot_count,
        prompt_tokens=total(samples, _PROMPT),
        output_tokens=total(samples, _OUTPUT),
        requests=total(samples, _DONE),
    )


def rates(samples: Sequence[ServerSample]) -> list[ServerRates]:
    """One row per sample after the first. A server that was started anew counts from there."""
    rows: list[ServerRates] = []
    if not samples:
        return rows
    base = samples[0]
    for before, now in itertools.pairwise(samples):
        if before.requests is not None and now.requests is not None and now.requests < before.requests:
            base = before = msgspec.structs.replace(_zero(now), at_s=before.at_s)
        span_s = now.at_s - before.at_s
        rows.append(
            ServerRates(
                at_s=now.at_s - samples[0].at_s,
                kv_use=now.kv_use,
                prefix_hit_ratio=_ratio(base.prefix_hits, now.prefix_hits, base.prefix_queries, now.prefix_queries),
                ttft_mean_s=_ratio(base.ttft_sum_s, now.ttft_sum_s, base.ttft_count, now.ttft_count),
                tpot_mean_s=_ratio(base.tpot_sum_s, now.tpot_sum_s, base.tpot_count, now.tpot_count),
                prompt_tokens_per_s=_per_s(before.prompt_tokens, now.prompt_tokens, span_s),
                output_tokens_per_s=_per_s(before.output_tokens, now.output_tokens, span_s),
                requests_per_s=_per_s(before.requests, now.requests, span_s),
            )
        )
    return rows


def _zero(sample: ServerSample) -> ServerSample:
    """Counters at the start of a server that has those of `sample`."""
    known = {name: 0.0 for name in sample.__struct_fields__ if getattr(sample, name) is not None}
    return ServerSample(**{**known, "at_s": sample.at_s})


def _grown(before: float | None, now: float | None) -> float | None:
    return None if before is None or now is None else max(0.0, now - before)


def _per_s(before: float | None, now: float | None, span_s: float) -> float | None:
    grown = _grown(before, now)
    return None if grown is None or span_s <= 0 else grown / span_s


def _ratio(top0: float | None, top1: float | None, bottom0: float | None, bottom1: float | None) -> float | None:
    top, bottom = _grown(top0, top1), _grown(bottom0, bottom1)
    return top / bottom if top is not None and bottom else None


def _histogram(samples: Samples, names: Sequence[str]) -> tuple[float | None, float | None]:
    for name in names:
        summed, count = total(samples, (f"{name}_sum",)), total(samples, (f"{name}_count",))
        if summed is not None and count is not None:
            return summed, count
    return None, None


def _kv_use(samples: Samples) -> float | None:
    told = mean(samples, _KV_USE)
    free, blocks = total(samples, _FREE), total(samples, _TOTAL)
    return told if told is not None or free is None or not blocks else 1.0 - free / blocks
