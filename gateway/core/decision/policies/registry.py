"""Names of policies and what stands behind them. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from gateway.core.decision.policies.base import Policy
from gateway.core.decision.policies.infaas import Infaas
from gateway.core.decision.policies.least_requests import LeastRequests
from gateway.core.decision.policies.llumnix_freeness import LlumnixFreeness
from gateway.core.decision.policies.min_new_request_latency import MinNewRequestLatency
from gateway.core.decision.policies.min_qpm import MinQpm
from gateway.core.decision.policies.min_total_latency import MinTotalLatency
from gateway.core.decision.policies.min_total_unprocessed_tokens import MinTotalUnprocessedTokens
from gateway.core.decision.policies.power_of_two import PowerOfTwo
from gateway.core.decision.policies.prefix_affinity import PrefixAffinity
from gateway.core.decision.policies.random_node import RandomNode
from gateway.core.decision.policies.round_robin import RoundRobin
from gateway.core.decision.policies.session import Session
from gateway.core.decision.policies.slo_goodput import SloGoodput

_MAKERS: dict[str, Callable[[], Policy]] = {
    maker.name: maker
    for maker in (
        RoundRobin,
        RandomNode,
        LeastRequests,
        PowerOfTwo,
        MinQpm,
        Session,
        Infaas,
        LlumnixFreeness,
        MinTotalUnprocessedTokens,
        PrefixAffinity,
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
    "cache_aware": "prefix_affinity",
    "prefixaware": "prefix_affinity",
    "kvaware": "prefix_affinity",
}
"""Names of the same policies in Block and Astrolabe (their spelling, and the one they meant), and of prefix affinity
in vllm-router and production-stack."""


class PolicyError(ValueError):
    """An unknown policy, or one that cannot serve where it was put. The message is for people."""


_origins: dict[str, str] = {}
"""Where policies come from that are not part of the product."""


def register_policy(maker: Callable[[], Policy], *, origin: str) -> str:
    """Makes a policy from elsewhere known by its `name`, which is returned; the same origin may do so again.

    Raises:
        PolicyError: the name belongs to another policy.
    """
    name = str(maker.name)  # type: ignore[attr-defined]
    if name in ALIASES or (name in _MAKERS and _origins.get(name) != origin):
        raise PolicyError(f"{origin}: the policy name {name!r} is taken; give yours another one")
    _MAKERS[name] = maker
    _origins[name] = origin
    return name


def policy_names() -> list[str]:
    """Canonical names, the simple ones first."""
    return list(_MAKERS)


def canonical_name(name: str) -> str:
    """The name behind an alias, or the name itself. Raises PolicyError for an unknown one."""
    name = ALIASES.get(name, name)
    if name not in _MAKERS:
        close = difflib.get_close_matches(name, [*_MAKERS, *ALIASES], n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise PolicyError(f"unknown policy {name!r}: {hint}known are {', '.join(_MAKERS)}")
    return name


def make_policy(name: str) -> Policy:
    """A fresh policy by name or alias. Raises PolicyError for an unknown one."""
    return _MAKERS[canonical_name(name)]()
