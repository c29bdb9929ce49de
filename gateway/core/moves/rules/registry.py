"""Names of the rules of moving and what stands behind them. Pure."""

from __future__ import annotations

import difflib
import random

import msgspec

from gateway.core.moves.config import MovesConfig
from gateway.core.moves.rule import MoveRule, MovesError
from gateway.core.moves.rules.forecast import ForecastMoves
from gateway.core.moves.rules.llumnix import LlumnixMoves

OFF = "off"
_ALL: tuple[type[MoveRule], ...] = (ForecastMoves, LlumnixMoves)
_RULES: dict[str, type[MoveRule]] = {rule.name: rule for rule in _ALL}


def move_rule_names() -> list[str]:
    """In the order of their files."""
    return list(_RULES)


def make_move_rule(config: MovesConfig, rng: random.Random) -> MoveRule | None:
    """A fresh rule; None where nobody says who moves. Raises MovesError for an unknown one, or wrong options."""
    if config.rule == OFF:
        return None
    rule = _RULES.get(config.rule)
    if rule is None:
        close = difflib.get_close_matches(config.rule, [*_RULES, OFF], n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise MovesError(f"unknown rule of moving {config.rule!r}: {hint}known are {', '.join([*_RULES, OFF])}")
    try:
        options = msgspec.convert(config.options, rule.options_type)
    except msgspec.ValidationError as bad:
        known = ", ".join(rule.options_type.__struct_fields__) or "none"
        raise MovesError(f"moves: options of {config.rule!r}: {bad}; it has {known}") from None
    return rule(options, rng)
