"""From a host as it is to one as it should be: the steps. Decides from facts alone.

A step is a shell script, with what it reads from standard input: nothing on a command line is secret. Steps look at
nothing; whether one is needed has been decided from the host's facts. Each can be done again after it was cut off.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from deploy.cluster.desired import GATEWAY_TOML, Desired, ManagedFile, Service, settings_mark
from deploy.cluster.facts import HostFacts
from deploy.cluster.layout import (
    ALL_UNITS,
    CACHE,
    COMPLETE,
    CURRENT,
    ENGINE,
    ETC,
    GATEWAY,
    OPT,
    PENDING,
    PREDICTOR,
    PREVIOUS,
    RELEASES,
    TLS,
    configuration_of,
    instance_of,
    kind_of,
    unit_file,
    unit_of,
)
from deploy.cluster.manifest import Role
from deploy.cluster.release import Release

Change = Literal["none", "reload", "restart", "start"]
"""What a service goes through: `restart` of one that runs is what must be done gently."""

QUICK_S = 60.0
UPLOAD_S = 1800.0
BUILD_S = 1800.0
START_S = 300.0
REMOVE_S = 600.0
"""An environment has tens of thousands of files, and a busy disk takes its time over each."""


class HostStep(msgspec.Struct, frozen=True, kw_only=True):
    """One change of a host."""

    title: str
    """What it does, for people."""
    script: str
    """POSIX shell, run as root."""
    stdin: bytes | Path = b""
    timeout_s: float = QUICK_S


class ServicePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What brings one service of a host to where it should be."""

    role: Role
    name: str
    """The node's; a gateway's is its host's."""
    change: Change
    steps: tuple[HostStep, ...] = ()
    """Up to its start."""
    settle: tuple[HostStep, ...] = ()
    """Until it serves."""


class LeavePlan(msgspec.Struct, frozen=True, kw_only=True):
    """Nodes that a host has no more, or that are in another one's way and start again after it."""

    nodes: tuple[str, ...] = ()
    """Those that run, by name: they are to be empty first."""
    steps: tuple[HostStep, ...] = ()


class HostPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What brings a host to where it should be."""

    prepare: tuple[HostStep, ...]
    """Disturbs nothing that runs."""
    leave: LeavePlan = LeavePlan()
    """Comes before any of its nodes starts: a new one may have an old one's port and GPUs."""
    services: tuple[ServicePlan, ...]
    """Nodes before gateways."""
    finish: tuple[HostStep, ...]
    """Once the services run."""

    @property
    def is_empty(self) -> bool:
        return not self.steps()

    def steps(self) -> list[HostStep]:
        services = (step for plan in self.services for step in (*plan.steps, *plan.settle))
        return [*self.prepare, *self.leave.steps, *services, *self.finish]


def plan(facts: HostFacts, wanted: Desired, release: Release, tar: Path) -> HostPlan:
    """`tar`: where the wheels of the release will lie packed when steps are carried out."""
    in_the_way = _in_the_way(facts, wanted)
    services = tuple(_service(facts, wanted, service, in_the_way) for service in wanted.services)
    return HostPlan(
        prepare=tuple(_prepare(facts, wanted, release, tar)),
        leave=_leave(facts, wanted, in_the_way),
        services=services,
        finish=tuple(_finish(facts, wanted)),
    )


