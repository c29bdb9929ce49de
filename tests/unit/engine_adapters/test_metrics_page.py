"""Pages for Prometheus: what labels mean, values that are none, and what a page may legally look like."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_adapters.metrics_page import mean, parse_page, total
from engine_adapters.openai_metrics_view import MetricsError, OwnRequest, estimated_snapshot, read_page
from simcore.types import EngineConfig

CONFIG = EngineConfig(model="m", num_blocks=100, block_size_tokens=16, max_model_len_tokens=2048)
NAME = "sglang:num_running_reqs"


def page(*series: tuple[str, float | str]) -> str:
    return "".join(f"{NAME}{{{labels}}} {value}\n" for labels, value in series)


def running(*series: tuple[str, float | str]) -> float | None:
    return total(parse_page(page(*series)), (NAME,))


@pytest.mark.parametrize(
    ("series", "requests"),
    [
        ([('model_name="m"', 3)], 3),
        ([(f'tp_rank="{i}"', 6) for i in range(4)], 6),
        ([(f'pp_rank="{i}",tp_rank="{j}"', 6) for i in range(2) for j in range(2)], 6),
        ([(f'moe_ep_rank="{i}",model_name="m"', i) for i in range(4)], 3),
        ([(f'context_parallel_rank="{i}"', 6) for i in range(2)], 6),
        ([(f'pid="{i}"', 6) for i in (71, 72)], 6),
        ([(f'dp_rank="{i}"', 3) for i in range(4)], 12),
        ([(f'engine="{i}",model_name="m"', i) for i in range(4)], 6),
        ([(f'dp_rank="{i}",tp_rank="{2 * i + j}"', 3) for i in range(2) for j in range(2)], 6),
        ([(f'tp_rank="{j}",dp_rank="{i}"', 3 - j) for i in range(2) for j in range(2)], 6),
        ([('model_name="a"', 3), ('model_name="b"', 4)], 7),
        ([('model_name="m"', 3), ('model_name="m"', 3)], 3),
        ([('a="1",b="2"', 3), ('b="2",a="1"', 3)], 3),
        ([("", 6), ('engine="0"', 4), ('engine="1"', 2)], 6),
        ([('model_name="m"', 6), ('engine="0",model_name="m"', 4), ('model_name="m",engine="1"', 2)], 6),
        ([('engine="all"', 6), ('engine="0"', 4), ('engine="1"', 2)], 6),
        ([('priority=""', 6), ('priority="0"', 4), ('priority="1"', 2)], 6),
        ([("", 0), ('engine="0"', 4), ('engine="1"', 2)], 6),
        ([("", 6), ('engine="0"', 4), ('engine="1"', 2), ('priority="0"', 5), ('priority="1"', 1)], 6),
        ([("", "NaN"), ('engine="0"', 4), ('engine="1"', 2)], 6),
        ([('engine="0"', 4), ('engine="1"', "NaN")], 4),
    ],
)
def test_what_several_series_of_one_count_come_to(series: list[tuple[str, float | str]], requests: float) -> None:
    assert running(*series) == requests
    seed = random.randrange(2**32)
    shuffled = random.Random(seed).sample(series, len(series))
    assert running(*shuffled) == requests, f"in another order, seed {seed}"


def test_a_share_has_no_sum() -> None:
    shares = page(('dp_rank="0",tp_rank="0"', 0.2), ('dp_rank="0",tp_rank="1"', 0.2), ('dp_rank="1",tp_rank="2"', 0.6))
    assert mean(parse_page(shares), (NAME,)) == pytest.approx(0.4)


@pytest.mark.parametrize("value", ["NaN", "nan", "+Inf", "-Inf", "Inf", "1e999", "9" * 400, "one", "", "0x10"])
def test_a_value_that_is_no_number_is_unknown(value: str) -> None:
    assert running(('model_name="m"', value)) is None
    text = f"vllm:num_requests_running {value}\nvllm:num_requests_waiting 1\nvllm:kv_cache_usage_perc 0.5\n"
    if value in ("one", "", "0x10"):
        with pytest.raises(MetricsError):
            read_page(text)
        return
    read = read_page(text)
    assert (read.running, read.waiting, read.kv_used_share) == (None, 1, 0.5)
    own = [OwnRequest(request_id="a", prompt_tokens=10, max_output_tokens=5, output_tokens=1)]
    assert [r.request_id for r in estimated_snapshot(read, own, CONFIG, seq=1, at_s=0.0).running] == ["a"]


@pytest.mark.parametrize("name", ["waiting", "share", "preemptions", "blocks", "tokens"])
@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "1e300", "-1e300", "9" * 400])
def test_no_value_of_any_series_ends_the_daemon(name: str, value: str) -> None:
    two = "vllm:num_requests_running 1\nvllm:num_requests_waiting 0\n"
    text = {
        "waiting": f"vllm:num_requests_running 1\nvllm:num_requests_waiting {value}\n",
        "share": f"{two}vllm:kv_cache_usage_perc {value}\n",
        "preemptions": f"{two}vllm:num_preemptions_total {value}\n",
        "blocks": f'{two}vllm:cache_config_info{{block_size="16",num_gpu_blocks="{value}"}} 1\n',
        "tokens": f"sglang:num_running_reqs 1\nsglang:num_queue_reqs 0\nsglang:max_total_num_tokens {value}\n",
    }[name]
    read = read_page(text)
    assert read.running == 1
    snapshot = estimated_snapshot(read, [], CONFIG, seq=1, at_s=0.0)
    assert len(snapshot.running) == 1
    assert len(snapshot.waiting) == 0
    assert 0 <= snapshot.free_blocks <= CONFIG.num_blocks


def test_a_page_that_counts_a_million_makes_no_million() -> None:
    read = read_page("vllm:num_requests_running 1e6\nvllm:num_requests_waiting 999999\n")
    snapshot = estimated_snapshot(read, [], CONFIG, seq=1, at_s=0.0)
    assert len(snapshot.running) + len(snapshot.waiting) < 10_000


def test_the_blocks_of_all_engines_and_of_each_once() -> None:
    text = "vllm:num_requests_running 1\nvllm:num_requests_waiting 0\n"
    for engine in (0, 1):
        for cache in ("auto", "fp8"):
            labels = f'block_size="16",cache_dtype="{cache}",engine="{engine}",num_gpu_blocks="101"'
            text += f"vllm:cache_config_info{{{labels}}} 1\n"
    read = read_page(text)
    assert (read.num_blocks, read.block_size_tokens) == (200, 16)
    odd = 'vllm:cache_config_info{block_size="²",num_gpu_blocks="None"} 1\n'
    assert read_page(f"vllm:num_requests_running 1\nvllm:num_requests_waiting 0\n{odd}").num_blocks is None


@pytest.mark.parametrize(
    "line",
    [
        'sglang:num_running_reqs{b="c"} 3e0',
        'sglang:num_running_reqs{b="c"} 3.0 1395066363000',
        'sglang:num_running_reqs{b="c"} 3 # {trace_id="x"} 0.67 1520879607.789',
        "sglang:num_running_reqs 3 1520879607.789",
        'sglang:num_running_reqs {b="c",} 3\r',
        '  sglang:num_running_reqs{ b = "c" , d="e" }\t3',
        'sglang:num_running_reqs{b="} 5 # \\" \\\\ \\n"} 3',
        'sglang:num_running_reqs{b="a\u2028b\x0bc"} 3',
        '{"sglang:num_running_reqs",b="c"} 3',
        'sglang:num_running_reqs{"b"="c"} 3',
    ],
)
def test_lines_as_the_formats_allow_them(line: str) -> None:
    text = f"# HELP {NAME} x\n# TYPE {NAME} gauge\n# UNIT {NAME} requests\n{line}\n# EOF\n"
    assert total(parse_page(text, {NAME}), (NAME,)) == 3


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:cache_config_info", NAME]),
            st.text(max_size=30),
        ),
        max_size=6,
    )
)
def test_whatever_stands_behind_a_name_is_read_or_passed_over(lines: list[tuple[str, str]]) -> None:
    text = "\n".join(name + rest for name, rest in lines)
    for values in parse_page(text).values():
        assert all(not math.isinf(value) for _, value in values)
    try:
        estimated_snapshot(read_page(text), [], CONFIG, seq=1, at_s=0.0)
    except MetricsError:
        pass
