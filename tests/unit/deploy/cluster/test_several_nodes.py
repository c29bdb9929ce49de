"""Several nodes on one host: names, ports, GPUs and units, what cannot be, and in which order they are touched."""

from __future__ import annotations

import datetime
import json
import re
import threading
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deploy.cluster.checks import findings
from deploy.cluster.contradictions import load_cluster, problems
from deploy.cluster.facts import HostGpu, PortListener, UnitFacts, VllmFacts
from deploy.cluster.kept import Kept
from deploy.cluster.manifest import Cluster, ClusterHost, HostGroup
from deploy.cluster.overview import host_status
from deploy.cluster.plan import plan, removal
from deploy.cluster.release import Release
from deploy.cluster.rollout import SESSIONS, HostReport, HostView, Rollout
from deploy.cluster.shell import Ran, Shell
from gateway.scale.config import SystemdConnectorConfig
from protos.runtime.config import ConfigError
from tests.unit.deploy.cluster.clusters import BEFORE, FRESH, RELEASE, TAR, installed, wanted
from tests.unit.deploy.cluster.test_rollout import FRESH_HOST, RUNNING_HOST, Journal

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
COMMAND = "/opt/vllm/bin/vllm serve /models/m --port {port} --kv '{\"a\": 1}' --seed {index}"
GROUP = HostGroup(name="h100", engine="vllm", engine_command=COMMAND, run_as="vllm", nodes=4, gpus=2)
HOSTS = (
    ClusterHost(name="a", address="10.0.0.1", roles=("gateway",)),
    ClusterHost(name="b", address="10.0.0.2"),
    ClusterHost(name="c", address="10.0.0.3", nodes=1),
)
FLEET = Cluster(groups=(GROUP,), hosts=HOSTS)


def of(group: HostGroup = GROUP, **changes: Any) -> Cluster:
    return msgspec.structs.replace(FLEET, groups=(msgspec.structs.replace(group, **changes),))


def files(cluster: Cluster, host: ClusterHost = HOSTS[1]) -> dict[str, str]:
    return {file.path: file.content.decode() for file in wanted(host, cluster=cluster).files()}


def test_nodes_count_up_from_the_first_ones_ports_and_gpus() -> None:
    nodes = FLEET.nodes()
    assert [node.name for node in nodes] == ["b-0", "b-1", "b-2", "b-3", "c"]
    assert [node.address for node in nodes] == [*(f"10.0.0.2:{8100 + i}" for i in range(4)), "10.0.0.3:8100"]
    assert [node.engine_port for node in nodes] == [8000, 8001, 8002, 8003, 8000]
    assert [node.gpus for node in nodes] == [(0, 1), (2, 3), (4, 5), (6, 7), (0, 1)]
    assert [node.gpus for node in of(gpus=None).nodes()] == [(0,), (1,), (2,), (3,), ()]
    assert [node.gpus for node in of(gpus=0).nodes()] == [()] * 5


def test_each_node_has_a_unit_a_file_and_an_engine_of_its_own() -> None:
    made = files(FLEET)
    unit = made["/etc/systemd/system/astrolabe-predictor@b-2.service"]
    assert "ExecStart=/opt/astrolabe/current/bin/astrolabe predictor --config /etc/astrolabe/node-b-2.toml\n" in unit
    assert unit.startswith("# Written by `astrolabe cluster`")
    settings = tomllib.loads(made["/etc/astrolabe/node-b-2.toml"])
    assert (settings["node_id"], settings["listen"]) == ("b-2", "10.0.0.2:8102")
    assert settings["engine"] == {"dialect": "vllm", "url": "http://127.0.0.1:8002"}
    engine = made["/etc/systemd/system/astrolabe-engine@b-2.service"]
    assert "ExecStart=/opt/vllm/bin/vllm serve /models/m --port 8002 --kv '{\"a\": 1}' --seed 2\n" in engine
    assert "Environment=CUDA_VISIBLE_DEVICES=4,5\n" in engine
    assert "Before=astrolabe-predictor@b-2.service\n" in engine


