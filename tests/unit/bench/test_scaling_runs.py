"""Runs with a scaler: their options, results, tables and pictures, and the plan of the perfect system."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner
from rich.console import Console

from bench.commands.compare import compare
from bench.commands.simulate import simulate
from bench.commands.sweep import sweep
from bench.measure.measures import GoodputSlo, good_answers
from bench.measure.scaling import COURSE_MOMENTS, SCALING_MEASURES
from bench.run.by_group import by_group, count
from bench.run.files import SCALING_FILE, read_lines
from bench.run.perfect_plan import STEP_S, cheapest, rates_needed
from bench.run.scaling import group_plans, scaled_fleet
from bench.run.simulated import Done, RunLine, Task, run_task
from bench.run.spec import RunSpec, SpecError, check_spec, with_values
from bench.run.workload import requests_of
from bench.show.html_report import as_html, sections_of
from bench.show.plots_scaling import plot_courses
from bench.show.simulated import show
from simcore.types import Outcome

MIXED = "3*a30/llama-2-7b,2*h100/qwen2-7b"


@pytest.fixture
def lengths(tmp_path: Path) -> Path:
    file = tmp_path / "lengths.csv"
    rows = "".join(f"{20 + 37 * i % 400},{1 + 53 * i % 90}\n" for i in range(60))
    file.write_text("num_prefill_tokens,num_decode_tokens\n" + rows)
    return file


def spec(lengths: Path, **values: Any) -> RunSpec:
    base = RunSpec(
        policy="least_requests",
        dataset="lengths",
        dataset_path=str(lengths),
        rate_steps="2x60,12x60,1x60",
        requests=None,
        nodes=4,
        cold_start="15",
        price=8.0,
        scaler="static",
    )
    return with_values(base, values)


def simulated(run: RunSpec) -> Done:
    check_spec(run)
    return run_task(Task(group="t", variant=run.scaler or "none", spec=run), keep_results=True)


def test_a_static_fleet_costs_what_all_of_its_nodes_do(lengths: Path) -> None:
    done = simulated(spec(lengths))
    measures = done.line.measures
    assert done.scaling is not None
    assert measures.keys() >= SCALING_MEASURES
    assert measures["nodes_mean"] == pytest.approx(4.0)
    assert measures["cost"] == pytest.approx(8.0 * measures["node_hours"])
    assert measures["node_starts"] == measures["flaps_per_hour"] == 0.0
    without = simulated(spec(lengths, scaler="", max_nodes=""))
    assert [row.ttft_s for row in without.results] == [row.ttft_s for row in done.results]
    assert without.line.scaling is None


def test_the_perfect_system_needs_fewer_nodes_and_misses_little(lengths: Path) -> None:
    run = spec(lengths, scaler="perfect", slo_ttft_s=0.5, max_nodes=6)
    done = simulated(run)
    static = simulated(msgspec.structs.replace(run, scaler="static"))
    measures = done.line.measures
    assert measures["slo_missed_share"] <= 0.05
    assert measures["node_hours"] < 0.8 * static.line.measures["node_hours"]
    assert {row.outcome for row in done.results} == {Outcome.STOP}


def test_what_a_node_serves_may_be_said(lengths: Path) -> None:
    run = spec(lengths, scaler="perfect", scaler_options={"rate": 4.0})
    scaled = scaled_fleet(run, requests_of(run))
    assert scaled is not None
    steps = scaled.config.options["plan"]["node"]
    assert max(nodes for _, nodes in steps) == 4
    assert scaled.groups["node"].nodes == steps[0][1]
    bad, items = msgspec.structs.replace(run, scaler_options={"rates": 4.0}), requests_of(run)
    with pytest.raises(ValueError, match="it has rate"):
        scaled_fleet(bad, items)


def test_the_window_that_is_busier_counts() -> None:
    arrivals_s = [0.5 + i for i in range(60)] + [60.0 + i / 4 for i in range(240)]
    rates = rates_needed(arrivals_s, 120.0)
    assert rates[0] == pytest.approx(1.0, abs=0.1)
    assert rates[int(60 / STEP_S)] == pytest.approx(4.0, abs=0.1)
    assert 1.0 < rates[int(40 / STEP_S)] < 4.0
    assert rates_needed([], 0.0) == [0.0]


def test_the_cheapest_nodes_that_serve_a_rate(lengths: Path) -> None:
    run = spec(lengths, fleet=MIXED, price="a30=1,h100=5", min_nodes="a30=1", models="llama-2-7b=1,qwen2-7b=1")
    plans = group_plans(run)
    curves = {"a30": [4.0, 8.0, 12.0], "h100": [30.0, 60.0]}
    found = cheapest(plans, curves, [0.0, 5.0, 13.0, 31.0, 1000.0])
    assert [(counts["a30"], counts["h100"]) for counts in found] == [(1, 0), (2, 0), (1, 1), (1, 1), (3, 2)]


def test_bounds_prices_and_starts_by_group(lengths: Path) -> None:
    run = spec(
        lengths,
        fleet=MIXED,
        models="llama-2-7b=1,qwen2-7b=1",
        min_nodes="a30=2,h100=0",
        max_nodes="h100=1",
        start_nodes="a30=3",
        cold_start="a30=10:20,h100=60/90",
        price="h100=4.5",
        scaler="perfect",
    )
    check_spec(run)
    assert run.size == 4
    a30, h100 = group_plans(run)
    assert (a30.least, a30.group.count, a30.first, a30.start_time.kind, a30.price_per_hour) == (2, 3, 3, "uniform", 1.0)
    assert (h100.least, h100.group.count, h100.first, h100.start_time.median_s) == (0, 1, 0, 60.0)
    assert h100.price_per_hour == 4.5
    done = simulated(msgspec.structs.replace(run, scaler="static", rate_steps="2x40"))
    assert [group.nodes for group in done.line.groups] == [3, 1]
    assert done.line.price is not None
    assert done.line.price.per_hour == pytest.approx(3 * 1.0 + 4.5, rel=0.01)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"min_nodes": 5, "max_nodes": 4}, "min 5 is above max 4"),
        ({"min_nodes": "x=3"}, "the groups node"),
        ({"min_nodes": "-1"}, "whole number"),
        ({"max_nodes": 0}, "may have no node"),
        ({"start_nodes": 9}, "more than 4"),
        ({"cold_start": "soon"}, "P50/P90"),
        ({"price": "much"}, "price"),
        ({"tick_s": 0.0}, "tick_s"),
        ({"slo_share": 1.0}, "share"),
        ({"failed_starts": 2.0}, "share"),
        ({"spot_s": 0.0}, "vanish"),
        ({"scaler": "statik"}, "did you mean 'static'"),
        ({"scaler_options": {"x": 1}}, "unknown field"),
    ],
)
def test_a_scaled_run_that_cannot_be_is_refused_in_one_line(lengths: Path, values: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says) as refused:
        check_spec(spec(lengths, **values))
    assert "\n" not in str(refused.value)


def test_runs_without_a_scaler_are_the_runs_that_they_were() -> None:
    assert RunSpec().key == "ec497a08cf4a14ad"
    assert RunSpec(scaler="static").key != RunSpec().key


def test_a_good_answer_may_have_to_end_in_time(lengths: Path) -> None:
    done = simulated(spec(lengths))
    within_s = sorted(row.e2e_s or 0.0 for row in done.results)[len(done.results) // 2]
    good = good_answers(done.results, GoodputSlo(e2e_s=within_s))
    assert 0.4 < good / len(done.results) < 0.6


def test_a_course_is_short_and_tells_load_latency_and_misses(lengths: Path) -> None:
    done = simulated(spec(lengths, scaler="perfect", tick_s=0.2, slo_ttft_s=0.05, scaler_options={"rate": 6.0}))
    course, whole = done.line.scaling, done.scaling
    assert course is not None
    assert whole is not None
    assert len(whole.timeline.at_s) > 600
    moments = len(course.timeline.at_s)
    assert 60 < moments <= COURSE_MOMENTS
    assert len(course.offered_per_s) == len(course.ttft_p90_s) == len(course.missed_share) == moments
    assert 8.0 < max(course.offered_per_s) < 20.0
    assert max(share or 0.0 for share in course.missed_share) > 0.0
    line = msgspec.json.decode(msgspec.json.encode(done.line), type=RunLine)
    assert line.scaling == course


def test_people_see_a_table_and_a_picture(lengths: Path, tmp_path: Path) -> None:
    run = spec(lengths, failed_starts=0.6, start_nodes=1)
    perfect = msgspec.structs.replace(run, scaler="perfect", failed_starts=0.0, scaler_options={"rate": 4.0})
    done = [simulated(run), simulated(perfect)]
    out = io.StringIO()
    show(Console(file=out, width=100), [], run, done)
    for text in ("nodes and what they kept", "missed", "flaps", "failed", "up to 4 a30/llama-2-7b"):
        assert text in out.getvalue()
    picture = tmp_path / "new" / "scaling.png"
    plot_courses(picture, [one.line for one in done], title="two", caption="nothing")
    assert picture.read_bytes().startswith(b"\x89PNG")


def invoke(command: click.Command, *arguments: object) -> str:
    done = CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_command_compares_scalers_and_writes_what_they_did(lengths: Path, tmp_path: Path) -> None:
    shared = ("--dataset", "lengths", "--dataset-path", lengths, "--rate-steps", "2x40,10x40", "--nodes", 3)
    found = json.loads(
        invoke(
            simulate, *shared, "--policy", "round_robin", "--scaler", "static,perfect", "--max", 3,
            "--scaler-option", "perfect:rate=5", "--cold-start", 10, "--output", tmp_path / "runs", "--jobs", 1,
            "--json",
        )
    )  # fmt: skip
    assert [run["policy"] for run in found["runs"]] == ["static+round_robin", "perfect+round_robin"]
    static, perfect = (record["measures"]["node_hours"] for record in found["scaling"])
    assert perfect < static
    written = json.loads((tmp_path / "runs" / SCALING_FILE).read_bytes())
    assert [run["scaler"] for run in written["runs"]] == ["static", "perfect"]
    assert written["runs"][1]["scaling"]["decisions"]
    assert written["header"]["command"]


RULE = """
import msgspec
from gateway.core.scale.rule import Deaf, Wish

