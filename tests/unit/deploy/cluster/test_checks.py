"""What a host says of itself is read as it is, and what stands in the way is told with how to mend it."""

from __future__ import annotations

import base64
import datetime
import subprocess

import msgspec
import pytest

from deploy.cluster.authority import certify, days_left, new_authority, vouches_for
from deploy.cluster.checks import findings
from deploy.cluster.facts import HostFacts, HostGpu, PortListener, UnitFacts, VllmFacts, facts_script, read_facts
from deploy.cluster.layout import PREDICTOR
from deploy.cluster.manifest import Cluster, HostGroup
from deploy.cluster.shell import ssh_trouble
from tests.unit.deploy.cluster.clusters import CLUSTER, FRESH, HOSTS

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
VLLM_CLUSTER = msgspec.structs.replace(CLUSTER, groups=(HostGroup(name="all", engine="vllm", run_as="vllm"),))
SERVER = VllmFacts(pid=1, user="vllm", command="vllm serve m", port=8000, has_trace=True, version="0.32.0")


def told(facts: HostFacts, cluster: Cluster = CLUSTER, *, needs_release: bool = True) -> dict[str, tuple[str, str]]:
    found = findings(cluster, HOSTS[0], facts, needs_release=needs_release, now=NOW)
    return {finding.check: (finding.level, finding.text) for finding in found}


def test_a_fresh_host_has_nothing_in_the_way() -> None:
    assert {level for level, _ in told(FRESH).values()} == {"ok", "warn"}
    assert told(FRESH)["gpu"] == ("warn", "none: its engine is emulated and needs none")


@pytest.mark.parametrize(
    ("check", "level", "words", "changes"),
    [
        ("root", "fail", "ada is not root and has no sudo without a password", {"user": "ada", "is_root": False}),
        ("system", "fail", "Debian 12 without systemd; install by hand", {"systemd": 0}),
        ("system", "fail", "systemd 219 is older than 239", {"systemd": 219}),
        ("python", "fail", "python3 is 3.9.2; install Python 3.11", {"python": (3, 9, 2)}),
        ("python", "fail", "there is no python3; install", {"python": ()}),
        ("python", "fail", "has no venv; on Debian: apt-get install python3-venv", {"has_venv": False}),
        ("clock", "warn", "3.0 s behind: logs of hosts will not sort", {"clock_skew_s": -3.0}),
        ("clock", "fail", "600.0 s ahead: certificates may not hold", {"clock_skew_s": 600.0}),
        ("disk", "fail", "0.5 GB free at /opt, a release needs 1 GB", {"free_bytes": 5 * 10**8}),
        ("disk", "warn", "2.0 GB free at /opt: little for the next upgrades", {"free_bytes": 2 * 10**9}),
        (
            "ports",
            "fail",
            "port 8201 is in use by nginx (process 7); stop that, or change http_port in [gateway]",
            {"listeners": (PortListener(port=8201, pid=7, command="nginx"),)},
        ),
        ("certificates", "fail", "is no certificate", {"certs": {"/etc/astrolabe/tls/node.crt": b"?"}}),
    ],
)
def test_what_stands_in_the_way(check: str, level: str, words: str, changes: dict[str, object]) -> None:
    found = told(msgspec.structs.replace(FRESH, **changes))[check]
    if words == "is no certificate":
        words = "node.crt has expired by now; make new ones: astrolabe cluster rotate"
    assert found[0] == level
    assert words in found[1]


def test_our_own_listener_is_in_nobodys_way() -> None:
    ours = PortListener(port=8100, pid=7, command="astrolabe")
    running = {PREDICTOR: UnitFacts(active="active", pid=7)}
    assert told(msgspec.structs.replace(FRESH, listeners=(ours,), units=running))["ports"][0] == "ok"
    assert told(msgspec.structs.replace(FRESH, listeners=(ours,)))["ports"][0] == "fail"


def test_a_full_disk_is_no_matter_where_nothing_will_be_unpacked() -> None:
    assert told(msgspec.structs.replace(FRESH, free_bytes=0), needs_release=False)["disk"][0] == "warn"


@pytest.mark.parametrize(
    ("servers", "level", "words"),
    [
        ((), "warn", "no vLLM server runs"),
        ((SERVER,), "ok", "vLLM 0.32.0 of vllm on port 8000, traced"),
        ((msgspec.structs.replace(SERVER, has_trace=False),), "warn", "without our trace"),
        ((msgspec.structs.replace(SERVER, user="ada"),), "fail", 'set run_as = "ada" in the group'),
    ],
)
def test_the_engine(servers: tuple[VllmFacts, ...], level: str, words: str) -> None:
    facts = msgspec.structs.replace(FRESH, vllms=servers, users=frozenset({"vllm"}))
    found = told(facts, VLLM_CLUSTER)
    assert found["engine"][0] == level
    assert words in found["engine"][1]
    assert found["gpu"][0] == "fail"
    gpu = HostGpu(name="NVIDIA A30", driver="550.54")
    with_gpu = told(msgspec.structs.replace(facts, gpus=(gpu, gpu)), VLLM_CLUSTER)
    assert with_gpu["gpu"] == ("ok", "2 x NVIDIA A30, driver 550.54")


