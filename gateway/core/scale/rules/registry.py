"""Names of scaling rules and what stands behind them. Pure."""

from __future__ import annotations

import difflib
import random

import msgspec

from gateway.core.scale.config import ScaleConfig, ScaleError
from gateway.core.scale.rule import ScalingRule
from gateway.core.scale.rules.block import Preemptive, Reactive
from gateway.core.scale.rules.concurrency import Concurrency
from gateway.core.scale.rules.dynamo import Dynamo
from gateway.core.scale.rules.forecast import ForecastScaling
from gateway.core.scale.rules.freeness import Freeness
from gateway.core.scale.rules.inferline import Inferline
from gateway.core.scale.rules.kv_utilisation import KvUtilisation
from gateway.core.scale.rules.llmd_slo import LlmdSlo
from gateway.core.scale.rules.llmd_tokens import LlmdTokens
from gateway.core.scale.rules.per_model import PerModel
from gateway.core.scale.rules.qps import Qps
from gateway.core.scale.rules.service_level import ServiceLevel
from gateway.core.scale.rules.static import Static

_OF_ONE_POOL: tuple[type[ScalingRule], ...] = (
    ServiceLevel,
    Inferline,
    Preemptive,
    Reactive,
    Freeness,
    Concurrency,
    Qps,
    KvUtilisation,
    LlmdSlo,
    LlmdTokens,
    Dynamo,
)
"""Those that think of one pool of equal nodes: where groups serve several models each model has one of its own."""

_ALL: tuple[type[ScalingRule], ...] = (ForecastScaling, *_OF_ONE_POOL, Static)
_RULES: dict[str, type[ScalingRule]] = {rule.name: rule for rule in _ALL}

_origins: dict[str, str] = {}
"""Where rules come from that are not part of the product."""


def register_rule(rule: type[ScalingRule], *, origin: str) -> str:
    """Makes a rule from elsewhere known by its `name`, which is returned; the same origin may do so again.

    Raises:
        ScaleError: the name belongs to another rule.
    """
    name = rule.name
    if name in _RULES and _origins.get(name) != origin:
        raise ScaleError(f"{origin}: the scaling rule {name!r} is there already; give yours another name")
    _RULES[name] = rule
    _origins[name] = origin
    return name


def rule_names() -> list[str]:
    """In the order of their files."""
    return list(_RULES)


def rule_class(name: str) -> type[ScalingRule]:
    """Raises ScaleError for an unknown one."""
    rule = _RULES.get(name)
    if rule is None:
        close = difflib.get_close_matches(name, list(_RULES), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ScaleError(f"unknown scaling rule {name!r}: {hint}known are {', '.join(_RULES)}")
    return rule


def make_rule(config: ScaleConfig) -> ScalingRule:
    """A fresh rule. Raises ScaleError for an unknown one, or options that it does not have."""
    rule = rule_class(config.rule)
    try:
        options = msgspec.convert(config.options, rule.options_type)
    except msgspec.ValidationError as bad:
        known = ", ".join(rule.options_type.__struct_fields__) or "none"
        raise ScaleError(f"scaling: options of {config.rule!r}: {bad}; it has {known}") from None
    if rule in _OF_ONE_POOL and len({group.model for group in config.groups}) > 1:
        return PerModel(rule, config, options)
    return rule(config, options, random.Random(config.seed))
