"""Wire messages to and from the gateway's own records: the one place on this side of the wire.

Records that both sides share (`simcore.types`) are translated by `protos.codec`, those of the node by `predictor.wire`.
Nothing here decides or waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from gateway.core.events import Resume, Slo
from gateway.core.moves.mover import MovesStatus
from gateway.core.nodes.node import NodeStatus
from gateway.core.request.explanation import Explanation, MoveTold
from gateway.core.scale.events import action_words
from gateway.core.scale.lease import LeaseQuestion
from gateway.intake.client_call import AnswerHead
from gateway.intake.client_request import ClientRequest, Sampling
from gateway.intake.client_stream import ClientStream, Usage
from gateway.intake.denied import invalid
from protos import codec
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_engine_pb2 as engine_pb
from protos.v1 import astrolabe_predict_pb2 as predict_pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from simcore.types import Candidate, EngineConfig, LengthBelief, Outcome

if TYPE_CHECKING:
    from gateway.core.scale.scaler import ScaleDecision
    from gateway.scale.status import ScaleStatus

_RESUME: dict[int, Resume] = {
    pb.RESUME_UNSPECIFIED: "exact",
    pb.RESUME_EXACT: "exact",
    pb.RESUME_BEST_EFFORT: "best_effort",
    pb.RESUME_OFF: "off",
}


# --- what clients ask -------------------------------------------------------------------------------------------------


def client_request(
    message: pb.GenerateRequest, *, request_id: str = "", traceparent: str = "", call_deadline_s: float | None = None
) -> ClientRequest:
    """`request_id` and `traceparent` are those of the call's metadata, for a message without. Raises Denied for a
    number of `Resume` that this version does not know."""
    resume = _RESUME.get(message.resume)
    if resume is None:
        raise invalid(
            f"resume is {message.resume}; give RESUME_EXACT, RESUME_BEST_EFFORT or RESUME_OFF", param="resume"
        )
    return ClientRequest(
        prompt=message.token_ids.ids if message.WhichOneof("prompt") == "token_ids" else message.text,
        request_id=message.request_id or request_id,
        model=message.model,
        sampling=_sampling(message.sampling),
        priority=message.priority,
        session=message.session,
        slo=_slo(message.slo) if message.HasField("slo") else Slo(),
        call_deadline_s=call_deadline_s,
        idempotency_key=message.idempotency_key,
        belief_tokens=message.belief.atoms_tokens,
        policy=message.policy,
        resume=resume,
        traceparent=message.traceparent or traceparent,
    )


def placement_request(message: pb.PlaceRequest, *, request_id: str = "") -> ClientRequest:
    """`request_id` is that of the call's metadata, for a message without."""
    kind = message.WhichOneof("prompt")
    return ClientRequest(
        prompt=None if kind is None else message.text if kind == "text" else message.token_ids.ids,
        prompt_tokens=message.prompt_tokens,
        request_id=message.request_id or request_id,
        model=message.model,
        sampling=Sampling(max_tokens=message.max_output_tokens),
        priority=message.priority,
        session=message.session,
        slo=_slo(message.slo),
        belief_tokens=message.belief.atoms_tokens,
        policy=message.policy,
    )


def _slo(message: pb.Slo) -> Slo:
    return Slo(ttft_s=message.ttft_s or None, tpot_s=message.tpot_s or None, deadline_s=message.deadline_s or None)


def _sampling(message: types_pb.SamplingParams) -> Sampling:
    has = message.HasField
    return Sampling(
        max_tokens=message.max_tokens if has("max_tokens") else None,
        temperature=message.temperature if has("temperature") else None,
        top_p=message.top_p if has("top_p") else None,
        top_k=message.top_k if has("top_k") else None,
        seed=message.seed if has("seed") else None,
        stop=message.stop,
        stop_token_ids=message.stop_token_ids,
        ignore_eos=message.ignore_eos,
        emulated_output_tokens=message.emulated_output_tokens,
        min_p=message.min_p if has("min_p") else None,
        presence_penalty=message.presence_penalty if has("presence_penalty") else None,
        frequency_penalty=message.frequency_penalty if has("frequency_penalty") else None,
        repetition_penalty=message.repetition_penalty if has("repetition_penalty") else None,
        min_tokens=message.min_tokens,
        logit_bias=message.logit_bias,
        bad_words=message.bad_words,
        logprobs=message.logprobs if has("logprobs") else None,
    )


# --- what clients get -------------------------------------------------------------------------------------------------


