"""Connectors by name; a module is imported when its name is asked for. What they need is checked here, before."""

from __future__ import annotations

import difflib
import importlib
import os
import shutil
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from gateway.scale.connectors.base import Connector, ConnectorNode

if TYPE_CHECKING:
    from gateway.scale.config import ScalingConfig

_CONNECTORS: dict[str, str] = {
    "advise": "gateway.scale.connectors.advise:AdviseConnector",
    "local": "gateway.scale.connectors.local:LocalConnector",
    "systemd": "gateway.scale.connectors.systemd:SystemdConnector",
    "command": "gateway.scale.connectors.command:CommandConnector",
    "kubernetes": "gateway.scale.connectors.kubernetes_statefulsets:StatefulSetConnector",
}
_DEPLOYMENTS = "gateway.scale.connectors.kubernetes_deployments:DeploymentConnector"


def connector_names() -> list[str]:
    return list(_CONNECTORS)


def make_connector(config: ScalingConfig, seen: Callable[[], Sequence[ConnectorNode]]) -> Connector:
    """The connector of a configuration that has been checked. `seen`: the groups' nodes as the gateway finds them by
    itself, for one that starts none."""
    of_deployments = config.connector == "kubernetes" and config.kubernetes.kind == "deployment"
    module, _, attribute = (_DEPLOYMENTS if of_deployments else _CONNECTORS[config.connector]).partition(":")
    kind = getattr(importlib.import_module(module), attribute)
    return cast(Connector, kind(seen) if config.connector == "advise" else kind(config))


def check_connector(config: ScalingConfig) -> None:
    """Raises ValueError: no such connector, or one that lacks what it needs."""
    name = config.connector
    if name not in _CONNECTORS:
        close = difflib.get_close_matches(name, _CONNECTORS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown connector {name!r}: {hint}known are {', '.join(_CONNECTORS)}")
    checks = {"local": _check_local, "systemd": _check_systemd, "command": _check_command}
    if name in checks:
        checks[name](config)


def _check_local(config: ScalingConfig) -> None:
    if not config.local.folder:
        raise ValueError("connector 'local' keeps what it has started in a folder; name one with folder in [local]")
    for group in config.group:
        if not group.profile:
            raise ValueError(f"group {group.name!r}: connector 'local' starts emulated engines; give a profile")


def _check_command(config: ScalingConfig) -> None:
    if not config.command.run:
        raise ValueError("connector 'command' runs a program of yours; name it with run in [command]")
    _check_program(config.command.run[0], "command")


def _check_systemd(config: ScalingConfig) -> None:
    from gateway.scale.config import is_address

    own = config.systemd
    _check_program((*own.ssh, *own.systemctl)[0], "systemd")
    names = {group.name for group in config.group}
    for group, slots in own.hosts.items():
        if group not in names:
            raise ValueError(f"[systemd.hosts] names the group {group!r}; known are {', '.join(sorted(names))}")
        for slot in slots:
            if not is_address(slot.rpartition("@")[2]):
                raise ValueError(f"[systemd.hosts] of {group!r}: {slot!r} is not [user@]host:port")
        if len(set(slots)) < len(slots):
            raise ValueError(f"[systemd.hosts] of {group!r}: a place is there twice; give each node a port of its own")
    for one in config.group:
        places = len(own.hosts.get(one.name, ()))
        if places < one.max:
            raise ValueError(
                f"group {one.name!r}: max is {one.max} and [systemd.hosts] has {places} places for it; add some, or "
                "lower max"
            )
    if "{node}" not in own.unit:
        raise ValueError(f"unit {own.unit!r} in [systemd] is the same for all nodes; write {{node}} for their names")


def _check_program(program: str, connector: str) -> None:
    if shutil.which(program) is None:
        why = "is not executable" if os.path.isfile(program) else "is not there"
        raise ValueError(f"connector {connector!r}: {program!r} {why}; give a program's path")
