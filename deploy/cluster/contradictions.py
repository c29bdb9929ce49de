"""Reads a cluster.toml, or says all that is wrong with it at once: a line each, with the line of the file. Only
`load_cluster` reads a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from deploy.cluster.manifest import PLACEHOLDER, PLACEHOLDERS, Cluster, ClusterHost, HostGroup, node_settings
from gateway.config import GatewayConfig
from predictor.config import PredictorConfig
from protos.runtime.config import ConfigError, load_config


class Problem(msgspec.Struct, frozen=True):
    """Something wrong in a cluster.toml."""

    table: str
    """`hosts`, `groups` or empty."""
    row: int
    """Which of these tables, from 0."""
    key: str
    """Whose value it is; empty: of the whole table."""
    text: str
    """What, and how to mend it."""


def problems(cluster: Cluster) -> list[Problem]:
    """All that a cluster's tables contradict each other in."""
    return [*_of_groups(cluster), *_of_hosts(cluster)]


def _of_groups(cluster: Cluster) -> Iterator[Problem]:
    seen: set[str] = set()
    for row, group in enumerate(cluster.groups):
        if group.name in seen:
            yield Problem("groups", row, "name", f"a second group is named {group.name!r}; rename one")
        seen.add(group.name)
        if wrong := _refusal(PredictorConfig, node_settings(group)):
            yield Problem("groups", row, "", f"group {group.name!r}: {wrong}")
        for name in PLACEHOLDER.findall(group.engine_command):
            if name not in PLACEHOLDERS:
                text = f"no {{{name}}} is known; there are: {', '.join(f'{{{known}}}' for known in PLACEHOLDERS)}"
                yield Problem("groups", row, "engine_command", f"group {group.name!r}: {text}")
        if _most_nodes(cluster, group) > 1:
            yield from _of_several(row, group)
    if wrong := _refusal(GatewayConfig, cluster.gateway.config):
        yield Problem("", 0, "gateway", f"[gateway.config]: {wrong}")


def _most_nodes(cluster: Cluster, group: HostGroup) -> int:
    """On any host of a group."""
    counts = [h.nodes or group.nodes for h in cluster.hosts if h.is_node and _named_group(cluster, h) == group]
    return max(counts, default=group.nodes)


def _of_several(row: int, group: HostGroup) -> Iterator[Problem]:
    """What nodes on one host would take from each other."""
    command, trace = group.engine_command, str(dict(group.config.get("engine", {})).get("trace", ""))
    if command and not {"index", "port"} & set(PLACEHOLDER.findall(command)):
        text = "starts all engines of a host at one port; write --port {port}"
        yield Problem("groups", row, "engine_command", f"group {group.name!r}: {text}")
    if trace and not PLACEHOLDER.search(trace):
        text = "engine.trace is the same for all nodes of a host; write {index} or {port} in it"
        yield Problem("groups", row, "config", f"group {group.name!r}: {text}")


def _refusal(kind: type[msgspec.Struct], settings: Mapping[str, Any]) -> str:
    """Why a process would not take these keys; empty: it would."""
    try:
        load_config(kind, None, settings)
    except ConfigError as bad:
        return str(bad).removeprefix("command line: ")
    return ""


def _of_hosts(cluster: Cluster) -> Iterator[Problem]:
    if not cluster.hosts:
        yield Problem("", 0, "", "there are no hosts; add a [[hosts]] table for each")
        return
    first: dict[tuple[str, str], str] = {}
    groups = {group.name for group in cluster.groups}
    for row, host in enumerate(cluster.hosts):
        for key, value in (("name", host.name), ("address", host.address)):
            if (key, value) in first:
                other = first[key, value]
                which = "a second host" if key == "name" else f"{host.name!r} has the address of {other!r}: it"
                yield Problem("hosts", row, key, f"{which} is {value}; each host has one of its own")
            first.setdefault((key, value), host.name)
        if not host.roles:
            yield Problem("hosts", row, "roles", f"{host.name!r} has no role; give it node, gateway or both")
        if host.nodes is not None and host.roles and not host.is_node:
            text = f"{host.name!r} has nodes and not the role; write node in its roles, or leave nodes out"
            yield Problem("hosts", row, "nodes", text)
        if host.is_node and host.group and host.group not in groups:
            known = ", ".join(sorted(groups)) or "none"
            yield Problem("hosts", row, "group", f"there is no group {host.group!r}; there are: {known}")
        if host.is_node and not host.group and len(groups) != 1:
            yield Problem("hosts", row, "", f"{host.name!r} names no group, and there are {len(groups)}; add group")
        yield from _of_ports(cluster, row, host)
    names: dict[str, str] = {}
    for row, host in enumerate(cluster.hosts):
        if host.is_node and _named_group(cluster, host) is not None:
            for node in cluster.nodes_of(host):
                if names.setdefault(node.name, host.name) != host.name:
                    text = f"its node {node.name} is called as one of {names[node.name]!r}; rename either"
                    yield Problem("hosts", row, "name", f"{host.name!r}: {text}")
    if not cluster.gateways():
        yield Problem("", 0, "", 'no host is a gateway; write roles = ["node", "gateway"] (or ["gateway"]) at one')
    if not cluster.node_hosts():
        yield Problem("", 0, "", 'no host is a node; write roles = ["node"] at the hosts with engines')


