"""Names of policies and what stands behind them. Pure."""

from __future__ import annotations

import difflib
import inspect
import random
from collections.abc import Callable

from gateway.core.decision.policies.aibrix_least_latency import AibrixLeastLatency
from gateway.core.decision.policies.aibrix_prefix import AibrixPrefix
from gateway.core.decision.policies.base import Policy
from gateway.core.decision.policies.cache_aware import CacheAwareRule
from gateway.core.decision.policies.dynamo_kv import DynamoKv
from gateway.core.decision.policies.estimated_latency import EstimatedLatency
from gateway.core.decision.policies.infaas import Infaas
from gateway.core.decision.policies.least_requests import LeastRequests
from gateway.core.decision.policies.llmd_affinity import LlmdAffinity
from gateway.core.decision.policies.llmd_default import LlmdDefault
from gateway.core.decision.policies.llumnix_freeness import LlumnixFreeness
from gateway.core.decision.policies.lmetric import LMetric
from gateway.core.decision.policies.min_new_request_latency import MinNewRequestLatency
from gateway.core.decision.policies.min_qpm import MinQpm
from gateway.core.decision.policies.min_total_latency import MinTotalLatency
from gateway.core.decision.policies.min_total_unprocessed_tokens import MinTotalUnprocessedTokens
from gateway.core.decision.policies.planetserve import PlanetServe
from gateway.core.decision.policies.power_of_two import PowerOfTwo
from gateway.core.decision.policies.prefix_affinity import PrefixAffinity
from gateway.core.decision.policies.production_stack import ProductionStack
from gateway.core.decision.policies.production_stack_prefix import ProductionStackPrefix
from gateway.core.decision.policies.random_node import RandomNode
from gateway.core.decision.policies.round_robin import RoundRobin
from gateway.core.decision.policies.session import Session
from gateway.core.decision.policies.slo_goodput import SloGoodput
from gateway.core.decision.policies.weighted_least_requests import WeightedLeastRequests
from gateway.core.priority import PriorityConfig

_POLICIES: dict[str, type[Policy]] = {
    policy.name: policy
    for policy in (
        RoundRobin,
        RandomNode,
        LeastRequests,
        WeightedLeastRequests,
        PowerOfTwo,
        MinQpm,
        Session,
        Infaas,
        LlumnixFreeness,
        MinTotalUnprocessedTokens,
        PrefixAffinity,
        LlmdDefault,
        LlmdAffinity,
        DynamoKv,
        CacheAwareRule,
        AibrixPrefix,
        AibrixLeastLatency,
        ProductionStack,
        ProductionStackPrefix,
        PlanetServe,
        LMetric,
        EstimatedLatency,
        MinNewRequestLatency,
        MinTotalLatency,
        SloGoodput,
    )
}

ALIASES: dict[str, str] = {
    "min_lunmnix_load": "llumnix_freeness",
    "min_llumnix_load": "llumnix_freeness",
    "min_infass_load": "infaas",
    "min_infaas_load": "infaas",
    "request_per_seconds": "min_qpm",
    "prefixaware": "production_stack_prefix",
    "loadaware": "production_stack",
    "kvaware": "prefix_affinity",
}
"""Names of the same policies in Block and Astrolabe (their spelling, and the one they meant) and in production-stack,
whose `kvaware` needs LMCache's controller: `prefix_affinity` does what it is for."""


class PolicyError(ValueError):
    """An unknown policy, or one that cannot serve where it was put. The message is for people."""


_origins: dict[str, str] = {}
"""Where policies come from that are not part of the product."""


def register_policy(policy: type[Policy], *, origin: str) -> str:
    """Makes a policy from elsewhere known by its `name`, which is returned; the same origin may do so again.

    Raises:
        PolicyError: the name belongs to another policy.
    """
    name = policy.name
    if name in ALIASES or (name in _POLICIES and _origins.get(name) != origin):
        raise PolicyError(f"{origin}: the policy name {name!r} is taken; give yours another one")
    _POLICIES[name] = policy
    _origins[name] = origin
    return name


def policy_names() -> list[str]:
    """Canonical names, the simple ones first."""
    return list(_POLICIES)


def canonical_name(name: str) -> str:
    """The name behind an alias, or the name itself. Raises PolicyError for an unknown one."""
    name = ALIASES.get(name, name)
    if name not in _POLICIES:
        close = difflib.get_close_matches(name, [*_POLICIES, *ALIASES], n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise PolicyError(f"unknown policy {name!r}: {hint}known are {', '.join(_POLICIES)}")
    return name


def needs_forecasts(name: str) -> bool:
    """Whether a policy, by name or alias, prices forecasts. Raises PolicyError for an unknown one."""
    return _POLICIES[canonical_name(name)].needs_forecasts


def make_policy(name: str, rng: random.Random, priority: PriorityConfig | None = None) -> Policy:
    """A fresh policy by name or alias; one whose constructor takes `rng` draws from that generator, one that takes
    `priority` weighs classes by it. Raises PolicyError for an unknown one."""
    policy: Callable[..., Policy] = _POLICIES[canonical_name(name)]
    taken = inspect.signature(policy).parameters
    given = {"rng": rng, "priority": priority or PriorityConfig()}
    return policy(**{word: value for word, value in given.items() if word in taken})


def takes_generator(policy: Callable[..., Policy]) -> bool:
    """Whether a policy wants the router's generator."""
    return "rng" in inspect.signature(policy).parameters
