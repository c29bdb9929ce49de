"""Runs on a fleet: each group with its own limits, results and prices by group, models by share."""

from __future__ import annotations

import io
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner
from rich.console import Console

from bench.commands.capacity import capacity
from bench.commands.chaos import chaos
from bench.commands.compare import compare
from bench.commands.simulate import simulate
from bench.commands.sweep import sweep
from bench.experiments.run import Size, tasks_of
from bench.experiments.schema import Experiment, Grid, Variant
from bench.measure.groups import GroupFacts, fleet_price, summarise_groups
from bench.measure.results import summarise
from bench.run.capacity_search import parse_objective
from bench.run.simulated import Done, RunLine, Task, run_task
from bench.run.spec import RunSpec, SpecError, check_spec, with_values
from bench.run.workload import requests_of
from bench.show.groups import show_groups
from bench.simcluster import NodeSpec
from bench.workload.item import WorkloadItem
from bench.workload.models import model_shares, with_models
from deploy.commands.up import up
from simcore.types import Outcome

TWO_MODELS = "2*a30/llama-2-7b,1*h100/qwen2-7b"
FLEET = """
[[group]]
name = "slow"
count = 2
profile = "a30/llama-2-7b"
max_num_seqs = 8
price_per_hour = 0.5
labels = {zone = "a"}
[[group]]
name = "fast"
count = 1
profile = "h100/llama-2-7b"
num_blocks = 900
prefix_caching = false
price_per_hour = 3.0
"""


@pytest.fixture
def fleet_path(tmp_path: Path) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(FLEET, encoding="utf-8")
    return str(path)


def small(**values: object) -> RunSpec:
    return with_values(RunSpec(), {"requests": 200, "rate_per_s": 20.0, "policy": "least_requests", **values})


def simulated(spec: RunSpec) -> Done:
    check_spec(spec)
    return run_task(Task(group="g", variant="v", spec=spec), keep_results=True)


def test_each_group_has_its_limits_and_the_rest_is_the_runs(fleet_path: str) -> None:
    nodes = small(fleet=fleet_path, max_num_seqs=40).node_specs()
    assert [node.node_id for node in nodes] == ["slow-0", "slow-1", "fast-0"]
    assert [node.config.max_num_seqs for node in nodes] == [8, 8, 40]
    assert [node.config.enable_prefix_caching for node in nodes] == [True, True, False]
    assert nodes[2].config.num_blocks == 900
    assert {node.config.model for node in nodes} == {"llama-2-7b"}


def test_live_nodes_are_started_as_simulated_ones(fleet_path: str) -> None:
    from predictor.config import PredictorConfig, load
    from protos.runtime.options import given_tables

    spec = small(fleet=fleet_path)
    for node, options in zip(spec.node_specs(), spec.node_options(), strict=True):
        off = options.pop("no_prefix_caching", False)
        config = load(None, given_tables(PredictorConfig, {**options, "prefix_caching": False if off else None}))
        assert config.node_id == node.node_id
        assert config.engine_step_time() == node.step_time
        assert config.engine_config() == node.config


def test_results_are_by_group_and_priced(fleet_path: str) -> None:
    done = simulated(small(fleet=fleet_path))
    slow, fast = done.line.groups
    assert (slow.nodes, fast.nodes, slow.labels) == (2, 1, {"zone": "a"})
    for group in (slow, fast):
        own = [r for r in done.results if r.node_id.startswith(group.name)]
        assert group.requests == len(own) > 0
        assert group.e2e_s is not None
        assert group.e2e_s.mean == pytest.approx(sum(r.e2e_s or 0.0 for r in own) / len(own))
        assert group.kv_share is not None
        assert 0 < group.kv_share < 1
    assert slow.share + fast.share == pytest.approx(1.0)
    price = done.line.price
    assert price is not None
    assert price.per_hour == 4.0
    good = done.line.measures["goodput_share"] * 200
    offered = done.line.summary.offered_rate_per_s
    assert offered is not None
    assert price.per_1000_good_answers == pytest.approx(1e3 * 4.0 / 3600 * 200 / offered / good)
    assert done.line.measures["ttft_p99_s_of_fast"] < done.line.measures["ttft_p99_s_of_slow"]
    again = msgspec.json.decode(msgspec.json.encode(done.line), type=RunLine)
    assert again.run.groups == done.line.groups


def test_equal_nodes_have_no_groups() -> None:
    line = simulated(small(nodes=2)).line
    assert line.groups == ()
    assert line.price is None
    assert b'"groups"' not in msgspec.json.encode(line.run)


