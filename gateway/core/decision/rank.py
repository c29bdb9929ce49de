"""From views and forecasts to a ranking with its reason: cost, order, ties, sentence. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gateway.core.decision.policies.base import Policy
from gateway.core.nodes.view import NodeView
from simcore.types import Forecast, Score


class Ranking(NamedTuple):
    """Scores best first. `tied` nodes share the least cost; the first score is that of the one drawn, `first`."""

    first: NodeView
    scores: list[Score]
    tied: int
    priced: int
    """Nodes that have a cost."""


def why_unpriced(view: NodeView, notes: Mapping[str, str]) -> str:
    """Why a policy could not price a node, for people."""
    return notes.get(view.node_id) or (
        "its load is not known" if view.load is None else "the policy could not price it"
    )


def rank(
    said: Sequence[float | None],
    views: Sequence[NodeView],
    *,
    forecasts: Mapping[str, Forecast],
    notes: Mapping[str, str],
    rng: random.Random,
    behind: frozenset[str] = frozenset(),
) -> Ranking:
    """Puts the nodes in order of the costs that a policy `said`, and draws among the cheapest. `notes` are remarks per
    node for people; the nodes `behind` are not drawn while another is as cheap."""
    # NaN compares unequal to itself; it must not win or lose by accident.
    priced = sum([cost is not None and cost == cost for cost in said])
    if not priced:
        return Ranking(views[0], [_score(view, None, forecasts, notes) for view in views], 0, 0)
    costs = [cost or 0.0 for cost in said] if priced == len(said) else by_our_account(said, views)
    least = min(costs)
    best = [i for i, cost in enumerate(costs) if cost == least]
    if priced < len(costs):
        # At equal cost and with as many requests of ours, what is known goes before what is guessed.
        fewest = min(views[i].in_flight for i in best if said[i] == least)
        best = [i for i in best if said[i] == least or views[i].in_flight < fewest]
    if behind:
        best = [i for i in best if views[i].node_id not in behind] or best
    chosen = best[0] if len(best) == 1 else best[rng.randrange(len(best))]
    order = sorted(range(len(costs)), key=costs.__getitem__)
    order.remove(chosen)
    order.insert(0, chosen)
    if priced == len(costs) and not forecasts and not notes:
        now_s = views[0].moment.now_s
        # `NodeView.state_age_s`, without its call.
        scores = [
            Score(
                node_id=(view := views[i]).node_id,
                cost=costs[i],
                state_age_s=view.note_age_s + (now_s - view.noted_s),
            )
            for i in order
        ]
    else:
        scores = [_score(views[i], costs[i], forecasts, notes, guessed=said[i] != costs[i]) for i in order]
    return Ranking(views[chosen], scores, len(best), priced)


def by_our_account(costs: Sequence[float | None], views: Sequence[NodeView]) -> list[float]:
    """Costs of all nodes, where some could be priced: each of the rest costs what a priced one costs that has as many
    requests of ours, or the next more; the dearest if none has.

    So a node of which nothing is known is neither idle nor out of service: it gets what its like get, and nothing once
    its requests do not come to an end.
    """
    priced = sorted(
        (view.in_flight, -cost) for view, cost in zip(views, costs, strict=True) if cost is not None and cost == cost
    )
    dearest = -min(negative for _, negative in priced)
    return [
        cost
        if cost is not None and cost == cost
        else next((-negative for in_flight, negative in priced if in_flight >= view.in_flight), dearest)
        for view, cost in zip(views, costs, strict=True)
    ]


def sentence(policy: Policy, ranking: Ranking, preface: str = "") -> str:
    """Why the first node of a ranking was chosen, for people."""
    best = ranking.scores[0]
    of = f"{ranking.priced} of {len(ranking.scores)} nodes compared"
    if best.forecast is not None:
        f = best.forecast
        what = (
            f"{best.node_id} is forecast to finish it in {f.e2e_s.mean:.3g} s and to delay others by "
            f"{f.harm_s.mean:.3g} s in all"
        )
    else:
        what = f"{best.node_id} has the least {policy.name} cost of {best.cost:.4g} {policy.cost_unit}"
    if ranking.tied > 1:
        return f"{preface}{what}; drawn at random among {ranking.tied} equal nodes ({of})"
    if ranking.priced > 1:
        second = ranking.scores[1]
        return f"{preface}{what}; next is {second.node_id} with {second.cost:.4g} {policy.cost_unit} ({of})"
    return f"{preface}{what} ({of})"


def _score(
    view: NodeView,
    cost: float | None,
    forecasts: Mapping[str, Forecast],
    notes: Mapping[str, str],
    *,
    guessed: bool = False,
) -> Score:
    node_id = view.node_id
    forecast = forecasts.get(node_id)
    note = why_unpriced(view, notes) if cost is None or guessed else notes.get(node_id, "")
    if guessed:
        note += f"; counts like a node with as many of our requests ({view.in_flight})"
    return Score(
        node_id=node_id,
        cost=cost,
        forecast=forecast,
        state_age_s=view.state_age_s if forecast is None else forecast.state_age_s,
        note=note,
    )
