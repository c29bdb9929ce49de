"""Which series and labels an expression of PromQL names. Whether it is one, Prometheus itself says."""

from __future__ import annotations

import re
from typing import NamedTuple

TARGET_LABELS = frozenset({"job", "instance"})
"""Of every series, by Prometheus itself."""
OF_PROMETHEUS = {"up": TARGET_LABELS, "ALERTS": TARGET_LABELS | {"alertname", "alertstate", "severity"}}
_SERIES = re.compile(r"(?<![\w$:])((?:astrolabe|process)[\w:]+|up|ALERTS)\b(?!\s*\()(?:\s*\{([^}]*)\})?")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_GROUPING = re.compile(r"\b(?:by|on|ignoring|without|group_left|group_right)\s*\(([^)]*)\)")


class NamedSeries(NamedTuple):
    """One mention of a series."""

    name: str
    labels: frozenset[str]
    """Those in its braces."""


def series_in(expression: str) -> list[NamedSeries]:
    """All mentions, in order."""
    without_texts = re.sub(r'"[^"]*"', '""', expression)
    return [
        NamedSeries(name, frozenset(_MATCHER.findall(braces or "")))
        for name, braces in _SERIES.findall(_GROUPING.sub("", without_texts))
    ]


def groupings_in(expression: str) -> set[str]:
    """Labels that it groups or joins by."""
    return {label.strip() for group in _GROUPING.findall(expression) for label in group.split(",") if label.strip()}


def faults(expression: str, known: dict[str, set[str]]) -> list[str]:
    """What it names that is not `known`: series by name, as they are on pages, with their own labels."""
    found: list[str] = []
    labels: set[str] = set(TARGET_LABELS)
    for name, asked in series_in(expression):
        own = known.get(name) or (set(OF_PROMETHEUS[name]) if name in OF_PROMETHEUS else None)
        if own is None and name not in known:
            found.append(f"no series {name}")
            continue
        own = set(own or ()) | TARGET_LABELS
        labels |= own
        found += [f"{name} has no label {label}" for label in sorted(asked - own)]
    return found + [f"nothing in it has the label {label}" for label in sorted(groupings_in(expression) - labels)]
