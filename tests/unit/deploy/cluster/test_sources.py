"""What people have about their hosts is read as it is, told apart by content, and refused with a line number."""

from __future__ import annotations

import json
import tomllib

import msgspec
import pytest

from deploy.cluster.contradictions import problems
from deploy.cluster.draft import draft
from deploy.cluster.manifest import Cluster
from deploy.cluster.sources import EngineLimits, FoundHost, HostSourceError, format_of, read_source, tidy_names

CLOUDLAB = """\
<rspec xmlns="http://www.geni.net/resources/rspec/3"
       xmlns:emulab="http://www.protogeni.net/resources/rspec/ext/emulab/1" type="manifest">
  <node client_id="node0" exclusive="true">
    <hardware_type name="d7525"/>
    <interface client_id="node0:eth1"><ip address="10.10.1.1" type="ipv4" netmask="255.255.255.0"/></interface>
    <emulab:vnode name="d7525-10s10309" hardware_type="d7525"/>
    <host name="node0.exp.project.wisc.cloudlab.us" ipv4="128.105.146.42"/>
    <services><login authentication="ssh-keys" hostname="d7525-1.wisc.cloudlab.us" port="22" username="ada"/></services>
  </node>
  <node client_id="node1" exclusive="true">
    <hardware_type name="d7525"/>
    <host name="node1.exp.project.wisc.cloudlab.us" ipv4="128.105.146.33"/>
    <services>
      <login authentication="ssh-keys" hostname="d7525-2.wisc.cloudlab.us" port="2222" username="ada"/>
      <login authentication="ssh-keys" hostname="d7525-2.wisc.cloudlab.us" port="22" username="bob"/>
    </services>
  </node>
  <node client_id="bluefield"/>
  <link client_id="link-1"><interface_ref client_id="node0:eth1"/></link>
</rspec>
"""

HOST_CONFIGS = """\
{
  "c240g5-110105.wisc.cloudlab.us": {"backend_port": 8000, "ip_address": "128.105.144.45", "predictor_ports": [8300, 8301]},
  "ada@c240g5-110119.wisc.cloudlab.us": {"backend_port": 8000, "ip_address": "128.105.144.52", "predictor_port": 8300}
}
"""  # noqa: E501
MODEL_OF_THE_REPOSITORY = """\
{"replica_config": {"model_name": "meta-llama/Llama-2-7b-hf", "device": "a30", "tensor_parallel_size": 1},
 "replica_scheduler_config": {"batch_size_cap": 48, "chunk_size": 512, "num_blocks": 1052}}
"""
MODEL_OF_THE_SEED = """\
{"model": "meta-llama/Llama-2-7b-hf", "gpu": "A30", "max_batch_size": 48, "chunk_size": 512, "block_size": 16}
"""

INI = """\
# the fleet
jump.lab ansible_connection=local

[gpus]
gpu[01:03:2].lab ; two hosts
big ansible_host=10.0.2.1 ansible_port=2200 ansible_user=root

[gateways]
gw-a ansible_host=10.0.0.10

[gpus:vars]
ansible_user=ada

[fleet:children]
gpus
gateways

[fleet:vars]
ansible_user=everyone
"""
YAML = """\
all:
  vars:
    ansible_user: ada
  children:
    a100:
      hosts:
        a[1:2]:
        a3: {ansible_host: 10.0.0.3, ansible_user: root, ansible_port: 22}
    my_gateways:
      hosts:
        front: {ansible_host: 10.0.0.9}
"""
SSH = """\
Include more/*.conf
Host gpu-a gpu-b
  HostName %h.lab.example
  Port 2022
Host gpu-*
  ForwardAgent no
Match host gpu-a
  User never
Host *
  User = ada
"""


def names(text: str) -> list[str]:
    return [host.name for host in read_source(text).hosts]


@pytest.mark.parametrize(
    ("text", "format"),
    [
        (CLOUDLAB, "cloudlab"),
        (HOST_CONFIGS, "block"),
        (MODEL_OF_THE_SEED, "block"),
        (INI, "ansible-ini"),
        ("a ansible_host=10.0.0.1\nb\n", "ansible-ini"),
        (YAML, "ansible-yaml"),
        ('{"all": {"hosts": {"a": {}}}}', "ansible-yaml"),
        (SSH, "ssh-config"),
        ("ada@10.0.0.1:2022\n# none\nb.lab slots=8\n", "hosts"),
    ],
)
def test_the_format_is_told_by_content(text: str, format: str) -> None:
    assert format_of(text) == format


