"""A policy of one's own in one Python file: loads it and makes it known under the name it gives itself.

The file holds one class with what `gateway.core.decision.policies.base.Policy` asks for. Loading runs the file: name
only files that you trust.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from gateway.core.decision.policies.registry import PolicyError, canonical_name, register_policy, takes_generator
from gateway.python_file import run_file

SUFFIX = ".py"
_MEMBERS = ("name", "cost_unit", "needs_forecasts", "costs")
_REMOVED = {
    "shortlist": "is not called; price all nodes in costs",
    "default_sample": "is not read; say --sample K",
}
"""What policies had in the past, and what to do instead."""


def is_policy_file(name: str) -> bool:
    """Whether a policy is given by a file rather than by a name."""
    return name.endswith(SUFFIX)


def load_policy_file(path: str | Path) -> str:
    """Registers the policy of the file; returns its name.

    Raises:
        PolicyError: the file is not there, cannot be run, holds no policy or several, or takes a name that is taken.
    """
    file = Path(path)
    if not file.is_file():
        raise PolicyError(f"policy file {str(path)!r} is not there; check the path")
    module = _run(file)
    policies = [candidate for candidate in _classes(module) if all(hasattr(candidate, member) for member in _MEMBERS)]
    if len(policies) != 1:
        near = {
            candidate.__name__: [m for m in _MEMBERS if not hasattr(candidate, m)] for candidate in _classes(module)
        }
        lacking = "; ".join(f"{name} lacks {', '.join(members)}" for name, members in near.items() if members)
        raise PolicyError(
            f"policy file {str(path)!r} holds {len(policies)} policies, not one"
            + (f" ({lacking})" if lacking and not policies else "")
            + "; see gateway/core/decision/policies/base.py for what a policy has"
        )
    policy = policies[0]
    _check(policy, file)
    return register_policy(policy, origin=str(file.resolve()))


def policy_name(name: str) -> str:
    """The name under which a policy is known: of a file after loading it, else of an alias. Raises PolicyError."""
    return load_policy_file(name) if is_policy_file(name) else canonical_name(name)


def policy_names_of(names: Iterable[str]) -> list[str]:
    """The names of several policies, as `policy_name`. Raises PolicyError."""
    return [policy_name(name) for name in names]


def _run(file: Path) -> ModuleType:
    try:
        return run_file(file, "policy")
    except Exception as error:
        hint = ""
        if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("gateway.core.policies"):
            hint = "; import from gateway.core.decision.policies.base"
        raise PolicyError(f"policy file {str(file)!r} cannot be run: {type(error).__name__}: {error}{hint}") from error


def _classes(module: ModuleType) -> list[type]:
    own = inspect.getmembers(module, inspect.isclass)
    return [candidate for _, candidate in own if candidate.__module__ == module.__name__]


def _check(policy: type, file: Path) -> None:
    for member, instead in _REMOVED.items():
        if hasattr(policy, member):
            raise PolicyError(f"policy file {str(file)!r}: {policy.__name__}.{member} {instead}")
    kinds = {"name": str, "cost_unit": str, "needs_forecasts": bool}
    for member, kind in kinds.items():
        value = getattr(policy, member)
        if not isinstance(value, kind):
            raise PolicyError(f"policy file {str(file)!r}: {member} is {value!r}; it must be a {kind.__name__}")
    try:
        policy(rng=random.Random(0)) if takes_generator(policy) else policy()
    except TypeError as error:
        raise PolicyError(
            f"policy file {str(file)!r}: {policy.__name__}() takes no arguments, or rng alone ({error})"
        ) from None