def test_the_only_node_of_a_host_is_called_as_before() -> None:
    made = files(of(gpus=None), HOSTS[2])
    assert {path.rpartition("/")[2] for path in made if "tls" not in path} == {
        "astrolabe-predictor.service",
        "node.toml",
        "astrolabe-engine.service",
    }
    assert "CUDA_VISIBLE_DEVICES" not in made["/etc/systemd/system/astrolabe-engine.service"]
    assert "url" not in tomllib.loads(made["/etc/astrolabe/node.toml"])["engine"]


def test_addresses_in_a_groups_configuration_count_up_too() -> None:
    config = {
        "metrics_listen": "0.0.0.0:9100",
        "ready_file": "/run/astrolabe/{index}.json",
        "engine": {
            "url": "http://localhost:9000/v1",
            "trace": "unix:/run/vllm/{port}.sock",
            "kv_source": "http://10.0.0.5:9000",
        },
        "emulated": {"http_listen": "127.0.0.1:0"},
    }
    settings = tomllib.loads(files(of(config=config))["/etc/astrolabe/node-b-1.toml"])
    assert settings["metrics_listen"] == "0.0.0.0:9101"
    assert settings["ready_file"] == "/run/astrolabe/1.json"
    assert settings["engine"]["url"] == "http://localhost:9001"
    assert settings["engine"]["trace"] == "unix:/run/vllm/9001.sock"
    assert settings["engine"]["kv_source"] == "http://10.0.0.5:9001"
    assert settings["emulated"]["http_listen"] == "127.0.0.1:0"
    assert problems(of(config=config)) == []


def test_a_connector_that_scales_calls_them_the_same() -> None:
    own = SystemdConnectorConfig()
    wanted_units = [service.unit for service in wanted(HOSTS[1], cluster=FLEET).services]
    assert [own.unit.format(node=f"b-{index}") for index in range(4)] == wanted_units


def test_a_count_that_is_none_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text('[[groups]]\nname = "g"\nnodes = 0\n[[hosts]]\nname = "a"\naddress = "10.0.0.1"\n')
    with pytest.raises(ConfigError) as refused:
        load_cluster(file)
    (line,) = str(refused.value).splitlines()
    assert line.startswith(f"{file}, line 3: key 'nodes' in [groups 1]")
    assert ">= 1" in line
    file.write_text('[[groups]]\nname = "g"\n[[hosts]]\nname = "a"\nnodes = 0\naddress = "10.0.0.1"\n')
    with pytest.raises(ConfigError, match=r"line 5: key 'nodes' in \[hosts 1\]"):
        load_cluster(file)


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        (
            msgspec.structs.replace(
                of(port=8198), hosts=(msgspec.structs.replace(HOSTS[1], roles=("node", "gateway")),)
            ),
            "'b': port 8200 is that of its gateway (port in [gateway]) and of b-2 (port); change either",
        ),
        (
            of(engine_url="http://127.0.0.1:8097"),
            "'b': port 8100 is that of b-0 (port of its group) and of b-3 (engine_url); change either",
        ),
        (
            of(config={"metrics_listen": "0.0.0.0:8101"}),
            "'b': port 8101 is that of b-0 (config.metrics_listen of its group) and of b-1 (port); change either",
        ),
        (
            of(config={"metrics_listen": "0.0.0.0:65534"}),
            "'b': b-2: '0.0.0.0:65536': the port must be between 0 and 65535",
        ),
        (of(port=65533), "'b': b-3 would have port 65536; make port of its group smaller, or nodes fewer"),
        (
            of(engine_command="vllm serve m --port 8000"),
            "group 'h100': starts all engines of a host at one port; write --port {port}",
        ),
        (
            of(engine_command="vllm serve m --port {prot}{index}"),
            "group 'h100': no {prot} is known; there are: {index}, {port}, {gpus}",
        ),
        (
            of(config={"engine": {"trace": "unix:/run/trace.sock"}}),
            "group 'h100': engine.trace is the same for all nodes of a host; write {index} or {port} in it",
        ),
        (
            msgspec.structs.replace(FLEET, hosts=(*HOSTS, ClusterHost(name="b-1", address="10.0.0.4", nodes=1))),
            "'b-1': its node b-1 is called as one of 'b'; rename either",
        ),
        (
            msgspec.structs.replace(FLEET, hosts=(msgspec.structs.replace(HOSTS[0], nodes=2), *HOSTS[1:])),
            "'a' has nodes and not the role; write node in its roles, or leave nodes out",
        ),
    ],
)
def test_what_two_nodes_cannot_share_is_one_line(cluster: Cluster, words: str) -> None:
    told = [problem.text for problem in problems(cluster) if "no host is a gateway" not in problem.text]
    assert told == [words]


