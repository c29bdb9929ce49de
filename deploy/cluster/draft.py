"""The first cluster.toml of a cluster, from what its sources tell. Pure."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from deploy.cluster.sources import EngineLimits, Found, FoundHost, HostSourceError, tidy_names

HEAD = """\
# The cluster, as `astrolabe cluster` installs it. Read from {sources}.
# Then: astrolabe cluster check; astrolabe cluster install. All keys: deploy/cluster.md

# The release that hosts are to run; "": that of the wheel that is installed.
version = ""
# Encrypted connections, and keys for callers. false only where the network is trusted.
tls = true

[ssh]
# As your own ssh and its configuration log in, unless said here or at a host.
{user}{config}
# options = ["StrictHostKeyChecking=accept-new"]

[gateway]
port = 8200
http_port = 8201
# More names under which clients know the gateways; they go into the certificates.
names = []
# More keys of gateway.toml:
# config = {{router = {{policy = "min_total_latency"}}}}
"""

GROUP = """
[[groups]]
name = {name}
# emulated: no GPU. vllm: a vLLM server on the host, started with Astrolabe's trace. openai_metrics: any other.
engine = {engine}
profile = {profile}
port = {port}
{url}
# Nodes on each host: an engine with a GPU each, or as many as `gpus` says; the ports of node i are these + i.
nodes = {nodes}
# User of the predictor. Beside vLLM the user that vLLM runs as.
run_as = "astrolabe"
# Who starts the engine: you, or a service made of this command.
# engine_command = "/opt/vllm/bin/vllm serve /models/Qwen2-7B --port {{port}}"
{limits}"""


def draft(
    sources: Sequence[tuple[str, Found]],
    *,
    gateways: Iterable[str] = (),
    engine: str,
    profile: str,
    user: str,
    ssh_config: str = "",
) -> str:
    """The text of a cluster.toml. `sources`: what each is called, and what it told. `profile`, `user`: empty: as the
    sources say. `ssh_config`: the one that ssh is to take in place of the user's own. Raises HostSourceError."""
    hosts = tidy_names(host for _, found in sources for host in found.hosts)
    if not hosts:
        raise HostSourceError(f"{', '.join(name for name, _ in sources)}: name no host; give a source with hosts too")
    limits = next((found.engine for _, found in sources if found.engine != EngineLimits()), EngineLimits())
    leading = _gateways(hosts, list(gateways))
    profile = profile or limits.profile or "a30/llama-2-7b"
    groups = _groups(hosts)
    common_user = user or _most([host.user for host in hosts])
    parts = [
        HEAD.format(
            sources=", ".join(name for name, _ in sources),
            user=f"user = {_quoted(common_user)}" if common_user else '# user = "ubuntu"',
            config=f"\nconfig = {_quoted(ssh_config)}" if ssh_config else "",
        )
    ]
    for name, members in groups.items():
        parts.append(_group(name, members, engine, profile, limits))
    for host in hosts:
        roles = ["node"] if host.name not in leading else ["node", "gateway"]
        if host.is_gateway:
            roles = ["gateway"]
        parts.append(_host(host, roles, groups, common_user))
    return "\n".join(parts)


def _gateways(hosts: Sequence[FoundHost], asked: list[str]) -> set[str]:
    names = [host.name for host in hosts]
    for name in asked:
        if name not in names:
            raise HostSourceError(f"no host is named {name!r}; there are: {', '.join(names)}")
    # As the forerunners have it: where nobody says, the first host is the gateway's too.
    return set(asked or [h.name for h in hosts if h.is_gateway] or names[:1])


def _groups(hosts: Sequence[FoundHost]) -> dict[str, list[FoundHost]]:
    groups: dict[str, list[FoundHost]] = {}
    for host in hosts:
        if not host.is_gateway:
            groups.setdefault(_group_name(host), []).append(host)
    return groups


def _group_name(host: FoundHost) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", host.group).strip("-._") or "nodes"


def _group(name: str, members: Sequence[FoundHost], engine: str, profile: str, limits: EngineLimits) -> str:
    engine_port = _most([str(h.engine_port or "") for h in members])
    url = f'engine_url = "http://127.0.0.1:{engine_port}"' if engine_port and engine != "emulated" else ""
    told = {
        key: getattr(limits, key)
        for key in ("max_num_seqs", "max_num_batched_tokens", "block_size_tokens", "num_blocks")
        if getattr(limits, key)
    }
    table = "\n".join(f"{key} = {value}" for key, value in told.items())
    return re.sub(
        r"\n\n+(?=#)",
        "\n",
        GROUP.format(
            name=_quoted(name),
            engine=_quoted(engine),
            profile=_quoted(profile),
            port=_most([str(h.predictor_port or "") for h in members]) or "8100",
            url=url,
            nodes=_usual_nodes(members),
            limits=f"[groups.config.emulated]\n{table}\n" if told and engine == "emulated" else "",
        ).rstrip("\n")
        + "\n",
    )


def _usual_nodes(members: Sequence[FoundHost]) -> int:
    return int(_most([str(host.nodes) for host in members]) or 1)


def _host(host: FoundHost, roles: list[str], groups: dict[str, list[FoundHost]], common_user: str) -> str:
    lines = ["[[hosts]]", f"name = {_quoted(host.name)}", f"address = {_quoted(host.address or host.ssh or host.name)}"]
    if host.ssh and host.ssh != (host.address or host.ssh):
        lines.append(f"ssh = {_quoted(host.ssh)}")
    if host.user and host.user != common_user:
        lines.append(f"user = {_quoted(host.user)}")
    if host.port:
        lines.append(f"port = {host.port}")
    lines.append(f"roles = {json.dumps(roles)}")
    if len(groups) > 1 and "node" in roles:
        lines.append(f"group = {_quoted(_group_name(host))}")
    if "node" in roles and host.nodes != _usual_nodes(groups[_group_name(host)]):
        lines.append(f"nodes = {host.nodes}")
    return "\n".join(lines) + "\n"


def _most(values: Sequence[str]) -> str:
    """The value that most have; empty: none."""
    told = Counter(value for value in values if value)
    return told.most_common(1)[0][0] if told else ""


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
