"""Wire messages to and from the gateway's own records: the one place on this side of the wire.

Records that both sides share (`simcore.types`) are translated by `protos.codec`, those of the node by `predictor.wire`.
Nothing here decides or waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from gateway.core.events import Resume, Slo
from gateway.core.nodes.node import NodeStatus
from gateway.core.request.explanation import Explanation
from gateway.intake.client_call import AnswerHead
from gateway.intake.client_request import ClientRequest, Sampling
from gateway.intake.client_stream import ClientStream, Usage
from gateway.intake.denied import invalid
from protos import codec
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_engine_pb2 as engine_pb
from protos.v1 import astrolabe_predict_pb2 as predict_pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from simcore.types import Candidate, EngineConfig, Outcome

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
        usage=types_pb.Usage(prompt_tokens=record.prompt_tokens, output_tokens=record.output_tokens),
    )
    return pb.Explanation(
        decisions=[codec.decision_to_wire(d) for d in record.decisions],
        actual=actual,
        belief=codec.belief_to_wire(record.belief) if record.belief is not None else None,
        belief_source=record.belief_source,
        lane=record.lane,
        prompt_counted_by=record.prompt_counted_by,
    )


# --- what nodes are asked ---------------------------------------------------------------------------------------------


def dispatched(dispatch_seq: int, stream: ClientStream) -> predict_pb.Dispatched:
    return predict_pb.Dispatched(dispatch_seq=dispatch_seq, request=engine_request(stream))


def forwarded(dispatch_seq: int, stream: ClientStream, first_bytes: int) -> predict_pb.Dispatched:
    """The client's own call for the present node, with at most `first_bytes` of its body."""
    call, asked = stream.call, stream.asked
    assert call is not None, "it is to be handed on"
    body = bytes(call.body) if len(call.body) <= first_bytes else bytes(memoryview(call.body)[:first_bytes])
    message = engine_pb.ForwardedCall(
        request_id=stream.wire_id,
        method=call.method,
        target=call.target,
        headers=[engine_pb.Header(name=name, value=value) for name, value in call.headers],
        body=body,
        body_bytes=call.body_bytes,
        priority=asked.priority,
    )
    if not call.is_light:
        message.prompt_tokens = asked.prompt_tokens
        message.max_output_tokens = asked.max_output_tokens
        message.belief.CopyFrom(codec.belief_to_wire(asked.belief))
    if stream.traceparent:
        message.headers.add(name="traceparent", value=stream.traceparent)
    return predict_pb.Dispatched(dispatch_seq=dispatch_seq, forward=message)


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
) -> pb.NodeInfo:
    """One node; `known` is what the router knows of it, the rest what its link does."""
    status = "draining" if known is not None and known.status == "draining" and link_status == "up" else link_status
    info = pb.NodeInfo(
        node_id=name,
        address=address,
        status=status,
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
    info.alarm = known.alarm
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
