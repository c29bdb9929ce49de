"""What people see of a cluster: checks, what was done, how it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec
from rich import box
from rich.table import Table
from rich.text import Text

from deploy.cluster.checks import CHECKS
from deploy.cluster.layout import GATEWAY, PREDICTOR, unit_of
from deploy.cluster.manifest import Cluster
from deploy.cluster.release import Release
from deploy.cluster.rollout import HostReport, HostView
from protos.runtime.terminal import out_console, print_table

STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}
OUTCOMES = {"changed": ("done", "green"), "unchanged": ("nothing to do", ""), "failed": ("FAILED", "red")}
OUTCOMES["left"] = ("not touched", "yellow")


def print_checks(views: Sequence[HostView]) -> None:
    """A table of hosts and checks; below it, a line for each that is not as it should be, and how to mend it."""
    console = out_console()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("host", no_wrap=True)
    for name in CHECKS:
        table.add_column(name, no_wrap=True)
    for view in views:
        levels = {finding.check: finding.level for finding in view.findings}
        cells = [
            Text(levels[name].replace("fail", "FAIL"), STYLES[levels[name]]) if name in levels else ""
            for name in CHECKS
        ]
        table.add_row(view.host.name, *cells)
    print_table(console, table)
    for level in ("fail", "warn"):
        for view in views:
            for finding in view.findings:
                if finding.level == level:
                    console.print(
                        Text(f"{view.host.name}: {finding.check}: {finding.text}", STYLES[level]), soft_wrap=True
                    )


def print_reports(reports: Sequence[HostReport], *, dry_run: bool = False) -> None:
    """A table of hosts; below it, a line for each that failed, or in a dry run, what would be done."""
    console = out_console()
    if dry_run:
        for report in reports:
            if report.detail:
                console.print(Text(f"{report.name}: {report.detail}", "red"), soft_wrap=True)
            elif not report.steps:
                console.print(Text(f"{report.name}: nothing to do"))
            for title in report.steps:
                console.print(Text(f"{report.name}: {title}"), soft_wrap=True)
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("host", "", "steps", "seconds"):
        table.add_column(name, no_wrap=True, justify="right" if name in ("steps", "seconds") else "left")
    for report in reports:
        word, style = OUTCOMES[report.outcome]
        table.add_row(
            report.name, Text(word, style), str(len(report.steps) or ""), f"{report.took_s:.0f}" if report.steps else ""
        )
    print_table(console, table)
    for report in reports:
        if report.detail:
            console.print(Text(f"{report.name}: {report.detail}", OUTCOMES[report.outcome][1]), soft_wrap=True)


class HostStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a host is."""

    name: str
    services: dict[str, str]
    """State of each of its services: `node`, with several by their names (`node h1-0`), and `gateway`."""
    releases: list[str]
    """That they run."""
    nodes: str
    """How gateways list its nodes; for a gateway also how many it lists as up."""
    cert_days: float | None
    """Until its first certificate ends; none: it has none."""
    drift: list[str]
    """What an installation would do."""
    trouble: list[str]
    """A line for each thing that is wrong."""

    @property
    def is_well(self) -> bool:
        return not self.trouble and not self.drift


def host_status(
    cluster: Cluster,
    view: HostView,
    drift: HostReport,
    listed: dict[str, dict[str, tuple[str, str]] | str],
    release: Release,
) -> HostStatus:
    """`listed`: what each gateway says of nodes, or why it does not answer."""
    host, facts = view.host, view.facts
    trouble = [f"{finding.check}: {finding.text}" for finding in view.failures]
    if drift.detail and not trouble:
        trouble.append(drift.detail)
    services: dict[str, str] = {}
    releases: list[str] = []
    seen: list[str] = []
    nodes_here = cluster.nodes_of(host)
    units = {f"node {n.name}" if n.count > 1 else "node": unit_of(PREDICTOR, n.instance) for n in nodes_here}
    units |= {"gateway": GATEWAY} if host.is_gateway else {}
    for service, unit in units.items():
        if facts is None:
            continue
        has = facts.unit(unit)
        services[service] = has.active
        releases.append(has.release or "-")
        if not has.is_running:
            trouble.append(f"{unit} is {has.active or 'not there'}; see: journalctl -u {unit}")
        elif has.release != release.name:
            trouble.append(f"{unit} runs {has.release or 'something else'}, not {release.name}")
    seen += [_together([_seen_by_all(node.name, listed) for node in nodes_here])] if nodes_here else []
    for node in nodes_here:
        for gateway, nodes in listed.items():
            state, detail = ("up", "") if isinstance(nodes, str) else nodes.get(node.name, ("unknown", ""))
            if state != "up":
                which = node.name if node.count > 1 else "it"
                trouble.append(f"{gateway} lists {which} as {state}{f' ({detail})' if detail else ''}")
    if host.is_gateway:
        nodes = listed[host.name]
        if isinstance(nodes, str):
            trouble.append(nodes)
        else:
            seen.append(f"{sum(s == 'up' for s, _ in nodes.values())} of {len(cluster.nodes())} nodes up")
    return HostStatus(
        name=host.name,
        services=services,
        releases=list(dict.fromkeys(releases)),
        nodes=", ".join(seen),
        cert_days=view.cert_days,
        drift=drift.steps,
        trouble=trouble,
    )


def _seen_by_all(node: str, listed: dict[str, dict[str, tuple[str, str]] | str]) -> str:
    """How gateways that answer list a node."""
    states = {nodes.get(node, ("unknown", ""))[0] for nodes in listed.values() if not isinstance(nodes, str)}
    return "/".join(sorted(states)) or "unknown"


def _together(states: Sequence[str]) -> str:
    """One word for all that are alike, else how many are what."""
    counts = Counter(states)
    return states[0] if len(counts) == 1 else ", ".join(f"{count} {state}" for state, count in counts.items())


def _services(row: HostStatus) -> str:
    nodes = [state for name, state in row.services.items() if name != "gateway"]
    told = [f"{'node' if len(nodes) == 1 else f'{len(nodes)} nodes'} {_together(nodes)}"] if nodes else []
    return ", ".join([*told, *(f"gateway {state}" for name, state in row.services.items() if name == "gateway")])


def print_status(rows: Sequence[HostStatus], release: Release) -> None:
    """A table of hosts; below it what is wrong, and what differs from the file."""
    console = out_console()
    table = Table(title=f"release {release.name}", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("host", "services", "release", "health", "certificate", "drift"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        days = "" if row.cert_days is None else f"{row.cert_days:.0f} days"
        table.add_row(
            row.name,
            _services(row),
            ", ".join(row.releases),
            row.nodes,
            days,
            f"{len(row.drift)} steps" if row.drift else "none",
        )
    print_table(console, table)
    for row in rows:
        for line in row.trouble:
            console.print(Text(f"{row.name}: {line}", "red"), soft_wrap=True)
        for line in row.drift:
            console.print(Text(f"{row.name}: not as the file says: {line}", "yellow"), soft_wrap=True)
