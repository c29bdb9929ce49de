"""Rules that know one pool of nodes, where a fleet serves several models: one of them for each. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec

from gateway.core.scale.config import ScaleConfig
from gateway.core.scale.events import RequestCame, RequestDone, RequestPlaced
from gateway.core.scale.fleet import FleetState
from gateway.core.scale.rule import ScalingRule, Wish


class PerModel:
    """A rule of one kind for every model of the groups; each hears of its own requests and sees its own nodes."""

    name: ClassVar[str] = "per_model"
    source: ClassVar[str] = "a Deployment a model, as all that scale Deployments have it"
    options_type: ClassVar[type[msgspec.Struct]] = msgspec.Struct

    def __init__(
        self, make: Callable[[ScaleConfig, Any, random.Random], ScalingRule], config: ScaleConfig, options: Any
    ) -> None:
        self._rules = {}
        for model in dict.fromkeys(group.model for group in config.groups):
            groups = tuple(group for group in config.groups if group.model == model)
            own = msgspec.structs.replace(config, groups=groups)
            self._rules[model] = make(own, options, random.Random(config.seed))

    def came(self, request: RequestCame, now_s: float) -> None:
        if request.model in self._rules:
            self._rules[request.model].came(request, now_s)

    def placed(self, request: RequestPlaced, now_s: float) -> None:
        if request.model in self._rules:
            self._rules[request.model].placed(request, now_s)

    def done(self, request: RequestDone, now_s: float) -> None:
        if request.model in self._rules:
            self._rules[request.model].done(request, now_s)

    def tick(self, fleet: FleetState, now_s: float) -> Wish | None:
        wishes = {}
        for model, rule in self._rules.items():
            own = msgspec.structs.replace(
                fleet,
                groups=tuple(state for state in fleet.groups if state.group.model == model),
                fixed=tuple(node for node in fleet.fixed if node.view.config.model == model),
                # Who of those waits for which model is not told.
                held=0,
                held_prompt_tokens=0,
                held_expected_tokens=0.0,
                oldest_held_s=0.0,
            )
            wish = rule.tick(own, now_s)
            if wish is not None:
                wishes[model] = wish
        if not wishes:
            return None
        return Wish(
            wanted={name: nodes for wish in wishes.values() for name, nodes in wish.wanted.items()},
            leave=tuple(node_id for wish in wishes.values() for node_id in wish.leave),
            seen={f"{model} {key}": value for model, wish in wishes.items() for key, value in wish.seen.items()},
            why="; ".join(f"{model}: {wish.why}" for model, wish in wishes.items()),
            shortfall="; ".join(wish.shortfall for wish in wishes.values() if wish.shortfall),
        )
