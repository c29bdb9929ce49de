"""Options are the fields of a run: same names, types, defaults and words."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from bench.commands.spec_options import base_spec, read_axis, spec_options, spec_values
from bench.commands.workload_options import policy_paths
from bench.run.spec import RunSpec, SpecError, check_spec, with_values
from gateway.core.router_config import RouterConfig
from simcore.cost.shipped import load_profile

KEYS = ("nodes", "num_blocks", "duration_s", "lengths", "arrivals", "in_order", "router.ask", "router.hold.when")


def run(*arguments: str) -> tuple[int, str, dict[str, object]]:
    found: dict[str, object] = {}

    @click.command()
    @spec_options(*KEYS, nodes=3)
    def command(**options: object) -> None:
        found.update(options)

    done = CliRunner().invoke(command, arguments)
    return done.exit_code, done.output, found


def test_an_option_has_the_default_of_its_field_or_of_its_command() -> None:
    code, _, found = run()
    assert code == 0
    assert found == {
        "nodes": 3,
        "num_blocks": None,
        "duration": None,
        "lengths": RunSpec().lengths,
        "arrivals": RunSpec().arrivals,
        "in_order": None,
        "ask": RouterConfig().ask,
        "hold": RouterConfig().hold.when,
    }
    assert spec_values(found, "nodes", "duration_s", "router.ask", "router.hold.when") == {
        "nodes": 3,
        "duration_s": None,
        "router.ask": RouterConfig().ask,
        "router.hold": {"when": RouterConfig().hold.when},
    }


def test_a_choice_that_nobody_made_can_be_made_either_way() -> None:
    assert run("--in-order")[2]["in_order"] is True
    assert run("--no-in-order")[2]["in_order"] is False


def test_its_help_is_the_first_sentence_of_the_field_and_says_what_nothing_means() -> None:
    words = " ".join(run("--help")[1].split())
    assert "Equal nodes." in words
    assert "KV blocks of a node; not given: what the profile's memory gives." in words


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(("--nodes", "0"), "x>=1"), (("--lengths", "all"), "known"), (("--arrivals", "x"), "recorded")],
)
def test_what_the_field_cannot_be_is_refused(arguments: tuple[str, ...], says: str) -> None:
    code, output, _ = run(*arguments)
    assert code == 2
    assert says in output


def test_nothing_named_is_the_default_run() -> None:
    assert base_spec(()) == RunSpec()


def test_a_profile_brings_its_blocks_unless_they_are_named() -> None:
    kv = load_profile("h100/qwen2-7b").kv
    own = base_spec(("profile=h100/qwen2-7b",))
    assert own.engine(own.groups[0]).num_blocks == kv.num_blocks * kv.block_size_tokens // 16
    halved = base_spec(("profile=h100/qwen2-7b", "block_size_tokens=32"))
    assert halved.engine(halved.groups[0]).num_blocks == kv.num_blocks * kv.block_size_tokens // 32
    named = base_spec(("profile=h100/qwen2-7b", "num_blocks=500"))
    assert named.engine(named.groups[0]).num_blocks == 500


def test_nodes_may_differ_and_each_has_the_blocks_of_its_profile() -> None:
    spec = with_values(RunSpec(), {"fleet": "2*a30/llama-2-7b, 1*h100/llama-2-7b"})
    check_spec(spec)
    nodes = spec.node_specs()
    assert [node.node_id for node in nodes] == ["a30-0", "a30-1", "h100-0"]
    assert [node.config.num_blocks for node in nodes] == [
        load_profile(name).kv.num_blocks for name in ("a30/llama-2-7b", "a30/llama-2-7b", "h100/llama-2-7b")
    ]
    assert nodes[0].step_time != nodes[2].step_time
    assert spec.size == 3
    assert spec.longest_tokens == 4096


@pytest.mark.parametrize("text", ["a30/llama-2-7b", "0*a30/llama-2-7b", "x*a30/llama-2-7b", "3*", "2*a30/llama-2-7b,"])
def test_a_fleet_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="write COUNT"):
        check_spec(with_values(RunSpec(), {"fleet": text}))


@pytest.mark.parametrize("names", [("",), (" , ",), ("", ",")])
def test_policies_that_name_none_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(click.BadParameter, match="names no policy"):
        policy_paths(names)
    assert list(policy_paths((*names, "random,,round_robin"))) == ["random", "round_robin"]


@pytest.mark.parametrize("text", ["nodes=,", "nodes= , "])
def test_an_axis_without_a_value_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="nodes has no value"):
        read_axis(text)
