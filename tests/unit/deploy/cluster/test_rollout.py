"""The order of a rollout: what runs is touched one host at a time, emptied first, and the first failure stops the rest.

The hosts answer as real ones do; what they are told is kept.
"""

from __future__ import annotations

import json
import re
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from deploy.cluster.kept import Kept
from deploy.cluster.manifest import Cluster
from deploy.cluster.plan import HostStep
from deploy.cluster.release import Release, release_in
from deploy.cluster.rollout import HostReport, Rollout, step_trouble
from deploy.cluster.shell import Ran, Unreachable
from protos.runtime.config import ConfigError
from tests.unit.deploy.cluster.clusters import BEFORE, CLUSTER

FRESH_HOST = ["login=root", "is_root=yes", "systemd=252", "python=3.11.2", "venv=yes", "free_kib=99999999"]
RUNNING_HOST = [*FRESH_HOST, "user=astrolabe", f"release={BEFORE}", f"current={BEFORE}"]


FAILED_JOB = """\
Job for x.service failed because the control process exited with error code.
See "systemctl status x.service" and "journalctl -xeu x.service" for details.
"""


class Journal:
    """What all hosts were told, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._lock = threading.Lock()

    def add(self, line: str) -> None:
        with self._lock:
            self.lines.append(line)


class ScriptedShell:
    """A host with given facts. `broken`: what its scripts hold that fail."""

    def __init__(self, name: str, journal: Journal, *, runs: bool, broken: str = "", down: bool = False) -> None:
        self._name, self._journal, self._runs, self._broken, self._down = name, journal, runs, broken, down

    def run(self, script: str, *, stdin: bytes | Path = b"", timeout_s: float = 60.0, root: bool = True) -> Ran:
        if self._down:
            raise Unreachable(f"{self._name} does not answer")
        if script.startswith("date"):
            return Ran(0, "", "")
        if "login=" in script:
            units = [f"unit={u} active yes 7 {BEFORE}" for u in ("astrolabe-predictor", "astrolabe-gateway")]
            return Ran(0, "\n".join([*RUNNING_HOST, *units] if self._runs else FRESH_HOST), "")
        if "nodes --json" in script:
            nodes = [
                {"node_id": host.name, "status": "up", "detail": "", "address": f"{host.address}:8100"}
                for host in CLUSTER.hosts
            ]
            return Ran(0, json.dumps({"nodes": nodes}), "")
        if asked := re.search(r"bin/astrolabe (drain \S+ --\w+)", script):
            self._journal.add(f"{self._name}: {asked[1]}")
        elif acted := re.search(r"systemctl ((?:re)?start) [a-z0-9@-]+", script):
            self._journal.add(f"{self._name}: {acted[0]}")
        if self._broken and self._broken in script:
            return Ran(1, "", "it is broken")
        return Ran(0, "", "")


def rolled(
    tmp_path: Path, release: Release, shells: Mapping[str, ScriptedShell], cluster: Cluster = CLUSTER
) -> dict[str, HostReport]:
    rollout = Rollout(cluster, Kept(tmp_path / "cluster.toml"), shells)
    return {report.name: report for report in rollout.converge(release)}


def test_what_runs_is_restarted_one_by_one_and_emptied_first(tmp_path: Path, release: Release) -> None:
    journal = Journal()
    shells = {host.name: ScriptedShell(host.name, journal, runs=True) for host in CLUSTER.hosts}
    reports = rolled(tmp_path, release, shells)
    assert {report.outcome for report in reports.values()} == {"changed"}
    expected = []
    for name in ("a", "b", "c"):
        expected += [f"a: drain {name} --stay", f"a: drain {name} --wait"]
        expected += [f"{name}: systemctl restart astrolabe-predictor", f"a: drain {name} --undo"]
    assert journal.lines == [*expected, "a: systemctl restart astrolabe-gateway"]


def test_the_first_that_does_not_come_back_stops_the_rest(tmp_path: Path, release: Release) -> None:
    journal = Journal()
    shells = {
        name: ScriptedShell(name, journal, runs=True, broken="health_probe" if name == "b" else "") for name in "abc"
    }
    reports = rolled(tmp_path, release, shells)
    assert {name: report.outcome for name, report in reports.items()} == {"a": "left", "b": "failed", "c": "left"}
    assert reports["b"].detail == "astrolabe-predictor serves: it is broken"
    assert reports["c"].detail == "not touched, because b did not come back"
    assert not [line for line in journal.lines if line.startswith("c:") or "astrolabe-gateway" in line]


def test_on_fresh_hosts_one_failure_stops_no_other(tmp_path: Path, release: Release) -> None:
    journal = Journal()
    shells = {
        "a": ScriptedShell("a", journal, runs=False),
        "b": ScriptedShell("b", journal, runs=False, broken="-m venv"),
        "c": ScriptedShell("c", journal, runs=False, down=True),
    }
    reports = rolled(tmp_path, release, shells)
    assert {name: report.outcome for name, report in reports.items()} == {"a": "changed", "b": "failed", "c": "failed"}
    assert reports["c"].detail == "login: c does not answer"
    assert not [line for line in journal.lines if "drain" in line]


def test_the_operators_folder_is_closed_and_keeps_the_way_back(tmp_path: Path, release: Release) -> None:
    kept = Kept(tmp_path / "cluster.toml")
    key = kept.new_operator_key()
    assert key.startswith("astro-")
    assert kept.new_operator_key() == ""
    assert kept.api_key() == key
    first = kept.secrets(CLUSTER, CLUSTER.hosts[0])
    assert kept.secrets(CLUSTER, CLUSTER.hosts[0]) == first
    kept.renew(CLUSTER, CLUSTER.hosts[0])
    assert kept.secrets(CLUSTER, CLUSTER.hosts[0]).cert != first.cert
    assert kept.secrets(CLUSTER, CLUSTER.hosts[0]).ca == first.ca
    assert (tmp_path / "cluster.d").stat().st_mode & 0o777 == 0o700
    secret = ["ca.key", "operator.key", "keys.toml", "tls/a.key"]
    assert {(tmp_path / "cluster.d" / name).stat().st_mode & 0o777 for name in secret} == {0o600}


def test_a_release_is_named_by_what_is_in_it(tmp_path: Path, release: Release) -> None:
    again = tmp_path / "again"
    again.mkdir()
    with zipfile.ZipFile(again / release.wheel, "w") as wheel:
        info = zipfile.ZipInfo("astrolabe-0.2.0.dist-info/RECORD", date_time=(1999, 1, 1, 0, 0, 0))
        wheel.writestr(info, "deploy/cli.py,sha256=x,1\n")
    assert release_in(again).name == release.name
    assert release.name.startswith("0.2.0-")
    (again / release.wheel).unlink()
    with pytest.raises(ConfigError, match="has no wheel of astrolabe; make it with: pip wheel"):
        release_in(again)


@pytest.mark.parametrize(
    ("ran", "words"),
    [
        (Ran(1, "", "tar: a.whl: Cannot write: No space left on device"), "the disk is full; make room"),
        (Ran(1, "", "ERROR: No matching distribution found for numba>=0.61"), "pip finds no numba>=0.61; give all"),
        (Ran(75, "", ""), "another installation is under way"),
        (Ran(124, "", "no end after 60 s"), "no end after 60 s; look at the host"),
        (Ran(1, "", FAILED_JOB), "it failed because the control process exited with error code; see: journalctl -u x"),
        (Ran(1, "why\nit is so\n", ""), "it is so"),
    ],
)
def test_what_a_step_cannot_do_is_one_line(ran: Ran, words: str) -> None:
    line = step_trouble(HostStep(title="environment", script=""), ran)
    assert line.startswith("environment: ")
    assert words in line
    assert "\n" not in line
