"""What people have about their hosts, read into one list: CloudLab manifests, the configuration files of Block and
Astrolabe's forerunners, Ansible inventories, ssh_config, plain lists. Told apart by content. Pure: text in, hosts out.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

FORMATS = ("cloudlab", "block", "ansible-ini", "ansible-yaml", "ssh-config", "hosts")
LARGEST_RANGE = 4096


class HostSourceError(ValueError):
    """A source that cannot be used. The message says what, in which line, and how to mend it."""


class FoundHost(msgspec.Struct, frozen=True, kw_only=True):
    """One host as its source tells of it. Empty: not told."""

    name: str
    address: str = ""
    """Where neighbours reach it; empty: as `ssh`."""
    ssh: str = ""
    """Where it is logged in to; empty: the name."""
    user: str = ""
    port: int | None = None
    """Of sshd."""
    group: str = ""
    predictor_port: int | None = None
    engine_port: int | None = None
    """Of the first of its engines."""
    nodes: int = 1
    is_gateway: bool = False


class EngineLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a model's file of the forerunners says of an engine. None and empty: not said."""

    profile: str = ""
    """GPU/model, lower case, as profiles are named."""
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_size_tokens: int | None = None
    num_blocks: int | None = None


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """All that a source tells."""

    format: str
    hosts: tuple[FoundHost, ...] = ()
    engine: EngineLimits = EngineLimits()
    notes: tuple[str, ...] = ()
    """What was left out, and why."""


def format_of(text: str) -> str:
    """The format that a text is in. Raises HostSourceError for one that is none of them."""
    bare = text.lstrip("\ufeff \t\r\n")
    if bare.startswith("<"):
        return "cloudlab"
    if bare.startswith("{"):
        return "ansible-yaml" if _is_ansible_json(bare) else "block"
    lines = [line for line in (_bare_line(line) for line in text.splitlines()) if line]
    if not lines:
        raise HostSourceError("is empty; give a file that names hosts")
    if any(re.match(r"(?:Host|Match|Include)(?:\s+|\s*=\s*)\S", line) for line in lines):
        return "ssh-config"
    if any(re.fullmatch(r"\[[^\]]+\]", line) for line in lines) or any(
        "ansible_" in line for line in lines if ":" not in line
    ):
        return "ansible-ini"
    if lines[0] == "---" or any(re.fullmatch(r"[\w.\-\"' ]+:(\s.*)?", line) for line in lines):
        return "ansible-yaml"
    return "hosts"


def read_source(text: str, *, format: str = "", include: Callable[[str], Iterable[str]] = lambda _: ()) -> Found:
    """The hosts of a text in one of FORMATS; empty: told by content.

    `include`: texts of the files that a pattern of an ssh_config's `Include` names. Raises HostSourceError.
    """
    format = format or format_of(text)
    readers: dict[str, Callable[[str], Found]] = {
        "cloudlab": _cloudlab,
        "block": _block,
        "ansible-ini": _ansible_ini,
        "ansible-yaml": _ansible_yaml,
        "ssh-config": lambda text: _ssh_config(text, include),
        "hosts": _host_list,
    }
    found = readers[format](text)
    if not found.hosts and found.engine == EngineLimits():
        raise HostSourceError(f"names no host (read as {format}; --format says otherwise)")
    if format != "ssh-config":
        # There a second entry is a second name of the same host.
        found = _one_entry_each(found)
    return msgspec.structs.replace(found, format=format)


