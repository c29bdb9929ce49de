"""Every table that a command prints, at 80 and at 60 columns: no number of it is cut, folded or lost."""

from __future__ import annotations

import ast
import re
import typing
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Any, Literal

import msgspec
import pytest

from bench.commands import calibrate, capacity, data, experiment, report, sweep
from bench.experiments.catalogue import all_experiments
from bench.experiments.length_populations import BeliefWorth
from bench.experiments.length_populations_report import tables as length_populations_tables
from bench.experiments.length_worth import SCHEMES, Cell, Study
from bench.experiments.length_worth_report import tables as length_worth_tables
from bench.experiments.schema import Column, Experiment, TableSpec, Variant
from bench.experiments.tables import as_rich
from bench.measure.measures import GoodputSlo
from bench.profile.calibration import BARS, MARKS_STEPS, LearningCurve
from bench.run.capacity_search import CapacityObjective
from bench.show import html_report
from bench.show.priorities import COLUMNS as PRIORITY_COLUMNS
from bench.show.priorities import priorities_table
from deploy.cluster.overview import HostStatus, print_reports, print_status
from deploy.cluster.release import Release
from deploy.cluster.rollout import HostReport
from deploy.commands import explain, scale
from length_model.core.evaluation import Evaluation
from length_model.report import tables as length_tables
from protos.runtime import terminal
from protos.runtime.terminal import out_console, print_table
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from tests.unit.bench.run_lines import line

ROOT = Path(__file__).resolve().parents[3]
LONG = "min_total_unprocessed_tokens"
MEASURES = ("ttft_p99_s", "e2e_mean_s", "output_tokens_per_s", "preemptions", "goodput_share", "tpot_mean_s")


