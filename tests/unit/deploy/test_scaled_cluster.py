from __future__ import annotations

import sys
from pathlib import Path

import pytest

from deploy.fleet import NodeGroup, read_fleet
from deploy.scaled_cluster import scaling_groups, write_gateway_file
from gateway.config import load

A30 = NodeGroup(count=4, profile="a30/llama-2-7b", name="a30")


def test_bounds_are_the_groups_own_else_those_of_the_command() -> None:
    groups = [A30, NodeGroup(count=2, profile="h100/llama-3.1-8b", name="h100", min=0, max=5, price_per_hour=3.0)]
    made = scaling_groups(groups, least=1, most=6, defaults={})
    assert [(group.name, group.min, group.max) for group in made] == [("a30", 1, 6), ("h100", 0, 5)]
    assert [group.price_per_hour for group in made] == [1.0, 3.0]


def test_without_a_maximum_there_are_at_most_as_many_as_the_fleet_has() -> None:
    (made,) = scaling_groups([A30], least=1, most=None, defaults={"max_num_seqs": 8, "num_blocks": None})
    assert (made.min, made.max, made.max_num_seqs, made.num_blocks) == (1, 4, 8, 0)


def test_a_minimum_above_the_maximum_is_an_error() -> None:
    with pytest.raises(ValueError, match="group 'a30': min 3 is above max 2"):
        scaling_groups([A30], least=3, most=2, defaults={})


def test_what_is_written_is_what_a_gateway_reads(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    made = scaling_groups(read_fleet("mixed").group, least=0, most=2, defaults={"model": 'a "name"'})
    scaling = {"objective": {"ttft_s": 1.5}, "rule": "static", "tick_s": 2.0}
    local = {"folder": str(tmp_path / "nodes"), "options": {"time_scale": 2.0}}
    write_gateway_file(path, made, scaling=scaling, connector="local", options=local)
    read = load(path).scaling
    assert read.group == tuple(made)
    assert (read.rule, read.tick_s, read.objective.ttft_s, read.connector) == ("static", 2.0, 1.5, "local")
    assert (read.local.folder, read.local.options) == (str(tmp_path / "nodes"), {"time_scale": 2.0})


def test_a_program_of_ones_own_may_start_the_nodes(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    made = scaling_groups([A30], least=1, most=None, defaults={})
    run = [sys.executable, "nodes.py", "with 'quotes'"]
    write_gateway_file(path, made, scaling={"rule": "static"}, connector="command", options={"run": run})
    read = load(path).scaling
    assert (read.connector, read.command.run, read.lease_s) == ("command", tuple(run), 0.0)
