"""From what a host is to what it should be: no step too many, none too few, whatever was cut off before."""

from __future__ import annotations

import msgspec
import pytest

from deploy.cluster.desired import ManagedFile
from deploy.cluster.facts import HostFacts, UnitFacts
from deploy.cluster.layout import ENGINE, GATEWAY, PREDICTOR
from deploy.cluster.manifest import HostGroup
from deploy.cluster.plan import HostPlan, plan, removal
from tests.unit.deploy.cluster.clusters import BEFORE, CLUSTER, FRESH, HOSTS, RELEASE, SECRETS, TAR, installed, wanted


def planned(facts: HostFacts, **changes: object) -> HostPlan:
    return plan(facts, wanted(**changes), RELEASE, TAR)  # type: ignore[arg-type]


def titles(host_plan: HostPlan) -> list[str]:
    return [step.title for step in host_plan.steps()]


def changes(host_plan: HostPlan) -> dict[str, str]:
    return {service.role: service.change for service in host_plan.services}


def test_a_fresh_host_gets_all_of_it_the_node_before_the_gateway() -> None:
    got = titles(planned(FRESH))
    assert got[:5] == [
        "user astrolabe",
        f"wheels of {RELEASE.name}",
        f"environment of {RELEASE.name}",
        "compiled kernels",
        f"{RELEASE.name} complete",
    ]
    assert changes(planned(FRESH)) == {"node": "start", "gateway": "start"}
    assert got.index(f"{PREDICTOR} serves") < got.index(f"start {GATEWAY}") < got.index(f"{GATEWAY} serves")


@pytest.mark.parametrize("host", HOSTS, ids=lambda h: h.name)
def test_nothing_is_done_where_nothing_is_missing(host: object) -> None:
    assert planned(installed(host), host=host).is_empty  # type: ignore[arg-type]


def test_another_release_restarts_both_and_keeps_the_way_back() -> None:
    facts = installed(release=BEFORE)
    got = planned(facts)
    assert changes(got) == {"node": "restart", "gateway": "restart"}
    switch = next(step for step in got.steps() if step.title == f"current is {RELEASE.name}")
    assert f"releases/{BEFORE} /opt/astrolabe/previous" in switch.script
    older = msgspec.structs.replace(facts, releases=frozenset({BEFORE, "0.0.9-cccccccc"}))
    assert "without 0.0.9-cccccccc" in titles(planned(older))


def test_a_service_that_still_runs_the_old_release_is_restarted_although_the_link_is_new() -> None:
    facts = installed()
    old = UnitFacts(active="active", enabled=True, pid=7, release=BEFORE)
    assert changes(planned(msgspec.structs.replace(facts, units={**facts.units, GATEWAY: old}))) == {
        "node": "none",
        "gateway": "restart",
    }


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/etc/astrolabe/tls/node.crt", {"node": "reload", "gateway": "none"}),
        ("/etc/astrolabe/keys.toml", {"node": "none", "gateway": "reload"}),
        ("/etc/astrolabe/gateway.toml", {"node": "none", "gateway": "reload"}),
        ("/etc/astrolabe/node.toml", {"node": "restart", "gateway": "none"}),
        ("/etc/systemd/system/astrolabe-gateway.service", {"node": "none", "gateway": "restart"}),
        ("/etc/astrolabe/tls/ca.crt", {"node": "reload", "gateway": "reload"}),
    ],
)
def test_a_service_goes_through_no_more_than_its_files_ask_for(path: str, expected: dict[str, str]) -> None:
    facts = installed()
    assert changes(planned(msgspec.structs.replace(facts, files=facts.files | {path: "another"}))) == expected


def test_other_settings_than_nodes_want_a_restart_of_the_gateway() -> None:
    other = msgspec.structs.replace(
        CLUSTER, gateway=msgspec.structs.replace(CLUSTER.gateway, config={"router": {"policy": "round_robin"}})
    )
    assert changes(planned(installed(), cluster=other))["gateway"] == "restart"
    fewer = msgspec.structs.replace(CLUSTER, hosts=HOSTS[:2])
    assert changes(planned(installed(), cluster=fewer))["gateway"] == "reload"


