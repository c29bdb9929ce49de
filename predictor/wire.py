"""Wire messages to and from the node's own records: the one place on this side of the wire.

Records that both sides share (`simcore.types`) are translated by `protos.codec`, those of the gateway by
`gateway.wire`. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine_adapters.base import EngineRequest
from engine_adapters.forwarding import ForwardCall, ReplyHead
from predictor.core.calibration import ErrorSummary
from predictor.core.estimator import NoForecast
from predictor.core.lease import LeaseAnswer, LeaseAsk
from predictor.core.leaving import Leaving
from predictor.core.step_learning import Learned
from predictor.node import NodeRuntime
from predictor.requests import End, ForwardOrder
from protos import codec
from protos.runtime import protocol
from protos.v1 import astrolabe_engine_pb2 as engine_pb
from protos.v1 import astrolabe_predict_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from simcore.types import EngineConfig, Forecast, NodeLoad, NodePace, TokenLogprobs


def engine_request(message: engine_pb.EngineGenerateRequest, *, max_model_len_tokens: int) -> EngineRequest:
    """Without max_tokens the answer may take what the model's context leaves, at least one token."""
    sampling = message.sampling
    prompt = tuple(message.prompt_token_ids)
    return EngineRequest(
        request_id=message.request_id,
        prompt_token_ids=prompt,
        max_tokens=(
            sampling.max_tokens if sampling.HasField("max_tokens") else max(1, max_model_len_tokens - len(prompt))
        ),
        temperature=sampling.temperature if sampling.HasField("temperature") else None,
        top_p=sampling.top_p if sampling.HasField("top_p") else None,
        top_k=sampling.top_k if sampling.HasField("top_k") else None,
        seed=sampling.seed if sampling.HasField("seed") else None,
        stop=tuple(sampling.stop),
        stop_token_ids=tuple(sampling.stop_token_ids),
        ignore_eos=sampling.ignore_eos,
        emulated_output_tokens=sampling.emulated_output_tokens,
        min_p=sampling.min_p if sampling.HasField("min_p") else None,
        presence_penalty=sampling.presence_penalty if sampling.HasField("presence_penalty") else None,
        frequency_penalty=sampling.frequency_penalty if sampling.HasField("frequency_penalty") else None,
        repetition_penalty=sampling.repetition_penalty if sampling.HasField("repetition_penalty") else None,
        min_tokens=sampling.min_tokens,
        logit_bias=tuple(sampling.logit_bias.items()),
        bad_words=tuple(sampling.bad_words),
        logprobs=sampling.logprobs if sampling.HasField("logprobs") else None,
        priority=message.priority,
        model=message.model,
        traceparent=message.traceparent,
        kv_source=message.kv_source,
    )


def usage(end: End) -> types_pb.Usage:
    return types_pb.Usage(
        prompt_tokens=end.prompt_tokens, output_tokens=end.output_tokens, cached_tokens=end.cached_tokens
    )


def chunk(token_ids: Sequence[int], end: End | None, logprobs: Sequence[TokenLogprobs]) -> engine_pb.EngineChunk:
    if end is None:
        return engine_pb.EngineChunk(token_ids=token_ids, logprobs=codec.logprobs_to_wire(logprobs))
    return engine_pb.EngineChunk(
        token_ids=token_ids,
        outcome=codec.outcome_to_wire(end.outcome),
        usage=usage(end),
        detail=end.detail,
        stop_token_id=end.stop_token_id,
        logprobs=codec.logprobs_to_wire(logprobs),
    )


def forward_order(message: engine_pb.ForwardedCall) -> ForwardOrder:
    """Raises ValueError for a belief that is none."""
    return ForwardOrder(
        call=ForwardCall(
            request_id=message.request_id,
            method=message.method,
            target=message.target,
            headers=tuple([(header.name, header.value) for header in message.headers]),
            body_bytes=message.body_bytes,
            prompt_tokens=message.prompt_tokens,
            model=message.model,
            max_output_tokens=message.max_output_tokens,
            priority=message.priority,
        ),
        belief=codec.belief_from_wire(message.belief),
    )


def part(
    request_id: str, token_ids: Sequence[int], end: End | None, logprobs: Sequence[TokenLogprobs]
) -> pb.StreamPart:
    message = pb.StreamPart(request_id=request_id, token_ids=token_ids)
    if logprobs:
        message.logprobs.extend(codec.logprobs_to_wire(logprobs))
    if end is not None:
        _add_end(message, end)
    return message


def forwarded_part(
    request_id: str, head: ReplyHead | None, data: bytes, output_tokens: int, end: End | None
) -> pb.StreamPart:
    """`output_tokens`: those in `data`."""
    message = pb.StreamPart(request_id=request_id, data=data, output_tokens=output_tokens)
    if head is not None:
        message.head.status = head.status
        for name, value in head.headers:
            message.head.headers.add(name=name, value=value)
    if end is not None:
        _add_end(message, end)
    return message