def test_engines_elsewhere_and_emulated_ones_take_no_port_of_the_host() -> None:
    assert problems(of(engine_url="http://10.9.9.9:8100")) == []
    assert problems(of(engine="emulated", engine_url="http://127.0.0.1:8100", engine_command="")) == []


def told(cluster: Cluster, **changes: Any) -> dict[str, tuple[str, str]]:
    facts = msgspec.structs.replace(FRESH, users=frozenset({"vllm"}), **changes)
    found = findings(cluster, HOSTS[1], facts, needs_release=True, now=NOW)
    return {finding.check: (finding.level, finding.text) for finding in found}


def test_check_wants_gpus_for_all_nodes() -> None:
    gpu = HostGpu(name="NVIDIA H100", driver="550.54")
    assert told(FLEET, gpus=(gpu,) * 8)["gpu"] == ("ok", "8 x NVIDIA H100, driver 550.54")
    assert told(FLEET, gpus=(gpu,) * 6)["gpu"] == (
        "fail",
        "4 nodes of 2 GPUs want 8, the host has 6 (NVIDIA H100); lower nodes or gpus",
    )
    assert told(of(nodes=1), gpus=(gpu,))["gpu"] == (
        "fail",
        "its node wants 2, the host has 1 (NVIDIA H100); lower nodes or gpus",
    )
    assert told(of(engine="emulated"), gpus=(gpu,))["gpu"][0] == "ok"


def test_check_looks_at_the_ports_of_all_nodes() -> None:
    assert told(FLEET)["ports"] == ("ok", "8100, 8000, 8101, 8001, 8102, 8002, 8103, 8003")
    squatter = PortListener(port=8103, pid=99, command="python3")
    ours = PortListener(port=8100, pid=7, command="astrolabe")
    units = {"astrolabe-predictor": UnitFacts(active="active", enabled=True, pid=7)}
    assert told(FLEET, listeners=(squatter, ours), units=units)["ports"] == (
        "fail",
        "port 8103 is in use by python3 (process 99); stop that, or change port of its group",
    )
    assert told(FLEET, listeners=(ours,), units=units)["ports"][0] == "ok"


def test_check_looks_for_each_nodes_engine() -> None:
    servers = [
        VllmFacts(pid=i, user="vllm", command="vllm", port=8000 + i, has_trace=True, version="0.32.0") for i in range(4)
    ]
    by_hand = of(engine_command="")
    assert told(by_hand, vllms=tuple(servers))["engine"] == (
        "ok",
        "4 engines; vLLM 0.32.0 of vllm on port 8000, traced",
    )
    assert told(by_hand, vllms=tuple(servers[:3]))["engine"] == (
        "warn",
        "no vLLM server runs on port 8003; start it, or name engine_command in the group",
    )