class Two(Deaf):
    name, source, options_type = "always_two", "a test", msgspec.defstruct("NoOptions", [], forbid_unknown_fields=True)

    def __init__(self, config, options, rng):
        self.groups = [group.name for group in config.groups]

    def tick(self, fleet, now_s):
        return Wish(wanted=dict.fromkeys(self.groups, 2))
"""


def test_a_scaler_may_be_a_file_of_ones_own(lengths: Path, tmp_path: Path) -> None:
    file = tmp_path / "two.py"
    file.write_text(RULE)
    shared = ("--dataset", "lengths", "--dataset-path", lengths, "--rate", 6, "--requests", 200, "--policy", "random")
    found = json.loads(
        invoke(simulate, *shared, "--scaler", f"static,{file}", "--max", 3, "--cold-start", 2, "--jobs", 1, "--json")
    )
    assert [run["policy"] for run in found["runs"]] == ["static+random", "always_two+random"]
    assert found["scaling"][1]["measures"]["nodes_peak"] == 2.0
    wrong = CliRunner().invoke(simulate, ["--rate", "4", "--scaler", str(tmp_path / "none.py")])
    assert "is not there" in wrong.output
    assert wrong.exit_code != 0


def test_of_steps_of_a_rate_the_table_has_what_came(lengths: Path) -> None:
    shared = ("--dataset", "lengths", "--dataset-path", lengths, "--policy", "random", "--jobs", 1)
    text = invoke(simulate, *shared, "--rate-steps", "4x20", "--scaler", "static", "--nodes", 1)
    row = next(line for line in text.partition("nodes and what they kept")[2].splitlines() if "static+random" in line)
    assert 2.0 < float(row.split()[0]) < 6.0


def test_compare_and_sweep_take_scalers_too(lengths: Path, tmp_path: Path) -> None:
    plot = tmp_path / "compare.png"
    shared = ("--dataset", "lengths", "--dataset-path", lengths, "--rate", 4, "--requests", 80, "--jobs", 1)
    text = invoke(
        compare, "--simulate", *shared, "--policy", "round_robin", "--scaler", "static", "--nodes", 2, "--plot", plot
    )
    assert "nodes and what they kept" in text
    assert plot.is_file()
    invoke(
        sweep, "--axis", "scaler=static,perfect", "--axis", "min_nodes=1,2", "--max", 2, "--cold-start", 5,
        "--set", f"dataset_path={lengths}", "--set", "dataset=lengths", "--set", "requests=60",
        "--set", "rate_per_s=4", "--set", "policy=round_robin", "--set", "slo_ttft_s=0.5", "--seeds", 1, "--jobs", 1,
        "--measure", "node_hours", "--measure", "cost", "--output", tmp_path / "sweep",
    )  # fmt: skip
    lines = read_lines(tmp_path / "sweep" / "runs.jsonl")
    page = as_html(sections_of(tmp_path / "sweep"), title="scaled")
    assert "node-hours" in page
    assert "alt='scaling-0'" in page
    assert {(line.spec.scaler, line.spec.min_nodes) for line in lines} == {
        (scaler, least) for scaler in ("static", "perfect") for least in (1, 2)
    }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--min", "2"), "--min is for a fleet that is scaled"),
        (("--scaler-option", "a=1"), "--scaler-option is for a fleet"),
        (("--scaler", "static", "--scaler-option", "perfect:rate=1"), "the scalers are static"),
        (("--scaler", "static", "--min", "7", "--max", "3"), "min 7 is above max 3"),
        (("--plot", "x.png"), "add --scaler"),
    ],
)
def test_options_that_say_nothing_are_refused(arguments: tuple[str, ...], says: str) -> None:
    done = CliRunner().invoke(simulate, ["--rate", "4", *arguments])
    assert done.exit_code != 0
    assert says in done.output


def test_values_by_group() -> None:
    assert by_group(3, ["a", "b"], count, key="k") == {"a": 3, "b": 3}
    assert by_group("b=4", ["a", "b"], count, key="k") == {"b": 4}
    assert by_group("", ["a"], count, key="k") == {}
    for wrong in ("b=1,b=2", "c=1", "a=", "a"):
        with pytest.raises(ValueError, match=r"^k: "):
            by_group(wrong, ["a", "b"], count, key="k")