def _one_entry_each(found: Found) -> Found:
    """Entries with one address are one host with several nodes, behind one sshd."""
    places: dict[tuple[str, int | None], list[FoundHost]] = {}
    for host in found.hosts:
        places.setdefault((host.address or host.ssh or host.name, host.port), []).append(host)
    hosts, notes = [], list(found.notes)
    for same in places.values():
        name = _common_name([host.name for host in same])
        ports = sorted(host.engine_port for host in same if host.engine_port)
        if len(same) > 1 and ports != list(range(ports[0], ports[0] + len(ports)) if ports else []):
            told, mend = ", ".join(map(str, ports)), f"give them {ports[0]}, {ports[0] + 1}, ..."
            notes.append(f"{name}: the ports of its engines, {told}, are not in a row; {mend}")
        hosts.append(
            msgspec.structs.replace(
                same[0],
                name=name,
                nodes=sum(host.nodes for host in same),
                engine_port=ports[0] if ports else None,
                predictor_port=min((host.predictor_port for host in same if host.predictor_port), default=None),
                is_gateway=any(host.is_gateway for host in same),
            )
        )
    return msgspec.structs.replace(found, hosts=tuple(hosts), notes=tuple(notes))


def _common_name(names: list[str]) -> str:
    """`h1` of `h1-0` and `h1-1`; else the first."""
    stems = {match[1] if (match := re.fullmatch(r"(.+)[-._]\d+", name)) else name for name in names}
    return stems.pop() if len(stems) == 1 and len(set(names)) > 1 else names[0]


def _count(told: Any) -> int:
    """How many nodes a source's word about GPUs or ports makes, one a GPU: a number or a list."""
    if isinstance(told, list):
        return max(1, len(told))
    return max(1, int(told)) if str(told).isdigit() else 1


# CloudLab


def _cloudlab(text: str) -> Found:
    """An RSpec manifest: a `node` each, with the address of its experiment network and its login."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as bad:
        raise HostSourceError(f"line {bad.position[0]}: is not XML ({bad}); download the manifest anew") from None
    hosts, notes = [], []
    for node in (e for e in root.iter() if _tag(e) == "node"):
        name = node.get("client_id", "")
        login = next((e for e in node.iter() if _tag(e) == "login"), None)
        if login is None or not name:
            notes.append(f"{name or 'a node'} has no login: left out")
            continue
        inner = next((e.get("address", "") for e in node.iter() if _tag(e) == "ip"), "")
        outer = next((e.get("ipv4", "") for e in node.iter() if _tag(e) == "host"), "")
        hardware = next((e.get("name", "") for e in node.iter() if _tag(e) == "hardware_type"), "")
        port = login.get("port", "22")
        hosts.append(
            FoundHost(
                name=name,
                address=inner or outer or login.get("hostname", ""),
                ssh=login.get("hostname", ""),
                user=login.get("username", ""),
                port=int(port) if port.isdigit() and port != "22" else None,
                group=hardware,
            )
        )
    return Found(format="", hosts=tuple(hosts), notes=tuple(notes))


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


# The forerunners' files

_HOST_KEYS = {"ip_address": "address", "ip": "address", "backend_port": "engine_port", "instance_port": "engine_port"}
_LIMIT_KEYS = {
    "batch_size_cap": "max_num_seqs",
    "max_batch_size": "max_num_seqs",
    "chunk_size": "max_num_batched_tokens",
    "block_size": "block_size_tokens",
    "num_blocks": "num_blocks",
}
"""Model files: keys as in Block's repository, and as in the descriptions of it."""


