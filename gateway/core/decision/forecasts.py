"""Reads nodes' forecasts for a decision: drops stale and untrusted ones, corrects biased ones, adds dispatches. Pure.

A forecast answers for the state of its node when the question got there. What we dispatched to that node in the
meantime it cannot know, and in a burst all questions are asked before the first answer is in. Such requests are added
to the forecast here: each delays the candidate, and the candidate delays each, by `delay_to_each_s`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from gateway.core.nodes.accuracy import ExpectedTimes
from gateway.core.nodes.node import InFlight, Node
from gateway.core.request.attempt import ForecastRound
from gateway.core.router_config import RouterConfig
from simcore.types import Forecast


class Believed(NamedTuple):
    """The answers of a round, by node."""

    forecasts: dict[str, Forecast]
    """Forecasts that count, as they are to be read now."""
    notes: dict[str, str]
    """Why a node has none, or how its own was changed, for people."""
    expected: dict[str, ExpectedTimes]
    """What was forecast, with what was known better by now but uncorrected: to be compared with what happens."""
    delays_s: dict[str, float]
    """By how much the request would delay each other one of a node: by the node's own forecast alone, or what earlier
    dispatches add to it would be added once more by the next."""


def believe(
    asked: ForecastRound, ready: Sequence[Node], now_s: float, config: RouterConfig, *, testing: bool = True
) -> Believed:
    """Reads the answers of `ready` nodes. `asked` is closed: what is still pending has not come in time. Without
    `testing` those of nodes that are still to be tested count as well."""
    believed = Believed({}, dict(asked.failures), {}, {})
    notes = believed.notes
    for node_id in asked.pending.values():
        notes[node_id] = f"no forecast within {config.forecast_timeout_s:g} s"
    answered = [(node, forecast) for node in ready if (forecast := asked.forecasts.get(node.node_id)) is not None]
    overtaken_by = {node.node_id: node.sent_since(asked.asked_seq[node.node_id]) for node, _ in answered}
    # Who is never chosen for what it says can never be found wrong: the untested get their share to be tested.
    untested = {node.node_id for node in ready if node.accuracy.is_untested(now_s)}
    to_test = untested if testing and len(untested) < len(ready) else set()
    prefill_s = _prefill_s(asked.forecasts.values())
    for node, forecast in answered:
        node_id, sent = node.node_id, overtaken_by[node.node_id]
        why_not = _why_not_believed(node, forecast, config.state_stale_s)
        delay_s = delay_to_each_s(forecast, max_num_seqs=node.config.max_num_seqs, prefill_s=prefill_s)
        believed.delays_s[node_id] = delay_s
        if sent:
            forecast = with_later_dispatches(forecast, sent, delay_s)
            notes[node_id] = f"{len(sent)} dispatched there since it was asked: added to its forecast"
        ttft_s, tpot_s = forecast.ttft_s, forecast.tpot_s
        believed.expected[node_id] = ExpectedTimes(ttft_s.mean, tpot_s.mean, ttft_s.p50, tpot_s.p50, forecast.e2e_s.p90)
        if not why_not and node_id in to_test:
            why_not = "its forecasts are still to be tested"
        if why_not:
            notes[node_id] = why_not
            continue
        if node.accuracy.use == "corrected":
            forecast = forecast.slowed(node.accuracy.factor, node.accuracy.factor_p50)
            notes[node_id] = f"its forecast was corrected by a factor of {node.accuracy.factor:.2g}"
        believed.forecasts[node_id] = forecast
    return believed


def delay_to_each_s(forecast: Forecast, *, max_num_seqs: int, prefill_s: float) -> float:
    """Seconds by which a request delays each other request of its node.

    The larger of two: the time its prompt takes, `prefill_s`, for which those who come with it wait; and its share of
    the node, one of `max_num_seqs` places for as long as it stays (processor sharing). Harm over the number of those
    there already would be a third, but that number is of another moment than the forecast.
    """
    return max(prefill_s, forecast.e2e_s.mean / max_num_seqs, 0.0)


def with_later_dispatches(forecast: Forecast, sent: Sequence[InFlight], own_delay_s: float) -> Forecast:
    """The forecast with our dispatches that it could not know of. Requests that nobody forecast count like this one."""
    waits_s = sum(own_delay_s if other.delay_s is None else other.delay_s for other in sent)
    blocks = sum(other.prompt_blocks for other in sent)
    return msgspec.structs.replace(
        forecast,
        ttft_s=forecast.ttft_s.later(waits_s),
        e2e_s=forecast.e2e_s.later(waits_s),
        kv_headroom_blocks=forecast.kv_headroom_blocks - blocks,
        kv_headroom_path=tuple([free - blocks for free in forecast.kv_headroom_path]),
        clear_start_s=forecast.clear_start_s.later(waits_s),
        harm_s=forecast.harm_s.later(own_delay_s * len(sent)),
    )


def _why_not_believed(node: Node, forecast: Forecast, stale_after_s: float) -> str:
    if node.accuracy.use == "demoted":
        return "its forecasts have been too far off"
    if node.note is not None and not node.note.trusted:
        return "it says itself that its forecasts are too far off"
    if node.liveness.frozen_s:
        return "its trace is frozen"
    if forecast.state_age_s > stale_after_s:
        return f"its state was {forecast.state_age_s:.3g} s old"
    return ""


def _prefill_s(forecasts: Iterable[Forecast]) -> float:
    """Time that the prompt alone takes: where its first token comes soonest after the start, least else is in it."""
    return min((_after_start_s(forecast) for forecast in forecasts), default=0.0)


def _after_start_s(forecast: Forecast) -> float:
    ttft_s, start_s = forecast.ttft_s.mean, forecast.clear_start_s.mean
    return ttft_s - start_s if start_s < ttft_s else ttft_s
