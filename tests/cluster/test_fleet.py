"""From three fresh hosts to a fleet, and through all that becomes of one. Real systemd, real sshd, real processes.

The tests are one story, in order: each begins where the one before it ended.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from deploy.cluster.authority import CertPair, certify
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchStub
from tests.cluster.load import TlsLoad
from tests.cluster.rig import Host, Rig

# Not marked e2e: a story cannot be run again from its middle.
pytestmark = pytest.mark.timeout(3600)

ASTROLABE = Path(sys.executable).parent / "astrolabe"
WAIT_S = 120.0


class Fleet:
    """Three hosts and their operator: h1 is a gateway, h2 gateway and node, h3 a node, later two."""

    def __init__(self, rig: Rig, folder: Path) -> None:
        self.rig = rig
        self.folder = folder
        self.hosts = {name: rig.host(name).boot() for name in ("h1", "h2", "h3")}
        for host in self.hosts.values():
            host.wait()
        self.secrets = folder / "cluster.d"
        self.ca = self.secrets / "tls/ca.crt"

    @property
    def file(self) -> Path:
        return self.folder / "cluster.toml"

    @property
    def key(self) -> str:
        return (self.secrets / "operator.key").read_text().strip()

    @property
    def gateways(self) -> list[str]:
        return [f"{self.hosts[name].address}:8200" for name in ("h1", "h2")]

    def astrolabe(self, *args: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Runs a command as the operator would, and shows what it said."""
        environment = {**os.environ, "ASTROLABE_CA": str(self.ca), "ASTROLABE_GATEWAY": self.gateways[0]}
        if self.ca.exists():
            environment["ASTROLABE_API_KEY"] = self.key
        began_s = time.monotonic()
        done = subprocess.run([ASTROLABE, *args], cwd=self.folder, capture_output=True, text=True, env=environment)
        took_s = time.monotonic() - began_s
        sys.stdout.write(f"$ astrolabe {' '.join(args)}\n{done.stdout}{done.stderr}-- {took_s:.1f} s\n")
        sys.stdout.flush()
        if code is not None:
            assert done.returncode == code, f"{args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def outcomes(self, *args: str, code: int = 0) -> dict[str, dict[str, Any]]:
        """The report of a command, by host."""
        document = json.loads(self.astrolabe("cluster", *args, "--json", code=code).stdout)
        return {host["name"]: host for host in document["hosts"]}

    def load(self, *, key: str = "", clients: int = 4) -> TlsLoad:
        return TlsLoad(self.gateways, ca=self.ca, key=key or self.key, server_name="localhost", clients=clients)

    def nodes(self) -> dict[str, str]:
        listed = json.loads(self.astrolabe("nodes", "--json").stdout)["nodes"]
        return {node["node_id"]: node["status"] for node in listed}


def until(test: Callable[[], bool], what: str, within_s: float = WAIT_S) -> None:
    end_s = time.monotonic() + within_s
    while not test():
        assert time.monotonic() < end_s, f"not within {within_s:.0f} s: {what}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Rig() as rig:
        yield Fleet(rig, tmp_path_factory.mktemp("operator"))