def _block(text: str) -> Found:
    """`host_configs.json` (a table of hosts) or `llama_config.json` (one of an engine)."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as bad:
        raise HostSourceError(f"line {bad.lineno}: is not JSON: {bad.msg}") from None
    if not isinstance(document, dict):
        raise HostSourceError("is a JSON list; a table of hosts by name is wanted")
    rows = document.get("hosts", document)
    if isinstance(rows, list):
        rows = {str(row.get("hostname") or row.get("name") or row.get("ip_address")): row for row in rows}
    if all(isinstance(row, dict) and _HOST_KEYS.keys() & row.keys() for row in rows.values()) and rows:
        return Found(format="", hosts=tuple(_block_host(name, row) for name, row in rows.items()))
    return Found(format="", engine=_block_engine(document))


def _block_host(name: str, row: Mapping[str, Any]) -> FoundHost:
    user, _, host = name.rpartition("@")
    told = {ours: row[theirs] for theirs, ours in _HOST_KEYS.items() if theirs in row}
    engines = row.get("backend_ports", told.get("engine_port"))
    ports = row.get("predictor_ports", row.get("predictor_port"))
    port = ports[0] if isinstance(ports, list) and ports else ports
    return FoundHost(
        name=host.split(".")[0] if not re.fullmatch(r"[\d.]+", host) else host,
        address=str(told.get("address", "")),
        ssh=host,
        user=user,
        predictor_port=port if isinstance(port, int) else None,
        engine_port=min(engines, default=None) if isinstance(engines, list) else engines,
        nodes=_count(engines) if isinstance(engines, list) else _count(row.get("gpus", row.get("num_gpus"))),
        group=str(row.get("instance_type", "")),
    )


def _block_engine(document: Mapping[str, Any]) -> EngineLimits:
    flat = dict(document)
    for inner in document.values():
        if isinstance(inner, dict):
            flat |= inner
    told = {ours: int(flat[theirs]) for theirs, ours in _LIMIT_KEYS.items() if isinstance(flat.get(theirs), int)}
    model = str(flat.get("model_name") or flat.get("model") or "").rpartition("/")[2].lower().removesuffix("-hf")
    device = str(flat.get("device") or flat.get("gpu") or "").lower()
    return EngineLimits(profile=f"{device}/{model}" if device and model else "", **told)


# Ansible

_GPU_KEYS = ("gpus", "num_gpus", "gpu_count")
"""Of variables, in the order in which they are taken."""


def _ansible_ini(text: str) -> Found:
    """Groups, `:children`, `:vars`, ranges and host variables."""
    members: dict[str, dict[str, None]] = {}
    variables: dict[str, dict[str, str]] = {}
    children: dict[str, list[str]] = {}
    host_variables: dict[str, dict[str, str]] = {}
    section, kind = "ungrouped", ""
    for number, raw in enumerate(text.splitlines(), start=1):
        line = _bare_line(raw)
        if not line:
            continue
        if header := re.fullmatch(r"\[([^\]:]+)(?::(\w+))?\]", line):
            section, kind = header[1].strip(), header[2] or ""
            if kind not in ("", "vars", "children"):
                raise HostSourceError(f"line {number}: [{section}:{kind}] is no section of an inventory")
            continue
        if kind == "vars":
            key, _, value = line.partition("=")
            variables.setdefault(section, {})[key.strip()] = value.strip().strip("\"'")
        elif kind == "children":
            children.setdefault(section, []).append(line)
        else:
            try:
                pattern, *pairs = shlex.split(line)
            except ValueError as bad:
                raise HostSourceError(f"line {number}: {bad}") from None
            for name in _expanded(pattern, number):
                members.setdefault(section, {})[name] = None
                told = (pair.partition("=") for pair in pairs)
                host_variables.setdefault(name, {}).update({key: value for key, sign, value in told if sign})
    return _ansible(members, variables, children, host_variables)


def _ansible_yaml(text: str) -> Found:
    """The same as YAML (or JSON, which is YAML): `hosts`, `children` and `vars` of each group."""
    try:
        import yaml
    except ModuleNotFoundError:
        raise HostSourceError("is YAML, which needs PyYAML; run: pip install 'astrolabe[cluster]'") from None

    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as bad:
        mark = getattr(bad, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise HostSourceError(f"{where}is not YAML: {getattr(bad, 'problem', None) or bad}") from None
    if not isinstance(document, dict):
        raise HostSourceError("is YAML but no inventory: a table of groups is wanted")
    members: dict[str, dict[str, None]] = {}
    variables: dict[str, dict[str, str]] = {}
    children: dict[str, list[str]] = {}
    host_variables: dict[str, dict[str, str]] = {}

    def walk(name: str, group: Any) -> None:
        if group is None:
            return
        if not isinstance(group, dict):
            raise HostSourceError(f"group {name!r} is {group!r}; a table with hosts, children or vars is wanted")
        variables.setdefault(name, {}).update({k: str(v) for k, v in (group.get("vars") or {}).items()})
        for pattern, given in (group.get("hosts") or {}).items():
            for host in _expanded(str(pattern), None):
                members.setdefault(name, {})[host] = None
                host_variables.setdefault(host, {}).update({k: str(v) for k, v in (given or {}).items()})
        for child, inner in (group.get("children") or {}).items():
            children.setdefault(name, []).append(child)
            walk(child, inner)

    for name, group in document.items():
        walk(str(name), group)
    return _ansible(members, variables, children, host_variables)


def _ansible(
    members: Mapping[str, Mapping[str, None]],
    variables: Mapping[str, Mapping[str, str]],
    children: Mapping[str, list[str]],
    host_variables: Mapping[str, Mapping[str, str]],
) -> Found:
    parents: dict[str, list[str]] = {}
    for parent, inner in children.items():
        for child in inner:
            parents.setdefault(child, []).append(parent)

    def above(group: str, seen: tuple[str, ...] = ()) -> list[str]:
        """The group and those above it, from the outside in: the inner one's variables win."""
        outer = [g for p in parents.get(group, []) if p not in seen for g in above(p, (*seen, group))]
        return [*dict.fromkeys(outer), group]

    hosts: list[FoundHost] = []
    for name in dict.fromkeys(host for group in members.values() for host in group):
        groups = [group for group, inside in members.items() if name in inside]
        line = list(dict.fromkeys(["all", *(g for group in groups for g in above(group))]))
        told = {k: v for group in line for k, v in variables.get(group, {}).items()} | dict(
            host_variables.get(name, {})
        )
        if told.get("ansible_connection") == "local":
            continue
        port = told.get("ansible_port") or told.get("ansible_ssh_port") or ""
        own = [group for group in groups if group not in ("all", "ungrouped") and "gateway" not in group.lower()]
        ssh = told.get("ansible_host") or told.get("ansible_ssh_host") or name
        hosts.append(
            FoundHost(
                name=name.split(":")[0],
                address=ssh,
                ssh=ssh,
                user=told.get("ansible_user") or told.get("ansible_ssh_user") or "",
                port=int(port) if port.isdigit() and port != "22" else None,
                group=own[0] if own else "",
                nodes=_count(next((told[key] for key in _GPU_KEYS if key in told), 1)),
                is_gateway=any("gateway" in group.lower() for group in line),
            )
        )
    return Found(format="", hosts=tuple(hosts))


