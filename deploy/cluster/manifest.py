"""cluster.toml: which hosts there are, what each is to be, and which nodes that makes. Reads no file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from protos.runtime.addresses import HostPort, is_loopback, parse_address, parse_url

Role = Literal["node", "gateway"]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
HostName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Address = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9.:_-]+$")]
UnixUser = Annotated[str, msgspec.Meta(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")]
NodeCount = Annotated[int, msgspec.Meta(ge=1, le=64)]
GpuCount = Annotated[int, msgspec.Meta(ge=0, le=64)]

GATEWAY_USER = "astrolabe"
ENGINE_URL = "http://127.0.0.1:8000"
PLACEHOLDER = re.compile(r"(?<!\$)\{([a-z_]+)\}")
"""What each node has a value of its own for. Not `${variable}`, which is systemd's, nor the JSON that engines take."""
PLACEHOLDERS = ("index", "port", "gpus")


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
    """HTTP server of the engine; empty: http://127.0.0.1:8000. That of a host's node i is at this port + i."""
    port: Port = 8100
    """Where predictors listen; node i of a host at this port + i."""
    nodes: NodeCount = 1
    """Nodes on each of its hosts."""
    gpus: GpuCount | None = None
    """GPUs of each engine that engine_command starts; none given: one where a host has several nodes, all of them where
    it has one. 0: the engine sees all."""
    run_as: UnixUser = "astrolabe"
    """User of the predictor: beside vLLM the one that vLLM runs as."""
    engine_command: str = ""
    """Starts the engine, as a service of its own; empty: you start it. `{index}` is the node's number on its host,
    `{port}` its engine's port, `{gpus}` its GPUs, as 0,1."""
    config: dict[str, Any] = {}
    """More keys of the nodes' node.toml, with the same placeholders. Ports of addresses in it are node 0's."""


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
    """Unique; also the name of its node, and with a number behind it (`h1-0`) of each of several."""
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
    """Of which group its nodes are; empty: the only one."""
    nodes: NodeCount | None = None
    """How many; none given: as many as the group says."""

    @property
    def is_node(self) -> bool:
        return "node" in self.roles

    @property
    def is_gateway(self) -> bool:
        return "gateway" in self.roles


class HostNode(msgspec.Struct, frozen=True, kw_only=True):
    """One node of a host: an engine and its predictor."""

    host: ClusterHost
    group: HostGroup
    index: int
    """Its number on the host, from 0."""
    count: int
    """Nodes of the host."""

    @property
    def instance(self) -> str:
        """What tells it apart from the other nodes of its host; empty: there are none."""
        return f"{self.host.name}-{self.index}" if self.count > 1 else ""

    @property
    def name(self) -> str:
        return self.instance or self.host.name

    @property
    def port(self) -> int:
        """Of its predictor."""
        return self.group.port + self.index

    @property
    def address(self) -> str:
        """host:port of its predictor."""
        return str(HostPort(self.host.address, self.port))

    @property
    def engine_port(self) -> int:
        """Of its engine's HTTP server. Raises ValueError."""
        return _url_port(node_settings(self.group)["engine"].get("url", "")) + self.index

    @property
    def gpus(self) -> tuple[int, ...]:
        """Those that its engine is to see; empty: all."""
        each = (1 if self.count > 1 else 0) if self.group.gpus is None else self.group.gpus
        return tuple(range(self.index * each, (self.index + 1) * each))

    @property
    def engine_command(self) -> str:
        return filled(self.group.engine_command, self._values())

    def settings(self) -> dict[str, Any]:
        """The keys of its node.toml that follow from its group."""
        settings: dict[str, Any] = _filled_in(node_settings(self.group), self._values())
        if self.index:
            if self.group.engine != "emulated" or "url" in settings["engine"]:
                settings["engine"]["url"] = _url_at(settings["engine"].get("url", ""), self.engine_port)
            for keys in ADDRESSES:
                table = settings if len(keys) == 1 else settings.get(keys[0], {})
                if table.get(keys[-1]):
                    table[keys[-1]] = _moved(table[keys[-1]], self.index)
        return settings

    def ports(self) -> dict[int, str]:
        """Ports on its host that it takes, and which key says so."""
        taken = {self.port: "port"}
        settings = self.settings()
        if self.group.engine != "emulated" and self._engine_is_here():
            taken.setdefault(self.engine_port, "engine_url")
        for keys in ADDRESSES:
            text = (settings if len(keys) == 1 else settings.get(keys[0], {})).get(keys[-1], "")
            # Proxies, and KV that is fetched by URL, come to the engine's own port.
            if text and keys[-1] != "address" and "://" not in text:
                taken.setdefault(parse_address(text, any_port=True).port, f"config.{'.'.join(keys)}")
        return taken

    def _engine_is_here(self) -> bool:
        url = parse_url(node_settings(self.group)["engine"].get("url") or ENGINE_URL)
        host = parse_address(url.partition("://")[2].partition("/")[0], default_port=80)
        return is_loopback(host) or host.host == self.host.address

    def _values(self) -> dict[str, str]:
        return {
            "index": str(self.index),
            "port": str(self.engine_port),
            "gpus": ",".join(map(str, self.gpus)),
        }


