"""However often a host's count of nodes changes, an installation brings it there, and a second one changes nothing."""

from __future__ import annotations

import tomllib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.cluster.desired import Desired
from deploy.cluster.facts import HostFacts, PortListener, UnitFacts
from deploy.cluster.layout import CURRENT, ENGINE, GATEWAY, PREDICTOR, configuration_of, kind_of, unit_file
from deploy.cluster.manifest import Cluster, ClusterHost, HostGroup
from deploy.cluster.plan import HostStep, plan, removal
from tests.unit.deploy.cluster.clusters import FRESH, HOSTS, RELEASE, TAR, wanted


class SimulatedHost:
    """Does what steps of a plan say that they do, and has no two services listen on one port."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.running: dict[str, int] = {}
        """Process ids by unit."""
        self.ports: dict[str, int] = {}
        self.takes: dict[str, frozenset[str]] = {}
        self.read: dict[str, list[bytes | None]] = {}
        """Unit and configuration that a service has begun with."""
        self.enabled: set[str] = set()
        self.pending: set[str] = set()
        self.releases: set[str] = set()
        self.started = 0

    def facts(self, want: Desired) -> HostFacts:
        asked = {service.unit for service in want.services} | {service.engine_unit for service in want.services}
        asked |= {path.rpartition("/")[2].removesuffix(".service") for path in self.files if path.endswith(".service")}
        current = "" if CURRENT not in self.files else self.files[CURRENT].decode()
        toml = self.files.get("/etc/astrolabe/gateway.toml", b"").decode()
        return msgspec.structs.replace(
            FRESH,
            users=frozenset({"astrolabe"}),
            releases=frozenset(self.releases),
            current=current,
            units={
                unit: UnitFacts(
                    active="active" if unit in self.running else "inactive",
                    enabled=unit in self.enabled,
                    pid=self.running.get(unit, 0),
                    release=current if unit in self.running else "",
                )
                for unit in asked - {""}
            },
            pending=frozenset(self.pending),
            files={file.path: file.digest for file in want.files() if self.files.get(file.path) == file.content}
            | {path: "another" for path in self.files if path not in {file.path for file in want.files()}}
            | {f.path: "other" for f in want.files() if f.path in self.files and self.files[f.path] != f.content},
            listeners=tuple(PortListener(port=p, pid=self.running[u], command=u) for u, p in self.ports.items()),
            takes=self.takes,
            settings=next((line[12:] for line in toml.splitlines() if line.startswith("# settings: ")), ""),
        )

    def do(self, step: HostStep) -> None:
        match step.title.split():
            case ["user", _] | ["units", *_] | ["wheels", *_] | ["environment", *_] | ["compiled", *_] | [_, "serves"]:
                pass
            case [release, "complete"]:
                self.releases.add(release)
            case ["note", "that", unit, *_]:
                self.pending.add(unit)
            case [unit, "has", "all", "news"]:
                self.pending.discard(unit)
            case [unit, "at", "boot"]:
                self.enabled.add(unit)
            case ["current", "is", release]:
                self.files[CURRENT] = release.encode()
            case ["start" | "restart", unit]:
                self._start(unit)
                self.enabled.add(unit)
            case ["reload", unit]:
                assert unit in self.running
            case ["stop", *_]:
                for unit in step.script.removeprefix("systemctl stop ").split():
                    self._stop(unit)
            case ["without", unit]:
                self._stop(unit)
                self.enabled.discard(unit)
                for path in (unit_file(unit), configuration_of(unit)):
                    self.files.pop(path, None)
                self.pending.discard(unit)
            case [path] if path.startswith("/") and isinstance(step.stdin, bytes):
                self.files[path] = step.stdin
            case _:
                raise AssertionError(f"an unknown step: {step.title}")

    def _start(self, unit: str) -> None:
        self._stop(unit)
        assert unit_file(unit) in self.files
        if kind_of(unit) == PREDICTOR:
            settings = tomllib.loads(self.files[configuration_of(unit)].decode())
            port = int(settings["listen"].rpartition(":")[2])
            assert port not in self.ports.values(), f"{unit} starts while another one has port {port}"
            self.ports[unit] = port
        if kind_of(unit) == ENGINE:
            unit_text = self.files[unit_file(unit)].decode()
            said = next((line for line in unit_text.splitlines() if line.startswith("# Takes: ")), "# Takes: all")
            takes = frozenset(said.removeprefix("# Takes: ").split())
            for other, taken in self.takes.items():
                assert not takes & taken, f"{unit} starts while {other} has {takes & taken}"
                assert "all" not in takes | taken, f"{unit} starts while {other} runs"
            self.takes[unit] = takes
        if kind_of(unit) == ENGINE:
            self.pending.discard(unit)
        self.read[unit] = self.written(unit)
        self.started += 1
        self.running[unit] = self.started

    def written(self, unit: str) -> list[bytes | None]:
        return [self.files.get(path) for path in (unit_file(unit), configuration_of(unit))]

    def _stop(self, unit: str) -> None:
        self.running.pop(unit, None)
        self.ports.pop(unit, None)
        self.takes.pop(unit, None)


def fleet(count: int, port: int, gpus: int | None = None, *, is_node: bool, engine: str) -> Cluster:
    host = ClusterHost(name="a", address="10.0.0.1", roles=("node", "gateway") if is_node else ("gateway",))
    group = HostGroup(name="all", nodes=count, port=port, engine_command=engine, gpus=gpus)
    return Cluster(groups=(group,), hosts=(host, HOSTS[1]))


fleets = st.builds(
    fleet,
    st.integers(1, 5),
    st.integers(8100, 8103),
    st.sampled_from([None, 1, 2]),
    is_node=st.sampled_from([True, True, True, False]),
    engine=st.sampled_from(["", "/usr/bin/engine --port {port}", "/usr/bin/engine --port {port} --more"]),
)


def changed_to(host: SimulatedHost, cluster: Cluster, *, steps: int | None = None) -> int:
    """An installation of that file, or as many steps of it; how many it has."""
    want = wanted(cluster.hosts[0], cluster=cluster)
    planned = plan(host.facts(want), want, RELEASE, TAR).steps()
    for step in planned[:steps]:
        host.do(step)
    return len(planned)


def check(host: SimulatedHost, cluster: Cluster) -> None:
    """It is as the file says, and an installation would change nothing."""
    want = wanted(cluster.hosts[0], cluster=cluster)
    assert [step.title for step in plan(host.facts(want), want, RELEASE, TAR).steps()] == []
    expected = {unit for service in want.services for unit in (service.unit, service.engine_unit) if unit}
    assert set(host.running) == host.enabled == expected
    for unit in expected - {GATEWAY}:
        assert host.read[unit] == host.written(unit)
    certificates = {path for path in host.files if path.startswith("/etc/astrolabe/tls/")}
    assert host.files.keys() - {CURRENT} == {file.path for file in want.files()} | certificates


@given(st.lists(st.tuples(fleets, st.integers(0, 40)), min_size=1, max_size=5))
def test_any_sequence_of_counts_comes_to_what_the_file_says(sequence: list[tuple[Cluster, int]]) -> None:
    """Each but the last may be cut off after any of its steps."""
    host = SimulatedHost()
    for cluster, cut_off in sequence[:-1]:
        changed_to(host, cluster, steps=cut_off)
    last, _ = sequence[-1]
    changed_to(host, last)
    check(host, last)
    for step in removal(host.facts(wanted(last.hosts[0], cluster=last)))[: len(host.running)]:
        host.do(step)
    assert host.running == {}


ENGINE_COMMAND = "/usr/bin/engine --port {port}"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1, 8100, None, ENGINE_COMMAND), (3, 8100, None, ENGINE_COMMAND)),
        ((3, 8100, None, ENGINE_COMMAND), (1, 8100, None, ENGINE_COMMAND)),
        ((4, 8100, 1, ENGINE_COMMAND), (2, 8100, 2, ENGINE_COMMAND)),
        ((2, 8100, None, ENGINE_COMMAND), (2, 8101, None, ENGINE_COMMAND)),
        ((2, 8100, None, ENGINE_COMMAND), (2, 8100, None, f"{ENGINE_COMMAND} --more")),
    ],
)
def test_a_change_that_is_cut_off_anywhere_is_made_good(
    before: tuple[int, int, int | None, str], after: tuple[int, int, int | None, str]
) -> None:
    first, then = (fleet(*own, is_node=True, engine=engine) for *own, engine in (before, after))  # type: ignore[arg-type]
    cut_off, count = 0, 1
    while cut_off < count:
        host = SimulatedHost()
        changed_to(host, first)
        count = changed_to(host, then, steps=cut_off)
        changed_to(host, then)
        check(host, then)
        cut_off += 1
    assert count > 5


@pytest.mark.parametrize("count", [1, 2, 8])
def test_nodes_that_stay_are_left_alone(count: int) -> None:
    host = SimulatedHost()
    changed_to(host, fleet(count, 8100, is_node=True, engine=""))
    before = {unit: pid for unit, pid in host.running.items() if "@" in unit}
    changed_to(host, fleet(count + 3, 8100, is_node=True, engine=""))
    assert {unit: host.running[unit] for unit in before} == before
