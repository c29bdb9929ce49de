"""What is true of a host: a script that finds out, and what it printed as a record. Pure."""

from __future__ import annotations

import base64
import binascii
import re
import shlex
from collections.abc import Iterable

import msgspec

from deploy.cluster.layout import (
    ALL_UNITS,
    COMPLETE,
    CURRENT,
    ENGINE,
    ETC,
    MARK,
    PENDING,
    PREDICTOR,
    PREVIOUS,
    RELEASES,
    UNITS,
)


class UnitFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A systemd unit."""

    active: str = "inactive"
    """active, activating, failed, ..."""
    enabled: bool = False
    pid: int = 0
    release: str = ""
    """Whose Python its process runs; empty: no process of ours."""

    @property
    def is_running(self) -> bool:
        return self.active == "active"


class VllmFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A vLLM server that runs on a host."""

    pid: int
    user: str
    command: str
    port: int
    has_trace: bool
    version: str = ""
    """As it says over HTTP; empty: it does not."""


class HostGpu(msgspec.Struct, frozen=True, kw_only=True):
    """As nvidia-smi tells."""

    name: str
    driver: str


class PortListener(msgspec.Struct, frozen=True, kw_only=True):
    """A TCP port that is listened on."""

    port: int
    pid: int
    command: str
    """Empty: not told (whoever asked is not root)."""


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One host, as it is."""

    user: str = ""
    """Who logged in."""
    is_root: bool = False
    """Whether commands can run as root."""
    os: str = ""
    systemd: int = 0
    """Version; 0: systemd does not run there."""
    python: tuple[int, ...] = ()
    """Version of the configured interpreter; empty: there is none."""
    has_venv: bool = False
    free_bytes: int = 0
    """Of the file system that releases go to."""
    users: frozenset[str] = frozenset()
    """Those asked about that there are."""
    gpus: tuple[HostGpu, ...] = ()
    listeners: tuple[PortListener, ...] = ()
    vllms: tuple[VllmFacts, ...] = ()
    releases: frozenset[str] = frozenset()
    """Those that are complete."""
    current: str = ""
    previous: str = ""
    units: dict[str, UnitFacts] = {}
    pending: frozenset[str] = frozenset()
    """Units whose configuration is newer than their process."""
    files: dict[str, str] = {}
    """SHA-256 of each file asked about that there is, by path."""
    takes: dict[str, frozenset[str]] = {}
    """What engines of ours take of the host that no other can have (`desired.Service.takes`), by unit."""
    settings: str = ""
    """What the gateway's configuration says of itself (`desired.settings_mark`)."""
    certs: dict[str, bytes] = {}
    """PEM, by path."""
    clock_skew_s: float = 0.0
    """Ahead of this machine."""
    round_trip_s: float = 0.0

    def unit(self, name: str) -> UnitFacts:
        return self.units.get(name, UnitFacts())


CLOCK = "date +%s.%N"
"""Asked apart, over a connection that stands, so that the round trip can be taken off."""


def facts_script(
    *, python: str, users: Iterable[str], files: Iterable[str], certs: Iterable[str], units: Iterable[str] = ()
) -> str:
    """A POSIX shell script that prints a host's facts, one `key=value` a line. It runs as who logs in and becomes root
    where that needs no password; it changes nothing. `units`: asked about beside those that the host has of us."""
    inner = _INNER.format(
        python=shlex.quote(python),
        releases=RELEASES,
        complete=COMPLETE,
        current=CURRENT,
        previous=PREVIOUS,
        pending=PENDING,
        etc=ETC,
        units=" ".join(dict.fromkeys([*ALL_UNITS, *units])),
        users=" ".join(shlex.quote(u) for u in users),
        instances=" ".join(f"{UNITS}/{kind}@?*.service" for kind in (PREDICTOR, ENGINE)),
        mark=shlex.quote(f"^{MARK}"),
        unit_files=UNITS,
        files=" ".join(shlex.quote(f) for f in files),
        certs=" ".join(shlex.quote(c) for c in certs),
    )
    return _OUTER.format(inner=shlex.quote(inner))


_OUTER = """\
echo "login=$(id -un)"
if [ "$(id -u)" = 0 ]; then echo is_root=yes; exec sh -c {inner}; fi
if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then echo is_root=yes; exec sudo -n sh -c {inner}; fi
exec sh -c {inner}
"""