def usage(counts: Usage) -> types_pb.Usage:
    return types_pb.Usage(
        prompt_tokens=counts.prompt_tokens, output_tokens=counts.output_tokens, cached_tokens=counts.cached_tokens
    )


def generate_chunk(stream: ClientStream, token_ids: Sequence[int], text: str, *, is_first: bool) -> pb.GenerateChunk:
    """A piece of the answer, with what is told of its tokens; with the end, once it has come."""
    chunk = pb.GenerateChunk(token_ids=token_ids, text=text)
    if stream.pending_logprobs:
        chunk.logprobs.extend(codec.logprobs_to_wire(stream.take_logprobs()))
    if is_first:
        chunk.node_id, chunk.request_id = stream.node_id, stream.shape.request_id
    if stream.outcome is not None:
        chunk.outcome = codec.outcome_to_wire(stream.outcome)
        chunk.usage.CopyFrom(usage(stream.usage()))
        reason = stream.stop_reason
        if isinstance(reason, str):
            chunk.stop_text = reason
        elif reason is not None:
            chunk.stop_token_id = reason
    return chunk


def explanation(record: Explanation) -> pb.Explanation:
    actual = pb.Actual(
        outcome=types_pb.OUTCOME_UNSPECIFIED if record.outcome is None else codec.outcome_to_wire(record.outcome),
        ttft_s=record.ttft_s,
        e2e_s=record.e2e_s,
        usage=types_pb.Usage(
            prompt_tokens=record.prompt_tokens, output_tokens=record.output_tokens, cached_tokens=record.found_tokens
        ),
    )
    return pb.Explanation(
        decisions=[codec.decision_to_wire(d) for d in record.decisions],
        actual=actual,
        belief=codec.belief_to_wire(record.belief) if record.belief is not None else None,
        belief_source=record.belief_source,
        lane=record.lane,
        prompt_counted_by=record.prompt_counted_by,
        moves=[move_info(told) for told in record.moves],
    )


def move_info(told: MoveTold) -> pb.MoveInfo:
    return pb.MoveInfo(**msgspec.structs.asdict(told))


def move_reply(told: MoveTold | None = None, *, refusal: str = "", found: bool = True) -> pb.MoveReply:
    """The move that has begun, or why it does not."""
    return pb.MoveReply(found=found, refusal=refusal, move=None if told is None else move_info(told))


# --- what nodes are asked ---------------------------------------------------------------------------------------------


def dispatched(dispatch_seq: int, stream: ClientStream) -> predict_pb.Dispatched:
    return predict_pb.Dispatched(dispatch_seq=dispatch_seq, request=engine_request(stream))


def staged(
    dispatch_seq: int, stream: ClientStream, wire_id: str, tokens: int, kv_source: str = ""
) -> predict_pb.Dispatched:
    """A stage of a move: the first `tokens` of prompt and answer so far, for the sake of their KV."""
    request = engine_pb.EngineGenerateRequest(
        request_id=wire_id,
        prompt_token_ids=stream.prompt_token_ids[:tokens],
        sampling=types_pb.SamplingParams(max_tokens=1, ignore_eos=True),
        priority=stream.shape.priority,
        belief=codec.belief_to_wire(LengthBelief((1,))),
        traceparent=stream.stage_traceparent,
        model=stream.shape.model,
        kv_source=kv_source,
    )
    request.prompt_token_ids.extend(stream.produced[: max(0, tokens - len(stream.prompt_token_ids))])
    return predict_pb.Dispatched(dispatch_seq=dispatch_seq, request=request)


def forwarded(dispatch_seq: int, stream: ClientStream, first_bytes: int) -> predict_pb.Dispatched:
    """The client's own call for the present node, with at most `first_bytes` of its body."""
    call, asked = stream.call, stream.asked
    assert call is not None, "it is to be handed on"
    body = bytes(call.body) if len(call.body) <= first_bytes else bytes(memoryview(call.body)[:first_bytes])
    order = predict_pb.Dispatched(dispatch_seq=dispatch_seq)
    # Filled where it stands: a message that is put into another one is copied.
    message = order.forward
    message.request_id = stream.wire_id
    message.method, message.target = call.method, call.target
    for name, value in call.headers:
        message.headers.add(name=name, value=value)
    message.body, message.body_bytes = body, call.body_bytes
    message.priority = asked.priority
    if not call.is_light:
        message.prompt_tokens = asked.prompt_tokens
        message.max_output_tokens = asked.max_output_tokens
        message.model = asked.model
        message.belief.CopyFrom(codec.belief_to_wire(asked.belief))
    if stream.traceparent:
        message.headers.add(name="traceparent", value=stream.traceparent)
    return order


