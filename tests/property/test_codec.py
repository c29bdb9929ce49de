"""A record that goes over the wire comes back equal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos import codec
from protos.v1 import astrolabe_dispatch_pb2 as dispatch_pb
from protos.v1 import astrolabe_types_pb2 as pb
from simcore.trace import TraceSnapshot
from simcore.types import (
    Candidate,
    Decision,
    EngineConfig,
    ExpectedWork,
    Forecast,
    LengthBelief,
    NodeLoad,
    Outcome,
    Quantiles,
    RequestState,
    Score,
)

PRIOR = LengthBelief((7, 70))

counts = st.integers(0, 2**31)
positive = st.integers(1, 2**31)
seconds = st.floats(0, 1e9)
ids = st.text(max_size=12)
beliefs = st.lists(positive, min_size=1, max_size=20).map(lambda atoms: LengthBelief(tuple(sorted(atoms))))
quantiles = st.builds(Quantiles, seconds, seconds, seconds)
configs = st.builds(
    EngineConfig,
    model=ids,
    max_num_seqs=positive,
    max_num_batched_tokens=positive,
    block_size_tokens=positive,
    num_blocks=positive,
    max_model_len_tokens=positive,
    long_prefill_token_threshold_tokens=counts,
    enable_prefix_caching=st.booleans(),
    scheduling_policy=st.sampled_from(["fcfs", "priority"]),
    async_scheduling=st.booleans(),
    engine=ids,
    engine_version=ids,
    outside_rules=st.lists(ids, max_size=2).map(tuple),
)
states = st.builds(
    RequestState,
    request_id=ids,
    prompt_tokens=counts,
    output_tokens=counts,
    computed_tokens=counts,
    max_output_tokens=counts,
    priority=st.integers(-100, 100),
    arrival_s=seconds,
    preemptions=counts,
)
candidates = st.builds(
    Candidate,
    request_id=ids,
    prompt_tokens=positive,
    max_output_tokens=positive,
    belief=beliefs,
    priority=st.integers(-100, 100),
    block_hashes=st.lists(st.integers(0, 2**64 - 1), max_size=4).map(tuple),
    leaving=st.booleans(),
)
forecasts = st.builds(
    Forecast,
    request_id=ids,
    node_id=ids,
    ttft_s=quantiles,
    tpot_s=quantiles,
    e2e_s=quantiles,
    preemptions=seconds,
    kv_headroom_blocks=st.integers(-(2**40), 2**40),
    harm_s=quantiles,
    trace_seq=counts,
    state_age_s=seconds,
    cached_tokens=counts,
    source=st.sampled_from(["simulated", "approximate", "prior"]),
    preemption_probability=st.floats(0, 1),
    clear_start_s=quantiles,
    kv_headroom_path=st.lists(st.integers(-(2**40), 2**40), max_size=6).map(tuple),
    prefill_share=st.floats(0, 1),
)
loads = st.builds(
    NodeLoad,
    node_id=ids,
    trace_seq=counts,
    state_age_s=seconds,
    running=counts,
    waiting=counts,
    free_blocks=counts,
    total_blocks=counts,
    waiting_prompt_blocks=counts,
    unprocessed_tokens=counts,
    preemptions_total=counts,
    reserved=counts,
    trusted=st.booleans(),
    preemption_ahead_s=st.just(-1.0) | seconds,
    head_waits_s=seconds,
    classes=st.dictionaries(st.integers(-8, 8), st.integers(0, 1000)),
)
scores = st.builds(
    Score,
    node_id=ids,
    cost=st.none() | seconds,
    forecast=st.none() | forecasts,
    state_age_s=seconds,
    note=ids,
)
decisions = st.builds(
    Decision,
    request_id=ids,
    node_id=ids,
    policy=ids,
    cost_unit=ids,
    scores=st.lists(scores, max_size=3).map(tuple),
    reason=ids,
    decision_s=seconds,
    attempt=counts,
)
snapshots = st.builds(
    TraceSnapshot,
    seq=counts,
    at_s=st.just(0.0),
    config=configs,
    running=st.lists(states, max_size=3).map(tuple),
    waiting=st.lists(states, max_size=3).map(tuple),
    free_blocks=counts,
    preemptions_total=counts,
)


@given(beliefs)
def test_belief(belief: LengthBelief) -> None:
    wire = pb.LengthBelief.FromString(codec.belief_to_wire(belief).SerializeToString())
    assert codec.belief_from_wire(wire) == belief


@given(configs)
def test_config(config: EngineConfig) -> None:
    wire = pb.EngineConfig.FromString(codec.config_to_wire(config).SerializeToString())
    assert codec.config_from_wire(wire) == config


@given(states)
def test_request_state(state: RequestState) -> None:
    wire = pb.RequestState.FromString(codec.request_state_to_wire(state).SerializeToString())
    assert codec.request_state_from_wire(wire) == state


@given(candidates)
def test_candidate(candidate: Candidate) -> None:
    wire = pb.Candidate.FromString(codec.candidate_to_wire(candidate).SerializeToString())
    assert codec.candidate_from_wire(wire, prior=PRIOR) == candidate


@given(forecasts)
def test_forecast(forecast: Forecast) -> None:
    wire = pb.Forecast.FromString(codec.forecast_to_wire(forecast).SerializeToString())
    assert codec.forecast_from_wire(wire) == forecast


@given(loads)
def test_load(load: NodeLoad) -> None:
    wire = pb.NodeLoad.FromString(codec.load_to_wire(load).SerializeToString())
    assert codec.load_from_wire(wire) == load


@given(decisions)
def test_decision(decision: Decision) -> None:
    wire = dispatch_pb.Decision.FromString(codec.decision_to_wire(decision).SerializeToString())
    assert codec.decision_from_wire(wire) == decision


@given(snapshots, st.lists(candidates, max_size=3), seconds, st.booleans())
def test_node_state(snapshot: TraceSnapshot, reserved: list[Candidate], age_s: float, synchronised: bool) -> None:
    message = codec.snapshot_to_wire(
        "n1", snapshot, reserved, age_s=age_s, profile="a30/llama-2-7b", synchronised=synchronised
    )
    view = codec.state_from_wire(pb.NodeState.FromString(message.SerializeToString()), prior=PRIOR)
    assert view == codec.NodeStateView(
        node_id="n1",
        snapshot=snapshot,
        reserved=tuple(reserved),
        age_s=age_s,
        profile="a30/llama-2-7b",
        synchronised=synchronised,
    )


@pytest.mark.parametrize("outcome", Outcome)
def test_outcome(outcome: Outcome) -> None:
    assert codec.outcome_from_wire(codec.outcome_to_wire(outcome)) is outcome


def test_every_wire_outcome_has_a_record() -> None:
    on_wire = {name for name in pb.Outcome.keys() if name != "OUTCOME_UNSPECIFIED"}  # noqa: SIM118
    assert on_wire == {f"OUTCOME_{o.name}" for o in Outcome}


def test_absent_belief_is_the_prior() -> None:
    wire = pb.Candidate(request_id="r", prompt_tokens=3, max_output_tokens=4)
    assert codec.candidate_from_wire(wire, prior=PRIOR).belief == PRIOR


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.Candidate(prompt_tokens=0, max_output_tokens=1), "prompt_tokens"),
        (pb.Candidate(prompt_tokens=1, max_output_tokens=0), "max_output_tokens"),
        (
            pb.Candidate(prompt_tokens=1, max_output_tokens=1, belief=pb.LengthBelief(atoms_tokens=[5, 2])),
            "ascending",
        ),
        (pb.Candidate(prompt_tokens=1, max_output_tokens=1, belief=pb.LengthBelief(atoms_tokens=[0])), ">= 1"),
    ],
)
def test_bad_candidates_name_the_field(message: pb.Candidate, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        codec.candidates_from_wire([message], prior=PRIOR)


def test_unknown_enum_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="outcome"):
        codec.outcome_from_wire(0)
    with pytest.raises(ValueError, match="source"):
        codec.forecast_from_wire(pb.Forecast())
    with pytest.raises(ValueError, match="scheduling_policy"):
        codec.config_from_wire(pb.EngineConfig(scheduling_policy="lifo"))


@given(seconds, seconds, seconds)
def test_expected_work_comes_back(requests: float, tokens: float, tokens2: float) -> None:
    work = ExpectedWork(requests_per_s=requests, new_tokens_per_s=tokens, new_tokens2_per_s=tokens2)
    assert codec.expected_work_from_wire(codec.expected_work_to_wire(work)) == work