def titles(before: Cluster, after: Cluster) -> list[str]:
    facts = installed(HOSTS[1], cluster=before)
    want = wanted(HOSTS[1], cluster=before)
    running = UnitFacts(active="active", enabled=True, pid=7, release=RELEASE.name)
    units = {unit: running for service in want.services for unit in (service.unit, service.engine_unit) if unit}
    facts = msgspec.structs.replace(facts, units=units, users=frozenset({"vllm"}))
    return [step.title for step in plan(facts, wanted(HOSTS[1], cluster=after), RELEASE, TAR).steps()]


def test_fewer_nodes_are_taken_off_and_the_others_left_alone() -> None:
    assert titles(FLEET, FLEET) == []
    # Engines take long to end: they do so at the same time.
    assert titles(FLEET, of(nodes=2)) == [
        "stop 2 of astrolabe-predictor",
        "stop 2 of astrolabe-engine",
        "without astrolabe-predictor@b-2",
        "without astrolabe-predictor@b-3",
        "without astrolabe-engine@b-2",
        "without astrolabe-engine@b-3",
    ]


def test_all_that_a_host_has_stops_together_when_it_is_removed() -> None:
    running = UnitFacts(active="active", enabled=True, pid=7, release=RELEASE.name)
    units = {service.unit: running for service in wanted(HOSTS[1], cluster=FLEET).services}
    facts = msgspec.structs.replace(installed(HOSTS[1], cluster=FLEET), units=units)
    first, *rest = removal(facts)
    assert first.script == f"systemctl stop {' '.join(f'astrolabe-predictor@b-{i}' for i in range(4))}"
    assert [step.title for step in rest if step.title.startswith("stop")] == []


def test_a_node_that_is_taken_off_alone_stops_when_it_is() -> None:
    assert titles(FLEET, of(nodes=3)) == ["without astrolabe-predictor@b-3", "without astrolabe-engine@b-3"]


def test_one_node_becomes_two_when_it_has_gone_with_its_engine() -> None:
    got = titles(of(nodes=1), of(nodes=2))
    assert got[:2] == ["without astrolabe-predictor", "without astrolabe-engine"]
    assert "start astrolabe-engine@b-0" in got
    assert "start astrolabe-predictor@b-1" in got


def test_engines_that_have_anothers_gpus_stop_before_that_one_starts() -> None:
    facts = installed(HOSTS[1], cluster=of(gpus=1))
    want = wanted(HOSTS[1], cluster=of(gpus=1))
    running = UnitFacts(active="active", enabled=True, pid=7, release=RELEASE.name)
    units = {unit: running for service in want.services for unit in (service.unit, service.engine_unit)}
    takes = {service.engine_unit: service.takes for service in want.services}
    facts = msgspec.structs.replace(facts, units=units, users=frozenset({"vllm"}), takes=takes)
    got = plan(facts, wanted(HOSTS[1], cluster=of(nodes=2, gpus=2)), RELEASE, TAR)
    assert got.leave.nodes == ("b-1", "b-2", "b-3")
    # One is in another's way, two go for good.
    assert [step.script for step in got.leave.steps][:2] == [
        f"systemctl stop {' '.join(f'astrolabe-{kind}@b-{i}' for i in (1, 2, 3))}" for kind in ("predictor", "engine")
    ]
    assert {service.name: service.change for service in got.services} == {"b-0": "restart", "b-1": "start"}


def test_an_engine_that_runs_is_started_anew_only_with_its_node_emptied() -> None:
    facts = installed(HOSTS[1], cluster=FLEET)
    want = wanted(HOSTS[1], cluster=FLEET)
    running = UnitFacts(active="active", enabled=True, pid=7, release=RELEASE.name)
    units = {unit: running for service in want.services for unit in (service.unit, service.engine_unit)}
    facts = msgspec.structs.replace(facts, units=units, users=frozenset({"vllm"}))
    other = of(engine_command=COMMAND + " --max-num-seqs 64")
    got = plan(facts, wanted(HOSTS[1], cluster=other), RELEASE, TAR)
    assert {service.change for service in got.services} == {"restart"}