def announced(dispatch_seq: int, stream: ClientStream) -> predict_pb.Dispatched:
    """What a proxy takes to the present node's engine."""
    asked = stream.asked
    candidate = Candidate(
        request_id=stream.wire_id,
        prompt_tokens=asked.prompt_tokens,
        max_output_tokens=asked.max_output_tokens,
        belief=asked.belief,
        priority=asked.priority,
        block_hashes=asked.block_hashes,
        model=asked.model,
    )
    message = predict_pb.Announced(candidate=codec.candidate_to_wire(candidate), is_unnamed=stream.is_unnamed)
    return predict_pb.Dispatched(dispatch_seq=dispatch_seq, announced=message)


def reply_head(message: engine_pb.ForwardedHead) -> AnswerHead:
    return AnswerHead(message.status, tuple((line.name, line.value) for line in message.headers))


def forward_reply(
    stream: ClientStream, head: AnswerHead, data: bytes, *, is_first: bool, outcome: Outcome | None
) -> pb.ForwardReply:
    """A piece of an engine's own answer; `outcome` when it is the last of a whole one."""
    reply = pb.ForwardReply(data=data)
    if is_first:
        lines = [engine_pb.Header(name=name, value=value) for name, value in head.headers]
        reply.head.CopyFrom(engine_pb.ForwardedHead(status=head.status, headers=lines))
        reply.node_id, reply.request_id = stream.node_id, stream.shape.request_id
    if outcome is not None:
        reply.outcome = codec.outcome_to_wire(outcome)
    return reply


def engine_request(stream: ClientStream) -> engine_pb.EngineGenerateRequest:
    """What the present node is asked for. A node that goes on gets the answer so far at the end of its prompt.

    Stop strings stay here: they are looked for in the text as the client sees it.
    """
    sampling, asked = stream.sampling, stream.asked
    before = stream.produced[: asked.prompt_tokens - stream.shape.prompt_tokens]
    message = engine_pb.EngineGenerateRequest(
        request_id=stream.wire_id,
        prompt_token_ids=stream.prompt_token_ids,
        sampling=types_pb.SamplingParams(
            max_tokens=asked.max_output_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=sampling.seed,
            stop_token_ids=sampling.stop_token_ids,
            ignore_eos=sampling.ignore_eos,
            emulated_output_tokens=sampling.emulated_output_tokens,
            min_p=sampling.min_p,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            repetition_penalty=sampling.repetition_penalty,
            min_tokens=max(0, sampling.min_tokens - len(before)),
            logit_bias=_bias(sampling, before),
            bad_words=sampling.bad_words,
            logprobs=sampling.logprobs,
        ),
        priority=stream.shape.priority,
        belief=codec.belief_to_wire(asked.belief),
        traceparent=stream.traceparent,
        model=stream.shape.model,
    )
    message.prompt_token_ids.extend(before)
    return message


def _bias(sampling: Sampling, before: Sequence[int]) -> Mapping[int, float]:
    """The client's bias, and what a frequency penalty takes for the tokens `before`.

    The node sees them as prompt, where it does not penalise them.
    """
    penalty = sampling.frequency_penalty
    if not penalty or not before:
        return sampling.logit_bias
    bias = dict(sampling.logit_bias)
    for token_id, times in Counter(before).items():
        bias[token_id] = bias.get(token_id, 0.0) - penalty * times
    return bias


class CandidateEncoder:
    """Candidates as messages. One request is asked of many nodes in a row, so the last message is kept."""

    def __init__(self) -> None:
        self._last: tuple[Candidate, types_pb.Candidate] | None = None

    def __call__(self, candidate: Candidate) -> types_pb.Candidate:
        if self._last is None or self._last[0] is not candidate:
            self._last = (candidate, codec.candidate_to_wire(candidate))
        return self._last[1]


def reserve_request(candidate: Candidate) -> predict_pb.ReserveRequest:
    return predict_pb.ReserveRequest(candidate=codec.candidate_to_wire(candidate))


# --- what operators see of nodes --------------------------------------------------------------------------------------


def lease_ask(question: LeaseQuestion, gateway: str, ttl_s: float, up_nodes: Sequence[str]) -> predict_pb.LeaseAsk:
    return predict_pb.LeaseAsk(
        gateway=gateway,
        number=question.number,
        ttl_s=ttl_s,
        wants=question.wants,
        leads=question.leads,
        up_nodes=up_nodes,
    )


def node_state(known: NodeStatus | None, link_status: str) -> str:
    """The state of a node that the router knows so (None: it does not) and whose link is in this one."""
    if known is not None and known.status == "draining" and link_status == "up":
        return "draining" if known.drained else "retiring"
    return link_status


