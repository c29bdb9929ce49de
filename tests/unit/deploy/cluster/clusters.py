"""A cluster of three, and what its hosts and its operator have, for tests."""

from __future__ import annotations

from pathlib import Path

from deploy.cluster.desired import Desired, HostSecrets, desired
from deploy.cluster.facts import HostFacts, UnitFacts
from deploy.cluster.layout import GATEWAY, PREDICTOR
from deploy.cluster.manifest import Cluster, ClusterHost, HostGroup
from deploy.cluster.release import Release

HOSTS = (
    ClusterHost(name="a", address="10.0.0.1", roles=("node", "gateway")),
    ClusterHost(name="b", address="10.0.0.2", roles=("node",)),
    ClusterHost(name="c", address="10.0.0.3", roles=("node",)),
)
CLUSTER = Cluster(groups=(HostGroup(name="all"),), hosts=HOSTS)
SECRETS = HostSecrets(ca=b"CA", cert=b"CERT", key=b"KEY", api_keys=b"KEYS")
RELEASE = Release(
    name="0.2.0-bbbbbbbb", version="0.2.0", wheel="astrolabe-0.2.0-py3-none-any.whl", folder=Path("/none")
)
BEFORE = "0.1.0-aaaaaaaa"
TAR = Path("/none/wheels.tar")

FRESH = HostFacts(
    user="root", is_root=True, os="Debian 12", systemd=252, python=(3, 11, 2), has_venv=True, free_bytes=10**11
)


def wanted(host: ClusterHost = HOSTS[0], *, cluster: Cluster = CLUSTER, release: str = RELEASE.name) -> Desired:
    return desired(cluster, host, SECRETS, release)


def installed(host: ClusterHost = HOSTS[0], *, release: str = RELEASE.name, cluster: Cluster = CLUSTER) -> HostFacts:
    """A host on which all is as it should be, with that release."""
    want = wanted(host, cluster=cluster, release=release)
    running = UnitFacts(active="active", enabled=True, pid=7, release=release)
    toml = next((f.content.decode() for f in want.files() if f.name == "gateway.toml"), "")
    mark = next((line.removeprefix("# settings: ") for line in toml.splitlines() if line.startswith("# settings")), "")
    return HostFacts(
        user="root",
        is_root=True,
        os="Debian 12",
        systemd=252,
        python=(3, 11, 2),
        has_venv=True,
        free_bytes=10**11,
        users=frozenset({"astrolabe"}),
        releases=frozenset({release}),
        current=release,
        units={PREDICTOR: running} | ({GATEWAY: running} if host.is_gateway else {}),
        files={file.path: file.digest for file in want.files()},
        settings=mark,
    )
