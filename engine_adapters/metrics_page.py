"""A server's page for Prometheus: its samples, and what several of one name come to together. Pure.

Servers repeat a number. Ranks of one engine (tensor, pipeline, context, expert parallel) all tell the same, so the
largest counts; data-parallel ranks and engines each have their own, so they are summed; a total beside its parts is
not added to them. A value that is no number is unknown, never zero.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from statistics import fmean
from typing import TypeAlias

from prometheus_client.parser import text_string_to_metric_families

Samples: TypeAlias = Mapping[str, Sequence[tuple[dict[str, str], float]]]
"""Label sets and values by name; a value that is not finite is NaN: unknown."""
Key: TypeAlias = frozenset[tuple[str, str]]

_RANKS = re.compile(
    r"(?:(?:moe|attn|expert)_)?(?:tp|pp|cp|dcp|pcp|ep|sp|(?:tensor|pipeline|context|expert|sequence)_parallel)"
    r"(?:_(?:rank|index|idx|id))?|(?:local_|global_|node_)?rank|pid|gpu|gpu_id|device|device_id",
    re.IGNORECASE,
)
"""Labels that tell parts of one engine apart."""
_ALL = frozenset({"", "all", "total", "sum", "overall", "aggregate", "*"})
"""Values of a label that stand for every value. Prometheus takes an empty label for none."""


def parse_page(text: str, names: Collection[str] | None = None) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Samples by name, of these names only where some are given. Lines that are no samples are skipped."""
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    # Not `splitlines`: label values may hold what Python takes for the end of a line.
    for line in text.split("\n"):
        name = _name_of(line)
        if not name or name.startswith("#") or (names is not None and name not in names):
            continue
        try:
            # A line at a time: whole pages are refused for one bad line, and counters get other names.
            families = list(text_string_to_metric_families(line.strip()))
        except (ValueError, IndexError, KeyError):
            continue
        for family in families:
            for sample in family.samples:
                samples.setdefault(sample.name, []).append((dict(sample.labels), _finite(sample.value)))
    return samples


def total(samples: Samples, names: Iterable[str]) -> float | None:
    """Of a count, over everything that tells its own: the first name that has a known value. None: unknown."""
    return _combined(samples, names, math.fsum)


def mean(samples: Samples, names: Iterable[str]) -> float | None:
    """The same of a share, which has no sum."""
    return _combined(samples, names, fmean)


def total_of(values: Iterable[tuple[Mapping[str, str], float]]) -> float | None:
    """The same of bare label sets with their values."""
    return _over(values, math.fsum)


def _combined(samples: Samples, names: Iterable[str], join: Callable[[Sequence[float]], float]) -> float | None:
    found = (_over(samples.get(name, ()), join) for name in names)
    return next((value for value in found if value is not None), None)


def _over(values: Iterable[tuple[Mapping[str, str], float]], join: Callable[[Sequence[float]], float]) -> float | None:
    largest: dict[Key, float] = {}
    for labels, value in values:
        if math.isfinite(value):
            key = frozenset(
                (k, v) for k, v in labels.items() if v.strip().lower() not in _ALL and not _RANKS.fullmatch(k)
            )
            largest[key] = max(value, largest.get(key, value))
    if not largest:
        return None
    return join([_with_parts(key, largest, join) for key in _outermost(largest)])


def _outermost(keys: Collection[Key]) -> Collection[Key]:
    """Those that are no part of another one's total."""
    if len({len(key) for key in keys}) == 1:
        return keys
    return [key for key in keys if not any(other < key for other in keys)]


def _with_parts(key: Key, values: Mapping[Key, float], join: Callable[[Sequence[float]], float]) -> float:
    """A total, or what its parts come to where that is more: they are told one after the other."""
    parts: dict[frozenset[str], list[float]] = {}
    for other, value in values.items():
        if key < other:
            parts.setdefault(frozenset(name for name, _ in other), []).append(value)
    return max([values[key], *map(join, parts.values())])


def _name_of(line: str) -> str:
    """The metric's name; also of a quoted one, which stands inside the braces."""
    before, _, inside = line.partition("{")
    name = before.split(maxsplit=1)[:1]
    if name:
        return name[0]
    quoted = inside.strip()
    return quoted[1:].partition('"')[0] if quoted.startswith('"') else ""


def _finite(value: float) -> float:
    try:
        number = float(value)
    except OverflowError:
        return math.nan
    return number if math.isfinite(number) else math.nan