def failures(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Lines about hosts below the table."""
    return [line for line in done.stdout.splitlines() if re.match(r"[\w.-]+: ", line)]


def test_a_list_of_hosts_becomes_a_file_that_says_what_they_are(fleet: Fleet) -> None:
    shutil.copy(fleet.rig.ssh_config, fleet.folder / "ssh_config")
    with (fleet.folder / "ssh_config").open("a") as file:
        # Nobody is there.
        file.write("Host h9\n  HostName 10.77.0.99\n")
    fleet.astrolabe("cluster", "init", "ssh_config", "--engine", "emulated", "--gateway", "h1", "--gateway", "h2")
    text = fleet.file.read_text().replace('roles = ["node", "gateway"]', 'roles = ["gateway"]', 1)
    fleet.file.write_text(text)
    done = fleet.astrolabe("cluster", "check", code=1)
    told = [line for line in failures(done) if ": gpu: " not in line]
    assert told == ["h9: login: h9 does not answer: is it up, and is the way to it open?"]


def test_what_would_be_done_is_said_and_nothing_written(fleet: Fleet) -> None:
    planned = fleet.astrolabe("cluster", "install", "--dry-run", "--wheelhouse", str(fleet.rig.wheelhouse), code=1)
    assert "h3: start astrolabe-predictor" in planned.stdout
    assert not fleet.secrets.exists()


def test_an_installation_that_is_killed_in_the_middle_is_taken_up_and_one_host_stops_no_other(fleet: Fleet) -> None:
    command = [str(ASTROLABE), "cluster", "install", "--wheelhouse", str(fleet.rig.wheelhouse)]
    began = subprocess.Popen(command, cwd=fleet.folder, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert began.stderr is not None
    for line in began.stderr:
        if "wheels of" in line:
            break
    # In the midst of pip; what it runs on hosts is not told.
    os.killpg(began.pid, signal.SIGKILL)
    began.wait()
    began.stderr.close()
    reports = fleet.outcomes("install", code=1)
    assert {name: report["outcome"] for name, report in reports.items()} == {
        "h1": "changed",
        "h2": "changed",
        "h3": "changed",
        "h9": "failed",
    }
    assert reports["h9"]["detail"] == "login: h9 does not answer: is it up, and is the way to it open?"


def test_a_host_taken_out_of_the_file_is_a_reload_and_a_second_time_changes_nothing(fleet: Fleet) -> None:
    head, _, _ = fleet.file.read_text().partition('[[hosts]]\nname = "h9"')
    fleet.file.write_text(head)
    reports = fleet.outcomes("install")
    assert [title for title in reports["h1"]["steps"] if title.startswith("re")] == ["reload astrolabe-gateway"]
    assert reports["h3"]["outcome"] == "unchanged"
    again = fleet.outcomes("install")
    assert {report["outcome"] for report in again.values()} == {"unchanged"}
    status = json.loads(fleet.astrolabe("cluster", "status", "--json").stdout)
    assert status["ok"]
    assert {host["name"]: host["services"] for host in status["hosts"]} == {
        "h1": {"gateway": "active"},
        "h2": {"node": "active", "gateway": "active"},
        "h3": {"node": "active"},
    }


def test_what_is_secret_is_open_to_its_service_alone(fleet: Fleet) -> None:
    listed = fleet.hosts["h2"].run("stat -c '%n %U %a' /etc/astrolabe/*.toml /etc/astrolabe/tls/*").stdout
    rights = dict(line.split(" ", 1) for line in listed.splitlines())
    assert rights["/etc/astrolabe/keys.toml"] == "astrolabe 600"
    assert rights["/etc/astrolabe/tls/node.key"] == "astrolabe 600"
    assert fleet.hosts["h1"].run("find / -xdev -name 'ca.key'").stdout == ""
    assert (fleet.secrets / "ca.key").stat().st_mode & 0o777 == 0o600


def test_the_fleet_answers_and_explains_itself(fleet: Fleet) -> None:
    said = fleet.astrolabe("request", "Why is the sky blue?", "--max-tokens", "20", "--request-id", "r-first")
    assert "20 tokens" in said.stderr
    explained = fleet.astrolabe("explain", "r-first").stdout
    assert "h2" in explained
    assert "h3" in explained


def test_a_host_that_boots_anew_comes_back_by_itself(fleet: Fleet) -> None:
    fleet.hosts["h3"].reboot()
    until(lambda: fleet.nodes() == {"h2": "up", "h3": "up"}, "h3 is back")


def served_cert(host: Host, port: int) -> str:
    """Fingerprint of what a gateway's HTTP front shows."""
    pem = ssl.get_server_certificate((host.address, port))
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


def kept_cert(fleet: Fleet, name: str) -> str:
    pem = (fleet.secrets / f"tls/{name}.crt").read_text()
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


def test_new_certificates_and_a_key_taken_away_fail_no_request_of_others(fleet: Fleet) -> None:
    keys = str(fleet.secrets / "keys.toml")
    team = fleet.astrolabe("key", "create", "team-a", "--file", keys).stdout.strip()
    fleet.outcomes("install")
    before = {name: served_cert(fleet.hosts[name], 8201) for name in ("h1", "h2")}
    assert before == {name: kept_cert(fleet, name) for name in ("h1", "h2")}
    with fleet.load() as load:
        with fleet.load(key=team, clients=1) as teams:
            until(lambda: load.done >= 4 and teams.done >= 1, "requests are answered")
            reports = fleet.outcomes("rotate")
            done = load.done, teams.done
            until(lambda: load.done > done[0] and teams.done > done[1], "requests are answered afterwards")
        assert teams.failures == []
        steps = [title for report in reports.values() for title in report["steps"]]
        assert not [title for title in steps if title.startswith("restart")]
        after = {name: served_cert(fleet.hosts[name], 8201) for name in ("h1", "h2")}
        assert after == {name: kept_cert(fleet, name) for name in ("h1", "h2")}
        assert not set(before.values()) & set(after.values())
        fleet.astrolabe("key", "revoke", "team-a", "--file", keys)
        fleet.outcomes("install")
        refused = {fleet_gateway: code_of_list(fleet, fleet_gateway, team) for fleet_gateway in fleet.gateways}
        assert set(refused.values()) == {grpc.StatusCode.UNAUTHENTICATED}
        done_before = load.done
        until(lambda: load.done > done_before, "requests are answered afterwards")
    assert load.failures == []


def code_of_list(fleet: Fleet, gateway: str, key: str) -> grpc.StatusCode:
    """How a gateway ends a request of somebody with that key."""
    credentials = grpc.composite_channel_credentials(
        grpc.ssl_channel_credentials(fleet.ca.read_bytes()), grpc.access_token_call_credentials(key)
    )
    with grpc.secure_channel(gateway, credentials) as channel:
        stub = DispatchStub(channel)  # type: ignore[no-untyped-call, unused-ignore]
        try:
            list(stub.Generate(pb.GenerateRequest(text="anyone?"), timeout=30.0))
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()  # type: ignore[attr-defined, unused-ignore]
            return code
    return grpc.StatusCode.OK


def test_a_wrong_key_is_one_line(fleet: Fleet) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(fleet.folder / "stranger")], check=True)
    config = (fleet.folder / "ssh_config").read_text()
    (fleet.folder / "strange_config").write_text(config.replace(str(fleet.rig.key), str(fleet.folder / "stranger")))
    text = re.sub(r'^config = ".*"', 'config = "strange_config"', fleet.file.read_text(), flags=re.MULTILINE)
    (fleet.folder / "strange.toml").write_text(text)
    done = fleet.astrolabe("cluster", "check", "-f", "strange.toml", code=1)
    assert failures(done) == [
        f"{name}: login: {name} lets no key of yours in; add one to its authorized_keys, or name identity_file and "
        "user in [ssh]"
        for name in ("h1", "h2", "h3")
    ]


