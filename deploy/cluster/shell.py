"""Commands on hosts. `Shell` is what the rest knows; `SshShell` is the system's own ssh.

The system's ssh, not a library: what people have set up for it (ssh_config, agents, jump hosts, hardware keys, known
hosts) works as it does at their prompt. One connection per host is kept for all commands (ControlMaster).
"""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol

import msgspec

from deploy.cluster.manifest import ClusterHost, SshSettings

CONNECT_S = 10
SSH_FAILED = 255
TIMED_OUT = 124


class Ran(msgspec.Struct, frozen=True):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def last_words(self) -> str:
        """The last line that says something."""
        lines = [line.strip() for line in f"{self.out}\n{self.err}".splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self.code}"


class Unreachable(Exception):
    """A host cannot be logged in to. The message says why and how to mend it."""


class Shell(Protocol):
    """Where commands of one host run."""

    def run(self, script: str, *, stdin: bytes | Path = b"", timeout_s: float = 60.0, root: bool = True) -> Ran:
        """Runs a POSIX shell script, as root or as who logs in. One that outlasts its time ends with code TIMED_OUT.
        Raises Unreachable."""


class SshShell:
    """Commands over the system's ssh."""

    def __init__(self, host: ClusterHost, settings: SshSettings, *, folder: Path, sockets: Path) -> None:
        """`folder`: where relative paths of `settings` begin. `sockets`: a folder for connections that are kept."""
        self._target = host.ssh or host.address
        user, port = host.user or settings.user, host.port or settings.port
        self._options = ["-F", str(folder / Path(settings.config).expanduser())] if settings.config else []
        self._options += (
            ["-i", str(folder / Path(settings.identity_file).expanduser())] if settings.identity_file else []
        )
        self._options += [f"-o{option}" for option in settings.options]
        self._options += ["-l", user] if user else []
        self._options += ["-p", str(port)] if port else []
        self._options += ["-oBatchMode=yes", f"-oConnectTimeout={CONNECT_S}"]
        self._options += ["-oServerAliveInterval=5", "-oServerAliveCountMax=3"]
        self._kept = ["-oControlMaster=auto", f"-oControlPath={sockets}/%C", "-oControlPersist=120"]

    def run(self, script: str, *, stdin: bytes | Path = b"", timeout_s: float = 60.0, root: bool = True) -> Ran:
        command = f"sh -c {shlex.quote(script)}"
        if root:
            # Who logs in as root may have no sudo at all.
            command = f'if [ "$(id -u)" = 0 ]; then {command}; else sudo -n {command}; fi'
        ran = self._ssh([command], stdin, timeout_s)
        if ran.code == SSH_FAILED:
            raise Unreachable(ssh_trouble(ran.err, self._target))
        return ran

    def close(self) -> None:
        """Ends the connection that was kept."""
        self._ssh(["-O", "exit"], b"", CONNECT_S, before=True)

    def _ssh(self, words: Sequence[str], stdin: bytes | Path, timeout_s: float, *, before: bool = False) -> Ran:
        options = [*self._options, *self._kept]
        command = ["ssh", *options, *words, self._target] if before else ["ssh", *options, "--", self._target, *words]
        # Files, not pipes: the process that keeps the connection holds its ends open long after the command is over.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, _opened(stdin) as given:
            try:
                code = subprocess.run(command, stdin=given, stdout=out, stderr=err, timeout=timeout_s).returncode
            except subprocess.TimeoutExpired:
                return Ran(TIMED_OUT, "", f"no end after {timeout_s:.0f} s")
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
        return Ran(code, *texts)


@contextlib.contextmanager
def _opened(stdin: bytes | Path) -> Iterator[IO[bytes]]:
    if isinstance(stdin, Path):
        with stdin.open("rb") as file:
            yield file
        return
    with tempfile.TemporaryFile() as draft:
        draft.write(stdin)
        draft.seek(0)
        yield draft


_TROUBLE = (
    (
        r"Permission denied",
        "{target} lets no key of yours in; add one to its authorized_keys, or name identity_file and user in [ssh]",
    ),
    (
        r"Host key verification failed|host key is known",
        "{target}'s host key is not known here; log in once by hand: ssh {target}",
    ),
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "{target} shows another host key than before; if that is right: ssh-keygen -R {target}",
    ),
    (r"Could not resolve hostname", "the name {target} is not known; mend `ssh` or `address` of this host"),
    (r"Connection refused", "{target} refuses connections: is sshd running there, on that port?"),
    (
        r"timed out|No route to host|Network is unreachable|banner exchange",
        "{target} does not answer: is it up, and is the way to it open?",
    ),
    (
        r"UNPROTECTED PRIVATE KEY|bad permissions",
        "your private key can be read by others, so ssh leaves it alone; chmod 600 it",
    ),
    (r"Connection reset|closed by|Broken pipe|not responding", "the connection to {target} broke; run it again"),
)


def ssh_trouble(err: str, target: str) -> str:
    """One line about what ssh could not do. The first that fits of what it said last."""
    for sign, words in _TROUBLE:
        if re.search(sign, err):
            return words.format(target=target)
    return f"ssh {target}: {Ran(SSH_FAILED, '', err).last_words}"
