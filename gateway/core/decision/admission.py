"""The admission check: whether a node can start a request now, at once and at nobody's expense. Pure."""

from __future__ import annotations

from gateway.core.events import RequestShape
from gateway.core.nodes.view import NodeView
from simcore.types import Forecast, NodeLoad

IN_ENGINE_QUEUE = 1
"""Requests that may wait in an engine that still gets new ones. One keeps the engine busy until the gateway looks at it
again; more would be bound to a node before it is known which node is free first."""


def has_room_for_prompt(view: NodeView, shape: RequestShape) -> bool:
    """Whether, by the node's load, a seat is free, the engine's own queue is short, and the prompt fits behind it.

    An idle node can always start it. One of which nothing is known can as long as we alone do not fill it.
    """
    load, config = view.load, view.config
    if load is None:
        return view.in_flight < config.max_num_seqs
    if load.running + load.waiting == 0:
        return True
    if load.running + load.waiting >= config.max_num_seqs:
        return False
    if load.waiting - load.reserved > IN_ENGINE_QUEUE:
        return False
    return load.waiting_prompt_blocks + config.blocks_for(shape.prompt_tokens) <= load.free_blocks


def can_start_by_load(view: NodeView, shape: RequestShape) -> bool:
    """`has_room_for_prompt`, for the expected answer as well: all that can be said without a forecast."""
    load = view.load
    if load is None or load.running + load.waiting == 0:
        return has_room_for_prompt(view, shape)
    return has_room_for_prompt(view, shape) and _holds_all(view, load, shape)


def can_start_by_forecast(view: NodeView, shape: RequestShape, forecast: Forecast | None, *, preemption: float) -> bool:
    """Whether the node is forecast to start it at once, waiting for nobody, or to preempt anybody for it with a
    probability of at most `preemption`. Without a forecast from the node's state its load decides."""
    if forecast is None or forecast.source == "prior":
        return can_start_by_load(view, shape)
    if view.load is not None and view.load.running + view.load.waiting == 0:
        return True
    if not has_room_for_prompt(view, shape):
        return False
    return forecast.clear_start_s.p90 <= 0.0 or forecast.preemption_probability <= preemption


def waits_in_peace(view: NodeView, shape: RequestShape, forecast: Forecast | None, *, preemption: float) -> bool:
    """Whether the request can wait in the node's own queue and then run without anybody being preempted for it, but
    with a probability of at most `preemption`. Without a forecast from the node's state its load decides."""
    if forecast is None or forecast.source == "prior":
        return view.load is not None and _holds_all(view, view.load, shape)
    return forecast.preemption_probability <= preemption


def _holds_all(view: NodeView, load: NodeLoad, shape: RequestShape) -> bool:
    """Whether prompt and expected answer fit behind the prompts that wait there."""
    tokens = shape.prompt_tokens + round(shape.expected_tokens)
    return load.waiting_prompt_blocks + view.config.blocks_for(tokens) <= load.free_blocks