def test_what_reached_no_node_is_of_no_group() -> None:
    results = [
        msgspec.structs.replace(row, node_id=node_id)
        for row, node_id in zip(simulated(small(nodes=1, requests=3)).results, ("a-0", "a-1", ""), strict=True)
    ]
    facts = GroupFacts(name="a", profile="p", model="m", node_ids=("a-0", "a-1"))
    (group,) = summarise_groups(results, [facts])
    assert (group.requests, group.kv_share) == (2, None)
    assert group.share == pytest.approx(2 / 3)
    assert fleet_price(summarise(results), good=2, per_hour=None, currency="USD") is None


def test_a_fleet_of_one_profile_is_the_same_as_equal_nodes() -> None:
    equal = simulated(small(nodes=3, policy="min_total_latency")).line
    fleet = simulated(small(fleet="3*a30/llama-2-7b", policy="min_total_latency")).line
    kept = {name: value for name, value in fleet.measures.items() if name in equal.measures and name != "cpu_s"}
    assert kept == {name: value for name, value in equal.measures.items() if name != "cpu_s"}


def test_a_changed_file_is_another_run(fleet_path: str) -> None:
    before = small(fleet=fleet_path).key
    assert small(fleet=fleet_path).key == before
    Path(fleet_path).write_text(FLEET.replace("num_blocks = 900", "num_blocks = 901"), encoding="utf-8")
    assert small(fleet=fleet_path).key != before
    assert small(fleet=fleet_path).node_specs()[2].config.num_blocks == 901


# --- several models ---------------------------------------------------------------------------------------------------


def test_requests_go_to_nodes_that_serve_their_model() -> None:
    spec = small(fleet=TWO_MODELS, models="llama-2-7b=1,qwen2-7b=3")
    done = simulated(spec)
    model_of = {item.request_id: item.model for item in requests_of(spec)}
    served = {node.node_id: node.config.model for node in spec.node_specs()}
    assert {row.outcome for row in done.results} == {Outcome.STOP}
    assert all(served[row.node_id] == model_of[row.request_id] for row in done.results)
    assert 0.6 < sum(model == "qwen2-7b" for model in model_of.values()) / len(model_of) < 0.9
    assert done.line.measures.keys() >= {"ttft_p99_s_of_qwen2-7b", "ttft_p99_s_of_llama-2-7b"}
    assert parse_objective("ttft_p99_s_of_qwen2-7b<=3").holds(done.line)


def test_models_are_drawn_by_seed() -> None:
    items = [WorkloadItem(request_id=str(n), arrival_s=n, prompt_tokens=1, output_tokens=1) for n in range(100)]
    shares = {"a": 0.5, "b": 0.5}
    assert with_models(items, shares, 3) == with_models(items, shares, 3) != with_models(items, shares, 4)
    assert with_models(items, {}, 3) == items


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ("", "the nodes serve several models; say what share asks for which: models a=0.5,b=0.5"),
        ("a=1,bb=1", "models: no group serves 'bb'; did you mean 'b'? served are a, b"),
        ({"c": 1.0}, "no group serves 'c'"),
        ("a=0", "the share of 'a' is 0; it must be above 0"),
        ({"a": float("nan")}, "it must be above 0"),
        ("a=x", "cannot read 'a=x'; write NAME=SHARE,..."),
        ("a", "cannot read 'a'"),
        ("a=1,a=2", "'a' is there twice"),
    ],
)
def test_shares_that_cannot_be(said: str | dict[str, float], says: str) -> None:
    with pytest.raises(ValueError) as refused:
        model_shares(said, ["a", "b"])
    assert says in str(refused.value)


def test_shares_need_not_sum_up() -> None:
    assert model_shares("a=3, b=1", ["a", "b"]) == {"a": 0.75, "b": 0.25}
    assert model_shares("", ["a"]) == {}


# --- the commands -----------------------------------------------------------------------------------------------------


def refused(command: click.Command, *arguments: str) -> str:
    found = CliRunner().invoke(command, arguments)
    assert found.exit_code != 0, found.output
    assert isinstance(found.exception, SystemExit), found.exception
    return found.output


COMMANDS: dict[str, tuple[click.Command, tuple[str, ...]]] = {
    "simulate": (simulate, ("--rate", "5", "--requests", "20")),
    "compare": (compare, ("--simulate", "--rate", "5", "--requests", "20")),
    "compare live": (compare, ("--rate", "5", "--requests", "20", "--dataset", "block-sharegpt")),
    "sweep": (sweep, ("--axis", "rate=5")),
    "capacity": (capacity, ()),
    "chaos": (chaos, ()),
    "up": (up, ()),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("text", "says"),
    [
        (FLEET.replace("count = 2", "count = 0"), "key 'count' in [group 1]"),
        (FLEET.replace("num_blocks", "num_block"), "unknown key 'num_block' in [group 2]; did you mean 'num_blocks'"),
        (FLEET.replace("a30/llama", "a30/lama"), "[group 1]: no shipped step-time profile 'a30/lama-2-7b'"),
        ("", "no groups"),
    ],
)
def test_every_command_says_what_is_wrong_with_the_file(name: str, text: str, says: str, fleet_path: str) -> None:
    Path(fleet_path).write_text(text, encoding="utf-8")
    command, arguments = COMMANDS[name]
    output = refused(command, *arguments, "--fleet", fleet_path)
    assert output.count("rror: ") == 1
    assert fleet_path in output
    assert says in output


