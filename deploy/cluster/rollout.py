"""Brings all hosts of a cluster to where they should be: looks, plans, carries out. Installation, upgrade, rollback and
rotation are this one act with another release or other certificates.

First what disturbs nothing, on all hosts at once. Then nodes, then gateways: what does not run yet is started at once,
what runs is restarted one after the other, nodes emptied first, and the first that does not come back stops the rest.
A host whose nodes become others gives up the old ones, starts the new, and gateways know them before the next host.
"""

from __future__ import annotations

import datetime
import json
import re
import shlex
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from deploy.cluster.checks import Finding, cert_finding, days_of, findings, unreachable
from deploy.cluster.desired import CA, Desired, HostSecrets, desired, gateway_toml
from deploy.cluster.facts import CLOCK, HostFacts, facts_script, read_facts
from deploy.cluster.kept import Kept
from deploy.cluster.layout import CURRENT, GATEWAY, TLS
from deploy.cluster.manifest import GATEWAY_USER, Cluster, ClusterHost, Role
from deploy.cluster.plan import HostPlan, HostStep, LeavePlan, ServicePlan, plan, removal, told_of_nodes
from deploy.cluster.release import Release, pack
from deploy.cluster.shell import TIMED_OUT, Ran, Shell, Unreachable

T = TypeVar("T")

LOOK_S = 60.0
LIST_S = 30.0
POLL_S = 0.3
ALL_UP_S = 60.0
"""What a gateway gets to reach all nodes."""
SESSIONS = 8
"""Commands at a time on one connection to a host: its sshd takes ten, unless somebody has changed that."""
BUSY = 75
"""Exit code of a step that could not begin because another one has not ended."""

HostOutcome = Literal["changed", "unchanged", "failed", "left"]


class HostFailed(Exception):
    """A host could not be brought where it should be. The message says why and how to mend it."""


class HostReport(msgspec.Struct, kw_only=True):
    """What became of a host."""

    name: str
    outcome: HostOutcome = "unchanged"
    """`left`: not touched, because another one failed before its turn."""
    steps: list[str] = []
    """Titles of what was done, or would be."""
    detail: str = ""
    """Why it failed or was left, and how to mend it."""
    took_s: float = 0.0


class HostView(msgspec.Struct, frozen=True, kw_only=True):
    """A host as it was found: its facts, or why there are none."""

    host: ClusterHost
    facts: HostFacts | None
    findings: tuple[Finding, ...]

    @property
    def failures(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "fail"]

    @property
    def cert_days(self) -> float | None:
        """Until the first of its certificates ends; None: it has none."""
        return min((days_of(c, _now()) for c in self.facts.certs.values()), default=None) if self.facts else None


Tell = Callable[[str, str, float], None]
"""Hears of each step that is done: host, title, seconds."""