def filled(kind: Any) -> Any:
    """A record with a long number in every field."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, UnionType):
        return filled(next(part for part in parts if part is not type(None)))
    if origin is Literal:
        return parts[0]
    if origin is tuple:
        return (filled(parts[0]), filled(parts[0]))
    if origin is dict:
        return {filled(parts[0]): filled(parts[1])}
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = typing.get_type_hints(kind)
        return kind(**{name: filled(hints[name]) for name in kind.__struct_fields__})
    return {int: 12_345_678, float: 12_345.678, str: LONG, bool: True}[kind]


LINES = [
    line(
        variant, rate, seed, "g", **{name: 12_345.678 * (1 + seed / 7) * rank for rank, name in enumerate(MEASURES, 1)}
    )
    for variant in (LONG, "min_new_request_latency")
    for rate in (12_345.0, 23_456.5)
    for seed in (0, 1, 2)
]


def show_sweep() -> None:
    sweep._show(LINES, MEASURES, Path("results/runs.jsonl"))


def show_capacity() -> None:
    objectives = [CapacityObjective(name, True, 12.345) for name in MEASURES]
    cells = {(name, objective): "12,345.6 ± 1,234.5" for name in (LONG, "random") for objective in objectives}
    capacity._show(cells, ["t"])


def show_calibration() -> None:
    bars: dict[str, int | None] = {f"{error:.0%}": 1_234_567 for error, _ in BARS}
    curve = LearningCurve(
        prior="rtxpro6000/qwen3-30b-a3b-instruct-2507",
        before=123.456,
        error=[],
        steps_to=bars,
        steps_to_again=bars,
        final=12.345,
        final_prefill=12.345,
        at_steps=dict.fromkeys(MARKS_STEPS, 12.345),
        versions=123_456,
        speed_changes_seen=1,
        cost_s_per_step=0.123456,
    )
    calibrate._show(out_console(), [curve, curve])


def show_experiments() -> None:
    experiment._list(list(all_experiments().values()), as_json=False)


def show_experiment() -> None:
    columns = [Column(title=f"{name} at most 12.5", measure=name, digits=2) for name in MEASURES]
    shown = Experiment(name="e", title="T", system="own", source="S", exact=["x"], variants=[_variant()])
    print_table(out_console(), as_rich(shown, TableSpec(title="t", columns=columns), LINES))


def _variant() -> Variant:
    return Variant(name=LONG, values={})


def show_length_worth() -> None:
    measures = {"ttft_p99_s": 1234.5, "e2e_mean_s": 2345.6, "preemptions": 123_456.0, "goodput_share": 0.98765}
    found = [
        Cell(scheme=scheme, knowledge=knowledge, load=load, rate_per_s=9.0, seed=0, measures=measures)
        for scheme in SCHEMES
        for knowledge in ("oracle", "oracle, 30% error", "none")
        for load in (0.5, 0.75, 0.95)
    ]
    for table in length_worth_tables(Study(capacity_per_s=9.0, slo=GoodputSlo(), nodes=4, requests=100, cells=found)):
        print_table(out_console(), table)


def show_length_populations() -> None:
    numbers = (12_345.678, 23_456.789, 34_567.891)
    worth = BeliefWorth(
        population=LONG,
        model=LONG,
        belief="2,000 answers",
        crps_tokens=numbers,
        closed=(0.123, None, -4.5),
        under_p90=0.9,
    )
    for table in length_populations_tables([worth]):
        print_table(out_console(), table)


def show_lengths() -> None:
    evaluation = filled(Evaluation)
    for table in length_tables([evaluation, evaluation], "test"):
        print_table(out_console(), table)


def show_data() -> None:
    assert data.list_sets.callback is not None
    data.list_sets.callback(as_json=False)


def show_report(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [[f"{LONG} {n}", *("12,345.6 ± 1,234.5" for _ in range(8))] for n in range(3)]
    section = html_report.Section(
        title="t", note="n", tables=[("c", ["", *(f"column {n}" for n in range(8))], rows)], claims="", pictures=[]
    )
    monkeypatch.setattr(html_report, "sections_of", lambda _: [section])
    assert report.report.callback is not None
    report.report.callback(folder=folder, output="", as_json=False)


def show_explain() -> None:
    forecast = types_pb.Forecast(
        ttft_s=types_pb.Quantiles(mean=1234.567),
        e2e_s=types_pb.Quantiles(mean=23456.789),
        harm_s=types_pb.Quantiles(mean=34567.891),
        preemptions=1234.5,
        kv_headroom_blocks=1_234_567,
    )
    note = "did not answer in time, 12,345 ms; counted with what it streamed 67,890 ms ago"
    scores = [
        pb.Score(node_id=f"gpu-node-number-{n}", cost=1.234e-12, forecast=forecast, state_age_s=1234.567, note=note)
        for n in range(3)
    ]
    explain._print_decision(out_console(), pb.Decision(scores=scores, cost_unit="tokens", policy=LONG, attempt=1))


def show_scale() -> None:
    states = ("serving", "starting", "draining", "stopping", "serving")
    nodes = [
        pb.ScaledNodeInfo(node_id=f"gpu-group-{n}", state=state, detail=LONG, ready_in_s=1234.5 + n)
        for n, state in enumerate(states)
    ]
    group = pb.ScaledGroup(
        name="gpu-group", min=1234, max=4321, wanted=2345, start_p50_s=1234.5, start_p90_s=2345.6, blocked_s=345.6,
        nodes=nodes,
    )  # fmt: skip
    said = pb.ScalingExplanation(rule=LONG, connector="kubernetes", tick_s=12.5, groups=[group, group], problem=LONG)
    scale.print_groups(out_console(), said)


def show_cluster() -> None:
    hosts = [f"gpu-host-number-{n}.example.org" for n in range(3)]
    release = Release(name="0.12.345-12ab34cd", version="0.12.345", wheel="a.whl", folder=Path())
    print_reports([HostReport(name=name, outcome="changed", steps=["s"] * 123, took_s=12_345.6) for name in hosts])
    rows = [
        HostStatus(
            name=name, services={"node": "active", "gateway": "activating"}, releases=[release.name],
            nodes="up, 123 of 456 nodes up", cert_days=825.0, drift=[], trouble=[],
        )
        for name in hosts
    ]  # fmt: skip
    print_status(rows, release)


def show_priorities() -> None:
    measures = {
        f"{measure}_of_priority_{priority}": 12_345.678 * place
        for priority in (-8, 0)
        for place, (_, measure, _) in enumerate(PRIORITY_COLUMNS, start=1)
    }
    table = priorities_table([line(LONG, 12_345.0, 3, "g", **measures)])
    assert table is not None
    print_table(out_console(), table)


SHOWN: dict[str, Callable[[], None]] = {
    "bench/commands/sweep.py": show_sweep,
    "bench/commands/capacity.py": show_capacity,
    "bench/commands/calibrate.py": show_calibration,
    "bench/commands/experiment.py": show_experiments,
    "bench/experiments/tables.py": show_experiment,
    "bench/experiments/length_populations_report.py": show_length_populations,
    "bench/experiments/length_worth_report.py": show_length_worth,
    "bench/commands/data.py": show_data,
    "deploy/commands/explain.py": show_explain,
    "deploy/commands/scale.py": show_scale,
    "deploy/cluster/overview.py": show_cluster,
    "length_model/report.py": show_lengths,
    "bench/show/priorities.py": show_priorities,
}
ELSEWHERE = {
    "bench/show/tables.py": "test_tables.py",
    "bench/show/groups.py": "test_tables.py",
    "bench/show/scaling.py": "test_scaling_runs.py",
    "bench/measure/differences.py": "test_tables.py",
    "bench/commands/report.py": "test_a_report_s_tables_too",
    "deploy/commands/nodes.py": "tests/e2e/test_cli.py",
}


def numbers(text: str) -> list[str]:
    """All numbers, in order of their digits: columns of prose wrap, so their places change."""
    return sorted(re.findall(r"[\d][\d,.]*(?:e[-+]\d+)?", text))


def check(show: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    texts: dict[int, str] = {}
    for width in (1_000, 80, 60):
        monkeypatch.setattr(terminal, "PLAIN_WIDTH", width)
        show()
        texts[width] = capsys.readouterr().out
    assert len(numbers(texts[1_000])) > 5
    for width in (80, 60):
        assert "…" not in texts[width]
        assert numbers(texts[width]) == numbers(texts[1_000])


@pytest.mark.parametrize("place", SHOWN)
def test_every_number_is_whole(place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    check(SHOWN[place], monkeypatch, capsys)


def test_a_report_s_tables_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The path of the page is printed too, and is folded where it is long.
    monkeypatch.chdir(tmp_path)
    check(lambda: show_report(Path(), monkeypatch), monkeypatch, capsys)


def test_no_table_is_left_out() -> None:
    places = set()
    for folder in ("bench", "deploy", "gateway", "predictor", "length_model"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if "from rich.table import Table" in text and any(
                isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Table"
                for node in ast.walk(ast.parse(text))
            ):
                places.add(path.relative_to(ROOT).as_posix())
    # Benchmarks for developers are not part of what users run.
    places = {place for place in places if not place.startswith("bench/micro/")}
    assert places == SHOWN.keys() | ELSEWHERE.keys()