def test_what_was_cut_off_between_a_file_and_the_restart_is_made_good() -> None:
    facts = msgspec.structs.replace(installed(), pending=frozenset({PREDICTOR}))
    assert changes(planned(facts)) == {"node": "restart", "gateway": "none"}
    got = planned(FRESH)
    note = titles(got).index(f"note that {PREDICTOR} has news")
    assert note < titles(got).index("/etc/astrolabe/node.toml")


def test_what_was_cut_off_in_the_environment_is_built_again() -> None:
    facts = msgspec.structs.replace(FRESH, users=frozenset({"astrolabe"}))
    environment = next(s for s in planned(facts).prepare if s.title.startswith("environment"))
    assert environment.script.startswith("set -e; rm -rf /opt/astrolabe/releases/")


def test_a_service_that_failed_or_is_off_at_boot_is_mended() -> None:
    facts = installed()
    dead = UnitFacts(active="failed", enabled=True)
    got = planned(msgspec.structs.replace(facts, units={**facts.units, PREDICTOR: dead}))
    assert changes(got) == {"node": "start", "gateway": "none"}
    disabled = UnitFacts(active="active", enabled=False, pid=7, release=RELEASE.name)
    got = planned(msgspec.structs.replace(facts, units={**facts.units, PREDICTOR: disabled}))
    assert titles(got) == [f"{PREDICTOR} at boot"]


def test_a_host_that_is_no_gateway_any_more_loses_that_service() -> None:
    facts = installed(HOSTS[0])
    got = planned(facts, host=msgspec.structs.replace(HOSTS[0], roles=("node",)))
    assert titles(got) == [f"without {GATEWAY}"]


def test_secrets_are_in_no_command_line() -> None:
    for step in planned(FRESH).steps():
        for secret in (SECRETS.key, SECRETS.api_keys):
            assert secret.decode() not in step.script.replace("KEYS_", "")
    keys = [f for f in wanted().files() if f.content == SECRETS.key]
    assert [(f.owner, f.mode) for f in keys] == [("astrolabe", 0o600)] * 2


def test_an_engine_of_a_group_is_a_service_of_its_own_that_upgrades_leave_alone() -> None:
    group = HostGroup(name="all", engine="vllm", engine_command="/opt/vllm/bin/vllm serve m", run_as="vllm")
    cluster = msgspec.structs.replace(CLUSTER, groups=(group,))
    facts = installed(HOSTS[1], cluster=cluster, release=BEFORE)
    running = UnitFacts(active="active", enabled=True, pid=9)
    facts = msgspec.structs.replace(facts, units={**facts.units, ENGINE: running}, users=frozenset({"vllm"}))
    got = planned(facts, host=HOSTS[1], cluster=cluster)
    assert changes(got) == {"node": "restart"}
    assert not [title for title in titles(got) if ENGINE in title]
    fresh = planned(FRESH, host=HOSTS[1], cluster=cluster)
    assert titles(fresh).index(f"start {ENGINE}") < titles(fresh).index(f"start {PREDICTOR}")
    assert "user astrolabe" not in titles(fresh)


def test_without_tls_there_are_no_certificates_and_the_gates_ask_plainly() -> None:
    cluster = msgspec.structs.replace(CLUSTER, tls=False)
    files = {f.name: f for f in wanted(cluster=cluster).files()}
    assert set(files) == {"astrolabe-predictor.service", "node.toml", "astrolabe-gateway.service", "gateway.toml"}
    assert b"insecure = true" in files["node.toml"].content
    steps = planned(FRESH, cluster=cluster).steps()
    assert all("--ca" not in step.script for step in steps if step.title.endswith("serves"))


def test_removal_leaves_nothing_and_does_nothing_twice() -> None:
    assert [step.title for step in removal(installed())] == [
        f"without {GATEWAY}",
        f"without {PREDICTOR}",
        "without files",
        "without user astrolabe",
    ]
    assert removal(FRESH) == []


def test_a_file_knows_itself_by_content() -> None:
    one = ManagedFile(path="/etc/astrolabe/node.toml", content=b"a")
    assert one.digest != msgspec.structs.replace(one, content=b"b").digest