class NodesShell:
    """A host whose gateway lists what its last configuration said. `units`: those that run there, of release BEFORE."""

    def __init__(self, name: str, journal: Journal, units: tuple[str, ...], nodes: dict[str, str]) -> None:
        self._name, self._journal, self._units, self._nodes = name, journal, units, nodes

    def run(self, script: str, *, stdin: bytes | Path = b"", timeout_s: float = 60.0, root: bool = True) -> Ran:
        if script.startswith("date"):
            return Ran(0, "", "")
        if "login=" in script:
            units = [f"unit={unit} active yes 7 {BEFORE}" for unit in self._units]
            files = [f"file=0  /etc/systemd/system/{unit}.service" for unit in self._units]
            return Ran(0, "\n".join([*RUNNING_HOST, *units, *files] if units else FRESH_HOST), "")
        if "nodes --json" in script:
            nodes = [{"node_id": n, "status": "up", "detail": "", "address": a} for n, a in self._nodes.items()]
            return Ran(0, json.dumps({"nodes": nodes}), "")
        if "gateway.toml" in script and isinstance(stdin, bytes) and stdin:
            self._nodes = {node["name"]: node["address"] for node in tomllib.loads(stdin.decode())["nodes"]}
            self._journal.add(f"{self._name}: lists {', '.join(self._nodes)}")
        if asked := re.search(r"bin/astrolabe (drain \S+ --\w+)", script):
            self._journal.add(f"{self._name}: {asked[1]}")
        elif acted := re.search(r"systemctl (?:disable --now --quiet|restart) ([a-z0-9@-]+)", script):
            verb = "without" if "disable" in acted[0] else "restart"
            self._journal.add(f"{self._name}: {verb} {acted[1].removeprefix('astrolabe-')}")
        return Ran(0, "", "")


def rolled(
    tmp_path: Path, release: Release, cluster: Cluster, units: Mapping[str, tuple[str, ...]], nodes: dict[str, str]
) -> tuple[list[str], dict[str, HostReport]]:
    journal = Journal()
    shells = {
        host.name: NodesShell(host.name, journal, units[host.name], nodes if host.is_gateway else {})
        for host in cluster.hosts
    }
    reports = Rollout(cluster, Kept(tmp_path / "cluster.toml"), shells).converge(release)
    return journal.lines, {report.name: report for report in reports}


PLAIN = HostGroup(name="plain", nodes=2)
TWO_EACH = Cluster(
    groups=(PLAIN,),
    hosts=(HOSTS[0], *(ClusterHost(name=name, address=f"10.0.0.{i}") for i, name in ((2, "b"), (3, "c")))),
)


def test_the_nodes_of_a_host_are_restarted_one_after_the_other(tmp_path: Path, release: Release) -> None:
    units = {
        "a": ("astrolabe-gateway",),
        **{name: tuple(f"astrolabe-predictor@{name}-{i}" for i in range(2)) for name in "bc"},
    }
    nodes = {node.name: node.address for node in TWO_EACH.nodes()}
    journal, reports = rolled(tmp_path, release, TWO_EACH, units, nodes)
    expected = []
    for name in ("b-0", "b-1", "c-0", "c-1"):
        expected += [f"a: drain {name} --stay", f"a: drain {name} --wait"]
        expected += [f"{name[0]}: restart predictor@{name}", f"a: drain {name} --undo"]
    assert journal[: len(expected)] == expected
    assert {report.outcome for report in reports.values()} == {"changed"}


def test_a_host_whose_node_becomes_two_is_done_with_before_the_next_one(tmp_path: Path, release: Release) -> None:
    units = {"a": ("astrolabe-gateway",), "b": ("astrolabe-predictor",), "c": ("astrolabe-predictor",)}
    nodes = {"b": "10.0.0.2:8100", "c": "10.0.0.3:8100"}
    journal, _ = rolled(tmp_path, release, TWO_EACH, units, nodes)
    assert journal[:12] == [
        "a: drain b --stay",
        "a: drain b --wait",
        "b: without predictor",
        "b: restart predictor@b-0",
        "b: restart predictor@b-1",
        "a: lists c, b-0, b-1",
        "a: drain c --stay",
        "a: drain c --wait",
        "c: without predictor",
        "c: restart predictor@c-0",
        "c: restart predictor@c-1",
        "a: lists b-0, b-1, c-0, c-1",
    ]


