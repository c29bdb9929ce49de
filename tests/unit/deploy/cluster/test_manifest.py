"""What is wrong with a cluster.toml is told at once, a line each, with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.cluster.contradictions import load_cluster
from protos.runtime.config import ConfigError

GOOD = """\
[ssh]
user = "ada"

[[groups]]
name = "a30"
engine = "emulated"
config = {emulated = {max_num_seqs = 48}}

[[hosts]]
name = "a"
address = "10.0.0.1"
roles = ["node", "gateway"]

[[hosts]]
name = "b"
address = "10.0.0.2"
"""


def refusal(tmp_path: Path, text: str) -> list[str]:
    file = tmp_path / "cluster.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_cluster(file)
    return [line.removeprefix(str(file)) for line in str(refused.value).splitlines()]


def test_a_good_one(tmp_path: Path) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(GOOD)
    cluster = load_cluster(file)
    assert [node.name for node in cluster.nodes()] == ["a", "b"]
    assert [host.name for host in cluster.gateways()] == ["a"]
    assert cluster.nodes()[1].address == "10.0.0.2:8100"


def test_all_that_is_wrong_is_told_with_its_line(tmp_path: Path) -> None:
    text = GOOD.replace('"b"', '"a"').replace("10.0.0.2", "10.0.0.1").replace('["node", "gateway"]', '["node"]')
    assert refusal(tmp_path, text) == [
        ", line 15: a second host is a; each host has one of its own",
        ", line 16: 'a' has the address of 'a': it is 10.0.0.1; each host has one of its own",
        ', line 1: no host is a gateway; write roles = ["node", "gateway"] (or ["gateway"]) at one',
    ]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            'address = "10.0.0.2"',
            'adress = "10.0.0.2"',
            "16: unknown key 'adress' in [hosts 2]; did you mean 'address'",
        ),
        ("user =", "usr =", "2: unknown key 'usr' in [ssh]; did you mean 'user' in [ssh]"),
        ("max_num_seqs", "max_num_sqs", "4: group 'a30': unknown key 'max_num_sqs' in [emulated]; did you mean"),
        ('name = "b"', 'name = "b"\ngroup = "h100"', "16: there is no group 'h100'; there are: a30"),
        ('"emulated"', '"emulated"\nport = 8200', "10: 'a': its node and its gateway have the same port"),
        ('"emulated"', '"emulated"\nprofile = "a3/llama-2-7b"', "4: group 'a30': key 'profile'"),
        ('"node", "gateway"', '"gatway"', "12: key 'roles[0]' in [hosts 1]"),
    ],
)
def test_a_slip_is_told_with_what_was_meant(tmp_path: Path, old: str, new: str, words: str) -> None:
    (line,) = refusal(tmp_path, GOOD.replace(old, new, 1))
    assert line.startswith(f", line {words}")