class Rollout:
    """A cluster, its hosts' shells and the operator's folder."""

    def __init__(
        self,
        cluster: Cluster,
        kept: Kept,
        shells: Mapping[str, Shell],
        *,
        parallel: int = 16,
        grace_s: float = 5.0,
        drain_s: float = 600.0,
        tell: Tell = lambda _host, _title, _seconds: None,
    ) -> None:
        """`shells`: by host name. `grace_s`: what requests on a node get to end before they move on, `drain_s`: what
        the node gets to be empty."""
        self._cluster = cluster
        self._kept = kept
        self._shells = shells
        self._parallel = parallel
        self._grace_s = grace_s
        self._drain_s = drain_s
        self._tell = tell
        self._lock = threading.Lock()

    # --- Looking ------------------------------------------------------------------------------------------------------

    def look(self, *, needs_release: Callable[[HostFacts], bool] = lambda facts: not facts.releases) -> list[HostView]:
        """All hosts, at once."""
        return self._on_all(self._cluster.hosts, lambda host: self._look_at(host, needs_release))

    def _look_at(self, host: ClusterHost, needs_release: Callable[[HostFacts], bool]) -> HostView:
        shell = self._shells[host.name]
        users = [GATEWAY_USER, *([self._cluster.group_of(host).run_as] if host.is_node else [])]
        want = desired(self._cluster, host, HostSecrets(), "")
        files = list(dict.fromkeys(file.path for file in want.files()))
        script = facts_script(
            python=self._cluster.install.python,
            users=users,
            files=files,
            certs=[path for path in files if path.startswith(TLS) and path.endswith(".crt")],
            units=[unit for service in want.services for unit in (service.unit, service.engine_unit) if unit],
        )
        try:
            printed = shell.run(script, root=False, timeout_s=LOOK_S)
            before_s = time.time()
            clock = shell.run(CLOCK, root=False, timeout_s=LOOK_S)
            after_s = time.time()
        except Unreachable as bad:
            return HostView(host=host, facts=None, findings=(unreachable(str(bad)),))
        if printed.code or not printed.out:
            why = f"its shell did not do what it was told ({printed.last_words}); log in by hand and look"
            return HostView(host=host, facts=None, findings=(unreachable(why),))
        said = re.search(r"\d+\.\d+", clock.out)
        skew_s = float(said[0]) - (before_s + after_s) / 2 if said else 0.0
        facts = read_facts(printed.out, clock_skew_s=skew_s, round_trip_s=after_s - before_s)
        found = findings(self._cluster, host, facts, needs_release=needs_release(facts), now=_now())
        return HostView(host=host, facts=facts, findings=tuple(found))

    # --- Changing -----------------------------------------------------------------------------------------------------

    def converge(self, release: Release, *, dry_run: bool = False) -> list[HostReport]:
        """Brings all hosts to a release and to what cluster.toml and the operator's folder say. Raises ConfigError."""
        reports = {host.name: HostReport(name=host.name) for host in self._cluster.hosts}
        with tempfile.TemporaryDirectory(prefix="astrolabe-cluster-") as folder:
            tar = Path(folder) / "wheels.tar"
            views = self.look(needs_release=lambda facts: release.name not in facts.releases)
            plans = self._plans(views, release, tar, reports)
            if dry_run:
                for name, host_plan in plans.items():
                    reports[name].steps = [step.title for step in host_plan.steps()]
                return list(reports.values())
            if any(host_plan.prepare for host_plan in plans.values()):
                pack(release, tar)
            self._at_once(
                [n for n in plans if plans[n].prepare], reports, lambda n: self._do(n, plans[n].prepare, reports)
            )
            gateways = [v.host for v in views if v.host.is_gateway and v.facts and v.facts.unit(GATEWAY).is_running]
            going_on = self._services("node", plans, reports, gateways)
            if going_on:
                going_on = self._services("gateway", plans, reports, gateways)
            else:
                _leave_gateways(plans, reports)
            if going_on:
                self._at_once(
                    [n for n in plans if plans[n].finish], reports, lambda n: self._do(n, plans[n].finish, reports)
                )
            self._until_all_up(reports)
        for report in reports.values():
            if report.steps and report.outcome == "unchanged":
                report.outcome = "changed"
        return list(reports.values())

    def _plans(
        self, views: Sequence[HostView], release: Release, tar: Path, reports: dict[str, HostReport]
    ) -> dict[str, HostPlan]:
        """Of the hosts that can be changed; the others' reports say why not."""
        plans = {}
        for view in views:
            host = view.host
            # What a host has is replaced; what it would get must hold.
            wrong = [f for f in view.failures if f.check != "certificates"]
            days = self._kept.expired(host) if self._cluster.tls else None
            if days is not None and cert_finding(host.name, days).level == "fail":
                wrong.append(cert_finding(f"the certificate of {host.name}", days))
            if wrong or view.facts is None:
                reports[host.name].outcome = "failed"
                reports[host.name].detail = "; ".join(f"{f.check}: {f.text}" for f in wrong)
                continue
            plans[host.name] = plan(view.facts, self._wanted(host, release.name), release, tar)
        return plans

    def _wanted(self, host: ClusterHost, release: str) -> Desired:
        return desired(self._cluster, host, self._kept.secrets(self._cluster, host), release)

    def _services(
        self,
        role: Role,
        plans: Mapping[str, HostPlan],
        reports: dict[str, HostReport],
        gateways: Sequence[ClusterHost],
    ) -> bool:
        """Starts, reloads and restarts the services of a role; whether all that were to restart have come back."""
        hosts = [name for name in plans if reports[name].outcome != "failed"]
        leave = {name: plans[name].leave if role == "node" else LeavePlan() for name in hosts}
        due = {name: [s for s in plans[name].services if s.role == role and s.steps] for name in hosts}
        rest = {name: [service for service in due[name] if service.change != "restart"] for name in hosts}

        def at_once(name: str) -> None:
            self._do(name, leave[name].steps, reports)
            self._start(name, rest[name], reports)

        quick = [name for name in hosts if not leave[name].nodes and (leave[name].steps or rest[name])]
        self._at_once(quick, reports, at_once)
        turns: list[tuple[str, Callable[[], None]]] = []
        for name in hosts:
            if leave[name].nodes:
                turns.append((name, partial(self._replace, name, leave[name], rest[name], reports, gateways)))
            restarts = [service for service in due[name] if service.change == "restart"]
            turns += [(name, partial(self._restart, name, service, reports, gateways)) for service in restarts]
        for position, (name, act) in enumerate(turns):
            if reports[name].outcome == "failed":
                continue
            self._at_once([name], reports, lambda _name, act=act: act())  # type: ignore[misc]
            if reports[name].outcome == "failed":
                for left in dict.fromkeys(left for left, _ in turns[position + 1 :] if left != name):
                    if reports[left].outcome != "failed":
                        reports[left].outcome = "left"
                        reports[left].detail = f"not touched, because {name} did not come back"
                return False
        return True

    def _start(self, name: str, services: Iterable[ServicePlan], reports: dict[str, HostReport]) -> None:
        """All of them before any is waited for: engines take minutes to load, and can do so at the same time."""
        services = list(services)
        self._do(name, (step for service in services for step in service.steps), reports)
        self._do(name, (step for service in services for step in service.settle), reports)

    def _replace(
        self,
        name: str,
        leave: LeavePlan,
        services: Sequence[ServicePlan],
        reports: dict[str, HostReport],
        gateways: Sequence[ClusterHost],
    ) -> None:
        """A host's nodes that leave, and then those that start there."""
        gateways = [gateway for gateway in gateways if reports[gateway.name].outcome != "failed"]
        self._empty(name, leave.nodes, reports, gateways)
        self._do(name, leave.steps, reports)
        self._start(name, services, reports)
        self._announce([service.name for service in services], leave.nodes, reports, gateways)
        end_s = time.monotonic() + ALL_UP_S
        for gateway in gateways:
            for service in services:
                if service.name in leave.nodes:
                    self._take_back(gateway, service.name)
            self._until_up(gateway, [service.name for service in services], end_s)

    def _restart(
        self, name: str, service: ServicePlan, reports: dict[str, HostReport], gateways: Sequence[ClusterHost]
    ) -> None:
        """Restarts a service that runs: a node is empty first, and back in all gateways' lists after."""
        if service.role == "gateway":
            self._start(name, [service], reports)
            return
        gateways = [gateway for gateway in gateways if reports[gateway.name].outcome != "failed"]
        node = service.name
        self._empty(name, [node], reports, gateways)
        self._start(name, [service], reports)
        began_s = time.monotonic()
        self._announce([node], [], reports, gateways)
        for gateway in gateways:
            self._take_back(gateway, node)
        for gateway in gateways:
            self._until_up(gateway, [node], began_s + ALL_UP_S)
        if gateways:
            self._done(name, f"{_called(node, name)} takes requests again", began_s, reports)

    def _empty(
        self, name: str, nodes: Sequence[str], reports: dict[str, HostReport], gateways: Sequence[ClusterHost]
    ) -> None:
        """Waits until nodes of a host have nothing of any gateway: all of them together, at all gateways."""
        began_s = time.monotonic()

        def known(gateway: ClusterHost) -> list[str]:
            listed = self.nodes_of(gateway)
            return [node for node in nodes if node in listed]

        asked = list(zip(gateways, self._on_all(gateways, known), strict=True))

        def ask(how: str, timeout_s: float) -> None:
            def at_one(gateway: ClusterHost, here: Sequence[str]) -> None:
                self._on_all(
                    here,
                    lambda node: self._ask(gateway, f"drain {shlex.quote(node)} {how}", timeout_s=timeout_s),
                    at_most=SESSIONS,
                )

            self._on_all(asked, lambda one: at_one(*one))

        # Told at all before any is waited for: else one would go on sending what another one moves away.
        ask("--stay", LIST_S)
        ask(f"--wait --grace {self._grace_s:g} --timeout {self._drain_s:g}", self._drain_s + LIST_S)
        for node in nodes:
            if any(node in here for _, here in asked):
                self._done(name, f"{_called(node, name)} is empty", began_s, reports)
                began_s = time.monotonic()

    def _take_back(self, gateway: ClusterHost, node: str) -> None:
        if node in self.nodes_of(gateway):
            self._ask(gateway, f"drain {shlex.quote(node)} --undo")

    def _announce(
        self,
        here: Sequence[str],
        gone: Sequence[str],
        reports: dict[str, HostReport],
        gateways: Sequence[ClusterHost],
    ) -> None:
        """Has gateways list nodes that have come to be as the file says, not those that have gone, and all others as
        they did: those may still be where they were."""
        new = [(node.name, node.address) for node in self._cluster.nodes() if node.name in here]
        names, addresses = {*gone, *here}, {address for _, address in new}
        for gateway in gateways:
            listed = [(node["node_id"], node["address"]) for node in self._list(gateway)]
            kept = [(node, address) for node, address in listed if node not in names and address not in addresses]
            if sorted([*kept, *new]) != sorted(listed):
                file = gateway_toml(self._cluster, gateway, [*kept, *new])
                self._do(gateway.name, told_of_nodes(file), reports)

    def remove(self) -> list[HostReport]:
        """Takes everything off all hosts, gateways first."""
        reports = {host.name: HostReport(name=host.name) for host in self._cluster.hosts}
        views = {view.host.name: view for view in self.look()}

        def clear(name: str) -> None:
            facts = views[name].facts
            if facts is None:
                raise HostFailed(views[name].findings[0].text)
            if not facts.is_root:
                raise HostFailed(next(f.text for f in views[name].findings if f.check == "root"))
            self._do(name, removal(facts), reports)

        self._at_once([h.name for h in self._cluster.hosts if h.is_gateway], reports, clear)
        self._at_once([h.name for h in self._cluster.hosts if not h.is_gateway], reports, clear)
        for report in reports.values():
            if report.steps and report.outcome == "unchanged":
                report.outcome = "changed"
        return list(reports.values())

    # --- Gateways -----------------------------------------------------------------------------------------------------

    def nodes_of(self, gateway: ClusterHost) -> dict[str, tuple[str, str]]:
        """What a gateway says of its nodes: status and detail by name. Raises HostFailed."""
        return {node["node_id"]: (node["status"], node["detail"]) for node in self._list(gateway)}

    def _list(self, gateway: ClusterHost) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = json.loads(self._ask(gateway, "nodes --json", timeout_s=LIST_S).out)["nodes"]
        return listed

    def nodes_by_gateway(self) -> dict[str, dict[str, tuple[str, str]] | str]:
        """The same of all gateways, by their names; where one does not answer, why."""

        def listed(gateway: ClusterHost) -> dict[str, tuple[str, str]] | str:
            try:
                return self.nodes_of(gateway)
            except HostFailed as bad:
                return str(bad)

        gateways = self._cluster.gateways()
        return dict(zip((g.name for g in gateways), self._on_all(gateways, listed), strict=True))

    def _ask(self, gateway: ClusterHost, command: str, *, timeout_s: float = LIST_S) -> Ran:
        """A command of ours on a gateway's host, with the operator's key. Raises HostFailed."""
        address = self._cluster.gateway_address(gateway)
        trust = f"export ASTROLABE_CA={CA}; " if self._cluster.tls else ""
        script = (
            f"read -r ASTROLABE_API_KEY; export ASTROLABE_API_KEY; {trust}cd /; "
            f"exec {CURRENT}/bin/astrolabe {command} --gateway {shlex.quote(address)}"
        )
        try:
            ran = self._shells[gateway.name].run(
                script, stdin=f"{self._kept.api_key()}\n".encode(), timeout_s=timeout_s
            )
        except Unreachable as bad:
            raise HostFailed(str(bad)) from None
        if ran.code:
            raise HostFailed(f"gateway {gateway.name}: {ran.last_words.removeprefix('error: ')}")
        return ran

    def _until_all_up(self, reports: dict[str, HostReport]) -> None:
        """The last gate: each gateway lists as up all nodes that have not failed."""
        nodes = [n.name for n in self._cluster.nodes() if reports[n.host.name].outcome not in ("failed", "left")]
        gateways = [h.name for h in self._cluster.gateways() if reports[h.name].outcome not in ("failed", "left")]
        hosts = {host.name: host for host in self._cluster.hosts}
        end_s = time.monotonic() + ALL_UP_S
        self._at_once(gateways, reports, lambda name: self._until_up(hosts[name], nodes, end_s))

    def _until_up(self, gateway: ClusterHost, nodes: Iterable[str], end_s: float) -> None:
        """Raises HostFailed."""
        while True:
            listed = self.nodes_of(gateway)
            missing = [node for node in nodes if listed.get(node, ("unknown", ""))[0] != "up"]
            if not missing:
                return
            if time.monotonic() > end_s:
                status, detail = listed.get(missing[0], ("unknown", ""))
                mend = f"back into service: astrolabe drain {missing[0]} --undo" if status == "draining" else detail
                raise HostFailed(f"lists {missing[0]} as {status}{f' ({mend})' if mend else ''}")
            time.sleep(POLL_S)

    # --- Carrying out -------------------------------------------------------------------------------------------------

    def _do(self, name: str, steps: Iterable[HostStep], reports: dict[str, HostReport]) -> None:
        """Raises HostFailed at the first step that does not succeed."""
        for step in steps:
            began_s = time.monotonic()
            try:
                ran = self._shells[name].run(locked(step), stdin=step.stdin, timeout_s=step.timeout_s)
            except Unreachable as bad:
                raise HostFailed(f"{step.title}: {bad}") from None
            if ran.code:
                raise HostFailed(step_trouble(step, ran))
            self._done(name, step.title, began_s, reports)

    def _done(self, name: str, title: str, began_s: float, reports: dict[str, HostReport]) -> None:
        took_s = time.monotonic() - began_s
        with self._lock:
            reports[name].steps.append(title)
            reports[name].took_s += took_s
            self._tell(name, title, took_s)

    def _at_once(self, names: Iterable[str], reports: dict[str, HostReport], act: Callable[[str], None]) -> None:
        """Does it on several hosts; one that fails is noted and stops no other."""

        def guarded(name: str) -> None:
            if reports[name].outcome in ("failed", "left"):
                return
            try:
                act(name)
            except HostFailed as bad:
                reports[name].outcome, reports[name].detail = "failed", str(bad)

        self._on_all(list(names), guarded)

    def _on_all(self, items: Sequence[Any], act: Callable[[Any], T], *, at_most: int | None = None) -> list[T]:
        """At once, so many at a time. Raises what the first that failed did, when all have ended."""
        if not items:
            return []
        with ThreadPoolExecutor(max_workers=min(at_most or self._parallel, len(items))) as pool:
            return list(pool.map(act, items))