@pytest.mark.parametrize("name", ["simulate", "compare", "compare live", "sweep", "capacity"])
def test_a_model_that_no_group_serves_is_refused(name: str, fleet_path: str) -> None:
    command, arguments = COMMANDS[name]
    output = refused(command, *arguments, "--fleet", fleet_path, "--models", "llama-2-7b=1,llama-2-70b=1")
    assert "no group serves 'llama-2-70b'; did you mean 'llama-2-7b'?" in output


@pytest.mark.parametrize(
    ("command", "arguments", "says"),
    [
        (simulate, ("--nodes", "3", "--rate", "5"), "leave --nodes out"),
        (compare, ("--nodes", "3", "--rate", "5"), "leave --nodes out"),
        (up, ("--nodes", "3"), "leave --nodes out"),
        (up, ("--profile", "a30/llama-2-7b"), "leave --profile out"),
        (compare, ("--gateway", "127.0.0.1:1", "--rate", "5"), "leave --fleet"),
        (capacity, ("--nodes-for", "5"), "--nodes-for counts equal nodes: leave fleet out"),
        (chaos, ("--live",), "leave --fleet out"),
    ],
)
def test_what_a_fleet_says_already_is_not_said_twice(
    command: click.Command, arguments: tuple[str, ...], says: str
) -> None:
    assert says in refused(command, *arguments, "--fleet", "mixed")


@pytest.mark.parametrize(
    ("fleet", "says"),
    [
        (TWO_MODELS, "faults need nodes of one model; this fleet serves llama-2-7b, qwen2-7b"),
        ("1*a30/llama-2-7b", "this fault needs 2 nodes, the fleet has 1"),
    ],
)
def test_faults_need_a_fleet_that_suits_them(fleet: str, says: str) -> None:
    assert says in refused(chaos, "--fleet", fleet, "--fault", "node_killed", "--seeds", "1")


def test_nodes_too_small_for_the_faults_requests_are_refused(fleet_path: str) -> None:
    Path(fleet_path).write_text(FLEET.replace("num_blocks = 900", "num_blocks = 90"), encoding="utf-8")
    assert "some node of this fleet holds 1,440" in refused(chaos, "--fleet", fleet_path)


def test_faults_hold_on_a_fleet_of_unequal_nodes() -> None:
    found = CliRunner().invoke(chaos, ["--fleet", "h100-l40s", "--seeds", "1", "--fault", "everything_at_once"])
    assert found.exit_code == 0, found.output
    assert "holds" in found.output


def test_an_experiment_takes_a_fleet_by_name_and_in_full() -> None:
    group = {"count": 2, "profile": "a30/llama-2-7b", "max_num_seqs": 24}
    experiment = Experiment(
        name="e",
        title="t",
        system="own",
        source="s",
        base={"requests": 10},
        variants=[Variant(name="v", values={"policy": "random"})],
        grids=[Grid(axes={"fleet": ["mixed", [group]]})],
    )
    specs = [task.spec for task in tasks_of(experiment, Size())]
    assert [spec.size for spec in specs] == [12, 2]
    assert isinstance(specs[1].node_specs()[0], NodeSpec)
    assert specs[1].node_specs()[0].config.max_num_seqs == 24
    with pytest.raises(SpecError, match="num_seqs"):
        with_values(RunSpec(), {"fleet": [{**group, "num_seqs": 3}]})
    with pytest.raises(SpecError, match=r"fleet: \[group 1\]: no shipped"):
        check_spec(with_values(RunSpec(), {"fleet": [{**group, "profile": "nothing/x"}]}))


def test_blocks_that_hold_no_request_are_refused() -> None:
    with pytest.raises(SpecError, match="1 KV blocks of 1 tokens hold no request"):
        check_spec(small(fleet="1*a30/llama-2-7b", num_blocks=1, block_size_tokens=1))


def test_people_see_groups_and_prices(fleet_path: str) -> None:
    lines = [simulated(small(fleet=fleet_path, seed=seed, requests=50)).line for seed in (0, 1)]
    out = io.StringIO()
    show_groups(Console(file=out, width=100), [line.run for line in lines])
    text = out.getvalue()
    assert "2 × slow" in text
    assert "1 × fast" in text
    assert "the fleet costs 4.00 USD an hour" in text
    assert text.count(" a 1,000 good answers") == 1, "seeds are averaged"
    nothing = io.StringIO()
    show_groups(Console(file=nothing, width=100), [msgspec.structs.replace(lines[0].run, groups=(), price=None)])
    assert nothing.getvalue() == ""
