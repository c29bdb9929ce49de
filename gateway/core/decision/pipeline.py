"""One decision, from the request to the verdict: filter, sample, ask, believe, admit, rank. Pure.

`begin` takes a request as far as it gets without forecasts, `conclude` from the forecasts to the end. Both only say
what is to be done; the router does it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import msgspec

from gateway.core.decision.adapters import prefer_loaded
from gateway.core.decision.admission import can_start_by_forecast, waits_in_peace
from gateway.core.decision.candidates import awaited, eligible, worth_comparing
from gateway.core.decision.forecasts import Believed, believe
from gateway.core.decision.policies.base import PlacementWatcher, Policy, Served
from gateway.core.decision.policies.registry import PolicyError, canonical_name, make_policy
from gateway.core.decision.rank import Ranking, rank, sentence, why_unpriced
from gateway.core.decision.service_levels import is_infeasible
from gateway.core.events import RequestShape
from gateway.core.nodes.node import Node
from gateway.core.nodes.pool import NodePool
from gateway.core.nodes.view import NodeView
from gateway.core.queue.late_binding import LateBinding
from gateway.core.request.attempt import Attempt, ForecastRound
from gateway.core.request.live import LiveRequest
from gateway.core.request.verdict import Ask, Chosen, Refusal, Verdict, Wait
from gateway.core.router_config import RouterConfig
from simcore.types import Decision, Forecast, Outcome

NO_FORECASTS = Believed({}, {}, {}, {})
NO_ROOM = Refusal(Outcome.NO_NODE, "no other node can start it now at nobody's expense")
"""What becomes of a move then."""


class DecisionPipeline:
    """Makes the decisions of one router. Raises PolicyError when fallback or prefilter is unknown or unfit."""

    def __init__(self, pool: NodePool, late: LateBinding, config: RouterConfig, rng: random.Random) -> None:
        self._pool = pool
        self._late = late
        self._config = config
        self._rng = rng
        self._policies: dict[str, Policy] = {}
        self._watchers: list[PlacementWatcher] = []
        """Those of the policies that keep accounts."""
        self._fallback = self._without_forecasts("fallback", config.fallback)
        self._prefilter = self._without_forecasts("prefilter", config.prefilter)

    def policy(self, name: str) -> Policy:
        """This router's instance of a policy, by name or alias. Raises PolicyError for an unknown one."""
        name = canonical_name(name)
        policy = self._policies.get(name)
        if policy is None:
            policy = self._policies[name] = make_policy(name, self._rng, self._config.priority)
            if isinstance(policy, PlacementWatcher):
                self._watchers.append(policy)
        return policy

    def begin(self, live: LiveRequest, now_s: float) -> Verdict:
        """The decision of a policy that needs no forecasts, or whom to ask for them."""
        nodes = eligible(self._pool, live, now_s)
        if isinstance(nodes, Refusal) and (coming := awaited(self._pool, live, nodes, now_s)) is not None:
            return coming
        if isinstance(nodes, Refusal) and nodes.outcome is Outcome.INVALID:
            return nodes
        in_line = self._late.line_up(live)
        if in_line is not None:
            return in_line
        if isinstance(nodes, Refusal):
            return nodes
        views = worth_comparing(
            nodes,
            live,
            self._pool,
            now_s,
            policy=self._policies[live.policy],
            startable_only=self._late.may_wait(live, now_s),
            prefilter=self._prefilter,
            config=self._config,
            rng=self._rng,
        )
        if not views:
            return Wait()
        if live.needs_forecasts:
            return Ask([self._pool.nodes[view.node_id] for view in views])
        return self._choose(live, views, NO_FORECASTS, now_s)

    def conclude(self, live: LiveRequest, asked: ForecastRound, now_s: float) -> Verdict:
        """The decision with the forecasts that came; from the start if all that were asked have gone."""
        up = [node for node in asked.nodes if node.up and not node.draining and node.serves(live.shape.model)]
        if not up:
            return self.begin(live, now_s)
        ready = self._pool.best_standing(up, now_s)
        views = self._pool.views(ready, live.shape, now_s)
        believed = believe(asked, ready, now_s, self._config)
        forecasts = believed.forecasts
        may_wait = self._late.may_wait(live, now_s)
        if self._is_infeasible(live, forecasts, now_s):
            starts_s = [forecast.clear_start_s.mean for forecast in forecasts.values()]
            if self._config.infeasible == "refuse":
                detail = f"all {len(forecasts)} nodes asked are forecast to miss a service level of the request"
                return Refusal(Outcome.OVERLOADED, detail, min(starts_s))
            if may_wait:
                return Wait(min(starts_s), behind_all=True)
        if may_wait:
            preemption = self._config.hold.preemption
            start = [
                can_start_by_forecast(v, live.shape, forecasts.get(v.node_id), preemption=preemption) for v in views
            ]
            if not any(start):
                return Wait(min([forecast.clear_start_s.mean for forecast in forecasts.values()], default=0.0))
            # Where one can start it, it may still be better off in the queue of another: that is the cost's to say,
            # unless it would drive somebody out there.
            views = [
                view
                for view, can_start in zip(views, start, strict=True)
                if can_start or waits_in_peace(view, live.shape, forecasts.get(view.node_id), preemption=preemption)
            ]
        # Of a node that was asked and has not answered its load says nothing either.
        silent = {*asked.pending.values(), *asked.failures}
        if silent:
            views = [msgspec.structs.replace(v, load=None) if v.node_id in silent else v for v in views]
        return self._choose(live, views, believed, now_s)

    def elsewhere(self, inquiry: LiveRequest, source: Node | None, now_s: float) -> Verdict:
        """Where the rest of a request that runs might go on, or whom to ask; a refusal where nobody could start it now.

        `source`, its present node, is asked as well unless None: then it is to go in any case.
        """
        nodes = eligible(self._pool, inquiry, now_s)
        if isinstance(nodes, Refusal):
            return nodes
        views = worth_comparing(
            nodes,
            inquiry,
            self._pool,
            now_s,
            policy=self._policies[inquiry.policy],
            startable_only=True,
            prefilter=self._prefilter,
            config=self._config,
            rng=self._rng,
        )
        if not views:
            return NO_ROOM
        if inquiry.needs_forecasts:
            asked = [self._pool.nodes[view.node_id] for view in views]
            return Ask(asked if source is None else [*asked, source])
        return self._choose(inquiry, views, NO_FORECASTS, now_s)

    def conclude_elsewhere(
        self, inquiry: LiveRequest, asked: ForecastRound, source: Node | None, now_s: float
    ) -> Verdict:
        """The decision with the forecasts that came. Of the other nodes those count that can start it at once and at
        nobody's expense; of the present one the forecast is of how it goes if the request stays."""
        fit = [node for node in asked.nodes if node.up and (node is source or not node.draining)]
        # Two nodes are compared by their forecasts: a test is for those who would be placed in any case.
        believed = believe(asked, fit, now_s, self._config, testing=False)
        forecasts, preemption = believed.forecasts, self._config.hold.preemption
        views = [
            view
            for view in self._pool.views(fit, inquiry.shape, now_s)
            if (source is not None and view.node_id == source.node_id)
            or can_start_by_forecast(view, inquiry.shape, forecasts.get(view.node_id), preemption=preemption)
        ]
        if not any(source is None or view.node_id != source.node_id for view in views):
            return NO_ROOM
        return self._choose(inquiry, views, believed, now_s)

    # --- what becomes of decisions, for policies that keep accounts ---------------------------------------------------

    def placed(self, live: LiveRequest, chosen: Chosen) -> None:
        """The request is about to go to the node chosen."""
        for watcher in self._watchers:
            watcher.placed(live.shape, chosen.view)

    def began(self, attempt: Attempt) -> None:
        """The first token of an attempt has come."""
        for watcher in self._watchers:
            watcher.began(attempt.asked, attempt.node.node_id)

    def left(self, attempt: Attempt) -> None:
        """An attempt is not at its node any more."""
        if not self._watchers:
            return
        served = None
        if attempt.served_s is not None:
            sent_s, first_s = attempt.dispatched_s, attempt.first_token_s
            ttft_s = None if first_s is None else first_s - sent_s
            served = Served(ttft_s, attempt.served_s - sent_s, attempt.output_tokens)
        for watcher in self._watchers:
            watcher.left(attempt.asked, attempt.node.node_id, served)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _is_infeasible(self, live: LiveRequest, forecasts: Mapping[str, Forecast], now_s: float) -> bool:
        """Whether it is forecast to miss a service level wherever it goes, and this was not known before."""
        if self._config.infeasible == "serve" or not forecasts or live.infeasible or live.resumed_tokens:
            return False
        waited_s = now_s - live.arrival_s
        return all(is_infeasible(live.shape.slo, forecast, waited_s=waited_s) for forecast in forecasts.values())

    def _choose(self, live: LiveRequest, views: Sequence[NodeView], believed: Believed, now_s: float) -> Chosen:
        """The cheapest by the policy; if it can price nobody, by the fallback."""
        shape, policy = live.shape, self._policies[live.policy]
        forecasts, notes = believed.forecasts, believed.notes
        ranking = self._rank(policy, shape, views, forecasts, notes)
        preface = ""
        if not ranking.priced:
            missing = "forecast came" if policy.needs_forecasts else "load is known"
            preface = f"{policy.name} could not price {len(views)} nodes as no {missing} "
            preface += f"({views[0].node_id}: {why_unpriced(views[0], notes)}); {self._fallback.name} stepped in: "
            # Among all who could take it: that nobody of a sample has answered says nothing of the rest.
            nodes = eligible(self._pool, live, now_s)
            if not isinstance(nodes, Refusal):
                views = self._pool.views(nodes, shape, now_s)
            policy, forecasts = self._fallback, {}
            ranking = self._rank(policy, shape, views, forecasts, notes)
        best = ranking.scores[0]
        decision = Decision(
            request_id=live.request_id,
            node_id=best.node_id,
            policy=policy.name,
            cost_unit=policy.cost_unit,
            scores=tuple(ranking.scores),
            reason=sentence(policy, ranking, preface) + _of_priority(shape, self._pool.nodes[best.node_id]),
            decision_s=now_s - live.arrival_s,
            attempt=live.next_attempt,
        )
        delay_s = None if best.forecast is None else believed.delays_s.get(best.node_id)
        expected = believed.expected.get(best.node_id)
        return Chosen(self._pool.nodes[best.node_id], ranking.first, decision, expected, delay_s)

    def _rank(
        self,
        policy: Policy,
        shape: RequestShape,
        views: Sequence[NodeView],
        forecasts: Mapping[str, Forecast],
        notes: Mapping[str, str],
    ) -> Ranking:
        costs = policy.costs(shape, views, forecasts)
        if not (shape.model and self._pool.has_adapters):
            return rank(costs, views, forecasts=forecasts, notes=notes, rng=self._rng)
        costs, behind, notes = prefer_loaded(
            costs, views, self._pool.nodes, model=shape.model, cost_unit=policy.cost_unit, notes=notes
        )
        return rank(costs, views, forecasts=forecasts, notes=notes, rng=self._rng, behind=behind)

    def _without_forecasts(self, role: str, name: str) -> Policy:
        policy = self.policy(name)
        if policy.needs_forecasts:
            raise PolicyError(f"{role} {policy.name!r} needs forecasts itself; choose one that does not")
        return policy


def _of_priority(shape: RequestShape, node: Node) -> str:
    """Who goes by the request's priority, for people; empty where it has none."""
    if not shape.priority:
        return ""
    if node.config.scheduling_policy == "priority":
        return f"; priority {shape.priority}: its engine goes by priorities too"
    return f"; priority {shape.priority}: its engine takes requests as they come, only the gateway goes by priorities"
