"""What stands in the way of an installation on a host, and how to mend it. Decides from facts alone.

A finding that fails keeps `install` away from the host; one that warns does not.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Literal

import msgspec

from deploy.cluster.authority import days_left
from deploy.cluster.facts import HostFacts, PortListener, VllmFacts
from deploy.cluster.layout import ENGINE, GATEWAY, PREDICTOR, TLS, kind_of, unit_of
from deploy.cluster.manifest import GATEWAY_USER, Cluster, ClusterHost, HostNode

Level = Literal["ok", "warn", "fail"]

OLDEST_PYTHON = (3, 11)
OLDEST_SYSTEMD = 239
"""With the unit's settings known."""
NEEDED_BYTES = 1_000_000_000
"""An environment has 420 MB, its wheels 100 MB; an upgrade needs both beside what runs."""
ROOMY_BYTES = 3_000_000_000
SKEW_WARN_S = 2.0
"""Lines of logs of several hosts no longer sort."""
SKEW_FAIL_S = 300.0
"""Certificates may count as not valid yet, or no more."""
CERT_WARN_DAYS = 30.0


class Finding(msgspec.Struct, frozen=True):
    """One check of one host."""

    check: str
    level: Level
    text: str
    """What is there; where it is not as it should be, also how to mend it."""


CHECKS = ("login", "root", "system", "python", "gpu", "ports", "clock", "disk", "users", "engine", "certificates")
"""In the order of the table."""


def findings(
    cluster: Cluster, host: ClusterHost, facts: HostFacts, *, needs_release: bool, now: datetime.datetime
) -> list[Finding]:
    """All checks of a host that can be logged in to. `needs_release`: whether one will be unpacked there."""
    return [
        Finding("login", "ok", f"{facts.user}, {facts.round_trip_s * 1000:.0f} ms"),
        _root(facts),
        _system(facts),
        _python(cluster, facts),
        *([_gpu(cluster, host, facts)] if host.is_node else []),
        _ports(cluster, host, facts),
        _clock(facts),
        _disk(facts, needs_release=needs_release),
        _users(cluster, host, facts),
        *([_engine(cluster, host, facts)] if host.is_node else []),
        *_certificates(facts, now),
    ]


def unreachable(reason: str) -> Finding:
    return Finding("login", "fail", reason)


def _root(facts: HostFacts) -> Finding:
    if not facts.is_root:
        mend = f"allow it: echo '{facts.user} ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/astrolabe"
        return Finding("root", "fail", f"{facts.user} is not root and has no sudo without a password; {mend}")
    return Finding("root", "ok", "yes" if facts.user == "root" else "by sudo")


def _system(facts: HostFacts) -> Finding:
    name = facts.os or "unknown system"
    if not facts.systemd:
        return Finding("system", "fail", f"{name} without systemd; install by hand there (deploy/README.md)")
    if facts.systemd < OLDEST_SYSTEMD:
        return Finding("system", "fail", f"systemd {facts.systemd} is older than {OLDEST_SYSTEMD}; upgrade the system")
    return Finding("system", "ok", f"{name}, systemd {facts.systemd}")


def _python(cluster: Cluster, facts: HostFacts) -> Finding:
    wanted, python = ".".join(map(str, OLDEST_PYTHON)), cluster.install.python
    version = ".".join(map(str, facts.python))
    if facts.python[:2] < OLDEST_PYTHON:
        found = f"{python} is {version}" if version else f"there is no {python}"
        return Finding("python", "fail", f"{found}; install Python {wanted} or newer and name it in [install] python")
    if not facts.has_venv:
        return Finding("python", "fail", f"{python} {version} has no venv; on Debian: apt-get install python3-venv")
    return Finding("python", "ok", version)


def _gpu(cluster: Cluster, host: ClusterHost, facts: HostFacts) -> Finding:
    is_emulated = cluster.group_of(host).engine == "emulated"
    if not facts.gpus:
        if is_emulated:
            return Finding("gpu", "warn", "none: its engine is emulated and needs none")
        return Finding("gpu", "fail", 'none that nvidia-smi knows; install the driver, or say engine = "emulated"')
    names = ", ".join(sorted({gpu.name for gpu in facts.gpus}))
    nodes = cluster.nodes_of(host)
    wanted = sum(len(node.gpus) for node in nodes)
    if wanted > len(facts.gpus) and not is_emulated:
        each = len(nodes[0].gpus)
        what = f"{len(nodes)} nodes of {each} GPU{'s' if each > 1 else ''} want" if len(nodes) > 1 else "its node wants"
        text = f"{what} {wanted}, the host has {len(facts.gpus)} ({names}); lower nodes or gpus"
        return Finding("gpu", "fail", text)
    return Finding("gpu", "ok", f"{len(facts.gpus)} x {names}, driver {facts.gpus[0].driver}")


def _ports(cluster: Cluster, host: ClusterHost, facts: HostFacts) -> Finding:
    wanted: list[tuple[int, str, str]] = []
    for node in cluster.nodes_of(host):
        wanted.append((node.port, unit_of(PREDICTOR, node.instance), "port of its group"))
        if node.group.engine_command and node.engine_port in node.ports():
            wanted.append((node.engine_port, unit_of(ENGINE, node.instance), "engine_url of its group"))
    if host.is_gateway:
        wanted.append((cluster.gateway.port, GATEWAY, "port in [gateway]"))
        wanted.append((cluster.gateway.http_port, GATEWAY, "http_port in [gateway]"))
    taken = []
    for port, unit, key in wanted:
        listener = next((found for found in facts.listeners if found.port == port), None)
        if listener is not None and not _is_ours(facts, unit, listener):
            who = f"{listener.command} (process {listener.pid})" if listener.pid else "another process"
            taken.append(f"port {port} is in use by {who}; stop that, or change {key}")
    if taken:
        return Finding("ports", "fail", "; ".join(taken))
    return Finding("ports", "ok", ", ".join(str(port) for port, _, _ in wanted))