def test_a_cloudlab_node_has_its_inner_address_and_its_first_login() -> None:
    found = read_source(CLOUDLAB)
    assert found.hosts == (
        FoundHost(name="node0", address="10.10.1.1", ssh="d7525-1.wisc.cloudlab.us", user="ada", group="d7525"),
        FoundHost(
            name="node1", address="128.105.146.33", ssh="d7525-2.wisc.cloudlab.us", user="ada", port=2222, group="d7525"
        ),
    )
    assert found.notes == ("bluefield has no login: left out",)


def test_the_forerunners_files_are_read_in_both_spellings() -> None:
    first, second = read_source(HOST_CONFIGS).hosts
    assert (first.name, first.address, first.ssh) == (
        "c240g5-110105",
        "128.105.144.45",
        "c240g5-110105.wisc.cloudlab.us",
    )
    assert (first.predictor_port, second.predictor_port, first.engine_port, second.user) == (8300, 8300, 8000, "ada")
    limits = {"profile": "a30/llama-2-7b", "max_num_seqs": 48, "max_num_batched_tokens": 512}
    assert read_source(MODEL_OF_THE_REPOSITORY).engine == EngineLimits(**limits, num_blocks=1052)  # type: ignore[arg-type]
    assert read_source(MODEL_OF_THE_SEED).engine == EngineLimits(**limits, block_size_tokens=16)  # type: ignore[arg-type]


def test_an_inventory_has_ranges_and_the_inner_groups_variables_win() -> None:
    hosts = {host.name: host for host in read_source(INI).hosts}
    assert list(hosts) == ["gpu01.lab", "gpu03.lab", "big", "gw-a"]
    assert (hosts["gpu01.lab"].user, hosts["big"].user, hosts["gw-a"].user) == ("ada", "root", "everyone")
    assert (hosts["big"].ssh, hosts["big"].port, hosts["big"].group) == ("10.0.2.1", 2200, "gpus")
    assert [host.name for host in hosts.values() if host.is_gateway] == ["gw-a"]


def test_an_inventory_may_be_yaml_too() -> None:
    hosts = {host.name: host for host in read_source(YAML).hosts}
    assert list(hosts) == ["a1", "a2", "a3", "front"]
    assert (hosts["a1"].user, hosts["a3"].user, hosts["a3"].ssh, hosts["a1"].group) == (
        "ada",
        "root",
        "10.0.0.3",
        "a100",
    )
    assert hosts["front"].is_gateway


def test_an_ssh_config_names_its_aliases() -> None:
    found = read_source(SSH, include=lambda pattern: [f"Host far\n  HostName 10.9.9.9 # {pattern}\n"])
    assert [(h.name, h.address, h.ssh, h.user, h.port) for h in found.hosts] == [
        ("far", "10.9.9.9", "far", "ada", None),
        ("gpu-a", "gpu-a.lab.example", "gpu-a", "ada", 2022),
        ("gpu-b", "gpu-b.lab.example", "gpu-b", "ada", 2022),
    ]
    assert found.notes == ("Host gpu-*: a pattern, no host: left out", "Match host gpu-a: left out")