def test_a_user_that_is_not_there() -> None:
    assert told(FRESH, VLLM_CLUSTER)["users"] == (
        "fail",
        "there is no user vllm; create it, or change run_as of the group",
    )


def test_certificates_are_for_their_names_and_their_time() -> None:
    authority, stranger = new_authority("ours", now=NOW), new_authority("theirs", now=NOW)
    pair = certify(authority, "a", ["10.0.0.1", "a.lab"], now=NOW)
    assert vouches_for(authority.cert, pair.cert, ["10.0.0.1"])
    assert not vouches_for(authority.cert, pair.cert, ["10.0.0.2"])
    assert not vouches_for(stranger.cert, pair.cert, ["10.0.0.1"])
    assert days_left(pair.cert, now=NOW) == pytest.approx(825)
    facts = msgspec.structs.replace(FRESH, certs={"/etc/astrolabe/tls/node.crt": pair.cert})
    assert told(facts)["certificates"] == ("ok", "825 days left")
    late = certify(authority, "a", ["a"], now=NOW - datetime.timedelta(days=40), days=30)
    facts = msgspec.structs.replace(FRESH, certs={"/etc/astrolabe/tls/node.crt": late.cert})
    assert told(facts)["certificates"] == (
        "fail",
        "node.crt has expired 10 days ago; make new ones: astrolabe cluster rotate",
    )


def test_the_script_finds_out_about_the_machine_that_it_runs_on() -> None:
    script = facts_script(
        python="python3", users=["root", "nobody-of-that-name"], files=["/etc/passwd", "/none"], certs=["/etc/hostname"]
    )
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0
    assert done.stderr == ""
    facts = read_facts("Welcome to this host!\n" + done.stdout)
    assert facts.user
    assert facts.python >= (3,)
    assert facts.free_bytes > 0
    assert facts.users == {"root"}
    assert len(facts.files["/etc/passwd"]) == 64
    assert "/none" not in facts.files
    assert set(facts.units) == {"astrolabe-gateway", "astrolabe-predictor", "astrolabe-engine"}


def test_what_hosts_print_becomes_facts() -> None:
    printed = "\n".join(
        [
            "login=ada",
            "is_root=yes",
            "systemd=252",
            "python=3.11.2",
            "gpu=550.54, NVIDIA A30",
            'listen=LISTEN 0 128 [::]:22 [::]:* users:(("sshd",pid=5,fd=3),("systemd",pid=1,fd=4))',
            "listen=LISTEN 0 128 127.0.0.1:8000 0.0.0.0:*",
            "release=0.1.0-aaaaaaaa",
            "current=0.1.0-aaaaaaaa",
            "unit=astrolabe-predictor active yes 77 0.1.0-aaaaaaaa",
            "unit=astrolabe-engine inactive no 0 ",
            "pending=astrolabe-predictor",
            "file=" + "0" * 64 + "  /etc/astrolabe/node.toml",
            "cert=/etc/astrolabe/tls/node.crt " + base64.b64encode(b"PEM").decode(),
            "vllm=9 vllm 8000 yes 0.32.0 vllm serve m --port 8000",
        ]
    )
    facts = read_facts(printed, clock_skew_s=0.5)
    assert [(one.port, one.command, one.pid) for one in facts.listeners] == [(22, "sshd", 5), (8000, "", 0)]
    assert facts.unit(PREDICTOR) == UnitFacts(active="active", enabled=True, pid=77, release="0.1.0-aaaaaaaa")
    assert facts.files == {"/etc/astrolabe/node.toml": "0" * 64}
    assert facts.certs == {"/etc/astrolabe/tls/node.crt": b"PEM"}
    assert facts.vllms[0].command == "vllm serve m --port 8000"
    assert facts.pending == {PREDICTOR}
    assert facts.clock_skew_s == 0.5


@pytest.mark.parametrize(
    ("err", "words"),
    [
        ("root@h: Permission denied (publickey,password).", "h lets no key of yours in"),
        ("No ED25519 host key is known for h\nHost key verification failed.", "log in once by hand: ssh h"),
        ("ssh: Could not resolve hostname h: Name or service not known", "the name h is not known"),
        ("ssh: connect to host h port 22: Connection refused", "h refuses connections"),
        ("ssh: connect to host h port 22: No route to host", "h does not answer"),
        ("something new", "ssh h: something new"),
    ],
)
def test_what_ssh_cannot_do_is_one_line(err: str, words: str) -> None:
    assert words in ssh_trouble(err, "h")
    assert "\n" not in ssh_trouble(err, "h")
