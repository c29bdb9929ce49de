"""Choosing a node: who may take a request, what a forecast is still worth, and the decision with its reason. Pure.

Plans only: the router applies a plan, that is, takes accounts and emits actions.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from gateway.core.decision.admission import could_take, takes_by_forecast, takes_by_load
from gateway.core.decision.policies.base import NodeView, Policy
from gateway.core.decision.policies.registry import PolicyError, canonical_name, make_policy
from gateway.core.decision.prefilter import worth_asking
from gateway.core.decision.rank import delay_to_each_s, rank, sentence, with_missed
from gateway.core.decision.slo import is_infeasible
from gateway.core.events import RequestShape
from gateway.core.nodes.accuracy import Expected, scaled
from gateway.core.nodes.node import Held, Node
from gateway.core.nodes.pool import NodeTable, Refusal
from gateway.core.request.live import Asking, LiveRequest
from gateway.core.router_config import RouterConfig
from simcore.types import Decision, Forecast, Outcome


class Infeasible(NamedTuple):
    """Every node that answered is forecast to miss a service level of the request."""

    detail: str
    again_in_s: float
    """Until the first of them is forecast to be clear."""


class NotNow(NamedTuple):
    """Every node that answered would make the request wait or preempt somebody."""

    again_in_s: float
    """Until the first of them is forecast to take it."""


class Placer:
    """Policies, their generator, the node table. Raises PolicyError when fallback or prefilter is unknown or unfit."""

    def __init__(self, table: NodeTable, config: RouterConfig) -> None:
        self._table = table
        self._config = config
        self._stale_after_s = config.state_stale_s
        self.rng = random.Random(config.seed)
        self._policies: dict[str, Policy] = {}
        self._fallback = self._without_forecasts("fallback", config.fallback)
        self._prefilter = self._without_forecasts("prefilter", config.prefilter)

    def policy(self, name: str) -> Policy:
        """This router's instance of a policy, by name or alias. Raises PolicyError for an unknown one."""
        name = canonical_name(name)
        policy = self._policies.get(name)
        if policy is None:
            policy = self._policies[name] = make_policy(name)
        return policy

    def shortlist(self, live: LiveRequest, now_s: float, *, patient: bool = False) -> Refusal | Sequence[NodeView]:
        """The nodes among which the request's policy will choose, or why there are none.

        Never empty, unless a `patient` request should wait: then only nodes that could take it now are listed.
        """
        shape, policy = live.shape, live.policy
        refusal = self._table.refusal(shape)
        if refusal is not None:
            return refusal
        nodes = self._table.eligible(shape, live.tried, now_s=now_s)
        if not nodes:
            why = f"no ready node is left that takes {shape.prompt_tokens} prompt tokens and has not failed the request"
            return Refusal(Outcome.NO_NODE, why)
        k = self._config.sample or policy.default_sample
        if policy.needs_forecasts and self._config.ask and not k:
            k = self._config.look
        if 0 < k < len(nodes):
            nodes = self.rng.sample(nodes, k)
        views: Sequence[NodeView] = self._views(nodes, now_s)
        if patient:
            takes = could_take if policy.needs_forecasts else takes_by_load
            views = [view for view in views if takes(view, shape)]
            if not views:
                return views
        views = policy.shortlist(shape, views, self.rng)
        if policy.needs_forecasts:
            views = worth_asking(self._prefilter, shape, views, self._config.ask, self.rng)
        return views

    def decide(self, live: LiveRequest, views: Sequence[NodeView], now_s: float) -> Decision:
        """The decision of a policy that needs no forecasts."""
        return self._choose(live, views, {}, {}, now_s)

    def decide_with_forecasts(
        self, live: LiveRequest, asking: Asking, *, now_s: float, patient: bool = False
    ) -> Decision | NotNow | Infeasible | None:
        """The decision with the forecasts that came; None when no node of the shortlist can take requests any more.

        A `patient` request goes only to a node that can start it now.
        """
        up = [node for node in asking.shortlist if node.up and not node.draining]
        if not up:
            return None
        ready = self._table.best_standing(up, now_s)
        notes = dict(asking.failures)
        for node_id in asking.pending.values():
            notes[node_id] = f"no forecast within {self._config.forecast_timeout_s:g} s"
        forecasts: dict[str, Forecast] = {}
        prefill_s = _prefill_s(asking.forecasts.values())
        untested = {node.node_id for node in ready if node.trust.is_untested(now_s)}
        for node in ready:
            forecast = asking.forecasts.get(node.node_id)
            if forecast is None:
                continue
            delay_s = asking.delays_s[node.node_id] = delay_to_each_s(
                forecast, max_num_seqs=node.config.max_num_seqs, prefill_s=prefill_s
            )
            missed = node.missed_since(asking.asked_seq[node.node_id])
            if missed:
                forecast = with_missed(forecast, missed, delay_s)
                notes[node.node_id] = f"{len(missed)} dispatched there since it was asked: added to its forecast"
            asking.expected[node.node_id] = Expected(forecast.ttft_s.mean, forecast.tpot_s.mean, forecast.e2e_s.p90)
            # Who is never chosen for what it says can never be found wrong: the untested get their share to be tested.
            why_not = self._why_not_believed(node, forecast)
            if not why_not and node.node_id in untested and len(untested) < len(ready):
                why_not = "its forecasts are still to be tested"
            if why_not:
                notes[node.node_id] = why_not
                continue
            if node.trust.use == "corrected":
                forecast = scaled(forecast, node.trust.factor)
                notes[node.node_id] = f"its forecast was corrected by a factor of {node.trust.factor:.2g}"
            forecasts[node.node_id] = forecast
        may_say_no = patient or self._config.infeasible == "refuse"
        if may_say_no and forecasts and not live.infeasible and self._is_infeasible(live, forecasts.values(), now_s):
            detail = f"all {len(forecasts)} nodes asked are forecast to miss a service level of the request"
            return Infeasible(detail, min(forecast.clear_start_s.mean for forecast in forecasts.values()))
        views = self._views(ready, now_s)
        if patient:
            views = [view for view in views if self._takes(view, forecasts.get(view.node_id), live.shape)]
            if not views:
                starts_s = [forecast.clear_start_s.mean for forecast in forecasts.values()]
                return NotNow(min(starts_s, default=0.0))
        return self._choose(live, views, forecasts, notes, now_s)

    def _why_not_believed(self, node: Node, forecast: Forecast) -> str:
        if node.trust.use == "demoted":
            return "its forecasts have been too far off"
        if node.note is not None and not node.note.trusted:
            return "it says itself that its forecasts are too far off"
        if node.pulse.frozen_s:
            return "its trace is frozen"
        if forecast.state_age_s > self._stale_after_s:
            return f"its state was {forecast.state_age_s:.3g} s old"
        return ""

    def _is_infeasible(self, live: LiveRequest, forecasts: Iterable[Forecast], now_s: float) -> bool:
        if self._config.infeasible == "serve" or live.resumed_tokens:
            return False
        waited_s = now_s - live.arrival_s
        return all(is_infeasible(live.shape.slo, forecast, waited_s=waited_s) for forecast in forecasts)

    def _takes(self, view: NodeView, forecast: Forecast | None, shape: RequestShape) -> bool:
        if forecast is None or forecast.source == "prior":
            return takes_by_load(view, shape)
        if view.load is not None and view.load.running + view.load.waiting == 0:
            return True
        return could_take(view, shape) and takes_by_forecast(forecast, preemption=self._config.hold.preemption)

    def held(self, live: LiveRequest, node: Node, delay_s: float | None) -> Held:
        """The request's place in the account of the chosen node, with the next dispatch number. `delay_s`: by how much
        it delays each other request there, by what the node itself forecast; None if it was not asked."""
        shape = live.shape
        expected_tokens = min(shape.belief.mean_tokens, shape.max_output_tokens)
        return Held(
            request_id=shape.request_id,
            dispatch_seq=node.dispatch_seq + 1,
            prompt_blocks=-(-shape.prompt_tokens // node.config.block_size_tokens),
            tokens=shape.prompt_tokens + round(expected_tokens),
            delay_s=delay_s,
        )

    def _without_forecasts(self, role: str, name: str) -> Policy:
        policy = self.policy(name)
        if policy.needs_forecasts:
            raise PolicyError(f"{role} {policy.name!r} needs forecasts itself; choose one that does not")
        return policy

    def _choose(
        self,
        live: LiveRequest,
        views: Sequence[NodeView],
        forecasts: Mapping[str, Forecast],
        notes: Mapping[str, str],
        now_s: float,
    ) -> Decision:
        shape, policy = live.shape, live.policy
        ranking = rank(policy, shape, views, forecasts=forecasts, notes=notes, rng=self.rng)
        preface = ""
        if not ranking.priced:
            missing = "forecast came" if policy.needs_forecasts else "load is known"
            first = ranking.scores[0]
            preface = f"{policy.name} could not price {len(views)} nodes as no {missing} "
            preface += f"({first.node_id}: {first.note}); {self._fallback.name} stepped in: "
            # Among all who could take it: that nobody of a sample has answered says nothing of the rest.
            policy, forecasts = self._fallback, {}
            nodes = self._table.eligible(shape, live.tried, now_s=now_s)
            views = policy.shortlist(shape, self._views(nodes, now_s), self.rng)
            ranking = rank(policy, shape, views, forecasts=forecasts, notes=notes, rng=self.rng)
        return Decision(
            request_id=shape.request_id,
            node_id=ranking.scores[0].node_id,
            policy=policy.name,
            cost_unit=policy.cost_unit,
            scores=tuple(ranking.scores),
            reason=sentence(policy, ranking, preface),
            decision_s=now_s - live.arrival_s,
            attempt=live.attempt,
        )

    def _views(self, nodes: Sequence[Node], now_s: float) -> list[NodeView]:
        stale_after_s = self._stale_after_s
        return [node.view(now_s, stale_after_s) for node in nodes]


def _prefill_s(forecasts: Iterable[Forecast]) -> float:
    """Time that the prompt alone takes: where its first token comes soonest after the start, least else is in it."""
    return min((_after_start_s(forecast) for forecast in forecasts), default=0.0)


def _after_start_s(forecast: Forecast) -> float:
    ttft_s, start_s = forecast.ttft_s.mean, forecast.clear_start_s.mean
    return ttft_s - start_s if start_s < ttft_s else ttft_s