def taken(bytes_by_request: Mapping[str, int]) -> list[pb.Consumed]:
    """How much of which calls' bodies has gone on to the engine."""
    return [pb.Consumed(request_id=name, bytes=size_bytes) for name, size_bytes in bytes_by_request.items()]


def _add_end(message: pb.StreamPart, end: End) -> None:
    message.outcome = codec.outcome_to_wire(end.outcome)
    message.usage.CopyFrom(usage(end))
    message.detail = end.detail
    if end.found_tokens is not None:
        message.found_tokens = end.found_tokens
    if end.stop_token_id is not None:
        message.stop_token_id = end.stop_token_id


def welcome(node_id: str, config: EngineConfig, profile: str, body_window_bytes: int) -> pb.NodeFrame:
    """A session's first frame."""
    return pb.NodeFrame(
        welcome=pb.Welcome(
            node_id=node_id,
            config=codec.config_to_wire(config),
            profile=profile,
            body_window_bytes=body_window_bytes,
            protocol=codec.protocol_to_wire(protocol.ours()),
        )
    )


def served(config: EngineConfig) -> pb.ServedNames:
    return pb.ServedNames(model=config.model, other_names=config.other_names)


def adapters(names: tuple[str, ...] | None) -> pb.AdaptersInUse:
    return pb.AdaptersInUse(names=names, unknown=names is None)


def pace(told: NodePace) -> types_pb.NodePace:
    return codec.pace_to_wire(told)


def leaving(state: Leaving) -> pb.LeavingState:
    return pb.LeavingState(retiring=state.retiring, empty=state.has_left)


def lease_ask(message: pb.LeaseAsk) -> LeaseAsk:
    return LeaseAsk(
        gateway=message.gateway,
        number=message.number,
        ttl_s=message.ttl_s if message.ttl_s > 0 else 0.0,
        wants=message.wants,
        leads=message.leads,
        up_nodes=tuple(message.up_nodes),
    )


def lease_answer(number: int, answer: LeaseAnswer) -> pb.LeaseAnswer:
    return pb.LeaseAnswer(
        number=number,
        granted=answer.granted,
        holder=answer.holder,
        waits_s=answer.waits_s,
        elsewhere=answer.elsewhere,
        others=answer.others,
    )


def answer(ask_id: int, forecast: Forecast | NoForecast) -> pb.Answer:
    if isinstance(forecast, NoForecast):
        return unanswerable(ask_id, forecast.reason)
    return pb.Answer(ask_id=ask_id, forecast=codec.forecast_to_wire(forecast))


def unanswerable(ask_id: int, why: str) -> pb.Answer:
    return pb.Answer(ask_id=ask_id, error=why)


def load_note(load: NodeLoad, dispatch_seq: int) -> pb.LoadNote:
    """`dispatch_seq`: the highest dispatch of that gateway which the load includes."""
    return pb.LoadNote(load=codec.load_to_wire(load), dispatch_seq=dispatch_seq)


def calibration(node: NodeRuntime) -> pb.Calibration:
    errors = node.predictor.calibration
    return pb.Calibration(
        node_id=node.node_id,
        profile=step_times(node.profile, node.learned),
        ttft=forecast_error(errors.ttft.corrected()),
        e2e=forecast_error(errors.e2e.corrected()),
        tpot=forecast_error(errors.tpot.corrected()),
        ttft_raw=forecast_error(errors.ttft.raw()),
        e2e_raw=forecast_error(errors.e2e.raw()),
        tpot_raw=forecast_error(errors.tpot.raw()),
        trusted=errors.trusted,
    )


def state(node: NodeRuntime) -> types_pb.NodeState:
    engine = node.engine
    mirror = engine.mirror
    assert mirror is not None, "the node lets nobody in before its first snapshot"
    return codec.snapshot_to_wire(
        node.node_id,
        mirror.snapshot(),
        engine.reservations.candidates(),
        age_s=node.age_s(),
        profile=node.profile,
        synchronised=engine.synchronised,
    )


def step_times(profile: str, learned: Learned | None) -> str:
    """`a30/llama-2-7b (learned, 3.1 % error, 2,140 steps)`; the profile alone while nothing is known of its error."""
    if learned is None or not learned.steps:
        return profile
    how = "learned" if learned.is_learned else "as told"
    return f"{profile} ({how}, {learned.error:.1%} error, {learned.steps:,} steps)".replace("% error", " % error")


def forecast_error(summary: ErrorSummary) -> pb.ForecastError:
    return pb.ForecastError(
        samples=summary.samples,
        bias_s=summary.bias_s,
        median_relative=summary.median_relative,
        p90_relative=summary.p90_relative,
        coverage_p90=summary.coverage_p90,
        bias=summary.bias,
        spread=summary.spread,
    )
