"""Wire messages (`protos.v1`) to and from the records that gateway and node share (`simcore.types`): the one place.

Records that only one side has are translated by `gateway.wire` and `predictor.wire`; nobody else translates.

Every `x_to_wire` has an `x_from_wire`, and a round trip gives an equal record. `from_wire` raises ValueError, naming
the field, when a message breaks a rule of its record; a server answers that with INVALID_ARGUMENT.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from protos.runtime.protocol import Protocol
from protos.v1 import astrolabe_dispatch_pb2 as dispatch_pb
from protos.v1 import astrolabe_predict_pb2 as predict_pb
from protos.v1 import astrolabe_types_pb2 as pb
from simcore.cache_summary import MOST_NAMES, CacheSummary
from simcore.trace import TraceSnapshot
from simcore.types import (
    FULL_ATTENTION,
    Candidate,
    Decision,
    EngineConfig,
    ExpectedWork,
    Forecast,
    ForecastSource,
    LengthBelief,
    NodeLoad,
    NodePace,
    Outcome,
    Quantiles,
    RequestState,
    Score,
    TokenLogprobs,
)

_OUTCOME_TO_WIRE: dict[Outcome, pb.Outcome.ValueType] = {o: pb.Outcome.Value(f"OUTCOME_{o.name}") for o in Outcome}
_OUTCOME_FROM_WIRE: dict[int, Outcome] = {v: k for k, v in _OUTCOME_TO_WIRE.items()}

_SOURCE_TO_WIRE: dict[ForecastSource, pb.ForecastSource.ValueType] = {
    "simulated": pb.FORECAST_SOURCE_SIMULATED,
    "approximate": pb.FORECAST_SOURCE_APPROXIMATE,
    "prior": pb.FORECAST_SOURCE_PRIOR,
}
_SOURCE_FROM_WIRE: dict[int, ForecastSource] = {v: k for k, v in _SOURCE_TO_WIRE.items()}


class NodeStateView(msgspec.Struct, frozen=True, kw_only=True):
    """A `NodeState` message as records: the snapshot and what surrounds it."""

    node_id: str
    snapshot: TraceSnapshot
    """`at_s` is not on the wire (clocks differ between hosts) and reads 0."""
    reserved: tuple[Candidate, ...]
    age_s: float
    profile: str
    synchronised: bool


def protocol_to_wire(protocol: Protocol) -> predict_pb.Protocol:
    return predict_pb.Protocol(number=protocol.number, oldest=protocol.oldest, release=protocol.release)


def protocol_from_wire(message: predict_pb.Protocol) -> Protocol:
    """Who says nothing is of before there was anything to say: number 1."""
    number = message.number or 1
    return Protocol(number, message.oldest or number, message.release)


def outcome_to_wire(outcome: Outcome) -> pb.Outcome.ValueType:
    return _OUTCOME_TO_WIRE[outcome]


def outcome_from_wire(value: int) -> Outcome:
    """Raises ValueError for UNSPECIFIED and for numbers this version does not know."""
    try:
        return _OUTCOME_FROM_WIRE[value]
    except KeyError:
        raise ValueError(f"outcome: {value} is not one of {sorted(_OUTCOME_FROM_WIRE)}") from None


def belief_to_wire(belief: LengthBelief) -> pb.LengthBelief:
    return pb.LengthBelief(atoms_tokens=belief.atoms_tokens)


def belief_from_wire(message: pb.LengthBelief) -> LengthBelief | None:
    """None for a message without atoms: nothing is known. Raises ValueError for atoms that are not ascending."""
    return LengthBelief(tuple(message.atoms_tokens)) if message.atoms_tokens else None


def config_to_wire(config: EngineConfig) -> pb.EngineConfig:
    return pb.EngineConfig(**msgspec.structs.asdict(config))


def config_from_wire(message: pb.EngineConfig) -> EngineConfig:
    """Raises ValueError for a limit of 0 or an unknown scheduling policy."""
    if message.scheduling_policy not in ("fcfs", "priority"):
        raise ValueError(f"config.scheduling_policy: {message.scheduling_policy!r} is neither 'fcfs' nor 'priority'")
    return EngineConfig(
        model=message.model,
        max_num_seqs=message.max_num_seqs,
        max_num_batched_tokens=message.max_num_batched_tokens,
        block_size_tokens=message.block_size_tokens,
        num_blocks=message.num_blocks,
        max_model_len_tokens=message.max_model_len_tokens,
        long_prefill_token_threshold_tokens=message.long_prefill_token_threshold_tokens,
        enable_prefix_caching=message.enable_prefix_caching,
        scheduling_policy="priority" if message.scheduling_policy == "priority" else "fcfs",
        async_scheduling=message.async_scheduling,
        engine=message.engine,
        engine_version=message.engine_version,
        outside_rules=tuple(message.outside_rules),
        prefix_cache_traced=message.prefix_cache_traced,
        other_names=tuple(message.other_names),
        forwards=message.forwards,
        tells_logprobs=message.tells_logprobs,
        pools=message.pools,
        own_chats=message.own_chats,
        address=message.address,
        kv_source=message.kv_source,
        max_loras=message.max_loras,
        long_prefill_adaptive=message.long_prefill_adaptive,
        kv_windows_tokens=tuple(message.kv_windows_tokens) or FULL_ATTENTION,
        num_speculative_tokens=message.num_speculative_tokens,
        num_lookahead_tokens=message.num_lookahead_tokens,
        drops_cached_block=message.drops_cached_block,
    )


def logprobs_to_wire(logprobs: Sequence[TokenLogprobs]) -> list[pb.TokenLogprobs]:
    return [
        pb.TokenLogprobs(logprob=one.logprob, other_ids=one.other_ids, other_logprobs=one.other_logprobs)
        for one in logprobs
    ]


def logprobs_from_wire(messages: Iterable[pb.TokenLogprobs]) -> list[TokenLogprobs]:
    return [
        TokenLogprobs(message.logprob, tuple(message.other_ids), tuple(message.other_logprobs)) for message in messages
    ]


def request_state_to_wire(state: RequestState) -> pb.RequestState:
    return pb.RequestState(**msgspec.structs.asdict(state))


def request_state_from_wire(message: pb.RequestState) -> RequestState:
    return RequestState(
        request_id=message.request_id,
        prompt_tokens=message.prompt_tokens,
        output_tokens=message.output_tokens,
        computed_tokens=message.computed_tokens,
        max_output_tokens=message.max_output_tokens,
        priority=message.priority,
        arrival_s=message.arrival_s,
        preemptions=message.preemptions,
        adapter=message.adapter,
    )


def candidate_to_wire(candidate: Candidate) -> pb.Candidate:
    return pb.Candidate(
        request_id=candidate.request_id,
        prompt_tokens=candidate.prompt_tokens,
        max_output_tokens=candidate.max_output_tokens,
        belief=belief_to_wire(candidate.belief),
        priority=candidate.priority,
        block_hashes=candidate.block_hashes,
        leaving=candidate.leaving,
        model=candidate.model,
    )


def candidate_from_wire(message: pb.Candidate, *, prior: LengthBelief) -> Candidate:
    """`prior` stands in for an absent belief. Raises ValueError when a token count is not positive."""
    if message.prompt_tokens < 1:
        raise ValueError("candidate.prompt_tokens: must be >= 1")
    if message.max_output_tokens < 1:
        raise ValueError("candidate.max_output_tokens: must be >= 1")
    return Candidate(
        request_id=message.request_id,
        prompt_tokens=message.prompt_tokens,
        max_output_tokens=message.max_output_tokens,
        belief=belief_from_wire(message.belief) or prior,
        priority=message.priority,
        block_hashes=tuple(message.block_hashes),
        leaving=message.leaving,
        model=message.model,
    )


def quantiles_to_wire(quantiles: Quantiles) -> pb.Quantiles:
    return pb.Quantiles(mean=quantiles.mean, p50=quantiles.p50, p90=quantiles.p90)


def quantiles_from_wire(message: pb.Quantiles) -> Quantiles:
    return Quantiles(message.mean, message.p50, message.p90)


def forecast_to_wire(forecast: Forecast) -> pb.Forecast:
    return pb.Forecast(
        request_id=forecast.request_id,
        node_id=forecast.node_id,
        ttft_s=quantiles_to_wire(forecast.ttft_s),
        tpot_s=quantiles_to_wire(forecast.tpot_s),
        e2e_s=quantiles_to_wire(forecast.e2e_s),
        preemptions=forecast.preemptions,
        kv_headroom_blocks=forecast.kv_headroom_blocks,
        harm_s=quantiles_to_wire(forecast.harm_s),
        trace_seq=forecast.trace_seq,
        state_age_s=forecast.state_age_s,
        cached_tokens=forecast.cached_tokens,
        source=_SOURCE_TO_WIRE[forecast.source],
        preemption_probability=forecast.preemption_probability,
        clear_start_s=quantiles_to_wire(forecast.clear_start_s),
        kv_headroom_path=forecast.kv_headroom_path,
        prefill_share=forecast.prefill_share,
    )


def forecast_from_wire(message: pb.Forecast) -> Forecast:
    """Raises ValueError for a source this version does not know."""
    source = _SOURCE_FROM_WIRE.get(message.source)
    if source is None:
        raise ValueError(f"forecast.source: {message.source} is not one of {sorted(_SOURCE_FROM_WIRE)}")
    return Forecast(
        request_id=message.request_id,
        node_id=message.node_id,
        ttft_s=quantiles_from_wire(message.ttft_s),
        tpot_s=quantiles_from_wire(message.tpot_s),
        e2e_s=quantiles_from_wire(message.e2e_s),
        preemptions=message.preemptions,
        kv_headroom_blocks=message.kv_headroom_blocks,
        harm_s=quantiles_from_wire(message.harm_s),
        trace_seq=message.trace_seq,
        state_age_s=message.state_age_s,
        cached_tokens=message.cached_tokens,
        source=source,
        preemption_probability=message.preemption_probability,
        clear_start_s=quantiles_from_wire(message.clear_start_s),
        kv_headroom_path=tuple(message.kv_headroom_path),
        prefill_share=message.prefill_share,
    )


def load_to_wire(load: NodeLoad) -> pb.NodeLoad:
    return pb.NodeLoad(**msgspec.structs.asdict(load))


def pace_to_wire(pace: NodePace) -> pb.NodePace:
    return pb.NodePace(**msgspec.structs.asdict(pace))


def pace_from_wire(message: pb.NodePace) -> NodePace:
    """Raises ValueError for a pace that cannot be."""
    return NodePace(
        batches=tuple(message.batches),
        step_s=tuple(message.step_s),
        kv_s_per_token=message.kv_s_per_token,
        prefill_s_per_token=message.prefill_s_per_token,
        prefill_s_per_token2=message.prefill_s_per_token2,
    )


def expected_work_to_wire(expected: ExpectedWork) -> predict_pb.ExpectedWork:
    return predict_pb.ExpectedWork(**msgspec.structs.asdict(expected))


def expected_work_from_wire(message: predict_pb.ExpectedWork) -> ExpectedWork:
    """Raises ValueError for work that cannot be."""
    return ExpectedWork(
        requests_per_s=message.requests_per_s,
        new_tokens_per_s=message.new_tokens_per_s,
        new_tokens2_per_s=message.new_tokens2_per_s,
    )


def load_from_wire(message: pb.NodeLoad) -> NodeLoad:
    return NodeLoad(
        node_id=message.node_id,
        trace_seq=message.trace_seq,
        state_age_s=message.state_age_s,
        running=message.running,
        waiting=message.waiting,
        free_blocks=message.free_blocks,
        total_blocks=message.total_blocks,
        waiting_prompt_blocks=message.waiting_prompt_blocks,
        unprocessed_tokens=message.unprocessed_tokens,
        prefill_tokens=message.prefill_tokens,
        preemptions_total=message.preemptions_total,
        reserved=message.reserved,
        trusted=message.trusted if message.HasField("trusted") else True,
        preemption_ahead_s=message.preemption_ahead_s if message.HasField("preemption_ahead_s") else -1.0,
        head_waits_s=message.head_waits_s,
        classes=dict(message.classes),
    )


def cache_to_wire(summary: CacheSummary) -> predict_pb.CacheSummary:
    return predict_pb.CacheSummary(
        number=summary.number,
        whole=summary.whole,
        one_in=summary.one_in,
        stored=summary.stored,
        evicted=summary.evicted,
        names=summary.names,
        unknown=summary.unknown,
    )


def cache_from_wire(message: predict_pb.CacheSummary) -> CacheSummary:
    if len(message.stored) + len(message.evicted) > 2 * MOST_NAMES:
        raise ValueError(f"cache: {len(message.stored) + len(message.evicted)} names are more than {2 * MOST_NAMES}")
    return CacheSummary(
        number=message.number,
        whole=message.whole,
        one_in=message.one_in,
        stored=tuple(message.stored),
        evicted=tuple(message.evicted),
        names=message.names,
        unknown=message.unknown,
    )


def snapshot_to_wire(
    node_id: str,
    snapshot: TraceSnapshot,
    reserved: Iterable[Candidate],
    *,
    age_s: float,
    profile: str,
    synchronised: bool,
) -> pb.NodeState:
    return pb.NodeState(
        node_id=node_id,
        trace_seq=snapshot.seq,
        state_age_s=age_s,
        config=config_to_wire(snapshot.config),
        running=[request_state_to_wire(r) for r in snapshot.running],
        waiting=[request_state_to_wire(r) for r in snapshot.waiting],
        reserved=[candidate_to_wire(c) for c in reserved],
        free_blocks=snapshot.free_blocks,
        preemptions_total=snapshot.preemptions_total,
        profile=profile,
        synchronised=synchronised,
    )


def state_from_wire(message: pb.NodeState, *, prior: LengthBelief) -> NodeStateView:
    return NodeStateView(
        node_id=message.node_id,
        snapshot=TraceSnapshot(
            seq=message.trace_seq,
            at_s=0.0,
            config=config_from_wire(message.config),
            running=tuple(request_state_from_wire(r) for r in message.running),
            waiting=tuple(request_state_from_wire(r) for r in message.waiting),
            free_blocks=message.free_blocks,
            preemptions_total=message.preemptions_total,
        ),
        reserved=tuple(candidate_from_wire(c, prior=prior) for c in message.reserved),
        age_s=message.state_age_s,
        profile=message.profile,
        synchronised=message.synchronised,
    )


def score_to_wire(score: Score) -> dispatch_pb.Score:
    return dispatch_pb.Score(
        node_id=score.node_id,
        cost=score.cost,
        forecast=forecast_to_wire(score.forecast) if score.forecast is not None else None,
        state_age_s=score.state_age_s,
        note=score.note,
    )


def score_from_wire(message: dispatch_pb.Score) -> Score:
    return Score(
        node_id=message.node_id,
        cost=message.cost if message.HasField("cost") else None,
        forecast=forecast_from_wire(message.forecast) if message.HasField("forecast") else None,
        state_age_s=message.state_age_s,
        note=message.note,
    )


def decision_to_wire(decision: Decision) -> dispatch_pb.Decision:
    return dispatch_pb.Decision(
        request_id=decision.request_id,
        node_id=decision.node_id,
        policy=decision.policy,
        cost_unit=decision.cost_unit,
        scores=[score_to_wire(s) for s in decision.scores],
        reason=decision.reason,
        decision_s=decision.decision_s,
        attempt=decision.attempt,
    )


def decision_from_wire(message: dispatch_pb.Decision) -> Decision:
    return Decision(
        request_id=message.request_id,
        node_id=message.node_id,
        policy=message.policy,
        cost_unit=message.cost_unit,
        scores=tuple(score_from_wire(s) for s in message.scores),
        reason=message.reason,
        decision_s=message.decision_s,
        attempt=message.attempt,
    )


def candidates_from_wire(messages: Sequence[pb.Candidate], *, prior: LengthBelief) -> list[Candidate]:
    """All of them, in order; ValueError names the position of the first bad one."""
    candidates = []
    for position, message in enumerate(messages):
        try:
            candidates.append(candidate_from_wire(message, prior=prior))
        except ValueError as bad:
            raise ValueError(f"candidates[{position}]: {bad}") from None
    return candidates