def _leave_gateways(plans: Mapping[str, HostPlan], reports: dict[str, HostReport]) -> None:
    """Notes of gateways that they were not touched, because nodes did not come back."""
    for name, host_plan in plans.items():
        is_due = any(service.role == "gateway" and service.steps for service in host_plan.services)
        if is_due and reports[name].outcome not in ("failed", "left"):
            reports[name].outcome = "left"
            reports[name].detail = "its gateway was not touched, because a node did not come back"


def _called(node: str, host: str) -> str:
    return "node" if node == host else node


def locked(step: HostStep) -> str:
    """A step's script, after any that still runs on the host: one whose operator was cut off goes on to its end."""
    lock = f"flock -E {BUSY} -w {step.timeout_s / 2:.0f} /run/lock/astrolabe-cluster"
    return f"mkdir -p /run/lock; exec {lock} sh -c {shlex.quote(step.script)}"


def step_trouble(step: HostStep, ran: Ran) -> str:
    """One line about a step that failed."""
    said = f"{ran.out}\n{ran.err}"
    if ran.code == BUSY:
        return f"{step.title}: another installation is under way on this host; try again when it has ended"
    if ran.code == TIMED_OUT:
        return f"{step.title}: {ran.err}; look at the host, then run it again"
    if "No space left on device" in said or "Disk quota exceeded" in said:
        return f"{step.title}: the disk is full; make room on the host and run it again"
    if re.search(r"No matching distribution|Could not find a version|Failed to establish a new connection", said):
        missing = re.search(r"No matching distribution found for (\S+)", said)
        what = f"pip finds no {missing[1]}" if missing else "pip reaches no package index"
        return f"{step.title}: {what}; give all wheels: pip wheel --wheel-dir wheels . && ... --wheelhouse wheels"
    if job := re.search(r"Job for (\S+?)(?:\.service)? (failed because [^.]*)", said):
        return f"{step.title}: it {job[2]}; see: journalctl -u {job[1]}"
    return f"{step.title}: {ran.last_words[:400]}"


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
