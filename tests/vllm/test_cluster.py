"""Three real vLLM servers with emulated A30s behind one gateway: 300 ShareGPT requests under three policies."""

from __future__ import annotations

import msgspec
import pytest

from bench.data.datasets import DatasetSpec
from bench.data.source import WorkloadSpec, load_source
from bench.run.spec import RunSpec
from bench.vllm_checks.forecast_error import POLICIES, ErrorRun, capacity, live_rows, simulated, table, with_ids_only
from bench.workload.item import WorkloadItem
from tests.vllm.conftest import REPORT

REQUESTS = 300
LOAD = 0.8
LONGEST_ANSWER_TOKENS = 64
"""Prompts are whole, answers are cut: three times 300 whole ones would take this machine a quarter of an hour."""


def test_300_requests_under_three_policies(vllm_python: str, request: pytest.FixtureRequest) -> None:
    base = RunSpec(nodes=3)
    source = load_source(WorkloadSpec(dataset=DatasetSpec(name="sharegpt"), requests=REQUESTS))
    source.keep_fitting(2048)

    def cut(rate: float) -> list[WorkloadItem]:
        items = with_ids_only(source, rate, REQUESTS)
        return [msgspec.structs.replace(i, output_tokens=min(i.output_tokens, LONGEST_ANSWER_TOKENS)) for i in items]

    limit = capacity(base, cut(1.0))
    rate = LOAD * limit
    jobs = [ErrorRun(policy=policy, load=LOAD, rate_per_s=rate, items=cut(rate)) for policy in POLICIES]
    foreseen = [simulated(base, job) for job in jobs]
    seen = live_rows(vllm_python, base, jobs)
    request.config.stash[REPORT] = table([*foreseen, *seen])
    assert [row.policy for row in seen] == list(POLICIES)
    for row in seen:
        assert row.requests == REQUESTS, f"under {row.policy} {REQUESTS - row.requests} requests were not answered"
        # How many come in time says how busy this machine is: without one the fallback places.
        assert (row.forecasts > 0) == (row.policy != "llumnix_freeness")
        assert (row.e2e_error_p50 is None) == (row.forecasts == 0), "and what they were worth is told"
