"""Whether a node can take a request now: start it at once and at nobody's expense. Pure."""

from __future__ import annotations

from gateway.core.decision.policies.base import NodeView
from gateway.core.events import RequestShape
from simcore.types import Forecast

IN_ENGINE_QUEUE = 1
"""Requests that may wait in an engine that still gets new ones: it never runs dry between two looks, and hardly anyone
is bound early."""


def could_take(view: NodeView, shape: RequestShape) -> bool:
    """By its load, a seat is free, the engine's own queue is short, and the prompt fits behind it: worth asking.

    An idle node can always take it. One of which nothing is known can as long as we alone do not fill it.
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
    return load.waiting_prompt_blocks + _blocks(view, shape.prompt_tokens) <= load.free_blocks


def takes_by_load(view: NodeView, shape: RequestShape) -> bool:
    """The same for policies without forecasts: the expected answer must fit as well."""
    load = view.load
    if load is None or load.running + load.waiting == 0:
        return could_take(view, shape)
    if not could_take(view, shape):
        return False
    tokens = shape.prompt_tokens + round(min(shape.belief.mean_tokens, shape.max_output_tokens))
    return load.waiting_prompt_blocks + _blocks(view, tokens) <= load.free_blocks


def takes_by_forecast(forecast: Forecast, *, preemption: float) -> bool:
    """Nobody has to wait there for a clear start, or the start preempts somebody with a probability of at most
    `preemption`."""
    return forecast.clear_start_s.p90 <= 0.0 or forecast.preemption_probability <= preemption


def _blocks(view: NodeView, tokens: int) -> int:
    return -(-tokens // view.config.block_size_tokens)
