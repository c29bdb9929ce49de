"""What gateways tell each other of their requests, to and from the wire. Nothing here decides or waits."""

from __future__ import annotations

from gateway.core.scale.events import RequestCame, RequestDone, RequestPlaced
from gateway.core.scale.news import HeldRequests, ScalingNews
from gateway.core.scale.watch import RequestEvent
from protos.v1 import astrolabe_predict_pb2 as pb


def news_to_wire(news: ScalingNews) -> pb.ScalingNews:
    held = news.held
    return pb.ScalingNews(
        gateway=news.gateway,
        number=news.number,
        held=held.held,
        held_prompt_tokens=held.held_prompt_tokens,
        held_expected_tokens=round(held.held_expected_tokens),
        oldest_held_s=held.oldest_held_s,
        waiting_models=held.waiting_models,
        requests=[_event_to_wire(ago_s, event) for ago_s, event in news.requests],
    )


def news_from_wire(message: pb.ScalingNews) -> ScalingNews:
    """What a later release tells and this one does not know is left out."""
    events = ((request.ago_s, _event_from_wire(request)) for request in message.requests)
    return ScalingNews(
        gateway=message.gateway,
        number=message.number,
        held=HeldRequests(
            held=message.held,
            held_prompt_tokens=message.held_prompt_tokens,
            held_expected_tokens=float(message.held_expected_tokens),
            oldest_held_s=message.oldest_held_s,
            waiting_models=tuple(message.waiting_models),
        ),
        requests=tuple((ago_s, event) for ago_s, event in events if event is not None),
    )


def _event_to_wire(ago_s: float, event: RequestEvent) -> pb.RequestNews:
    message = pb.RequestNews(ago_s=ago_s, model=event.model)
    match event:
        case RequestCame():
            came = pb.RequestCame(prompt_tokens=event.prompt_tokens, expected_tokens=round(event.expected_tokens))
            message.came.CopyFrom(came)
        case RequestPlaced():
            placed = pb.RequestPlaced(
                node_id=event.node_id,
                waited_s=event.waited_s,
                ttft_s=event.ttft_s,
                e2e_s=event.e2e_s,
                tpot_s=event.tpot_s,
            )
            message.placed.CopyFrom(placed)
        case RequestDone():
            done = pb.RequestDone(
                node_id=event.node_id,
                prompt_tokens=event.prompt_tokens,
                cached_tokens=event.cached_tokens,
                output_tokens=event.output_tokens,
                waited_s=event.waited_s,
                ttft_s=event.ttft_s,
                e2e_s=event.e2e_s,
            )
            message.done.CopyFrom(done)
    return message


def _event_from_wire(message: pb.RequestNews) -> RequestEvent | None:
    match message.WhichOneof("what"):
        case "came":
            came = message.came
            return RequestCame(
                prompt_tokens=came.prompt_tokens, expected_tokens=float(came.expected_tokens), model=message.model
            )
        case "placed":
            placed = message.placed
            return RequestPlaced(
                node_id=placed.node_id,
                waited_s=placed.waited_s,
                ttft_s=placed.ttft_s if placed.HasField("ttft_s") else None,
                e2e_s=placed.e2e_s if placed.HasField("e2e_s") else None,
                tpot_s=placed.tpot_s if placed.HasField("tpot_s") else None,
                model=message.model,
            )
        case "done":
            done = message.done
            return RequestDone(
                node_id=done.node_id,
                prompt_tokens=done.prompt_tokens,
                cached_tokens=done.cached_tokens,
                output_tokens=done.output_tokens,
                waited_s=done.waited_s,
                ttft_s=done.ttft_s if done.HasField("ttft_s") else None,
                e2e_s=done.e2e_s,
                model=message.model,
            )
    return None