def _named_group(cluster: Cluster, host: ClusterHost) -> HostGroup | None:
    """The group of a host's nodes, if the file says which."""
    named = [g for g in cluster.groups if g.name == host.group or (not host.group and len(cluster.groups) == 1)]
    return named[0] if named else None


def _of_ports(cluster: Cluster, row: int, host: ClusterHost) -> Iterator[Problem]:
    """Ports of a host that two would take, or that there are not."""
    group = _named_group(cluster, host)
    if not host.is_node or group is None or _refusal(PredictorConfig, node_settings(group)):
        return
    nodes = cluster.nodes_of(host)
    if not host.is_gateway:
        gateway = {}
    else:
        gateway = {cluster.gateway.port: "port in [gateway]", cluster.gateway.http_port: "http_port in [gateway]"}
    owners = {port: ("its gateway", key) for port, key in gateway.items()}
    key = "nodes" if host.nodes is not None else ""
    for node in nodes:
        try:
            taken = node.ports()
        except ValueError as bad:
            yield Problem("hosts", row, key, f"{host.name!r}: {node.name}: {bad}")
            return
        for port, name in taken.items():
            if port > 65535:
                text = f"{node.name} would have port {port}; make {name} of its group smaller, or nodes fewer"
                yield Problem("hosts", row, key, f"{host.name!r}: {text}")
                return
            whose, other = owners.setdefault(port, (node.name, f"{name} of its group"))
            if (whose, other) == (node.name, f"{name} of its group") or not port:
                continue
            if len(nodes) == 1 and whose == "its gateway":
                text = "its node and its gateway have the same port; change one"
            else:
                text = f"port {port} is that of {whose} ({other}) and of {node.name} ({name}); change either"
            yield Problem("hosts", row, key, f"{host.name!r}: {text}")
            return


def load_cluster(path: Path) -> Cluster:
    """Raises ConfigError: a line for each thing that is wrong, with file and line."""
    try:
        cluster = load_config(Cluster, path)
    except ConfigError as bad:
        raise ConfigError(_with_line(str(bad), path)) from None
    wrong = problems(cluster)
    if wrong:
        text = path.read_text(encoding="utf-8")
        raise ConfigError("\n".join(f"{path}, line {line_of(text, p)}: {p.text}" for p in wrong))
    return cluster


def line_of(text: str, problem: Problem) -> int:
    """The line, from 1, that a problem is in: that of its key, else of its table, else the first."""
    lines = text.splitlines()
    if not problem.table:
        wanted = re.compile(rf"\s*\[?\s*{re.escape(problem.key)}\b") if problem.key else None
        return next((n for n, line in enumerate(lines, 1) if wanted and wanted.match(line)), 1)
    header = re.compile(rf"\s*\[\[\s*{problem.table}\s*\]\]")
    heads = [n for n, line in enumerate(lines) if header.match(line)]
    if problem.row >= len(heads):
        return 1
    head = heads[problem.row]
    for number in range(head + 1, len(lines)):
        if re.match(r"\s*\[\[", lines[number]):
            break
        if problem.key and re.match(rf"\s*{re.escape(problem.key)}\s*=", lines[number]):
            return number + 1
    return head + 1


def _with_line(message: str, path: Path) -> str:
    """A message of the configuration's reader about `'key' in [hosts 3]` with the line in front."""
    place = re.search(r"key '(\w+)\S*'(?: in \[(hosts|groups) (\d+))?", message)
    if place is None:
        return message
    where = Problem(place[2] or "", int(place[3] or 1) - 1, place[1], "")
    return message.replace(f"{path}:", f"{path}, line {line_of(path.read_text(encoding='utf-8'), where)}:", 1)