ADDRESSES = (("metrics_listen",), ("engine", "address"), ("engine", "kv_source"), ("emulated", "http_listen"))
"""Keys of node.toml with a port that no two nodes of a host can have."""


def filled(text: str, values: Mapping[str, str]) -> str:
    """With its placeholders as `values` say; what is none stays as it is."""
    return PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), text)


def _filled_in(settings: Any, values: Mapping[str, str]) -> Any:
    """The same of all text in tables and lists."""
    if isinstance(settings, dict):
        return {key: _filled_in(value, values) for key, value in settings.items()}
    if isinstance(settings, list):
        return [_filled_in(value, values) for value in settings]
    return filled(settings, values) if isinstance(settings, str) else settings


def _url_port(url: str) -> int:
    """Raises ValueError."""
    root = parse_url(url or ENGINE_URL)
    scheme, _, rest = root.partition("://")
    return parse_address(rest.partition("/")[0], default_port=443 if scheme == "https" else 80).port


def _url_at(url: str, port: int) -> str:
    """The same server at another port."""
    scheme, _, rest = parse_url(url or ENGINE_URL).partition("://")
    where, slash, path = rest.partition("/")
    host = parse_address(where, default_port=port).host
    return f"{scheme}://{HostPort(host, port)}{slash}{path}"


def _moved(address: str, by: int) -> str:
    """host:port with the port that many further; port 0 stays, any will do."""
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + by}" if port.isdigit() and int(port) else address


def node_settings(group: HostGroup) -> dict[str, Any]:
    """The keys of node.toml of a group's nodes, placeholders and ports as they are written there."""
    engine: dict[str, Any] = {"dialect": group.engine}
    if group.engine_url:
        engine["url"] = group.engine_url
    settings: dict[str, Any] = {"profile": group.profile, **group.config}
    if group.model:
        settings["model"] = group.model
    return settings | {"engine": engine | dict(group.config.get("engine", {}))}


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

    def node_hosts(self) -> list[ClusterHost]:
        return [host for host in self.hosts if host.is_node]

    def gateways(self) -> list[ClusterHost]:
        return [host for host in self.hosts if host.is_gateway]

    def nodes(self) -> list[HostNode]:
        """Of all hosts."""
        return [node for host in self.hosts for node in self.nodes_of(host)]

    def nodes_of(self, host: ClusterHost) -> list[HostNode]:
        """Of one; empty: it is to have none."""
        if not host.is_node:
            return []
        group = self.group_of(host)
        count = host.nodes or group.nodes
        return [HostNode(host=host, group=group, index=index, count=count) for index in range(count)]

    def group_of(self, host: ClusterHost) -> HostGroup:
        """Of a host with nodes; `contradictions.problems` has made sure that there is one."""
        return next(g for g in self.groups if g.name == host.group or (not host.group and len(self.groups) == 1))

    def gateway_address(self, host: ClusterHost) -> str:
        """host:port of its gRPC service."""
        return str(HostPort(host.address, self.gateway.port))

    def gateway_http_address(self, host: ClusterHost) -> str:
        return str(HostPort(host.address, self.gateway.http_port))
