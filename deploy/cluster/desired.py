"""What a host is to have: its release, files and services, as cluster.toml says. Reads the shipped units only."""

from __future__ import annotations

import hashlib
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import tomli_w

from deploy.cluster.layout import (
    CURRENT,
    ENGINE,
    ETC,
    GATEWAY,
    MARK,
    PREDICTOR,
    TLS,
    UNITS,
    node_toml,
    unit_file,
    unit_of,
)
from deploy.cluster.manifest import GATEWAY_USER, Cluster, ClusterHost, HostNode, Role

SETTINGS_MARK = "# settings: "

GATEWAY_TOML = f"{ETC}/gateway.toml"
KEYS_TOML = f"{ETC}/keys.toml"
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
    name: str
    """The node's; a gateway's is its host's."""
    unit: str
    files: tuple[ManagedFile, ...]
    user: str
    address: str
    """host:port whose health says that it serves."""
    engine: ManagedFile | None = None
    """The unit of an engine that comes before it."""
    takes: frozenset[str] = frozenset()
    """What that engine takes of its host that no other of its host can have, as `gpu-0` and `port-8000`."""

    @property
    def engine_unit(self) -> str:
        """Empty: it has none."""
        return "" if self.engine is None else self.engine.name.removesuffix(".service")


class Desired(msgspec.Struct, frozen=True, kw_only=True):
    """A host as it is to be."""

    host: str
    """Its name."""
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
    services = [_node(cluster, node, secrets) for node in cluster.nodes_of(host)]
    if host.is_gateway:
        services.append(_gateway(cluster, host, secrets))
    return Desired(
        host=host.name,
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


def _node(cluster: Cluster, node: HostNode, secrets: HostSecrets) -> Service:
    user, unit = node.group.run_as, unit_of(PREDICTOR, node.instance)
    settings: dict[str, Any] = {"node_id": node.name, "listen": node.address}
    if cluster.tls:
        tls = {"cert": f"{TLS}/node.crt", "key": f"{TLS}/node.key", "client_ca": CA}
        settings["tls"] = tls
    else:
        settings["insecure"] = True
    text = _toml(f"Node {node.name}", settings | node.settings())
    files = [
        ManagedFile(path=unit_file(unit), content=_unit(PREDICTOR, user, instance=node.instance)),
        ManagedFile(path=node_toml(node.instance), content=text.encode(), owner=user, mode=0o640),
    ]
    files += _tls_files("node", user, secrets) if cluster.tls else []
    return Service(
        role="node",
        name=node.name,
        unit=unit,
        files=tuple(files),
        user=user,
        address=node.address,
        engine=_engine(node, unit) if node.group.engine_command else None,
        takes=frozenset(_takes(node)) if node.group.engine_command else frozenset(),
    )


def _takes(node: HostNode) -> list[str]:
    return [f"port-{node.engine_port}", *(f"gpu-{gpu}" for gpu in node.gpus)]


def _engine(node: HostNode, predictor: str) -> ManagedFile:
    text = _ENGINE_UNIT.format(
        mark=MARK,
        takes=f"# Takes: {' '.join(_takes(node))}\n" if node.instance else "",
        what=f"Engine of Astrolabe node {node.instance}" if node.instance else "Engine of this Astrolabe node",
        before=predictor,
        command=node.engine_command.replace("%", "%%"),
        gpus=f"Environment=CUDA_VISIBLE_DEVICES={','.join(map(str, node.gpus))}\n" if node.gpus else "",
        user=node.group.run_as,
    )
    return ManagedFile(path=unit_file(unit_of(ENGINE, node.instance)), content=text.encode())


def gateway_toml(cluster: Cluster, host: ClusterHost, nodes: Sequence[tuple[str, str]]) -> ManagedFile:
    """A gateway's configuration with these nodes: name and host:port each."""
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
    entries = [{"address": address, "name": name} for name, address in nodes]
    text = _toml(f"Gateway {host.name}", settings | {"nodes": entries}, mark=mark)
    return ManagedFile(path=GATEWAY_TOML, content=text.encode(), owner=GATEWAY_USER, mode=0o640)


def _gateway(cluster: Cluster, host: ClusterHost, secrets: HostSecrets) -> Service:
    files = [
        ManagedFile(path=unit_file(GATEWAY), content=_unit(GATEWAY, GATEWAY_USER)),
        gateway_toml(cluster, host, [(node.name, node.address) for node in cluster.nodes()]),
    ]
    if cluster.tls:
        files += _tls_files("gateway", GATEWAY_USER, secrets)
        files.append(
            ManagedFile(path=KEYS_TOML, content=secrets.api_keys, owner=GATEWAY_USER, mode=0o600, on_change="reload")
        )
    return Service(
        role="gateway",
        name=host.name,
        unit=GATEWAY,
        files=tuple(files),
        user=GATEWAY_USER,
        address=cluster.gateway_address(host),
    )


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
    head = [f"# {title}. {MARK.removeprefix('# ')}, from cluster.toml: change it there."]
    head += [f"{SETTINGS_MARK}{mark}"] if mark else []
    return "\n".join(head) + "\n\n" + tomli_w.dumps(settings)


def _laid_over(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        both[key] = _laid_over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


def _unit(unit: str, user: str, *, instance: str = "") -> bytes:
    """The shipped unit, for the release that is current, the user it is to run as and one of several nodes."""
    text = (importlib.resources.files("deploy") / "systemd" / f"{unit}.service").read_text(encoding="utf-8")
    text = re.sub(r"^ExecStart=\S+/astrolabe ", f"ExecStart={CURRENT}/bin/astrolabe ", text, flags=re.MULTILINE)
    text = re.sub(r"^User=.*$", f"User={user}", text, flags=re.MULTILINE)
    if instance:
        # A whole unit, of no template: a template that was put there for scaling stays as it is.
        text = f"{MARK}, from cluster.toml: change it there.\n{text.replace(node_toml(''), node_toml(instance))}"
        text = re.sub(r"^Description=.*$", f"Description=Astrolabe predictor {instance}", text, flags=re.MULTILINE)
    return text.encode()


_ENGINE_UNIT = """\
{mark}, from engine_command in cluster.toml: change it there.
{takes}[Unit]
Description={what}
After=network-online.target
Wants=network-online.target
Before={before}.service

[Service]
ExecStart={command}
{gpus}Restart=always
RestartSec=5
User={user}
# Models take their time to load and to be let go of.
TimeoutStartSec=infinity
TimeoutStopSec=60
KillSignal=SIGTERM

[Install]
WantedBy=multi-user.target
"""