def node_info(
    known: NodeStatus | None,
    *,
    name: str,
    address: str,
    link_status: str,
    config: EngineConfig | None,
    profile: str,
    detail: str,
    now_s: float,
    moves: MovesStatus,
) -> pb.NodeInfo:
    """One node; `known` and `moves` are what the router knows of it, the rest what its link does."""
    info = pb.NodeInfo(
        node_id=name,
        address=address,
        status=node_state(known, link_status),
        config=codec.config_to_wire(config) if config is not None else None,
        profile=profile,
        detail=detail,
    )
    if known is None:
        return info
    if known.load is not None:
        info.load.CopyFrom(codec.load_to_wire(known.load))
    info.state_age_s = known.state_age_s(now_s) or 0.0
    info.in_flight = known.in_flight
    info.moves_out, info.moves_in = moves.out.get(known.node_id, 0), moves.into.get(known.node_id, 0)
    info.alarm = known.alarm
    if known.cached_blocks is not None:
        info.cached_blocks = known.cached_blocks
    trust = known.forecasts
    info.forecasts.CopyFrom(
        pb.ForecastTrust(
            use=trust.use, bias=trust.bias, spread=trust.spread, coverage_p90=trust.coverage_p90, samples=trust.samples
        )
    )
    return info


def node_list(
    infos: Sequence[pb.NodeInfo], *, policy: str, proved_vllm_version: str, held: int, predicted_wait_s: float
) -> pb.NodeList:
    return pb.NodeList(
        nodes=infos,
        policy=policy,
        proved_vllm_version=proved_vllm_version,
        held=held,
        predicted_wait_s=predicted_wait_s,
    )


def add_sibling(own: pb.NodeList, other: pb.NodeList) -> None:
    """What another worker has on the nodes; of two words about a node's load the younger holds."""
    theirs = {node.address: node for node in other.nodes}
    for node in own.nodes:
        their = theirs.get(node.address)
        if their is None:
            continue
        node.in_flight += their.in_flight
        node.moves_out += their.moves_out
        node.moves_in += their.moves_in
        if their.HasField("load") and (not node.HasField("load") or their.state_age_s < node.state_age_s):
            node.load.CopyFrom(their.load)
            node.state_age_s = their.state_age_s


def without_ages(nodes: pb.NodeList) -> bytes:
    """What counts as a change: everything but ages, which always change."""
    copy = pb.NodeList()
    copy.CopyFrom(nodes)
    for node in copy.nodes:
        node.state_age_s = 0.0
        node.load.state_age_s = 0.0
    return copy.SerializeToString(deterministic=True)


def scaling_explanation(
    status: ScaleStatus, addresses: Mapping[str, str], *, now_s: float, latest: int
) -> pb.ScalingExplanation:
    """`addresses`: of nodes by name. `latest`: how many decisions."""
    said = pb.ScalingExplanation(
        rule=status.rule,
        connector=status.connector,
        executes=status.executes,
        leads=status.leads,
        leader=status.leader,
        tick_s=status.tick_s,
        problem=status.problem,
        groups=[
            pb.ScaledGroup(
                name=group.name,
                model=group.model,
                min=group.min,
                max=group.max,
                wanted=group.wanted,
                start_p50_s=group.start_p50_s,
                start_p90_s=group.start_p90_s,
                blocked_s=group.blocked_s,
                nodes=[
                    pb.ScaledNodeInfo(
                        node_id=node.node_id,
                        state=node.state,
                        detail=node.detail,
                        ready_in_s=node.ready_in_s,
                        address=addresses.get(node.node_id, ""),
                    )
                    for node in group.nodes
                ],
            )
            for group in status.groups
        ],
        decisions=[_scaling_decision(decision, now_s) for decision in reversed(status.decisions[-latest:])],
    )
    if status.latest is not None:
        said.latest.CopyFrom(_scaling_decision(status.latest, now_s))
    return said


def _scaling_decision(decision: ScaleDecision, now_s: float) -> pb.ScalingDecision:
    return pb.ScalingDecision(
        age_s=max(0.0, now_s - decision.now_s),
        groups=[
            pb.ScalingWish(group=name, had=had, wanted=decision.wanted.get(name, had))
            for name, had in decision.had.items()
        ],
        actions=[action_words(action) for action in decision.actions],
        seen=[pb.ScalingFigure(name=name, value=value) for name, value in decision.seen.items()],
        why=decision.why,
        held_back=decision.held_back,
        shortfall=decision.shortfall,
    )