def test_an_expired_certificate_is_one_line_and_rotate_mends_it(fleet: Fleet) -> None:
    authority = CertPair(fleet.ca.read_bytes(), (fleet.secrets / "ca.key").read_bytes())
    long_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=40)
    old = certify(authority, "h3", ["10.77.0.13", "h3"], now=long_ago, days=30)
    (fleet.secrets / "tls/h3.crt").write_bytes(old.cert)
    (fleet.secrets / "tls/h3.key").write_bytes(old.key)
    reports = fleet.outcomes("install", code=1)
    assert reports["h3"]["detail"] == (
        "certificates: the certificate of h3 has expired 10 days ago; make new ones: astrolabe cluster rotate"
    )
    assert reports["h1"]["outcome"] == "unchanged"
    fleet.outcomes("rotate")
    assert fleet.nodes() == {"h2": "up", "h3": "up"}


def test_a_clock_that_is_off_is_one_line(fleet: Fleet) -> None:
    date = "#!/bin/sh\\nexec /usr/bin/date -d '+10 minutes' \\\"\\$@\\\"\\n"
    fleet.hosts["h3"].run(f'printf "{date}" > /usr/local/bin/date && chmod 755 /usr/local/bin/date')
    try:
        done = fleet.astrolabe("cluster", "check", code=1)
    finally:
        fleet.hosts["h3"].run("rm /usr/local/bin/date")
    told = [line for line in failures(done) if ": gpu: " not in line]
    assert len(told) == 1
    assert re.fullmatch(
        r"h3: clock: (599|60\d)\.\d s ahead: certificates may not hold; set it: timedatectl set-ntp true", told[0]
    )