def test_a_list_has_a_host_a_line() -> None:
    found = read_source("ada@10.0.0.1:2022\nrack[09:10]  # two\n[fe80::1]:22\n")
    assert [(h.name, h.user, h.port) for h in found.hosts] == [
        ("10.0.0.1", "ada", 2022),
        ("rack09", "", None),
        ("rack10", "", None),
        ("fe80::1", "", 22),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("<rspec><node></rspec>", "line 1: is not XML"),
        ('{"a": }', "line 1: is not JSON"),
        ("[gpus]\ngpu[3:1]\n", "line 2: 'gpu[3:1]': a range goes from a smaller"),
        ("[gpus]\ngpu[01-16]\n", "line 2: 'gpu[01-16]': a range is [01:16]"),
        ("[gpus:what]\na\n", "line 1: [gpus:what] is no section"),
        ("all:\n  hosts: [\n", "line 3: is not YAML"),
        ("ok.lab\nwhat is/this\nx/y\n", "line 3: 'x/y' is not"),
        ("Include self\n", "include each other without an end"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(text: str, words: str) -> None:
    with pytest.raises(HostSourceError, match=r".*") as refused:
        read_source(text, include=lambda _: ["Include self\n"])
    assert words in str(refused.value)


def test_names_are_short_where_that_tells_hosts_apart() -> None:
    hosts = [FoundHost(name=name) for name in ("gpu1.a.lab", "gpu2.a.lab", "gpu2.b.lab", "10.0.0.1", "fe80::1")]
    assert [h.name for h in tidy_names(hosts)] == ["gpu1", "gpu2.a.lab", "gpu2.b.lab", "10.0.0.1", "fe80--1"]


@pytest.mark.parametrize("text", [CLOUDLAB, HOST_CONFIGS, INI, YAML, SSH, "a\nb\n"])
@pytest.mark.parametrize("engine", ["vllm", "emulated"])
def test_what_is_drafted_is_a_cluster(text: str, engine: str) -> None:
    found = read_source(text, include=lambda _: [])
    written = draft([("source", found)], engine=engine, profile="", user="")
    cluster = msgspec.convert(tomllib.loads(written), Cluster, strict=True)
    assert problems(cluster) == []
    assert len(cluster.hosts) == len(found.hosts)


def test_a_draft_takes_the_limits_of_a_models_file() -> None:
    sources = [("hosts", read_source("a\nb\n")), ("model", read_source(MODEL_OF_THE_REPOSITORY))]
    table = tomllib.loads(draft(sources, engine="emulated", profile="", user="ada"))
    assert table["groups"][0]["profile"] == "a30/llama-2-7b"
    assert table["groups"][0]["config"]["emulated"]["num_blocks"] == 1052
    assert table["ssh"]["user"] == "ada"
    assert [host["roles"] for host in table["hosts"]] == [["node", "gateway"], ["node"]]
    with pytest.raises(HostSourceError, match="no host is named 'c'; there are: a, b"):
        draft(sources, engine="emulated", profile="", user="", gateways=["c"])


def test_sources_say_how_many_nodes_where_they_do() -> None:
    block = {
        "h1": {"ip_address": "10.0.0.1", "backend_port": 8000},
        "h2-0": {"ip_address": "10.0.0.2", "backend_port": 8001},
        "h2-1": {"ip_address": "10.0.0.2", "backend_port": 8000},
        "h3": {"ip_address": "10.0.0.3", "backend_ports": [8000, 8001, 8002]},
        "h4": {"ip_address": "10.0.0.4", "backend_port": 8000, "gpus": 4},
    }
    found = read_source(json.dumps(block))
    assert [(h.name, h.nodes, h.engine_port) for h in found.hosts] == [
        ("h1", 1, 8000),
        ("h2", 2, 8000),
        ("h3", 3, 8000),
        ("h4", 4, 8000),
    ]
    listed = read_source("a gpus=8\nb\nb\nc slots=4\n")
    assert [(h.name, h.nodes) for h in listed.hosts] == [("a", 8), ("b", 2), ("c", 1)]
    inventory = read_source("[gpus]\na\nb gpu_count=2\n[gpus:vars]\ngpus=4\n")
    assert [(h.name, h.nodes) for h in inventory.hosts] == [("a", 4), ("b", 4)]
    aliases = read_source("Host a\n  HostName 10.0.0.1\nHost alias\n  HostName 10.0.0.1\n")
    assert [h.nodes for h in aliases.hosts] == [1, 1]
    apart = read_source(json.dumps({n: {"ip_address": "10.0.0.1", "backend_port": p} for n, p in (("a", 1), ("b", 5))}))
    assert apart.notes == ("a: the ports of its engines, 1, 5, are not in a row; give them 1, 2, ...",)


def test_a_draft_says_the_usual_count_once_and_others_at_their_hosts() -> None:
    written = draft([("hosts", read_source("a gpus=8\nb gpus=8\nc gpus=4\n"))], engine="vllm", profile="", user="")
    table = tomllib.loads(written)
    assert table["groups"][0]["nodes"] == 8
    assert [host.get("nodes") for host in table["hosts"]] == [None, None, 4]
    cluster = msgspec.convert(table, Cluster, strict=True)
    assert len(cluster.nodes()) == 20
    assert problems(cluster) == []
