"""A scaling rule of one's own in one Python file: loads it and makes it known under the name it gives itself.

The file holds one class with what `gateway.core.scale.rule.ScalingRule` asks for. Loading runs the file: name only
files that you trust.
"""

from __future__ import annotations

import inspect
import random
from pathlib import Path
from types import ModuleType

import msgspec

from gateway.core.scale.config import ScaleConfig, ScaleError, ScaleGroup
from gateway.core.scale.rules.registry import register_rule, rule_class
from gateway.python_file import run_file

SUFFIX = ".py"
_MEMBERS = ("name", "source", "options_type", "came", "placed", "done", "tick")
_WHERE = "see gateway/core/scale/rule.py for what a rule has"


def is_rule_file(name: str) -> bool:
    """Whether a rule is given by a file rather than by a name."""
    return name.endswith(SUFFIX)


def load_rule_file(path: str | Path) -> str:
    """Registers the rule of the file; returns its name.

    Raises:
        ScaleError: the file is not there, cannot be run, holds no rule or several, or takes a name that is taken.
    """
    file = Path(path)
    at = f"rule file {str(path)!r}"
    if not file.is_file():
        raise ScaleError(f"{at} is not there; check the path")
    try:
        module = run_file(file, "rule")
    except Exception as error:
        raise ScaleError(f"{at} cannot be run: {type(error).__name__}: {error}") from error
    rules = [candidate for candidate in _classes(module) if not _lacking(candidate)]
    if len(rules) != 1:
        lacking = "; ".join(
            f"{candidate.__name__} lacks {', '.join(_lacking(candidate))}"
            for candidate in _classes(module)
            if hasattr(candidate, "tick") and _lacking(candidate)
        )
        raise ScaleError(
            f"{at} holds {len(rules)} rules, not one"
            + (f" ({lacking})" if lacking and not rules else "")
            + f"; {_WHERE}"
        )
    rule = rules[0]
    _check(rule, at)
    return register_rule(rule, origin=str(file.resolve()))


def rule_name(name: str) -> str:
    """The name under which a rule is known: of a file after loading it, else the name itself. Raises ScaleError."""
    return load_rule_file(name) if is_rule_file(name) else rule_class(name).name


def _classes(module: ModuleType) -> list[type]:
    own = inspect.getmembers(module, inspect.isclass)
    return [candidate for _, candidate in own if candidate.__module__ == module.__name__]


def _lacking(candidate: type) -> list[str]:
    return [member for member in _MEMBERS if not hasattr(candidate, member)]


def _check(rule: type, at: str) -> None:
    for member in ("name", "source"):
        value = getattr(rule, member)
        if not isinstance(value, str) or not value:
            raise ScaleError(f"{at}: {member} is {value!r}; it must be a text")
    options_type = vars(rule).get("options_type", getattr(rule, "options_type", None))
    if not (isinstance(options_type, type) and issubclass(options_type, msgspec.Struct)):
        raise ScaleError(f"{at}: options_type is {options_type!r}; it must be a msgspec.Struct, with a default each")
    if not options_type.__struct_config__.forbid_unknown_fields:
        raise ScaleError(
            f"{at}: {options_type.__name__} takes options that it does not know; forbid_unknown_fields=True"
        )
    sample = ScaleConfig(rule="sample", groups=(ScaleGroup(name="sample"),))
    try:
        rule(sample, options_type(), random.Random(0))
    except Exception as error:
        raise ScaleError(
            f"{at}: {rule.__name__}(config, options, rng) cannot be made with its defaults: "
            f"{type(error).__name__}: {error}"
        ) from error
