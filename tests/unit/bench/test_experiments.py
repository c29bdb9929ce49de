"""The experiments' files make sense, and what is drawn from their runs is right."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from bench.data.public_data import path_of
from bench.experiments.catalogue import ExperimentError, all_experiments, find, load_experiment, on_fleet, published
from bench.experiments.claims import claim_text, evaluate, evaluate_points
from bench.experiments.figures import draw
from bench.experiments.matrix import matrix_of
from bench.experiments.run import Size, check_warm_up, settings_of, tasks_of, with_data
from bench.experiments.schema import (
    Claim,
    Column,
    Experiment,
    Figure,
    Grid,
    MatrixSpec,
    Panel,
    PublishedFile,
    PublishedPoint,
    PublishedPoints,
    Setting,
    TableSpec,
    Variant,
)
from bench.experiments.series import capacity, curve, select
from bench.experiments.tables import as_markdown, cells, matrix_as_markdown, matrix_as_rich
from bench.run.simulated import run_task
from bench.run.spec import check_spec, with_values
from tests.unit.bench.run_lines import line

NAMES = sorted(all_experiments())
HEAD = 'name = "x"\ntitle = ""\nsystem = "own"\nsource = ""\n'


def test_an_experiment_runs_over_another_fleet() -> None:
    moved = on_fleet(find("headline"), "mixed")
    assert moved.name == "headline-on-mixed"
    specs = [task.spec for task in tasks_of(moved, Size())]
    assert specs
    assert all(spec.size == 12 and spec.groups[0].count == 6 for spec in specs)
    with pytest.raises(ExperimentError, match="says fleet and"):
        on_fleet(find("fleets"), "mixed")


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_makes_sense(name: str) -> None:
    experiment = find(name)
    tasks = tasks_of(experiment, Size(requests=10))
    if experiment.status == "ready":
        assert tasks, "there is something to run"
        keys = [task.spec.key for task in tasks]
        assert len(set(keys)) == len(keys), "no run is there twice under two names"
        assert experiment.exact, "it says what is reproduced exactly"
        assert experiment.figures or experiment.tables
        if experiment.system != "own":
            assert experiment.claims or experiment.published
    else:
        assert not tasks
    for figure in experiment.figures:
        assert figure.panels
    if experiment.live is not None:
        assert all(experiment.variant(variant) for variant in experiment.live.variants)


def test_the_main_comparison_is_of_the_size_that_was_asked_for() -> None:
    tasks = [task for task in tasks_of(find("main"), Size()) if task.group == "main/known"]
    assert len(tasks) == 17 * 9
    assert {task.spec.requests for task in tasks} == {10_000}
    assert {task.spec.rate_per_s for task in tasks} == {20.0 + step for step in range(17)}


def test_runs_whose_rows_nobody_has_are_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ASTROLABE_DATA", str(tmp_path))
    there = with_data(tasks_of(find("main"), Size()), Console(width=300))
    assert {task.group for task in there} == {"main/known"}
    assert "35 runs left out: block-sharegpt-predicted: " in capsys.readouterr().out
    with pytest.raises(ExperimentError, match="ASTROLABE_DATA"):
        with_data([task for task in tasks_of(find("main"), Size()) if task.group == "main/learned"], Console())


def test_all_rows_that_lack_are_named_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ASTROLABE_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    task = tasks_of(find("main"), Size())[0]
    words = ("mooncake-arxiv", "mooncake-synthetic")
    lacking = [msgspec.structs.replace(task, spec=with_values(task.spec, {"dataset": word})) for word in words]
    with pytest.raises(ExperimentError) as why:
        with_data(lacking, Console())
    for word in words:
        assert f"data fetch {word}`" in str(why.value)
        assert str(path_of(word)) in str(why.value), "one place, which fetch names too"


def test_a_run_that_is_over_within_its_warm_up_is_refused_before_the_first() -> None:
    with pytest.raises(ExperimentError, match=r"50 requests .* warm-up of 50 s.* more than --requests 750"):
        check_warm_up(tasks_of(find("prefixes"), Size(requests=50)))


@pytest.mark.parametrize("name", NAMES)
def test_experiments_outlast_their_warm_up(name: str) -> None:
    check_warm_up(tasks_of(find(name), Size()))


def test_every_seed_of_the_migration_moves_its_request() -> None:
    tasks = [task for task in tasks_of(find("migration"), Size(seeds=2)) if task.group == "migration/8,192 tokens"]
    assert len(tasks) == 12
    assert all(run_task(task).line.measures["moves_done"] == 1.0 for task in tasks)


def test_published_points_are_those_of_the_figure() -> None:
    points = published(find("llumnix"))
    assert points is not None
    assert len(points.points) == 560
    by_place = {(p.grid, p.variant, p.x, p.measure): p.value for p in points.points}
    assert by_place["ShareGPT", "Round robin", 7.0, "ttft_mean_s"] == pytest.approx(4.29, abs=0.01)
    assert by_place["L-S", "INFaaS++", 18.0, "e2e_p99_s"] == pytest.approx(215.15, abs=0.01)
    grids = {grid.name for grid in find("llumnix").grids}
    assert {p.grid for p in points.points} == grids


def test_unknown_names_say_what_was_meant() -> None:
    with pytest.raises(ExperimentError, match="unknown experiment 'mian': did you mean 'main'"):
        find("mian")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "missing required field `name`"),
        ('name = "x"\nnmae = "y"\ntitle = ""\nsystem = "own"\nsource = ""', "unknown field `nmae`"),
        ('name = "x"\ntitle = ""\nsystem = "own"\nsource = ""\n[base]\npolici = "random"', "did you mean 'policy'"),
        ('name = "x"\ntitle = ""\nsystem = "own"\nsource = ""\n[[grids]]\nvariants = ["a"]', "unknown variant 'a'"),
        (f"{HEAD}[[settings]]\ntitle = 's'\ngrid = 'g'", "unknown grid 'g'"),
        (f"{HEAD}[[matrices]]\ntitle = 'm'\nmeasure = 'ttft'", "unknown measure 'ttft'"),
        (f"{HEAD}[[matrices]]\ntitle = 'm'\nmeasure = 'ttft_p99_s'\nsettings = ['s']", "unknown setting 's'"),
        ("= 1", "Invalid statement"),
    ],
)
def test_a_file_that_makes_no_sense_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ExperimentError) as bad:
        load_experiment(path)
    assert says in str(bad.value)
    assert str(path) in str(bad.value)


# --- what is drawn from runs ------------------------------------------------------------------------------------------

LINES = [
    line(variant, rate, seed, group="e/g", ttft_p99_s=(rate - 9.0) * (1.0 + 0.5 * (variant == "b")) + 0.1 * seed)
    for variant in ("a", "b")
    for rate in (10.0, 12.0, 14.0)
    for seed in (0, 1)
]
EXPERIMENT = Experiment(
    name="e",
    title="T",
    system="own",
    source="S",
    exact=["one thing"],
    variants=[Variant(name="a", values={}), Variant(name="b", values={})],
)


def test_a_curve_has_the_mean_of_its_seeds() -> None:
    points = curve(select(LINES, variant="a", grid="g"), "ttft_p99_s")
    assert [(p.x, round(p.value.mean, 3)) for p in points] == [(10.0, 1.05), (12.0, 3.05), (14.0, 5.05)]
    assert select(LINES, variant="a", grid="other") == []
    assert len(select(LINES, variant="a", at={"rate": 10.0})) == 2


def test_a_capacity_is_interpolated_for_each_seed() -> None:
    found = capacity(select(LINES, variant="a"), "ttft_p99_s", 4.0)
    assert found is not None
    # Seed 0 reaches 4 s at 13 requests/s, seed 1 a tenth of a second earlier.
    assert found.mean == pytest.approx((13.0 + 12.9) / 2)
    bound = capacity(select(LINES, variant="a"), "ttft_p99_s", 100.0)
    assert bound is not None
    assert (bound.mean, bound.is_bound) == (14.0, True)
    assert capacity(select(LINES, variant="a"), "ttft_p99_s", 0.5) is None


def test_a_claim_has_both_ratios() -> None:
    claim = Claim(
        what="w",
        variant="b",
        against="a",
        measure="ttft_p99_s",
        at={"rate": 12.0},
        published=2.0,
        published_against=1.0,
    )
    found = evaluate(claim, LINES)
    assert found.ours_ratio is not None
    assert found.ours_ratio.mean == pytest.approx((4.5 / 3.0 + 4.6 / 3.1) / 2)
    assert found.published_ratio == 2.0
    text = claim_text(EXPERIMENT, [found], seeds=2, header="H")
    for words in ("reproduced exactly:\n  - one thing", "published: 2 against 1, ratio 2.000", "ratio 1.492 ±"):
        assert words in text


def test_a_claim_can_set_two_places_of_one_variant_in_ratio() -> None:
    claim = Claim(what="w", variant="a", measure="ttft_p99_s", at={"rate": 12.0}, against_at={"rate": 10.0})
    found = evaluate(claim, LINES)
    assert found.ours_ratio is not None
    assert found.ours_ratio.mean == pytest.approx((3.0 / 1.0 + 3.1 / 1.1) / 2)


def test_a_claim_on_a_limit_that_is_not_reached_is_called_a_bound() -> None:
    found = evaluate(Claim(what="w", variant="a", measure="ttft_p99_s", limit=50.0), LINES)
    assert found.is_bound
    assert "at least this" in claim_text(EXPERIMENT, [found], seeds=2, header="H")


def test_published_points_are_set_beside_ours() -> None:
    experiment = Experiment(
        name="e",
        title="T",
        system="own",
        source="S",
        variants=EXPERIMENT.variants,
        published=PublishedPoints(file="x", baseline="a"),
    )
    points = [
        PublishedPoint(grid="g", variant="a", x=10.0, measure="ttft_p99_s", value=2.0),
        PublishedPoint(grid="g", variant="b", x=10.0, measure="ttft_p99_s", value=3.0),
        PublishedPoint(grid="g", variant="not run", x=10.0, measure="ttft_p99_s", value=9.0),
    ]
    found = evaluate_points(experiment, PublishedFile(source="P", points=points), LINES)
    assert [(one.published, one.published_ratio) for one in found] == [(2.0, None), (3.0, 1.5)]
    assert found[1].ours_ratio is not None


def test_tables_have_a_row_for_each_variant_that_was_run() -> None:
    table = TableSpec(
        title="t",
        columns=[
            Column(title="capacity", measure="ttft_p99_s", limit=4.0, digits=1),
            Column(title="none", measure="ttft_p99_s", limit=0.5),
            Column(title="at 10", measure="ttft_p99_s", at={"rate": 10.0}),
        ],
    )
    assert cells(EXPERIMENT, table, LINES[:6]) == [["a", "12.9 ± 0.6", "< 10", "1.05 ± 0.64"]]
    assert "| b |" in as_markdown(EXPERIMENT, table, LINES)


SETTINGS = msgspec.structs.replace(
    EXPERIMENT,
    base={"requests": 50},
    grids=[Grid(name="g", base={"nodes": 3}, axes={"rate_per_s": [10.0, 12.0, 14.0]})],
    settings=[
        Setting(title="ten", grid="g", at={"rate_per_s": 10.0}),
        Setting(title="none", grid="g", at={"rate_per_s": 11.0}),
        Setting(title="twelve", grid="g", at={"rate_per_s": 12.0}),
    ],
)


def test_a_matrix_marks_the_best_of_each_column() -> None:
    matrix = matrix_of(SETTINGS, MatrixSpec(title="t", measure="ttft_p99_s", digits=1), LINES)
    assert matrix.settings == ["ten", "twelve"]
    assert [[cell.text for cell in row.cells] for row in matrix.rows] == [
        ["1.1 ± 0.6", "3.0 ± 0.6"],
        ["1.6 ± 0.6", "4.5 ± 0.6"],
    ]
    assert [[cell.is_best for cell in row.cells] for row in matrix.rows] == [[True, True], [False, False]]
    assert matrix.rows[1].cells[1].ratio == pytest.approx(4.55 / 3.05)
    most = matrix_of(SETTINGS, MatrixSpec(title="t", measure="ttft_p99_s", best="most", settings=["ten"]), LINES[:7])
    assert [row.cells[0].is_best for row in most.rows] == [False, True]
    assert most.rows[0].cells[0].ratio == pytest.approx(1.5 / 1.05)
    text = matrix_as_markdown(matrix)
    assert "|  | ten | twelve |" in text
    assert "| a | **1.1 ± 0.6** | **3.0 ± 0.6** |" in text
    assert "| b | 1.6 ± 0.6 | 4.5 ± 0.6 |" in text
    assert matrix_as_rich(matrix).row_count == 2


def test_a_matrix_has_a_dash_where_nothing_was_run() -> None:
    lines = [one for one in LINES if (one.variant, one.spec.rate_per_s) != ("b", 12.0)]
    matrix = matrix_of(SETTINGS, MatrixSpec(title="t", measure="ttft_p99_s"), lines)
    assert matrix.rows[1].cells[1].text == "–"
    assert not matrix.rows[1].cells[1].is_best


def test_times_of_the_few_that_were_answered_are_not_the_best() -> None:
    lines = [
        line("a", 10.0, group="e/g", e2e_mean_s=1.0, completed_share=0.5, goodput_share=0.5),
        line("b", 10.0, group="e/g", e2e_mean_s=3.0, completed_share=1.0, goodput_share=0.4),
    ]
    times = matrix_of(SETTINGS, MatrixSpec(title="t", measure="e2e_mean_s", digits=0), lines)
    assert [(row.cells[0].text, row.cells[0].is_best) for row in times.rows] == [("1 †", False), ("3", True)]
    assert times.rows[0].cells[0].ratio is None
    assert "† more than 1 %" in matrix_as_markdown(times)
    good = matrix_of(SETTINGS, MatrixSpec(title="t", measure="goodput_share", best="most"), lines)
    assert [row.cells[0].is_best for row in good.rows] == [True, False]
    assert "†" not in matrix_as_markdown(good)


def test_settings_are_runs_without_a_policy() -> None:
    found = settings_of(SETTINGS)
    assert {title: (spec.rate_per_s, spec.nodes, spec.requests) for title, spec in found.items()} == {
        "ten": (10.0, 3, 50),
        "none": (11.0, 3, 50),
        "twelve": (12.0, 3, 50),
    }


def test_every_setting_of_every_experiment_can_be_run_by_itself() -> None:
    titles = [title for experiment in all_experiments().values() for title in settings_of(experiment)]
    assert len(titles) > 10
    for experiment in all_experiments().values():
        keys = {task.spec.key for task in tasks_of(experiment, Size())}
        for setting, spec in zip(experiment.settings, settings_of(experiment).values(), strict=True):
            check_spec(spec)
            mine = [with_values(spec, variant.values).key for variant in experiment.variants]
            assert keys & set(mine), f"{experiment.name}: nothing is run in {setting.title}"


def test_a_map_of_settings_is_drawn(tmp_path: Path) -> None:
    figure = Figure(name="m", title="T", kind="settings", panels=[Panel(title="one", measure="ttft_p99_s")] * 2)
    paths = draw(figure, SETTINGS, LINES, tmp_path, caption="c")
    assert [path.name for path in paths] == ["m.png", "m.pdf"]
    assert all(path.stat().st_size > 1000 for path in paths)


def test_figures_are_written_as_png_and_pdf(tmp_path: Path) -> None:
    figure = Figure(
        name="f",
        title="F",
        kind="curves",
        panels=[
            Panel(title="p", measure="ttft_p99_s", log=True, limit=3.0),
            Panel(title="c", measure="ttft_p99_s", capacity=True, limit=4.0),
        ],
    )
    paths = draw(figure, EXPERIMENT, LINES, tmp_path, caption="c")
    assert [path.suffix for path in paths] == [".png", ".pdf"]
    assert all(path.stat().st_size > 5000 for path in paths)
    assert draw(figure, EXPERIMENT, [], tmp_path, caption="c") == []
