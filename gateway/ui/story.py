"""A request's story for the page: what `astrolabe explain` prints, as one plain document. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from protos import codec

if TYPE_CHECKING:
    from protos.v1 import astrolabe_dispatch_pb2 as pb
    from protos.v1 import astrolabe_types_pb2 as types_pb

MOST_CANDIDATES = 24
"""Of one decision, best first; the chosen one is always among them."""


def story(request_id: str, told: pb.Explanation) -> dict[str, Any]:
    """Times in seconds; `actual.e2e_s` is None while it runs."""
    belief = codec.belief_from_wire(told.belief)
    actual = told.actual
    return {
        "request_id": request_id,
        "lane": told.lane,
        "belief": None if belief is None else [belief.quantile_tokens(0.5), belief.quantile_tokens(0.9)],
        "belief_source": told.belief_source,
        "decisions": [_decision(decision) for decision in told.decisions],
        "moves": [_move(move) for move in told.moves],
        "actual": {
            "outcome": codec.outcome_from_wire(actual.outcome).value if actual.outcome else None,
            "ttft_s": actual.ttft_s if actual.HasField("ttft_s") else None,
            "e2e_s": actual.e2e_s if actual.HasField("e2e_s") else None,
            "prompt_tokens": actual.usage.prompt_tokens,
            "cached_tokens": actual.usage.cached_tokens,
            "output_tokens": actual.usage.output_tokens,
        },
    }


def _decision(decision: pb.Decision) -> dict[str, Any]:
    scores = list(decision.scores)
    shown = scores[:MOST_CANDIDATES]
    shown += [score for score in scores[MOST_CANDIDATES:] if score.node_id == decision.node_id]
    return {
        "attempt": decision.attempt,
        "node": decision.node_id,
        "policy": decision.policy,
        "unit": decision.cost_unit,
        "reason": decision.reason,
        "decision_s": decision.decision_s,
        "scores": [_score(score) for score in shown],
        "more": len(scores) - len(shown),
    }


def _score(score: pb.Score) -> dict[str, Any]:
    forecast = score.forecast if score.HasField("forecast") else None
    return {
        "node": score.node_id,
        "cost": score.cost if score.HasField("cost") else None,
        "note": score.note,
        "state_age_s": score.state_age_s,
        "forecast": None if forecast is None else _forecast(forecast),
    }


def _forecast(forecast: types_pb.Forecast) -> dict[str, Any]:
    return {
        "ttft_s": [forecast.ttft_s.mean, forecast.ttft_s.p50, forecast.ttft_s.p90],
        "e2e_s": [forecast.e2e_s.mean, forecast.e2e_s.p50, forecast.e2e_s.p90],
        "harm_s": forecast.harm_s.mean,
        "preempted": forecast.preemption_probability,
        "headroom_blocks": forecast.kv_headroom_blocks,
        "cached_tokens": forecast.cached_tokens,
    }


def _move(move: pb.MoveInfo) -> dict[str, Any]:
    return {
        "source": move.source,
        "destination": move.destination,
        "why": move.why,
        "after_s": move.after_s,
        "outcome": move.outcome,
        "detail": move.detail,
        "took_s": move.took_s if move.HasField("took_s") else None,
        "gap_s": move.gap_s if move.HasField("gap_s") else None,
    }
