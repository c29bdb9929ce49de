"""What a gateway is told of scaling: one clear line for each thing that cannot be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.config import GatewayConfig, load
from gateway.core.scale.config import ScaleGroup
from protos.runtime.config import ConfigError

GROUP: dict[str, Any] = {"name": "a30", "profile": "a30/llama-2-7b", "min": 1, "max": 3}


def configured(scaling: dict[str, Any], **others: Any) -> GatewayConfig:
    return load(None, {"scaling": {"rule": "static", "group": [GROUP], **scaling}, **others})


def test_without_a_rule_nothing_is_scaled() -> None:
    assert not load(None).scaling.is_on


def test_a_group_is_what_its_profile_says() -> None:
    scaling = configured({"group": [{**GROUP, "max_num_seqs": 16, "price_per_hour": 2.0, "cold_start_s": 9.0}]}).scaling
    (group,) = scaling.core().groups
    assert (group.name, group.model, group.min, group.max, group.leaves) == ("a30", "llama-2-7b", 1, 3, "any")
    assert (group.price_per_hour, group.cold_start_s) == (2.0, 9.0)
    assert group.engine is not None
    assert (group.engine.max_num_seqs, group.engine.num_blocks) == (16, 1052)
    assert group.pace is not None
    assert group.pace.batches[-1] == 16


def test_a_group_without_a_profile_is_as_its_nodes_are() -> None:
    (group,) = configured({"group": [{"name": "gpu", "model": "m"}]}).scaling.core().groups
    assert group == ScaleGroup(name="gpu", model="m", min=1, max=4)


def test_the_last_of_a_statefulset_leaves() -> None:
    assert configured({"connector": "kubernetes"}).scaling.core().groups[0].leaves == "last"


@pytest.mark.parametrize(
    ("scaling", "says"),
    [
        ({"group": [{**GROUP, "min": 4}]}, "group 'a30': min 4 is above max 3"),
        ({"group": []}, "no groups"),
        ({"rule": ""}, "there are groups and no rule"),
        ({"rule": "statik"}, "unknown scaling rule 'statik': did you mean 'static'?"),
        ({"options": {"nodez": 3}}, "options of 'static'"),
        ({"group": [GROUP, GROUP]}, "group 'a30': give each group a name of its own"),
        ({"group": [{**GROUP, "profile": "a31/llama-2-7b"}]}, "group 'a30': no shipped step-time profile"),
        ({"group": [{**GROUP, "maximum": 3}]}, "unknown field `maximum`".replace("`", "'")),
        ({"group": [{**GROUP, "name": "a b"}]}, "name"),
        ({"objective": {"share": 1.5}}, "share is 1.5"),
        ({"connector": "lokal"}, "unknown connector 'lokal': did you mean 'local'?"),
        ({"connector": "local"}, "name one with folder in [local]"),
        (
            {"connector": "local", "local": {"folder": "x"}, "group": [{"name": "g"}]},
            "group 'g': connector 'local' starts emulated engines; give a profile",
        ),
        ({"connector": "command"}, "runs a program of yours; name it with run in [command]"),
        ({"connector": "command", "command": {"run": ["/nowhere/at-all"]}}, "'/nowhere/at-all' is not there"),
        ({"connector": "command", "command": {"run": [__file__]}}, "is not executable"),
        ({"connector": "systemd"}, "group 'a30': max is 3 and [systemd.hosts] has 0 places for it"),
        ({"connector": "systemd", "systemd": {"hosts": {"b": ["h:1"]}}}, "[systemd.hosts] names the group 'b'"),
        ({"connector": "systemd", "systemd": {"hosts": {"a30": ["h"]}}}, "'h' is not [user@]host:port"),
        ({"connector": "systemd", "systemd": {"hosts": {"a30": ["h:1", "h:1"]}}}, "a place is there twice"),
    ],
)
def test_what_cannot_be_is_one_line(scaling: dict[str, Any], says: str) -> None:
    # What runs on the hosts is no matter here.
    ours = {"systemd": {"ssh": [], "systemctl": [sys.executable], **scaling.pop("systemd", {})}}
    with pytest.raises(ConfigError) as refused:
        configured({**scaling, **ours})
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_unit_needs_its_nodes_name() -> None:
    hosts = {"a30": ["h:1", "h:2", "h:3"]}
    systemd = {"hosts": hosts, "ssh": [], "systemctl": [sys.executable], "unit": "astrolabe-predictor"}
    with pytest.raises(ConfigError, match="is the same for all nodes"):
        configured({"connector": "systemd", "systemd": systemd})


@pytest.mark.parametrize(("key", "value"), [("dry_run", True), ("lease_s", 0)])
def test_of_several_workers_one_leads_or_there_is_one(key: str, value: float) -> None:
    assert configured({}, workers=2).workers == 2
    with pytest.raises(ConfigError, match=f"key 'workers': is 2, and with {key}.* in .scaling. each process would"):
        configured({key: value}, workers=2)


def test_the_tables_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(
        """
        [scaling]
        rule = "static"
        connector = "local"
        [scaling.local]
        folder = "nodes"
        options = { time_scale = 10 }
        [scaling.objective]
        ttft_s = 2.0
        [[scaling.group]]
        name = "a30"
        profile = "a30/llama-2-7b"
        """
    )
    scaling = load(path, {"scaling": {"tick_s": 1.0}}).scaling
    assert (scaling.tick_s, scaling.local.options, scaling.objective.ttft_s) == (1.0, {"time_scale": 10}, 2.0)
    path.write_text("[scaling]\nrules = 'static'\n")
    with pytest.raises(ConfigError, match=r"unknown key 'rules' in \[scaling\]; did you mean 'rule' in \[scaling\]\?"):
        load(path)