def _prepare(facts: HostFacts, wanted: Desired, release: Release, tar: Path) -> Iterator[HostStep]:
    if "astrolabe" in wanted.users() and "astrolabe" not in facts.users:
        script = "useradd --system --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin astrolabe"
        yield HostStep(title="user astrolabe", script=f"id -u astrolabe >/dev/null 2>&1 || {script}")
    if wanted.release in facts.releases:
        return
    folder, incoming = f"{RELEASES}/{release.name}", f"{OPT}/incoming/{release.name}"
    yield HostStep(
        title=f"wheels of {release.name}",
        script=f"set -e; rm -rf {incoming}; mkdir -p {incoming}; tar -x -C {incoming}",
        stdin=tar,
        timeout_s=UPLOAD_S,
    )
    extras = f"[{','.join(wanted.extras)}]" if wanted.extras else ""
    where = f"--no-index --find-links {incoming}" if release.has_all else f"--find-links {incoming}"
    yield HostStep(
        title=f"environment of {release.name}",
        script=(
            f"set -e; rm -rf {folder}; mkdir -p {RELEASES}; {shlex.quote(wanted.python)} -m venv {folder}; "
            f"{folder}/bin/python -m pip install --quiet --disable-pip-version-check --no-cache-dir {where} "
            f"'{incoming}/{release.wheel}{extras}'"
        ),
        timeout_s=BUILD_S,
    )
    for user in dict.fromkeys(service.user for service in wanted.services if service.role == "node"):
        yield HostStep(title="compiled kernels", script=_compile(folder, user), timeout_s=BUILD_S)
    yield HostStep(title=f"{release.name} complete", script=f"touch {folder}/{COMPLETE} && rm -rf {OPT}/incoming")


def _compile(folder: str, user: str) -> str:
    """Before the service needs them, as its user, where its unit looks for them."""
    code = "import asyncio; from protos.runtime.kernels import kernels_ready as k; asyncio.run(k('warm_node'))"
    cache = f"{CACHE}/predictor"
    environment = f"NUMBA_CACHE_DIR={cache} HOME=/nonexistent"
    return (
        f"set -e; install -d -o {user} -m 755 {cache}; chown -R {user} {cache}; cd /; "
        f"runuser -u {user} -- env {environment} {folder}/bin/python -P -c {shlex.quote(code)}"
    )


def _in_the_way(facts: HostFacts, wanted: Desired) -> set[str]:
    """Units of nodes that stay and have, for now, a port or a GPU that another node of the host is to have."""
    ports = {service.unit: int(service.address.rpartition(":")[2]) for service in wanted.services}
    nodes = {facts.unit(unit).pid: unit for unit in ports if kind_of(unit) == PREDICTOR and facts.unit(unit).is_running}
    found = {
        unit
        for listener in facts.listeners
        if listener.pid and (unit := nodes.get(listener.pid)) and listener.port in set(ports.values()) - {ports[unit]}
    }
    for service in wanted.services:
        others = {taken for other in wanted.services if other is not service for taken in other.takes}
        if facts.unit(service.engine_unit).is_running and facts.takes.get(service.engine_unit, frozenset()) & others:
            found |= {service.unit, service.engine_unit}
    return found


def _leave(facts: HostFacts, wanted: Desired, in_the_way: set[str]) -> LeavePlan:
    """Takes nodes off that are not wanted, engines with them, and stops those that are in the way of others."""
    gone = [unit for unit in _unwanted(facts, wanted) if kind_of(unit) == PREDICTOR]
    engines = [unit for unit in _unwanted(facts, wanted) if kind_of(unit) == ENGINE]
    stay = {service.unit for service in wanted.services}
    removed = [*gone, *(unit for unit in engines if unit_of(PREDICTOR, instance_of(unit)) not in stay)]
    steps = [*_stop(facts, removed, in_the_way), *(remove_unit(unit) for unit in removed)]
    stopped = [unit for unit in sorted(in_the_way, key=_stop_order) if kind_of(unit) == PREDICTOR]
    nodes = [instance_of(unit) or wanted.host for unit in [*stopped, *gone] if facts.unit(unit).is_running]
    return LeavePlan(nodes=tuple(nodes), steps=tuple(steps))


def _stop(facts: HostFacts, removed: Iterable[str], others: Collection[str] = ()) -> Iterator[HostStep]:
    """Stops `others`, and with them what is removed afterwards: all of a kind at the same time, for engines take long
    to end. One that is removed alone stops when it is."""
    units = {*others, *(unit for unit in removed if facts.unit(unit).is_running)}
    for kind in ALL_UNITS:
        here = sorted((unit for unit in units if kind_of(unit) == kind), key=_stop_order)
        if len(here) > 1 or any(unit in others for unit in here):
            title = f"stop {here[0]}" if len(here) == 1 else f"stop {len(here)} of {kind}"
            yield HostStep(title=title, script=f"systemctl stop {' '.join(here)}", timeout_s=120.0)


