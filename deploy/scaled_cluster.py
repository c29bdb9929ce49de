"""What `astrolabe up --scaler` starts: a gateway whose configuration says which nodes it may start, and those nodes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from deploy.fleet import NodeGroup
from gateway.scale.config import ScalingGroup

COLD_START_S = 15.0
"""What a process with an emulated engine takes on an ordinary machine, kernels compiled."""


def scaling_groups(
    groups: Iterable[NodeGroup], *, least: int, most: int | None, defaults: Mapping[str, Any]
) -> list[ScalingGroup]:
    """Groups of a fleet as a gateway is told of them. `least`, `most`: where a group does not say; no `most`: as many
    nodes as it has. `defaults`: options of nodes that a group leaves out.

    Raises ValueError: a group of which there would be more at least than at most.
    """
    made = []
    for group in groups:
        own_most = group.max or most or group.count
        own_least = group.min if group.min is not None else min(least, own_most) if most is None else least
        if own_least > own_most:
            raise ValueError(f"group {group.name!r}: min {own_least} is above max {own_most}")
        options = {**{key: value for key, value in defaults.items() if value is not None}, **_limits(group)}
        made.append(
            ScalingGroup(
                name=group.name,
                profile=group.profile,
                model=group.model or options.pop("model", ""),
                min=own_least,
                max=own_most,
                price_per_hour=1.0 if group.price_per_hour is None else group.price_per_hour,
                cold_start_s=group.cold_start_s or COLD_START_S,
                **options,
            )
        )
    return made


def _limits(group: NodeGroup) -> dict[str, Any]:
    names = ("max_num_seqs", "max_num_batched_tokens", "block_size_tokens", "num_blocks", "max_model_len_tokens")
    said = {name: value for name in names if (value := getattr(group, name)) is not None}
    return said if group.prefix_caching is None else {**said, "prefix_caching": group.prefix_caching}


def write_gateway_file(
    path: Path,
    groups: Sequence[ScalingGroup],
    *,
    scaling: Mapping[str, Any],
    connector: str,
    options: Mapping[str, Any],
) -> None:
    """A gateway's configuration that scales these groups and is the only one to do so. `scaling`: keys of the table
    [scaling]; `options`: of the connector's own table."""
    tables: dict[str, Any] = {
        **{key: value for key, value in scaling.items() if not isinstance(value, Mapping)},
        **{key: value for key, value in scaling.items() if isinstance(value, Mapping)},
        "connector": connector,
        "lease_s": 0.0,
        **({connector: options} if options else {}),
        "group": [msgspec.to_builtins(group) for group in groups],
    }
    path.write_text("\n".join(_toml({"scaling": tables}, "")) + "\n")


def _toml(table: Mapping[str, Any], name: str) -> list[str]:
    """Lines of a table and those in it; a list of tables is several of them."""
    lines = [f"{key} = {_value(value)}" for key, value in table.items() if not _is_table(value)]
    for key, value in table.items():
        here = f"{name}.{key}" if name else key
        if isinstance(value, Mapping):
            lines += ["", f"[{here}]", *_toml(value, here)]
        elif _is_table(value):
            for row in value:
                lines += ["", f"[[{here}]]", *_toml(row, here)]
    return lines


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and bool(value) and isinstance(value[0], Mapping))


def _value(value: Any) -> str:
    # What JSON and TOML write alike: texts, numbers, booleans, and lists of these.
    return json.dumps(value, ensure_ascii=False)
