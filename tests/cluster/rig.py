"""Hosts to install on: Debian systems with a real systemd as process 1 and a real sshd, on a network of their own.

Each is a container of `systemd-nspawn` over one shared base (overlayfs), its own network card in one bridge. All of it
lives in the mount, network and process namespaces that `make test-cluster` opens with `unshare --kill-child`: when the
tests end, or are killed, the kernel takes processes, mounts and networks away. Folders on disk and empty control groups
have no such owner: `sweep` removes those of runs that are over, before and after each run.

Needs root, and on Debian: apt-get install systemd-container mmdebstrap openssh-client.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

HOME = Path(os.environ.get("ASTROLABE_RIG_HOME", "/var/tmp/astrolabe-rig"))
"""The base system, made once, and the folders of runs."""
PACKAGES = "systemd,systemd-sysv,dbus,openssh-server,python3,python3-venv,sudo,iproute2,procps"
SUITE = "bookworm"
NETWORK = "10.77.0"
ENTERED = "ASTROLABE_RIG"
"""Set by `make test-cluster` inside of the namespaces."""
REBOOT_CODE = 133
"""What systemd-nspawn --keep-unit ends with when its system wants to boot anew."""
BOOT_S = 120.0
CGROUPS = "astrolabe-rig-"
CHECKOUT = Path(__file__).resolve().parents[2]


def base_system() -> Path:
    """The folder of the base system; made the first time (some minutes, from the configured Debian mirror)."""
    base = HOME / f"base-{SUITE}"
    if not base.exists():
        HOME.mkdir(parents=True, exist_ok=True)
        made = base.with_suffix(f".{os.getpid()}")
        subprocess.run(["mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(made)], check=True)
        # Host keys are each host's own.
        for key in (made / "etc/ssh").glob("ssh_host_*"):
            key.unlink()
        made.rename(base)
    return base


def wheels() -> tuple[Path, Path]:
    """A folder with the wheels of this checkout and all that it needs, and the wheel of a release that comes after."""
    return HOME / "wheels", next((HOME / "next").glob("astrolabe-*.whl"))


def prepare() -> None:
    """All that needs the network, outside of the rig: the base system, and the wheels of this checkout as it is."""
    base_system()
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet"]
    with tempfile.TemporaryDirectory(prefix="astrolabe-wheel-") as folder:
        copy = Path(folder) / "astrolabe"
        ignored = shutil.ignore_patterns(".*", "build", "dist", "results", "tests", "*.egg-info")
        shutil.copytree(CHECKOUT, copy, ignore=ignored)
        for name in ("wheels", "next"):
            for old in (HOME / name).glob("astrolabe-*.whl"):
                old.unlink()
        subprocess.run(
            [*pip, "--find-links", str(HOME / "wheels"), "--wheel-dir", str(HOME / "wheels"), copy], check=True
        )
        shutil.rmtree(copy / "build", ignore_errors=True)
        project = copy / "pyproject.toml"
        project.write_text(
            re.sub(r'^version = "(.*)"', r'version = "\1.post1"', project.read_text(), flags=re.MULTILINE)
        )
        subprocess.run([*pip, "--no-deps", "--wheel-dir", str(HOME / "next"), copy], check=True)


class Host:
    """One system: booted by `boot`, gone with the rig."""

    def __init__(self, rig: Rig, name: str, number: int) -> None:
        self.name = name
        self.address = f"{NETWORK}.{number}"
        self.root = rig.folder / name / "root"
        self._rig = rig
        self._keeper: subprocess.Popen[bytes] | None = None
        layers = [rig.folder / name / layer for layer in ("upper", "work", "root")]
        for layer in layers:
            layer.mkdir(parents=True)
        options = f"lowerdir={rig.base},upperdir={layers[0]},workdir={layers[1]}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(self.root)], check=True)
        self._write("etc/hostname", f"{name}\n")
        self._write("etc/systemd/system/rig-network.service", NETWORK_UNIT.format(address=self.address))
        self._write("etc/systemd/system/rig-host-keys.service", HOST_KEYS_UNIT)
        wants = self.root / "etc/systemd/system/multi-user.target.wants"
        for unit in ("rig-network.service", "rig-host-keys.service"):
            (wants / unit).symlink_to(f"../{unit}")
        self._write("root/.ssh/authorized_keys", rig.key.with_suffix(".pub").read_text(), mode=0o600)
        (self.root / "root/.ssh").chmod(0o700)

    def _write(self, path: str, text: str, mode: int = 0o644) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def mount_small(self, path: str, size: str) -> None:
        """A file system of that size (`20m`) at a path; before `boot`."""
        where = self.root / path.lstrip("/")
        where.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(where)], check=True)

    def boot(self) -> Host:
        """Starts the system; `wait` says when one can log in."""
        command = [sys.executable, "-m", "tests.cluster.rig", "keep", self.name, str(self.root), self._rig.cgroup]
        with (self._rig.folder / self.name / "console.log").open("ab") as log:
            self._keeper = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return self

    def wait(self) -> Host:
        """Returns when one can log in."""
        until_s = time.monotonic() + BOOT_S
        while self.run("true", check=False).returncode:
            if time.monotonic() > until_s:
                raise TimeoutError(f"{self.name} does not answer: {self.console()[-2000:]}")
            time.sleep(0.2)
        return self

    def run(self, command: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A shell command over ssh as root."""
        ssh = ["ssh", "-F", str(self._rig.ssh_config), f"root@{self.address}", command]
        done = subprocess.run(ssh, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if check and done.returncode:
            raise AssertionError(f"{self.name}: {command!r} ended with {done.returncode}: {done.stderr}{done.stdout}")
        return done

    def boot_id(self) -> str:
        # The kernel's own boot_id is that of the machine below: what tells boots apart is when process 1 began.
        return self.run("systemctl show --property=UserspaceTimestampMonotonic --value").stdout.strip()

    def reboot(self) -> None:
        """Returns when it has come back."""
        before = self.boot_id()
        self.run("systemctl reboot", check=False)
        until_s = time.monotonic() + BOOT_S
        while True:
            done = self.run("systemctl show --property=UserspaceTimestampMonotonic --value", check=False)
            if not done.returncode and done.stdout.strip() != before:
                return
            if time.monotonic() > until_s:
                raise TimeoutError(f"{self.name} does not come back: {self.console()[-2000:]}")
            time.sleep(0.2)

    def stop(self) -> None:
        """Pulls the plug."""
        if self._keeper is not None:
            self._keeper.kill()
            self._keeper.wait()
            self._keeper = None

    def console(self) -> str:
        return (self._rig.folder / self.name / "console.log").read_text(errors="replace")


class Rig:
    """A network and the hosts on it."""

    def __init__(self) -> None:
        if os.environ.get(ENTERED) != "1" or os.getuid():
            raise RuntimeError("the rig wants namespaces of its own and root; run: make test-cluster")
        sweep()
        self.base = base_system()
        self.folder = HOME / f"run-{os.urandom(4).hex()}"
        self.folder.mkdir(parents=True)
        self.cgroup = f"{CGROUPS}{self.folder.name}"
        self.key = self.folder / "id"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)], check=True)
        self.ssh_config = self.folder / "ssh_config"
        self.ssh_config.write_text(SSH_CONFIG.format(key=self.key))
        self.wheelhouse, self.next_wheel = wheels()
        self._hosts: list[Host] = []
        # systemd-nspawn removes what it keeps in /run of a memory file system only.
        commands = [
            "mount --make-rprivate /",
            "mount -t tmpfs tmpfs /run",
            "ip link set lo up",
            "ip link add rig type bridge",
            f"ip addr add {NETWORK}.1/24 dev rig",
            "ip link set rig up",
        ]
        for command in commands:
            subprocess.run(command.split(), check=True)

    def host(self, name: str) -> Host:
        """A fresh one, not booted yet."""
        host = Host(self, name, 11 + len(self._hosts))
        self._hosts.append(host)
        with self.ssh_config.open("a") as file:
            file.write(f"Host {name}\n  HostName {host.address}\n")
        return host

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for host in self._hosts:
            host.stop()
        for host in self._hosts:
            subprocess.run(["umount", "--recursive", "--lazy", str(host.root)], check=False)
        subprocess.run(["ip", "link", "del", "rig"], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


NETWORK_UNIT = """\
[Unit]
Description=The network card of the rig
Before=ssh.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'ip addr add {address}/24 dev host0 && ip link set host0 up'
"""
HOST_KEYS_UNIT = """\
[Unit]
Description=This host's own ssh keys
Before=ssh.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/ssh-keygen -A
"""
SSH_CONFIG = """\
Host *
  User root
  IdentityFile {key}
  IdentitiesOnly yes
  IdentityAgent none
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
  ConnectTimeout 5
  ServerAliveInterval 2
"""


def keep(name: str, root: str, cgroup: str) -> int:
    """Boots a system in a control group of its own, and again whenever it asks for it. It ends with this process."""
    command = ["systemd-nspawn", "--quiet", "--boot", "--keep-unit", "--register=no", "--console=pipe"]
    command += ["--link-journal=no", "--resolv-conf=off", "--timezone=off", "--network-bridge=rig"]
    command += [f"--directory={root}", f"--machine={name}", f"--hostname={name}"]
    for hierarchy in _hierarchies():
        group = hierarchy / cgroup / name
        group.mkdir(parents=True, exist_ok=True)
        (group / "cgroup.procs").write_text(str(os.getpid()))
    while True:
        done = subprocess.run(["setpriv", "--pdeathsig", "KILL", *command], stdin=subprocess.DEVNULL)
        if done.returncode != REBOOT_CODE:
            return done.returncode


def sweep() -> None:
    """Removes what runs that are over have left on disk and among the control groups."""
    for hierarchy in _hierarchies():
        for group in hierarchy.glob(f"{CGROUPS}*"):
            # The kernel refuses to remove one with processes in it: those of a run that goes on.
            with contextlib.suppress(OSError):
                for below in sorted(group.rglob("*/"), reverse=True):
                    below.rmdir()
                group.rmdir()
    running = {g.name.removeprefix(CGROUPS) for h in _hierarchies() for g in h.glob(f"{CGROUPS}*")}
    for run in HOME.glob("run-*"):
        if run.name not in running:
            shutil.rmtree(run, ignore_errors=True)


def _hierarchies() -> list[Path]:
    """Where systemd's control groups are mounted: the unified hierarchy, and beside it, on older systems, its own."""
    mounts = Path("/proc/self/mounts").read_text()
    return [Path(m[1]) for m in re.finditer(r"^\S+ (\S+) (?:cgroup2 |cgroup \S*name=systemd)", mounts, re.MULTILINE)]


if __name__ == "__main__":
    if sys.argv[1] == "keep":
        sys.exit(keep(*sys.argv[2:]))
    elif sys.argv[1] == "sweep":
        sweep()
    elif sys.argv[1] == "prepare":
        prepare()
