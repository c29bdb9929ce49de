"""What is only to be said is only said: nothing is written, on hosts or beside cluster.toml."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy.cluster.kept import Kept
from deploy.cluster.release import Release
from deploy.cluster.rollout import Rollout
from deploy.commands.cluster import cluster
from protos.runtime.config import ConfigError
from tests.unit.deploy.cluster.clusters import CLUSTER, HOSTS
from tests.unit.deploy.cluster.test_rollout import Journal, ScriptedShell

FILE = '[[groups]]\nname = "g"\n[[hosts]]\nname = "a"\naddress = "a.invalid"\nroles = ["node", "gateway"]\n'


def test_a_folder_that_is_only_looked_at_stays_as_it_is(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "cluster.toml", writes=False)
    first = kept.secrets(CLUSTER, HOSTS[1])
    assert kept.secrets(CLUSTER, HOSTS[1]) == first
    assert first.api_keys.startswith(b"# API keys")
    assert kept.new_operator_key() == ""
    with pytest.raises(ConfigError, match="no such file"):
        kept.take(wheel=tmp_path / "none.whl", wheelhouse=None)
    kept.close()
    assert list(tmp_path.iterdir()) == []


def test_certificates_that_are_there_are_those_that_count(tmp_path: Path) -> None:
    made = Kept(tmp_path / "cluster.toml").secrets(CLUSTER, HOSTS[1])
    assert Kept(tmp_path / "cluster.toml", writes=False).secrets(CLUSTER, HOSTS[1]) == made


def test_a_fresh_cluster_is_planned_without_a_trace(tmp_path: Path, release: Release) -> None:
    journal = Journal()
    shells = {host.name: ScriptedShell(host.name, journal, runs=False) for host in CLUSTER.hosts}
    rollout = Rollout(CLUSTER, Kept(tmp_path / "operator/cluster.toml", writes=False), shells)
    reports = rollout.converge(release, dry_run=True)
    assert all("start astrolabe-predictor" in report.steps for report in reports)
    assert journal.lines == []
    assert not (tmp_path / "operator").exists()


@pytest.mark.parametrize("command", ["install", "upgrade"])
def test_a_dry_run_makes_no_folder_of_keys(tmp_path: Path, release: Release, command: str) -> None:
    (tmp_path / "made").mkdir()
    file = tmp_path / "made/cluster.toml"
    file.write_text(FILE)
    wheel = str(tmp_path / release.wheel)
    done = CliRunner().invoke(cluster, [command, "-f", str(file), "--wheel", wheel, "--dry-run"])
    assert "a: login: the name a.invalid is not known" in done.output
    assert "admin key" not in done.output
    assert list((tmp_path / "made").iterdir()) == [file]