def _is_ansible_json(text: str) -> bool:
    try:
        document = json.loads(text)
    except json.JSONDecodeError:
        return False
    groups = document.values() if isinstance(document, dict) else ()
    return any(
        isinstance(g, dict) and g.keys() & {"hosts", "children"} and not g.keys() & _HOST_KEYS.keys() for g in groups
    )


def _expanded(pattern: str, number: int | None) -> Iterator[str]:
    """`gpu[01:16].lab`, `rack-[a:c]`, with a step `[0:8:2]`; the width of the first number is kept."""
    where = f"line {number}: " if number else ""
    match = re.search(r"\[([^\[\]]*)\]", pattern)
    if match is None:
        yield pattern
        return
    part = re.fullmatch(r"(\w+):(\w+)(?::(\d+))?", match[1])
    if part is None:
        raise HostSourceError(f"{where}{pattern!r}: a range is [01:16] or [a:f]")
    first, last, step = part[1], part[2], int(part[3] or 1)
    if first.isdigit() and last.isdigit() and step:
        values = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1, step)]
    elif len(first) == len(last) == 1 and step:
        values = [chr(c) for c in range(ord(first), ord(last) + 1, step)]
    else:
        values = []
    if not values or len(values) > LARGEST_RANGE:
        raise HostSourceError(f"{where}{pattern!r}: a range goes from a smaller to a larger number or letter")
    for value in values:
        yield from _expanded(pattern[: match.start()] + value + pattern[match.end() :], number)


# ssh_config and lists