def _unwanted(facts: HostFacts, wanted: Desired) -> list[str]:
    """Units of ours that a host is not to have."""
    stay = {unit for service in wanted.services for unit in (service.unit, service.engine_unit)}
    return [unit for unit in our_units(facts) if unit not in stay]


def our_units(facts: HostFacts) -> list[str]:
    """Those that a host has, in the order in which they are stopped."""
    units = [unit for unit in {**dict.fromkeys(ALL_UNITS), **facts.units} if unit_file(unit) in facts.files]
    return sorted(units, key=_stop_order)


def _stop_order(unit: str) -> tuple[int, int, str]:
    return ALL_UNITS.index(kind_of(unit)), len(unit), unit


def _service(facts: HostFacts, wanted: Desired, service: Service, stopped: set[str]) -> ServicePlan:
    """`stopped`: units that are by then."""
    unit, has, engine = service.unit, facts.unit(service.unit), service.engine_unit
    changed = [file for file in service.files if facts.files.get(file.path) != file.digest]
    new_engine = service.engine is not None and (
        facts.files.get(service.engine.path) != service.engine.digest or engine in facts.pending
    )
    has_engine = bool(engine) and facts.unit(engine).is_running and engine not in stopped
    change = "start" if unit in stopped else _change(facts, wanted, service, changed, new_engine and has_engine)
    has_switch = facts.current != wanted.release
    is_engine_due = bool(engine) and (new_engine or not has_engine)
    if change == "none" and not changed and not is_engine_due and has.enabled and not has_switch:
        return ServicePlan(role=service.role, name=service.name, change="none")
    steps: list[HostStep] = []
    settle: list[HostStep] = []
    # Should this be cut off before a service has taken them over, the next run knows.
    if changed and change != "none":
        steps.append(_note(unit))
    steps += [_put(file) for file in changed]
    if service.engine is not None and new_engine:
        steps += [_note(engine), _put(service.engine)]
    if any(file.is_unit for file in changed) or new_engine:
        steps.append(HostStep(title="units read anew", script="systemctl daemon-reload"))
    if has_switch:
        steps.append(_switch(facts, wanted))
    if is_engine_due:
        act = "restart" if has_engine else "start"
        script = f"systemctl enable --quiet {engine} && systemctl {act} --no-block {engine}"
        steps.append(HostStep(title=f"{act} {engine}", script=f"{script} && rm -f {PENDING}/{engine}"))
    if not has.enabled:
        steps.append(HostStep(title=f"{unit} at boot", script=f"systemctl enable --quiet {unit}"))
    if change != "none":
        act = "restart" if change == "start" else change
        reset = f"systemctl reset-failed {unit} 2>/dev/null; " if act == "restart" else ""
        steps.append(HostStep(title=f"{change} {unit}", script=f"{reset}systemctl {act} {unit}", timeout_s=QUICK_S))
        settle.append(gate(service, has_tls=wanted.has_tls))
        settle.append(HostStep(title=f"{unit} has all news", script=f"rm -f {PENDING}/{unit}"))
    return ServicePlan(role=service.role, name=service.name, change=change, steps=tuple(steps), settle=tuple(settle))


def _note(unit: str) -> HostStep:
    return HostStep(title=f"note that {unit} has news", script=f"mkdir -p {PENDING} && touch {PENDING}/{unit}")


def _change(
    facts: HostFacts, wanted: Desired, service: Service, changed: list[ManagedFile], restarts_engine: bool
) -> Change:
    has = facts.unit(service.unit)
    if not has.is_running:
        return "start"
    if has.release != wanted.release or service.unit in facts.pending or restarts_engine:
        return "restart"
    if any(_needs_restart(facts, file) for file in changed):
        return "restart"
    return "reload" if changed else "none"


def _needs_restart(facts: HostFacts, file: ManagedFile) -> bool:
    if file.path == GATEWAY_TOML:
        return facts.settings != settings_mark(file.content)
    return file.on_change == "restart"


