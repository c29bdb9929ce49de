"""Where things lie on a host. Pure."""

from __future__ import annotations

OPT = "/opt/astrolabe"
RELEASES = f"{OPT}/releases"
CURRENT = f"{OPT}/current"
PREVIOUS = f"{OPT}/previous"
COMPLETE = ".complete"
"""In a release's folder once nothing is missing."""
PENDING = f"{OPT}/pending"
"""A file by the name of each unit whose configuration is newer than its process."""
ETC = "/etc/astrolabe"
TLS = f"{ETC}/tls"
UNITS = "/etc/systemd/system"
CACHE = "/var/cache/astrolabe"

PREDICTOR = "astrolabe-predictor"
GATEWAY = "astrolabe-gateway"
ENGINE = "astrolabe-engine"
ALL_UNITS = (GATEWAY, PREDICTOR, ENGINE)
"""In the order in which they are stopped."""
MARK = "# Written by `astrolabe cluster`"
"""In units and configurations that are of the cluster's commands alone."""


def unit_of(kind: str, instance: str) -> str:
    """The unit of a node on a host with several (`astrolabe-predictor@h1-0`); with one node the kind itself."""
    return f"{kind}@{instance}" if instance else kind


def kind_of(unit: str) -> str:
    return unit.partition("@")[0]


def instance_of(unit: str) -> str:
    """Empty: of the only node."""
    return unit.partition("@")[2]


def unit_file(unit: str) -> str:
    return f"{UNITS}/{unit}.service"


def node_toml(instance: str) -> str:
    return f"{ETC}/node-{instance}.toml" if instance else f"{ETC}/node.toml"


def configuration_of(unit: str) -> str:
    """Of a service; empty: it has none of ours."""
    return {GATEWAY: f"{ETC}/gateway.toml", PREDICTOR: node_toml(instance_of(unit))}.get(kind_of(unit), "")