def test_a_node_at_another_port_is_listed_there_before_it_is_waited_for(tmp_path: Path, release: Release) -> None:
    units = {"a": ("astrolabe-gateway",), "b": ("astrolabe-predictor",), "c": ("astrolabe-predictor",)}
    one_each = msgspec.structs.replace(TWO_EACH, groups=(msgspec.structs.replace(PLAIN, nodes=1, port=8300),))
    nodes = {"b": "10.0.0.2:8100", "c": "10.0.0.3:8100"}
    journal, reports = rolled(tmp_path, release, one_each, units, nodes)
    assert journal[:5] == [
        "a: drain b --stay",
        "a: drain b --wait",
        "b: restart predictor",
        "a: lists c, b",
        "a: drain b --undo",
    ]
    assert {report.outcome for report in reports.values()} == {"changed"}


def test_nodes_whose_ports_change_are_listed_at_the_new_one_by_one(tmp_path: Path, release: Release) -> None:
    units = {
        "a": ("astrolabe-gateway",),
        **{name: tuple(f"astrolabe-predictor@{name}-{i}" for i in range(2)) for name in "bc"},
    }
    nodes = {node.name: node.address for node in TWO_EACH.nodes()}
    moved = msgspec.structs.replace(TWO_EACH, groups=(msgspec.structs.replace(PLAIN, port=8300),))
    journal, _ = rolled(tmp_path, release, moved, units, nodes)
    assert [line for line in journal if "b-" in line and "drain" not in line][:4] == [
        "b: restart predictor@b-0",
        "a: lists b-1, c-0, c-1, b-0",
        "b: restart predictor@b-1",
        "a: lists c-0, c-1, b-0, b-1",
    ]


def test_nodes_that_leave_are_empty_first_and_listed_no_more(tmp_path: Path, release: Release) -> None:
    units = {
        "a": ("astrolabe-gateway",),
        "b": tuple(f"astrolabe-predictor@b-{i}" for i in range(4)),
        "c": tuple(f"astrolabe-predictor@c-{i}" for i in range(2)),
    }
    nodes = {f"b-{i}": f"10.0.0.2:{8100 + i}" for i in range(4)} | {f"c-{i}": f"10.0.0.3:{8100 + i}" for i in range(2)}
    journal, _ = rolled(tmp_path, release, TWO_EACH, units, nodes)
    assert sorted(journal[:2]) == ["a: drain b-2 --stay", "a: drain b-3 --stay"]
    assert sorted(journal[2:4]) == ["a: drain b-2 --wait", "a: drain b-3 --wait"]
    assert journal[4:7] == [
        "b: without predictor@b-2",
        "b: without predictor@b-3",
        "a: lists b-0, b-1, c-0, c-1",
    ]


class WaitingShell(NodesShell):
    """A gateway's host where nodes that `leave` get empty when so many are waited for at once; `busy` ones do not."""

    def __init__(self, *host: Any, leave: Sequence[str], together: int, busy: str = "") -> None:
        super().__init__(*host)
        self._leave, self._busy = leave, busy
        self._barrier = threading.Barrier(together, timeout=20.0)
        self._lock = threading.Lock()
        self._now = self.most = 0
        self.waited: list[str] = []

    def run(self, script: str, *, stdin: bytes | Path = b"", timeout_s: float = 60.0, root: bool = True) -> Ran:
        asked = re.search(r"drain (\S+) --wait", script)
        if asked is None or asked[1] not in self._leave:
            return super().run(script, stdin=stdin, timeout_s=timeout_s, root=root)
        if asked[1] == self._busy:
            return Ran(1, "", f"error: {self._busy} is busy")
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
            self.waited.append(asked[1])
        try:
            self._barrier.wait()
        except threading.BrokenBarrierError:
            return Ran(1, "", "error: no other is waited for")
        finally:
            with self._lock:
                self._now -= 1
        return Ran(0, "", "")


