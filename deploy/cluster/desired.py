"""What a host is to have: its release, files and services, as cluster.toml says. Reads the shipped units only."""

from __future__ import annotations

import hashlib
import importlib.resources
import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import tomli_w

from deploy.cluster.layout import CURRENT, ENGINE, ETC, GATEWAY, PREDICTOR, TLS, UNITS
from deploy.cluster.manifest import GATEWAY_USER, Cluster, ClusterHost, Role, node_settings

SETTINGS_MARK = "# settings: "

GATEWAY_TOML = f"{ETC}/gateway.toml"
KEYS_TOML = f"{ETC}/keys.toml"
NODE_TOML = f"{ETC}/node.toml"
CA = f"{TLS}/ca.crt"


class HostSecrets(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator keeps for a host. Empty where connections are not encrypted."""

    ca: bytes = b""
    """The authority's certificate."""
    cert: bytes = b""
    key: bytes = b""
    api_keys: bytes = b""
    """The gateways' key file."""


class ManagedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of ours on a host."""

    path: str
    content: bytes
    owner: str = "root"
    mode: int = 0o644
    on_change: Literal["restart", "reload"] = "restart"
    """What its service needs when the file has changed."""

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def is_unit(self) -> bool:
        return self.path.startswith(UNITS)


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """A service of ours on a host."""

    role: Role
    unit: str
    files: tuple[ManagedFile, ...]
    user: str
    address: str
    """host:port whose health says that it serves."""
    engine: ManagedFile | None = None
    """The unit of an engine that comes before it."""


class Desired(msgspec.Struct, frozen=True, kw_only=True):
    """A host as it is to be."""

    release: str
    services: tuple[Service, ...]
    """Nodes before gateways."""
    python: str
    extras: tuple[str, ...]
    has_tls: bool

    def files(self) -> list[ManagedFile]:
        return [file for service in self.services for file in (*service.files, *_maybe(service.engine))]

    def users(self) -> list[str]:
        return list(dict.fromkeys(service.user for service in self.services))


def _maybe(file: ManagedFile | None) -> tuple[ManagedFile, ...]:
    return () if file is None else (file,)


def desired(cluster: Cluster, host: ClusterHost, secrets: HostSecrets, release: str) -> Desired:
    """How a host is to be."""
    services = []
    if host.is_node:
        services.append(_node(cluster, host, secrets))
    if host.is_gateway:
        services.append(_gateway(cluster, host, secrets))
    return Desired(
        release=release,
        services=tuple(services),
        python=cluster.install.python,
        extras=cluster.install.extras,
        has_tls=cluster.tls,
    )


def subjects_of(cluster: Cluster, host: ClusterHost) -> list[str]:
    """Names and addresses that a host's certificate is for."""
    own = [host.address, *([host.name] if host.name != host.address else [])]
    return [*own, "127.0.0.1", "localhost", *cluster.gateway.names] if host.is_gateway else own


def _node(cluster: Cluster, host: ClusterHost, secrets: HostSecrets) -> Service:
    group = cluster.group_of(host)
    address = cluster.node_address(host)
    settings: dict[str, Any] = {"node_id": host.name, "listen": address}
    if cluster.tls:
        tls = {"cert": f"{TLS}/node.crt", "key": f"{TLS}/node.key", "client_ca": CA}
        settings["tls"] = tls
    else:
        settings["insecure"] = True
    text = _toml(f"Node {host.name}", settings | node_settings(group))
    files = [
        ManagedFile(path=f"{UNITS}/{PREDICTOR}.service", content=_unit(PREDICTOR, group.run_as)),
        ManagedFile(path=NODE_TOML, content=text.encode(), owner=group.run_as, mode=0o640),
    ]
    files += _tls_files("node", group.run_as, secrets) if cluster.tls else []
    engine = None
    if group.engine_command:
        unit = _ENGINE_UNIT.format(command=group.engine_command.replace("%", "%%"), user=group.run_as, before=PREDICTOR)
        engine = ManagedFile(path=f"{UNITS}/{ENGINE}.service", content=unit.encode())
    return Service(role="node", unit=PREDICTOR, files=tuple(files), user=group.run_as, address=address, engine=engine)


def _gateway(cluster: Cluster, host: ClusterHost, secrets: HostSecrets) -> Service:
    settings: dict[str, Any] = {
        "gateway_id": host.name,
        "listen": cluster.gateway_address(host),
        "http_listen": cluster.gateway_http_address(host),
    }
    if cluster.tls:
        pair = {"cert": f"{TLS}/gateway.crt", "key": f"{TLS}/gateway.key"}
        settings |= {"keys": KEYS_TOML, "tls": pair, "node_tls": {"ca": CA, **pair}}
    else:
        settings["insecure"] = True
    settings = _laid_over(settings, cluster.gateway.config)
    mark = hashlib.sha256(tomli_w.dumps(settings).encode()).hexdigest()[:16]
    nodes = [{"address": cluster.node_address(node), "name": node.name} for node in cluster.nodes()]
    text = _toml(f"Gateway {host.name}", settings | {"nodes": nodes}, mark=mark)
    files = [
        ManagedFile(path=f"{UNITS}/{GATEWAY}.service", content=_unit(GATEWAY, GATEWAY_USER)),
        ManagedFile(path=GATEWAY_TOML, content=text.encode(), owner=GATEWAY_USER, mode=0o640),
    ]
    if cluster.tls:
        files += _tls_files("gateway", GATEWAY_USER, secrets)
        files.append(
            ManagedFile(path=KEYS_TOML, content=secrets.api_keys, owner=GATEWAY_USER, mode=0o600, on_change="reload")
        )
    address = cluster.gateway_address(host)
    return Service(role="gateway", unit=GATEWAY, files=tuple(files), user=GATEWAY_USER, address=address)


def _tls_files(name: str, owner: str, secrets: HostSecrets) -> list[ManagedFile]:
    # Both services of a host may have the authority's certificate: the same file then.
    return [
        ManagedFile(path=CA, content=secrets.ca, on_change="reload"),
        ManagedFile(path=f"{TLS}/{name}.crt", content=secrets.cert, on_change="reload"),
        ManagedFile(path=f"{TLS}/{name}.key", content=secrets.key, owner=owner, mode=0o600, on_change="reload"),
    ]


def settings_mark(gateway_toml: bytes) -> str:
    """What a gateway.toml of ours says of all in it but the nodes: while that is as it was, a reload does."""
    lines = gateway_toml.decode().splitlines()
    return next((line.removeprefix(SETTINGS_MARK) for line in lines if line.startswith(SETTINGS_MARK)), "")


def _toml(title: str, settings: Mapping[str, Any], *, mark: str = "") -> str:
    head = [f"# {title}. Written by `astrolabe cluster`, from cluster.toml: change it there."]
    head += [f"{SETTINGS_MARK}{mark}"] if mark else []
    return "\n".join(head) + "\n\n" + tomli_w.dumps(settings)


def _laid_over(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        both[key] = _laid_over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


def _unit(unit: str, user: str) -> bytes:
    """The shipped unit, for the release that is current and the user it is to run as."""
    text = (importlib.resources.files("deploy") / "systemd" / f"{unit}.service").read_text(encoding="utf-8")
    text = re.sub(r"^ExecStart=\S+/astrolabe ", f"ExecStart={CURRENT}/bin/astrolabe ", text, flags=re.MULTILINE)
    return re.sub(r"^User=.*$", f"User={user}", text, flags=re.MULTILINE).encode()


_ENGINE_UNIT = """\
# Written by `astrolabe cluster`, from engine_command in cluster.toml: change it there.
[Unit]
Description=Engine of this Astrolabe node
After=network-online.target
Wants=network-online.target
Before={before}.service

[Service]
ExecStart={command}
Restart=always
RestartSec=5
User={user}
# Models take their time to load and to be let go of.
TimeoutStartSec=infinity
TimeoutStopSec=60
KillSignal=SIGTERM

[Install]
WantedBy=multi-user.target
"""