def with_nodes(fleet: Fleet, count: int) -> None:
    """Says in the file how many nodes h3 has."""
    head, h3, tail = fleet.file.read_text().partition('name = "h3"\n')
    fleet.file.write_text(f"{head}{h3}nodes = {count}\n" + re.sub(r"^nodes = \d+\n", "", tail))


def test_a_host_has_more_nodes_and_fewer_while_requests_run(fleet: Fleet) -> None:
    # An engine that only takes its port: what counts is which services there are, and with which GPUs.
    engine = 'engine_command = "/usr/bin/python3 -m http.server --bind 127.0.0.1 {port}"\ngpus = 2\n'
    fleet.file.write_text(fleet.file.read_text().replace("[[groups]]\n", f"[[groups]]\n{engine}", 1))
    units = "systemctl list-units --plain --no-legend --state=active 'astrolabe-*' | cut -d' ' -f1"
    with fleet.load() as load:
        until(lambda: load.done >= 4, "requests are answered")
        for count in (3, 2, 1, 2):
            with_nodes(fleet, count)
            reports = fleet.outcomes("install")
            names = [f"h3-{index}" for index in range(count)] if count > 1 else ["h3"]
            assert fleet.nodes() == dict.fromkeys(["h2", *names], "up")
            wanted = [f"@{name}" for name in names] if count > 1 else [""]
            kinds = ("astrolabe-engine", "astrolabe-predictor")
            assert set(fleet.hosts["h3"].run(units).stdout.split()) == {
                f"{kind}{which}.service" for kind in kinds for which in wanted
            }
            assert reports["h2"]["steps"].count("restart astrolabe-predictor") == 0
            assert {report["outcome"] for report in fleet.outcomes("install").values()} == {"unchanged"}
        done = load.done
        until(lambda: load.done > done, "requests are answered at the end")
    assert load.failures == []
    shown = "systemctl show --property=Environment --value astrolabe-engine@h3-1"
    assert fleet.hosts["h3"].run(shown).stdout.strip() == "CUDA_VISIBLE_DEVICES=2,3"
    assert fleet.hosts["h3"].run("systemctl is-enabled astrolabe-predictor@h3-1").stdout.strip() == "enabled"
    assert fleet.hosts["h3"].run("ls /etc/astrolabe/*.toml").stdout.split() == [
        "/etc/astrolabe/node-h3-0.toml",
        "/etc/astrolabe/node-h3-1.toml",
    ]
    said = json.loads(fleet.astrolabe("cluster", "status", "--json").stdout)
    h3 = next(host for host in said["hosts"] if host["name"] == "h3")
    assert h3["services"] == {"node h3-0": "active", "node h3-1": "active"}


def test_several_nodes_come_back_after_a_boot(fleet: Fleet) -> None:
    fleet.hosts["h3"].reboot()
    until(lambda: fleet.nodes() == {"h2": "up", "h3-0": "up", "h3-1": "up"}, "h3 is back")


def test_a_release_is_replaced_and_gone_back_from_while_requests_run(fleet: Fleet) -> None:
    first = json.loads(fleet.astrolabe("cluster", "status", "--json").stdout)["release"]
    wheel = ("--wheel", str(fleet.rig.next_wheel), "--wheelhouse", str(fleet.rig.wheelhouse))
    with fleet.load() as load:
        until(lambda: load.done >= 4, "requests are answered")
        reports = fleet.outcomes("upgrade", *wheel)
        upgraded = json.loads(fleet.astrolabe("cluster", "status", "--json").stdout)
        done = load.done
        fleet.outcomes("rollback")
        until(lambda: load.done > done, "requests are answered after going back")
    assert load.failures == []
    steps = reports["h3"]["steps"]
    assert "node is empty" in reports["h2"]["steps"]
    back, empty = steps.index("h3-0 takes requests again"), steps.index("h3-1 is empty")
    assert steps.index("h3-0 is empty") < steps.index("restart astrolabe-predictor@h3-0") < back < empty
    assert upgraded["ok"]
    assert upgraded["release"] != first
    assert {release for host in upgraded["hosts"] for release in host["releases"]} == {upgraded["release"]}
    back = json.loads(fleet.astrolabe("cluster", "status", "--json").stdout)
    assert (back["ok"], back["release"]) == (True, first)


