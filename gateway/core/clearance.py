"""Whether a node can take a request now: start it at once and at nobody's expense. Pure."""

from __future__ import annotations

from gateway.core.events import RequestShape
from gateway.core.policies.base import NodeView
from simcore.types import Forecast


def could_take(view: NodeView, shape: RequestShape) -> bool:
    """By its load, a seat is free and the prompt fits behind those that wait: worth asking.

    An idle node can always take it. One of which nothing is known can as long as we alone do not fill it.
    """
    load, config = view.load, view.config
    if load is None:
        return view.in_flight < config.max_num_seqs
    if load.running + load.waiting == 0:
        return True
    if load.running + load.waiting >= config.max_num_seqs:
        return False
    return load.waiting_prompt_blocks + _blocks(view, shape.prompt_tokens) <= load.free_blocks


def takes_by_load(view: NodeView, shape: RequestShape) -> bool:
    """The same for policies without forecasts: nobody waits in the engine, and the expected answer fits as well."""
    load = view.load
    if load is None or load.running + load.waiting == 0:
        return could_take(view, shape)
    if load.waiting > load.reserved or not could_take(view, shape):
        return False
    tokens = shape.prompt_tokens + round(min(shape.belief.mean_tokens, shape.max_output_tokens))
    return load.waiting_prompt_blocks + _blocks(view, tokens) <= load.free_blocks


def takes_by_forecast(forecast: Forecast, *, slack_s: float, preemption: float) -> bool:
    """Forecast to start within `slack_s`, with a probability of preemptions of at most `preemption`."""
    return forecast.clear_start_s.mean <= slack_s and forecast.preemption_probability <= preemption


def _blocks(view: NodeView, tokens: int) -> int:
    return -(-tokens // view.config.block_size_tokens)