def _ssh_config(text: str, include: Callable[[str], Iterable[str]]) -> Found:
    """Every alias without a wildcard; ssh itself knows the rest, so an alias is what it is told."""
    hosts: dict[str, dict[str, str]] = {}
    notes: list[str] = []
    defaults: dict[str, str] = {}

    def read(text: str, depth: int) -> None:
        current: list[dict[str, str]] = []
        for raw in text.splitlines():
            key, value = _ssh_pair(raw)
            if key == "include":
                if depth == 0:
                    raise HostSourceError("its files include each other without an end")
                for pattern in shlex.split(value):
                    for inner in include(pattern):
                        read(inner, depth - 1)
            elif key == "host":
                names = shlex.split(value)
                plain = [n for n in names if not re.search(r"[*?!]", n)]
                current = [hosts.setdefault(name, {}) for name in plain]
                if "*" in names:
                    current.append(defaults)
                elif not plain:
                    notes.append(f"Host {value}: a pattern, no host: left out")
            elif key == "match":
                current = []
                notes.append(f"Match {value}: left out")
            elif key:
                # The first value counts, as ssh has it.
                for settings in current:
                    settings.setdefault(key, value)

    read(text, 16)
    found = []
    for alias, settings in hosts.items():
        told = defaults | settings
        port = told.get("port", "22")
        found.append(
            FoundHost(
                name=alias,
                address=told.get("hostname", alias).replace("%h", alias),
                ssh=alias,
                user=told.get("user", ""),
                port=int(port) if port.isdigit() and port != "22" else None,
            )
        )
    return Found(format="", hosts=tuple(found), notes=tuple(notes))


def _ssh_pair(raw: str) -> tuple[str, str]:
    match = re.match(r"\s*(\w+)(?:\s*=\s*|\s+)(.*\S)\s*$", re.sub(r"(?:^|\s)#.*$", "", raw))
    return (match[1].lower(), match[2].strip('"') if match[2].count('"') == 2 else match[2]) if match else ("", "")


def _host_list(text: str) -> Found:
    """A host a line: `[user@]host[:port]`, ranges allowed; of words behind it `gpus=8` counts (slots may be CPUs)."""
    hosts = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = _bare_line(raw)
        if not line:
            continue
        word, *more = line.replace(",", " ").split()
        gpus = next((one.removeprefix("gpus=") for one in more if one.startswith("gpus=")), "")
        target = re.fullmatch(
            r"(?:ssh://)?(?:(?P<user>[\w.-]+)@)?(?P<host>\[[0-9A-Fa-f:]+\]|[\w.\[\]:-]*?)(?::(?P<port>\d+))?", word
        )
        if target is None or not target["host"]:
            raise HostSourceError(f"line {number}: {word!r} is not [user@]host[:port]")
        is_ipv6 = target["host"].startswith("[") and re.fullmatch(
            r"\[[0-9A-Fa-f:]*:[0-9A-Fa-f:]*:[0-9A-Fa-f:]*\]", target["host"]
        )
        for host in (target["host"].strip("[]"),) if is_ipv6 else _expanded(target["host"], number):
            port = int(target["port"]) if target["port"] else None
            user = target["user"] or ""
            hosts.append(FoundHost(name=host, address=host, ssh=host, user=user, port=port, nodes=_count(gpus)))
    return Found(format="", hosts=tuple(hosts))


def _bare_line(line: str) -> str:
    """Without comment and white space around it."""
    return re.sub(r"(?:^|\s)[#;].*$", "", line).strip()


def tidy_names(hosts: Iterable[FoundHost]) -> list[FoundHost]:
    """With names that can name nodes: the first part of a host name where that stays unique, an address as it is."""
    hosts = list(hosts)
    short = [h.name if re.fullmatch(r"[\d.:]+", h.name) else h.name.split(".")[0] for h in hosts]
    tidy = [s if short.count(s) == 1 else h.name for s, h in zip(short, hosts, strict=True)]
    counts = itertools.count(1)
    return [
        msgspec.structs.replace(h, name=re.sub(r"[^A-Za-z0-9._-]", "-", n).strip("-._")[:63] or f"host-{next(counts)}")
        for h, n in zip(hosts, tidy, strict=True)
    ]
