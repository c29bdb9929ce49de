"""Rules, dashboards and runbook name series, labels and commands that there are, by the pages of real processes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from deploy.cli import ASTROLABE
from tests.e2e.cluster import MakeCluster
from tests.e2e.test_metrics import described
from tests.monitoring.prometheus import MONITORING, NOT_INSTALLED, hurried, is_installed, metrics_address
from tests.monitoring.promql import faults, groupings_in, series_in

RULES = yaml.safe_load((MONITORING / "alerts.yml").read_text())
ALL_RULES = [rule for group in RULES["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in ALL_RULES if "alert" in rule]
DASHBOARDS = sorted((MONITORING / "dashboards").glob("*.json"))
RUNBOOK = (MONITORING.parent / "runbook.md").read_text()
SCALING = """
[scaling]
rule = "static"
connector = "advise"
lease_s = 0.0
tick_s = 0.2

[[scaling.group]]
name = "node"
profile = "a30/llama-2-7b"
"""


def panels(dashboard: Path) -> list[dict[str, Any]]:
    return [panel for panel in json.loads(dashboard.read_text())["panels"] if panel["type"] != "row"]


def in_series(page: str) -> dict[str, set[str]]:
    """Names as Prometheus has them, with their labels."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(page):
        if not family.samples:
            found[f"{family.name}_total" if family.type == "counter" else family.name] = set()
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.e2e
def test_whatever_they_name_is_on_a_page_of_a_running_cluster(make_cluster: MakeCluster, tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text(SCALING)
    cluster = make_cluster(
        nodes=1,
        predictor={"metrics_listen": "127.0.0.1:0"},
        gateway={"config": str(tmp_path / "gateway.toml")},
    )
    body = json.dumps({"prompt": "why", "max_tokens": 5}).encode()
    asked = urllib.request.Request(f"{cluster.url}/v1/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(asked, timeout=30) as answer:
        answer.read()
    known: dict[str, set[str]] = {}
    for url in (cluster.url, f"http://{metrics_address(cluster.nodes[0].log_path)}"):
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
            known |= in_series(answer.read().decode())
    assert "astrolabe_requests_total" in known
    # A family of which nothing has been counted yet shows no labels: those are as another test holds the page to be.
    for section in ("Every process", "Gateway", "Scaling", "Predictor"):
        for name, labels in described(section).items():
            if name in known:
                known[name] |= labels
    for rule in ALL_RULES:
        if "record" in rule:
            known[rule["record"]] = groupings_in(rule["expr"])
    wrong = {rule.get("alert", rule.get("record")): faults(rule["expr"], known) for rule in ALL_RULES}
    for dashboard in DASHBOARDS:
        for panel in panels(dashboard):
            for target in panel["targets"]:
                wrong[f"{dashboard.name}: {panel['title']}: {target['expr']}"] = faults(target["expr"], known)
        for variable in json.loads(dashboard.read_text())["templating"]["list"]:
            if variable["type"] == "query":
                series, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
                wrong[f"{dashboard.name}: {variable['name']}"] = faults(f"sum by ({label}) ({series})", known)
    for name in re.findall(r"`((?:astrolabe_|process_)\w+)(?:\{[^`]*)?`", RUNBOOK):
        wrong[f"runbook: {name}"] = [] if name in known else [f"no series {name}"]
    assert {what: faulty for what, faulty in wrong.items() if faulty} == {}


def test_every_alert_has_its_chapter_and_every_chapter_its_alert() -> None:
    chapters = re.findall(r"^### (\w+)$", RUNBOOK, re.MULTILINE)
    assert chapters == [rule["alert"] for rule in ALERTS], "in the order of the rules"
    for rule in ALERTS:
        assert rule["annotations"]["runbook"] == f"deploy/runbook.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_the_runbook_names_commands_and_options_that_there_are() -> None:
    commands = {name: ASTROLABE.get_command(None, name) for name in ASTROLABE.list_commands(None)}  # type: ignore[arg-type]
    named = re.findall(r"\bastrolabe ([a-z]+)\b([^`\n|]*)", " ".join(re.findall(r"`([^`]+)`", RUNBOOK)))
    assert named
    for name, _ in named:
        assert name in commands, name


def test_every_alert_is_fired_by_the_rules_own_tests() -> None:
    told = (MONITORING / "alerts_test.yml").read_text()
    assert [rule["alert"] for rule in ALERTS if f'{{alertname="{rule["alert"]}"}}' not in told] == []


@pytest.mark.skipif(not is_installed(), reason=NOT_INSTALLED)
def test_promtool_takes_rules_and_example_and_the_rules_do_as_their_tests_say(tmp_path: Path) -> None:
    for command in (
        ["check", "rules", "--lint=all", "--lint-fatal", str(MONITORING / "alerts.yml")],
        ["check", "config", "--syntax-only", str(MONITORING / "prometheus.yml")],
        ["test", "rules", str(MONITORING / "alerts_test.yml")],
    ):
        done = subprocess.run(["promtool", *command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
    # And their tests can fail.
    shutil.copy(MONITORING / "alerts_test.yml", tmp_path)
    (tmp_path / "alerts.yml").write_text(hurried((MONITORING / "alerts.yml").read_text()))
    other = subprocess.run(["promtool", "test", "rules", "alerts_test.yml"], cwd=tmp_path, capture_output=True)
    assert other.returncode != 0


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_are_what_grafana_reads(path: Path) -> None:
    """Read and written again by Grafana's records of its schema nothing is lost; what they do not know they drop."""
    models = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason="needs the extra `dev`")
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder").JSONEncoder
    told = json.loads(path.read_text())
    kept = json.loads(json.dumps(models.Dashboard.from_json(told), cls=encoder))
    assert missing(told, kept) == []
    assert told["schemaVersion"] == models.Dashboard().schema_version
    assert [v["name"] for v in told["templating"]["list"]][:2] == ["datasource", "job"]
    for panel in panels(path):
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        for target in panel["targets"]:
            assert series_in(target["expr"]), f"{panel['title']}: {target['expr']}"
    ids = [panel["id"] for panel in told["panels"]]
    assert len(set(ids)) == len(ids)


def missing(told: Any, kept: Any, at: str = "") -> list[str]:
    """Paths of what is in `told` and not in `kept`; empty values count as absent."""
    if isinstance(told, dict):
        kept = kept if isinstance(kept, dict) else {}
        return [
            path for key, value in told.items() if value not in (None, [], {}, "", False, 0)
            for path in (missing(value, kept[key], f"{at}.{key}") if key in kept else [f"{at}.{key}"])
        ]  # fmt: skip
    if isinstance(told, list):
        if not isinstance(kept, list) or len(kept) != len(told):
            return [at]
        return [
            p for i, (one, other) in enumerate(zip(told, kept, strict=True)) for p in missing(one, other, f"{at}[{i}]")
        ]
    return [] if told == kept else [f"{at}: {told!r} is {kept!r}"]
