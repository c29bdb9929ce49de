"""cluster.toml: which hosts there are and what each is to be. Only `load_cluster` reads a file.

Everything that is wrong with a file is told at once, a line each, with the line of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from gateway.config import GatewayConfig
from predictor.config import PredictorConfig
from protos.runtime.addresses import HostPort
from protos.runtime.config import ConfigError, load_config

Role = Literal["node", "gateway"]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
HostName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Address = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9.:_-]+$")]
UnixUser = Annotated[str, msgspec.Meta(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")]

GATEWAY_USER = "astrolabe"


class SshSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the hosts are logged in to, unless a host says otherwise. What is left out is as in your own ssh_config."""

    user: str = ""
    """Login name; another than root must be allowed `sudo` without a password."""
    port: Port | None = None
    """Port of sshd."""
    identity_file: str = ""
    """Private key; seen from the folder of cluster.toml."""
    config: str = ""
    """An ssh_config in place of your own; seen from the folder of cluster.toml."""
    options: tuple[str, ...] = ()
    """More options of ssh, as `StrictHostKeyChecking=accept-new`."""


class InstallSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is put on hosts."""

    extras: tuple[str, ...] = ()
    """Optional parts of the package: models (tokenizers from folders of models), otel."""
    python: str = "python3"
    """Interpreter for the environment, Python 3.11 or newer."""


class HostGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nodes that are alike."""

    name: HostName
    """Hosts name it."""
    engine: Literal["emulated", "vllm", "openai_metrics"] = "emulated"
    """What the predictor stands beside."""
    profile: str = "a30/llama-2-7b"
    """Step times, where learning begins."""
    model: str = ""
    """Name that clients say; empty: the profile's."""
    engine_url: str = ""
    """HTTP server of the engine; empty: http://127.0.0.1:8000."""
    port: Port = 8100
    """Where predictors listen."""
    run_as: UnixUser = "astrolabe"
    """User of the predictor: beside vLLM the one that vLLM runs as."""
    engine_command: str = ""
    """Starts the engine, as a service of its own; empty: you start it."""
    config: dict[str, Any] = {}
    """More keys of the nodes' node.toml."""


class GatewayGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All gateways."""

    port: Port = 8200
    """gRPC."""
    http_port: Port = 8201
    """The OpenAI-compatible front."""
    names: tuple[Address, ...] = ()
    """More names and addresses under which clients know the gateways: they go into the certificates."""
    config: dict[str, Any] = {}
    """More keys of the gateways' gateway.toml."""


class ClusterHost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One machine."""

    name: HostName
    """Unique; also the node's name."""
    address: Address
    """Where gateways reach its predictor and clients its gateway: IP address or host name."""
    ssh: str = ""
    """What ssh is told: host name, address or an alias of your ssh_config; empty: the address."""
    user: str = ""
    """Login name; empty: that of [ssh]."""
    port: Port | None = None
    """Port of sshd; none: that of [ssh]."""
    roles: tuple[Role, ...] = ("node",)
    """node, gateway or both."""
    group: str = ""
    """Of which group its node is; empty: the only one."""

    @property
    def is_node(self) -> bool:
        return "node" in self.roles

    @property
    def is_gateway(self) -> bool:
        return "gateway" in self.roles


class Cluster(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole cluster.toml."""

    version: str = ""
    """The release that hosts are to run, as 0.1.0; empty: that of the wheel that is installed."""
    tls: bool = True
    """Encrypt all connections and ask callers for keys; false: trust the network."""
    ssh: SshSettings = SshSettings()
    """How to log in."""
    install: InstallSettings = InstallSettings()
    """What is installed."""
    groups: tuple[HostGroup, ...] = ()
    """Kinds of nodes."""
    gateway: GatewayGroup = GatewayGroup()
    """The gateways."""
    hosts: tuple[ClusterHost, ...] = ()
    """The machines."""

    def nodes(self) -> list[ClusterHost]:
        return [host for host in self.hosts if host.is_node]

    def gateways(self) -> list[ClusterHost]:
        return [host for host in self.hosts if host.is_gateway]

    def group_of(self, host: ClusterHost) -> HostGroup:
        """Of a node; `problems` has made sure that there is one."""
        return next(g for g in self.groups if g.name == host.group or (not host.group and len(self.groups) == 1))

    def node_address(self, host: ClusterHost) -> str:
        """host:port of its predictor."""
        return str(HostPort(host.address, self.group_of(host).port))

    def gateway_address(self, host: ClusterHost) -> str:
        """host:port of its gRPC service."""
        return str(HostPort(host.address, self.gateway.port))

    def gateway_http_address(self, host: ClusterHost) -> str:
        return str(HostPort(host.address, self.gateway.http_port))


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
    if wrong := _refusal(GatewayConfig, cluster.gateway.config):
        yield Problem("", 0, "gateway", f"[gateway.config]: {wrong}")


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
        if host.is_node and host.group and host.group not in groups:
            known = ", ".join(sorted(groups)) or "none"
            yield Problem("hosts", row, "group", f"there is no group {host.group!r}; there are: {known}")
        if host.is_node and not host.group and len(groups) != 1:
            yield Problem("hosts", row, "", f"{host.name!r} names no group, and there are {len(groups)}; add group")
        if (
            host.is_node
            and host.is_gateway
            and _port_of(cluster, host)
            in (
                cluster.gateway.port,
                cluster.gateway.http_port,
            )
        ):
            yield Problem("hosts", row, "", f"{host.name!r}: its node and its gateway have the same port; change one")
    if not cluster.gateways():
        yield Problem("", 0, "", 'no host is a gateway; write roles = ["node", "gateway"] (or ["gateway"]) at one')
    if not cluster.nodes():
        yield Problem("", 0, "", 'no host is a node; write roles = ["node"] at the hosts with engines')


def _port_of(cluster: Cluster, host: ClusterHost) -> int | None:
    named = [g for g in cluster.groups if g.name == host.group or (not host.group and len(cluster.groups) == 1)]
    return named[0].port if named else None


def node_settings(group: HostGroup) -> dict[str, Any]:
    """The keys of node.toml that all nodes of a group share."""
    engine: dict[str, Any] = {"dialect": group.engine}
    if group.engine_url:
        engine["url"] = group.engine_url
    settings: dict[str, Any] = {"profile": group.profile, **group.config}
    if group.model:
        settings["model"] = group.model
    return settings | {"engine": engine | dict(group.config.get("engine", {}))}


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
