"""Reading metrics of engines without a trace: three dialects, old names, broken pages, and the state they suggest."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_adapters.base import EngineError, EngineOptions
from engine_adapters.metrics_page import parse_page
from engine_adapters.openai_metrics import OpenAiEngine
from engine_adapters.openai_metrics_view import (
    Aggregates,
    MetricsError,
    OwnRequest,
    estimated_snapshot,
    read_page,
)
from predictor.core.mirror import NodeMirror
from simcore.types import EngineConfig

CONFIG = EngineConfig(model="m", num_blocks=100, block_size_tokens=16, max_model_len_tokens=2048)
VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 5.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:num_preemptions_total{engine="0",model_name="m"} 7.0
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="1053",quote="a\\"b"} 1.0
"""


def test_vllm() -> None:
    assert read_page(VLLM) == Aggregates(
        dialect="vllm",
        running=6,
        waiting=2,
        kv_used_share=0.25,
        preemptions=7,
        num_blocks=1052,
        block_size_tokens=16,
    )


LORA = """
vllm:num_requests_running{engine="0"} 3
vllm:num_requests_waiting{engine="0"} 1
# HELP vllm:lora_requests_info Running stats on lora requests.
# TYPE vllm:lora_requests_info gauge
vllm:lora_requests_info{max_lora="4",running_lora_adapters="old",waiting_lora_adapters="old"} 1.7e+09
vllm:lora_requests_info{max_lora="4",running_lora_adapters="sql, poems",waiting_lora_adapters="sql,jokes"} 1.7000001e+09
vllm:lora_requests_info{max_lora="4",running_lora_adapters="",waiting_lora_adapters=""} 1.69e+09
"""


def test_of_the_adapters_in_use_the_last_word_counts() -> None:
    assert read_page(LORA).adapters == ("jokes", "poems", "sql")
    assert read_page(LORA + LORA.splitlines()[-1].replace("1.69", "1.8") + "\n").adapters == ()
    assert read_page(LORA.replace("e+09", "e+999")).adapters is None
    assert read_page("\n".join(LORA.splitlines()[:3]) + "\n").adapters is None


def test_older_vllm_names() -> None:
    page = VLLM.replace("kv_cache_usage_perc", "gpu_cache_usage_perc")
    assert read_page(page).kv_used_share == 0.25


def test_sglang() -> None:
    page = (
        'sglang:num_running_reqs{model_name="m"} 3\nsglang:num_queue_reqs{model_name="m"} 1\n'
        'sglang:token_usage{model_name="m"} 0.5\nsglang:max_total_num_tokens{model_name="m"} 8000\n'
    )
    assert msgspec.structs.replace(read_page(page), progress=None) == Aggregates(
        dialect="sglang", running=3, waiting=1, kv_used_share=0.5, num_blocks=8000, block_size_tokens=1
    )


def test_tgi_says_nothing_of_its_cache() -> None:
    page = "tgi_batch_current_size 4\ntgi_queue_size 9\n"
    assert read_page(page) == Aggregates(dialect="tgi", running=4, waiting=9)


@pytest.mark.parametrize(
    ("page", "moving"),
    [
        (VLLM, 'vllm:generation_tokens_total{engine="0"} %d\n'),
        (VLLM, "vllm:iteration_tokens_total_count %d\n"),
        ("sglang:num_running_reqs 3\nsglang:num_queue_reqs 1\n", "sglang:gen_throughput %d\n"),
        ("tgi_batch_current_size 4\ntgi_queue_size 9\n", 'tgi_batch_inference_count{method="decode"} %d\n'),
    ],
)
def test_a_page_tells_whether_its_engine_gets_on(page: str, moving: str) -> None:
    assert read_page(page).progress is None, "nothing on it must move while the engine works"
    page += 'http_requests_total{handler="/metrics"} %d\n'
    first = read_page(page % 1 + moving % 5).progress
    assert first is not None
    assert read_page(page % 2 + moving % 5).progress == first, "its HTTP server counts our own look"
    assert read_page(page % 2 + moving % 6).progress != first


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("", "no series of a known engine"),
        ("<html>404</html>", "--enable-metrics"),
        ("vllm:num_requests_running 3\n", "num_requests_waiting"),
    ],
)
def test_pages_of_no_use_are_named(page: str, words: str) -> None:
    with pytest.raises(MetricsError, match=words):
        read_page(page)


@given(st.text(max_size=300))
def test_any_text_parses_or_raises_the_one_error(text: str) -> None:
    parse_page(text)
    try:
        read_page(text)
    except MetricsError:
        pass


def own(name: str, *, produced: int) -> OwnRequest:
    return OwnRequest(request_id=name, prompt_tokens=100, max_output_tokens=50, output_tokens=produced)


def test_own_requests_are_known_and_strangers_fill_the_counts() -> None:
    page = Aggregates(dialect="vllm", running=4, waiting=3, kv_used_share=0.5, preemptions=2)
    mine = [own("a", produced=10), own("b", produced=1), own("c", produced=0)]
    snapshot = estimated_snapshot(page, mine, CONFIG, seq=4, at_s=1.0)
    assert [r.request_id for r in snapshot.running] == ["a", "b", "unknown-running-0", "unknown-running-1"]
    assert [r.request_id for r in snapshot.waiting] == ["c", "unknown-waiting-0", "unknown-waiting-1"]
    # What is not ours of the 800 tokens in the cache is theirs, in equal parts.
    assert snapshot.running[2].prompt_tokens == (800 - 211) // 2
    assert snapshot.free_blocks == 50
    assert NodeMirror(snapshot).running_count == 4


def test_a_request_in_its_prefill_counts_as_running_when_nobody_waits() -> None:
    page = Aggregates(dialect="vllm", running=1, waiting=0, kv_used_share=0.0)
    snapshot = estimated_snapshot(page, [own("a", produced=0)], CONFIG, seq=1, at_s=0.0)
    assert [r.request_id for r in snapshot.running] == ["a"]
    assert snapshot.running[0].computed_tokens == 0


def test_without_a_cache_series_the_blocks_of_all_that_run_are_taken_for_held() -> None:
    page = Aggregates(dialect="tgi", running=3, waiting=0)
    snapshot = estimated_snapshot(page, [], CONFIG, seq=1, at_s=0.0)
    assert snapshot.free_blocks == 100 - 3 * 32


def test_it_says_what_it_needs() -> None:
    with pytest.raises(EngineError, match="limits"):
        OpenAiEngine(EngineOptions(node_id="n"))
    with pytest.raises(EngineError, match="http://"):
        OpenAiEngine(EngineOptions(node_id="n", config=CONFIG, url="ftp://localhost:8000"))