def _is_ours(facts: HostFacts, unit: str, listener: PortListener) -> bool:
    """Whether a port is listened on by its service, or by one of the same kind that will have gone from there."""
    # A gateway of several workers has children that listen: whatever runs while the unit does is taken for its own.
    if facts.unit(unit).is_running:
        return True
    alike = [has for name, has in facts.units.items() if kind_of(name) == kind_of(unit) and has.is_running]
    return bool(alike) and (kind_of(unit) == ENGINE or listener.pid in (0, *(has.pid for has in alike)))


def _clock(facts: HostFacts) -> Finding:
    skew_s = facts.clock_skew_s
    text = f"{abs(skew_s):.1f} s {'ahead' if skew_s > 0 else 'behind'}"
    if abs(skew_s) >= SKEW_FAIL_S:
        return Finding("clock", "fail", f"{text}: certificates may not hold; set it: timedatectl set-ntp true")
    if abs(skew_s) >= SKEW_WARN_S:
        return Finding("clock", "warn", f"{text}: logs of hosts will not sort; set it: timedatectl set-ntp true")
    return Finding("clock", "ok", text)


def _disk(facts: HostFacts, *, needs_release: bool) -> Finding:
    free = f"{facts.free_bytes / 1e9:.1f} GB free at /opt"
    if needs_release and facts.free_bytes < NEEDED_BYTES:
        return Finding("disk", "fail", f"{free}, a release needs {NEEDED_BYTES / 1e9:.0f} GB; make room there")
    if facts.free_bytes < ROOMY_BYTES:
        return Finding("disk", "warn", f"{free}: little for the next upgrades")
    return Finding("disk", "ok", free)


def _users(cluster: Cluster, host: ClusterHost, facts: HostFacts) -> Finding:
    wanted = {cluster.group_of(host).run_as} if host.is_node else set()
    wanted |= {GATEWAY_USER} if host.is_gateway else set()
    missing = sorted(wanted - facts.users - {GATEWAY_USER})
    if missing:
        return Finding("users", "fail", f"there is no user {missing[0]}; create it, or change run_as of the group")
    new = sorted(wanted - facts.users)
    return Finding("users", "ok", f"{', '.join(sorted(wanted))}{' (will be created)' if new else ''}")


def _engine(cluster: Cluster, host: ClusterHost, facts: HostFacts) -> Finding:
    group, nodes = cluster.group_of(host), cluster.nodes_of(host)
    if group.engine != "vllm":
        return Finding("engine", "ok", group.engine)
    found = [_vllm(node, facts) for node in nodes]
    worst = next((one for level in ("fail", "warn") for one in found if one.level == level), None)
    if worst is not None or len(found) == 1:
        return worst or found[0]
    return Finding("engine", "ok", f"{len(found)} engines; {found[0].text}")


def _vllm(node: HostNode, facts: HostFacts) -> Finding:
    group, server = node.group, _server_of(node, facts)
    if server is None:
        if group.engine_command:
            unit = unit_of(ENGINE, node.instance)
            return Finding("engine", "ok", f"started by {unit} ({facts.unit(unit).active})")
        where = f" on port {node.engine_port}" if node.count > 1 else ""
        return Finding("engine", "warn", f"no vLLM server runs{where}; start it, or name engine_command in the group")
    text = f"vLLM {server.version or '(no answer yet)'} of {server.user} on port {server.port}"
    if not server.has_trace:
        return Finding("engine", "warn", f"{text}, without our trace; see engine_adapters/README.md for its flag")
    if server.user != group.run_as:
        mend = f'set run_as = "{server.user}" in the group'
        return Finding("engine", "fail", f"{text}; its trace opens to that user only: {mend}")
    return Finding("engine", "ok", f"{text}, traced")


def _server_of(node: HostNode, facts: HostFacts) -> VllmFacts | None:
    if node.count > 1:
        return next((server for server in facts.vllms if server.port == node.engine_port), None)
    return facts.vllms[0] if facts.vllms else None


def _certificates(facts: HostFacts, now: datetime.datetime) -> Iterator[Finding]:
    if not facts.certs:
        return
    left = {path.removeprefix(f"{TLS}/"): days_of(cert, now) for path, cert in facts.certs.items()}
    name = min(left, key=lambda n: left[n])
    yield cert_finding(name, left[name])


def days_of(cert: bytes, now: datetime.datetime) -> float:
    """Days left; what is no certificate has none."""
    try:
        return days_left(cert, now=now)
    except ValueError:
        return 0.0


def cert_finding(name: str, days: float) -> Finding:
    """What is to be said of a certificate that has so many days left."""
    if days <= 0:
        ended = f"{-days:.0f} days ago" if days <= -2 else "by now"
        return Finding("certificates", "fail", f"{name} has expired {ended}; make new ones: astrolabe cluster rotate")
    if days < CERT_WARN_DAYS:
        mend = "make new ones: astrolabe cluster rotate"
        return Finding("certificates", "warn", f"{name} expires in {days:.0f} days; {mend}")
    return Finding("certificates", "ok", f"{days:.0f} days left")