_INNER = """\
LC_ALL=C; export LC_ALL
say() {{ printf '%s=%s\\n' "$1" "$2"; }}
[ -r /etc/os-release ] && say os "$(. /etc/os-release; echo "$PRETTY_NAME")"
[ -d /run/systemd/system ] && say systemd "$(systemctl --version | sed -n '1s/^systemd \\([0-9]*\\).*/\\1/p')"
say python "$({python} -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)"
{python} -c 'import ensurepip, venv' 2>/dev/null && say venv yes
at={releases}; while [ ! -d "$at" ]; do at=$(dirname "$at"); done
say free_kib "$(df -Pk "$at" | sed -n '2p' | tr -s ' ' | cut -d' ' -f4)"
for u in {users}; do id -u "$u" >/dev/null 2>&1 && say user "$u"; done
nvidia-smi --query-gpu=driver_version,name --format=csv,noheader 2>/dev/null | sed 's/^/gpu=/'
ss -Hltnp 2>/dev/null | sed 's/^/listen=/'
for d in {releases}/*/{complete}; do [ -e "$d" ] && say release "$(basename "$(dirname "$d")")"; done
say current "$(readlink {current} | sed 's,.*/,,')"
say previous "$(readlink {previous} | sed 's,.*/,,')"
units="{units}"
for f in {instances}; do
  u=$(basename "$f" .service)
  case " $units " in *" $u "*) continue;; esac
  grep -qs {mark} "$f" && units="$units $u"
done
for u in $units; do
  f="{unit_files}/$u.service"; [ -f "$f" ] && say file "$(sha256sum "$f")"
  say takes "$u $(sed -n 's/^# Takes: //p' "$f" 2>/dev/null)"
  pid=$(systemctl show --property=MainPID --value "$u.service" 2>/dev/null)
  python=$(tr '\\0' '\\n' 2>/dev/null < "/proc/${{pid:-0}}/cmdline" | head -n 1)
  run=$(printf '%s\\n' "$python" | sed -n 's,^{releases}/\\([^/]*\\)/bin/python.*,\\1,p')
  enabled=no; systemctl is-enabled --quiet "$u.service" 2>/dev/null && enabled=yes
  active=$(systemctl is-active "$u.service" 2>/dev/null)
  say unit "$u ${{active:-unknown}} $enabled ${{pid:-0}} $run"
  [ -e "{pending}/$u" ] && say pending "$u"
done
for f in {files}; do [ -f "$f" ] && say file "$(sha256sum "$f")"; done
say settings "$(sed -n 's/^# settings: //p' {etc}/gateway.toml 2>/dev/null)"
for c in {certs}; do [ -f "$c" ] && say cert "$c $(base64 "$c" | tr -d '\\n')"; done
ask='import json, sys, urllib.request as r
direct = r.build_opener(r.ProxyHandler({{}}))
print(json.load(direct.open(f"http://127.0.0.1:{{sys.argv[1]}}/version", timeout=2))["version"])'
vllms='[v]llm serve|[v]llm.entrypoints|[v]llm-server'
ps -eo pid=,user=,args= 2>/dev/null | grep -E "$vllms" | while read -r pid user args; do
  trace=no
  case "$args" in *TraceScheduler*) trace=yes;; esac
  tr '\\0' '\\n' 2>/dev/null < "/proc/$pid/environ" | grep -qx ASTROLABE_TRACE_PLUGIN=1 && trace=yes
  port=$(printf '%s\\n' "$args" | sed -n 's/.*--port[ =]\\([0-9]*\\).*/\\1/p'); port=${{port:-8000}}
  version=$({python} -c "$ask" "$port" 2>/dev/null)
  say vllm "$pid $user $port $trace ${{version:--}} $args"
done
exit 0
"""


def read_facts(printed: str, *, clock_skew_s: float = 0.0, round_trip_s: float = 0.0) -> HostFacts:
    """The record of what `facts_script` printed. Lines that are none of its are passed over: logins greet."""
    told: dict[str, list[str]] = {}
    for line in printed.splitlines():
        key, _, value = line.partition("=")
        told.setdefault(key, []).append(value.strip())

    def one(key: str) -> str:
        return told.get(key, [""])[-1]

    return HostFacts(
        user=one("login"),
        is_root=one("is_root") == "yes",
        os=one("os"),
        systemd=_number(one("systemd")),
        python=tuple(int(part) for part in one("python").split(".") if part.isdigit()),
        has_venv=one("venv") == "yes",
        free_bytes=_number(one("free_kib")) * 1024,
        users=frozenset(told.get("user", ())),
        gpus=tuple(
            HostGpu(driver=driver.strip(), name=name.strip())
            for driver, _, name in (line.partition(",") for line in told.get("gpu", ()))
            if name
        ),
        listeners=tuple(found for line in told.get("listen", ()) if (found := _listener(line))),
        vllms=tuple(server for line in told.get("vllm", ()) if (server := _vllm(line))),
        releases=frozenset(told.get("release", ())),
        current=one("current"),
        previous=one("previous"),
        units=dict(_unit(line) for line in told.get("unit", ())),
        pending=frozenset(told.get("pending", ())),
        files={path.strip(): digest for digest, _, path in (line.partition(" ") for line in told.get("file", ()))},
        takes={unit: frozenset(words) for unit, *words in (line.split() for line in told.get("takes", ()))},
        settings=one("settings"),
        certs={path: _decoded(text) for path, _, text in (line.partition(" ") for line in told.get("cert", ()))},
        clock_skew_s=clock_skew_s,
        round_trip_s=round_trip_s,
    )


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _listener(line: str) -> PortListener | None:
    """A line of `ss -Hltnp`: state, two queues, local address, peer, processes."""
    parts = line.split(None, 5)
    port = parts[3].rpartition(":")[2] if len(parts) > 3 else ""
    process = re.search(r'\("([^"]*)",pid=(\d+)', parts[5]) if len(parts) > 5 else None
    if not port.isdigit():
        return None
    return PortListener(port=int(port), pid=int(process[2]) if process else 0, command=process[1] if process else "")


def _vllm(line: str) -> VllmFacts | None:
    parts = line.split(None, 5)
    if len(parts) < 6 or not (parts[0].isdigit() and parts[2].isdigit()):
        return None
    pid, user, port, trace, version, command = parts
    return VllmFacts(
        pid=int(pid),
        user=user,
        port=int(port),
        has_trace=trace == "yes",
        version="" if version == "-" else version,
        command=command,
    )


def _unit(line: str) -> tuple[str, UnitFacts]:
    name, active, enabled, pid, release = (*line.split(), "", "", "", "", "")[:5]
    return name, UnitFacts(active=active, enabled=enabled == "yes", pid=_number(pid), release=release)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
