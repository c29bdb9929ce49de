# mypy: disable-error-code="import-not-found"
"""Our scheduling rules against vLLM's own scheduler, every step of random workloads.

Run where vLLM can be imported; `ASTROLABE_ORACLE_WORKLOADS` sets how many seeds (default 100). A failure prints the
seed, the first diverging step and both sides.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, assume, given, settings

from engine_adapters.vllm.describe import config_of
from simcore.proved import PROVED_VLLM, PROVED_VLLM_VERSIONS, has_rules_of_0_33, release_of
from tests.conformance.named_workloads import NAMED
from tests.conformance.scheduler_workloads import (
    SHAREGPT_400,
    Workload,
    first_difference,
    random_workload,
    scheduled,
    sharegpt_at_once,
    with_adapters,
    with_adaptive_threshold,
    with_speculation,
    with_windows,
)
from tests.conformance.simulated_schedulers import Compiled, Reference
from tests.conformance.vllm_scheduler import VllmScheduler, why_unavailable
from tests.conformance.workload_strategies import workloads

WORKLOADS = int(os.environ.get("ASTROLABE_ORACLE_WORKLOADS", "100"))

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(bool(why_unavailable()), reason=why_unavailable() or "never"),
    pytest.mark.filterwarnings("ignore"),
]


def installed(workload: Workload) -> Workload:
    """The same requests on an engine of the release that is installed here. Skips what is not proved for it."""
    import vllm

    if workload.config.num_speculative_tokens and has_rules_of_0_33(vllm.__version__):
        pytest.skip("speculative decoding is proved for vLLM 0.32 alone")
    config = msgspec.structs.replace(workload.config, engine_version=vllm.__version__)
    return msgspec.structs.replace(workload, config=config)


def test_the_version_is_the_one_the_rules_were_proved_against() -> None:
    import vllm

    assert release_of(vllm.__version__) in PROVED_VLLM_VERSIONS, f"the rules hold for vLLM {PROVED_VLLM}"


@pytest.mark.parametrize("seed", range(WORKLOADS))
def test_every_step_is_equal(seed: int) -> None:
    """By turns synchronous and asynchronous, prompts distinct and shared."""
    workload = installed(random_workload(seed, async_scheduling=seed % 2 == 1, shared_prefixes=seed % 4 > 1))
    ours = Compiled(workload.config, checking=seed % 10 == 0)
    difference = first_difference(workload, ours, VllmScheduler(workload.config))
    assert not difference, difference


@pytest.mark.parametrize("seed", range(WORKLOADS))
def test_every_step_is_equal_with_more_lora_adapters_than_places(seed: int) -> None:
    drawn = random_workload(seed, async_scheduling=seed % 2 == 1, shared_prefixes=seed % 4 > 1)
    workload = installed(with_adapters(drawn))
    ours = Compiled(workload.config, checking=seed % 10 == 0)
    difference = first_difference(workload, ours, VllmScheduler(workload.config))
    assert not difference, difference


@pytest.mark.parametrize("seed", range(WORKLOADS))
def test_every_step_is_equal_with_an_adaptive_prefill_threshold(seed: int) -> None:
    drawn = random_workload(seed, async_scheduling=seed % 2 == 1, requests=20)
    workload = installed(with_adaptive_threshold(drawn))
    ours = Compiled(workload.config, checking=seed % 10 == 0)
    difference = first_difference(workload, ours, VllmScheduler(workload.config))
    assert not difference, difference


@pytest.mark.parametrize("seed", range(WORKLOADS))
def test_every_step_is_equal_with_sliding_window_and_hybrid_groups(seed: int) -> None:
    drawn = random_workload(seed, async_scheduling=seed % 2 == 1, shared_prefixes=seed % 4 > 1)
    workload = installed(with_windows(drawn))
    theirs = VllmScheduler(workload.config)
    told = config_of(theirs.scheduler, prefix_cache_traced=False)
    assert (told.kv_windows_tokens, told.outside_rules) == (workload.config.kv_windows_tokens, ())
    difference = first_difference(workload, Compiled(workload.config, checking=seed % 10 == 0), theirs)
    assert not difference, difference


@pytest.mark.parametrize("seed", range(WORKLOADS))
def test_every_step_is_equal_with_speculative_decoding(seed: int) -> None:
    drawn = random_workload(seed, async_scheduling=seed % 2 == 1, shared_prefixes=seed % 4 > 1, requests=20)
    workload = installed(with_speculation(drawn))
    odds = workload.draft_odds
    ours = Compiled(workload.config, draft_odds=odds, checking=seed % 10 == 0)
    difference = first_difference(workload, ours, VllmScheduler(workload.config, draft_odds=odds))
    assert not difference, difference


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("name", sorted(NAMED))
def test_every_step_of_named_workloads_is_equal(name: str, asynchronous: bool) -> None:
    workload = installed(scheduled(NAMED[name], asynchronous=asynchronous))
    odds = workload.draft_odds
    for ours in (Reference(workload.config, draft_odds=odds), Compiled(workload.config, draft_odds=odds)):
        difference = first_difference(workload, ours, VllmScheduler(workload.config, draft_odds=odds))
        assert not difference, difference


@given(workloads(shared_prefixes=True))
@settings(max_examples=max(20, WORKLOADS // 5), deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_step_of_small_workloads_is_equal(workload: Workload) -> None:
    """Small enough for hypothesis to shrink what differs to what decides."""
    import vllm

    assume(not (workload.config.num_speculative_tokens and has_rules_of_0_33(vllm.__version__)))
    workload = installed(workload)
    odds = workload.draft_odds
    ours = Compiled(workload.config, draft_odds=odds)
    difference = first_difference(workload, ours, VllmScheduler(workload.config, draft_odds=odds))
    assert not difference, difference


def test_every_step_is_equal_on_400_sharegpt_requests_at_once(data_dir: Path) -> None:
    workload = installed(sharegpt_at_once(data_dir, 400))
    ours = Compiled(workload.config, checking=False)
    assert not first_difference(workload, ours, VllmScheduler(workload.config))
    assert (ours.node.seq, ours.node.load(0.0).preemptions_total) == SHAREGPT_400


@pytest.mark.parametrize(
    ("part", "setting", "value"),
    [
        ("scheduler_config", "watermark", 0.05),
        ("scheduler_config", "enable_chunked_prefill", False),
        ("scheduler_config", "scheduler_reserve_full_isl", False),
        ("scheduler_config", "prefill_schedule_interval", 4),
        ("scheduler_config", "runner_type", "pooling"),
        ("parallel_config", "pipeline_parallel_size", 2),
        ("parallel_config", "decode_context_parallel_size", 2),
        ("parallel_config", "prefill_context_parallel_size", 2),
    ],
)
def test_vllm_has_the_settings_that_lead_out_of_the_rules(part: str, setting: str, value: object) -> None:
    workload = NAMED["one_token_prompts_and_answers"]
    config = msgspec.structs.replace(workload.config, long_prefill_token_threshold_tokens=32)
    engine = VllmScheduler(config).scheduler
    engine.vllm_config.parallel_config.data_parallel_size = 2
    assert config_of(engine, prefix_cache_traced=False).outside_rules == ()
    settings_of_part = getattr(engine.vllm_config, part)
    assert hasattr(settings_of_part, setting)
    setattr(settings_of_part, setting, value)
    (note,) = config_of(engine, prefix_cache_traced=False).outside_rules
    assert note


@pytest.mark.parametrize("seed", range(4))
def test_seats_are_those_that_may_be_active(seed: int) -> None:
    workload = random_workload(seed, async_scheduling=seed % 2 == 1, requests=20)
    fewer = msgspec.structs.replace(workload.config, max_num_seqs=3)
    workload = msgspec.structs.replace(workload, config=fewer)
    theirs = VllmScheduler(fewer, runner_seats=8)
    assert config_of(theirs.scheduler, prefix_cache_traced=False).max_num_seqs == 3
    difference = first_difference(workload, Compiled(fewer), theirs)
    assert not difference, difference