def left(
    tmp_path: Path, release: Release, leave: Sequence[str], **waiting: Any
) -> tuple[WaitingShell, dict[str, HostReport]]:
    """What became of hosts when nodes of b left, and the gateway's host."""
    journal = Journal()
    units = {
        "b": ("astrolabe-predictor@b-0", "astrolabe-predictor@b-1", *(f"astrolabe-predictor@{node}" for node in leave)),
        "c": ("astrolabe-predictor@c-0", "astrolabe-predictor@c-1"),
    }
    nodes = {node: f"10.0.0.9:{number}" for number, node in enumerate(("b-0", "b-1", *leave, "c-0", "c-1"))}
    at_gateway = WaitingShell("a", journal, ("astrolabe-gateway",), nodes, leave=leave, **waiting)
    shells: dict[str, Shell] = {"a": at_gateway, **{name: NodesShell(name, journal, units[name], {}) for name in "bc"}}
    reports = Rollout(TWO_EACH, Kept(tmp_path / "cluster.toml"), shells).converge(release)
    return at_gateway, {report.name: report for report in reports}


@pytest.mark.parametrize(("count", "together"), [(8, 8), (3 * SESSIONS, SESSIONS)])
def test_nodes_that_leave_together_are_waited_for_together(
    tmp_path: Path, release: Release, count: int, together: int
) -> None:
    leave = [f"b-{number}" for number in range(2, 2 + count)]
    at_gateway, reports = left(tmp_path, release, leave, together=together)
    assert sorted(at_gateway.waited) == sorted(leave)
    assert at_gateway.most <= SESSIONS
    assert reports["b"].outcome == "changed"
    empty = [step for step in reports["b"].steps if step.endswith("is empty")]
    assert empty[:count] == [f"{node} is empty" for node in sorted(leave, key=lambda node: (len(node), node))]


def test_one_of_them_that_does_not_get_empty_has_none_stopped(tmp_path: Path, release: Release) -> None:
    at_gateway, reports = left(tmp_path, release, ["b-2", "b-3", "b-4"], together=2, busy="b-3")
    assert sorted(at_gateway.waited) == ["b-2", "b-4"]
    assert reports["b"].outcome == "failed"
    assert "b-3 is busy" in reports["b"].detail
    assert not [step for step in reports["b"].steps if step.startswith(("stop", "without astrolabe-predictor"))]
    assert reports["c"].outcome == "left"


def test_status_tells_of_each_node_and_sums_up() -> None:
    running = UnitFacts(active="active", enabled=True, pid=7, release=RELEASE.name)
    facts = msgspec.structs.replace(FRESH, units={f"astrolabe-predictor@b-{i}": running for i in range(3)})
    view = HostView(host=HOSTS[1], facts=facts, findings=())
    nodes = {"b-0": ("up", ""), "b-1": ("draining", ""), "b-2": ("up", "")}
    row = host_status(FLEET, view, HostReport(name="b"), {"a": nodes}, release_named(RELEASE.name))
    assert row.services == {
        "node b-0": "active",
        "node b-1": "active",
        "node b-2": "active",
        "node b-3": "inactive",
    }
    assert row.nodes == "2 up, 1 draining, 1 unknown"
    assert "astrolabe-predictor@b-3 is inactive; see: journalctl -u astrolabe-predictor@b-3" in row.trouble
    assert "a lists b-1 as draining" in row.trouble


def release_named(name: str) -> Release:
    return Release(name=name, version="0.2.0", wheel="w.whl", folder=Path("/none"))