def _put(file: ManagedFile) -> HostStep:
    """Appears whole or not at all, never with more rights than it should have."""
    draft = f"{file.path}.new"
    folder = file.path.rpartition("/")[0]
    script = (
        f"set -e; umask 077; mkdir -p {folder}; {_open_folders(folder)}cat > {draft}; "
        f"chown {file.owner} {draft}; chmod {file.mode:o} {draft}; mv {draft} {file.path}"
    )
    return HostStep(title=file.path, script=script, stdin=file.content)


def _open_folders(folder: str) -> str:
    return f"chmod 755 {ETC} {folder}; " if folder in (ETC, TLS) else ""


def _switch(facts: HostFacts, wanted: Desired) -> HostStep:
    """The symbolic link, in one move; where it pointed is kept for the way back."""
    folder = f"{RELEASES}/{wanted.release}"
    keep = f"ln -sfn {RELEASES}/{facts.current} {PREVIOUS}; " if facts.current else ""
    script = f"set -e; {keep}ln -sfn {folder} {CURRENT}.new; mv -T {CURRENT}.new {CURRENT}"
    return HostStep(title=f"current is {wanted.release}", script=script)


def told_of_nodes(file: ManagedFile) -> list[HostStep]:
    """Has a gateway that runs take over another list of nodes, for the time that the others take to change too."""
    return [
        _note(GATEWAY),
        _put(file),
        HostStep(title=f"reload {GATEWAY}", script=f"systemctl reload {GATEWAY}"),
    ]


def gate(service: Service, *, has_tls: bool, timeout_s: float = START_S) -> HostStep:
    """Passes once the unit is active and its daemon says over the network, by TLS, that it serves."""
    name = "node" if service.role == "node" else "gateway"
    tls = f" --ca {TLS}/ca.crt --cert {TLS}/{name}.crt --key {TLS}/{name}.key" if has_tls else ""
    health = "astrolabe.v1.Predict" if service.role == "node" else "astrolabe.v1.Dispatch"
    script = (
        f"cd / && {CURRENT}/bin/python -P -m deploy.cluster.health_probe {service.unit} {service.address} {health}"
        f"{tls} --timeout-s {timeout_s:.0f}"
    )
    return HostStep(title=f"{service.unit} serves", script=script, timeout_s=timeout_s + QUICK_S)


def _finish(facts: HostFacts, wanted: Desired) -> Iterator[HostStep]:
    """What a host no longer is, and releases that nobody will go back to."""
    leaving = {step.title for step in _leave(facts, wanted, set()).steps}
    yield from (step for unit in _unwanted(facts, wanted) if (step := remove_unit(unit)).title not in leaving)
    before = facts.current if facts.current != wanted.release else facts.previous
    old = sorted(facts.releases - {wanted.release, before})
    if old:
        folders = " ".join(f"{RELEASES}/{name}" for name in old)
        yield HostStep(title=f"without {', '.join(old)}", script=f"rm -rf {folders}", timeout_s=REMOVE_S)


def remove_unit(unit: str) -> HostStep:
    files = " ".join(file for file in (unit_file(unit), configuration_of(unit), f"{PENDING}/{unit}") if file)
    script = (
        f"systemctl disable --now --quiet {unit} 2>/dev/null; rm -f {files}; systemctl daemon-reload; "
        f"systemctl reset-failed {unit} 2>/dev/null; true"
    )
    return HostStep(title=f"without {unit}", script=script, timeout_s=120.0)


def removal(facts: HostFacts) -> list[HostStep]:
    """Takes all of ours off a host; nothing where nothing is."""
    units = our_units(facts)
    steps = [*_stop(facts, units), *(remove_unit(unit) for unit in units)]
    if facts.current or facts.releases or facts.files or "astrolabe" in facts.users:
        folders = f"{OPT} {ETC} {CACHE} /var/log/astrolabe"
        steps.append(HostStep(title="without files", script=f"rm -rf {folders}", timeout_s=REMOVE_S))
    if "astrolabe" in facts.users:
        steps.append(HostStep(title="without user astrolabe", script="userdel astrolabe"))
    return steps