def test_an_upgrade_that_does_not_come_back_stops_and_says_how_to_go_on(fleet: Fleet) -> None:
    # Whatever the next release is, on this host its predictor cannot start.
    drop_in = "/etc/systemd/system/astrolabe-predictor.service.d"
    fleet.hosts["h2"].run(
        f"mkdir -p {drop_in} && printf '[Service]\\nExecStartPre=/bin/false\\n' > {drop_in}/broken.conf && "
        "systemctl daemon-reload"
    )
    wheel = ("--wheel", str(fleet.rig.next_wheel), "--wheelhouse", str(fleet.rig.wheelhouse))
    done = fleet.astrolabe("cluster", "upgrade", *wheel, code=1)
    assert [line.split(":")[0] for line in failures(done)] == ["h1", "h2", "h3"]
    assert "h3: not touched, because h2 did not come back" in done.stdout
    assert "or go back: astrolabe cluster rollback" in done.stderr
    assert fleet.nodes()["h3-0"] == "up"
    fleet.hosts["h2"].run(f"rm -r {drop_in} && systemctl daemon-reload")
    fleet.outcomes("rollback")
    assert fleet.nodes() == {"h2": "up", "h3-0": "up", "h3-1": "up"}


def test_a_port_in_use_is_one_line(fleet: Fleet) -> None:
    fleet.hosts["h3"].run("systemctl stop astrolabe-predictor@h3-1")
    fleet.hosts["h3"].run("systemd-run --unit squatter python3 -m http.server 8101")
    try:
        until(lambda: fleet.hosts["h3"].run("ss -Hltn 'sport = :8101'").stdout != "", "somebody listens")
        reports = fleet.outcomes("install", code=1)
        assert re.fullmatch(
            r"ports: port 8101 is in use by python3 \(process \d+\); stop that, or change port of its group",
            reports["h3"]["detail"],
        )
    finally:
        fleet.hosts["h3"].run("systemctl stop squatter")
    assert "start astrolabe-predictor@h3-1" in fleet.outcomes("install")["h3"]["steps"]


def test_a_full_disk_is_one_line(fleet: Fleet) -> None:
    small = fleet.rig.host("h4")
    small.mount_small("/opt", "200m")
    small.boot().wait()
    shutil.copy(fleet.rig.ssh_config, fleet.folder / "ssh_config")
    host = '\n[[hosts]]\nname = "h4"\naddress = "10.77.0.14"\nssh = "h4"\nroles = ["node"]\n'
    (fleet.folder / "more.toml").write_text(fleet.file.read_text() + host)
    shutil.copytree(fleet.secrets, fleet.folder / "more.d")
    done = fleet.astrolabe("cluster", "check", "-f", "more.toml", code=1)
    told = [line for line in failures(done) if ": gpu: " not in line and "h4" in line]
    assert told == ["h4: disk: 0.2 GB free at /opt, a release needs 1 GB; make room there"]
    small.stop()


def test_what_is_removed_is_gone(fleet: Fleet) -> None:
    fleet.outcomes("remove", "--yes")
    for host in fleet.hosts.values():
        left = host.run(
            "ls -d /opt/astrolabe /etc/astrolabe /var/cache/astrolabe /etc/systemd/system/astrolabe*", check=False
        )
        assert left.stdout == ""
        assert host.run("id astrolabe", check=False).returncode
        assert host.run("pgrep -f '[a]strolabe (gateway|predictor)|[h]ttp.server'", check=False).stdout == ""
    again = fleet.outcomes("remove", "--yes")
    assert {report["outcome"] for report in again.values()} == {"unchanged"}
