"""Fronts of cost against latency, and ours against the best of the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.experiments.figures import draw, draw_front
from bench.experiments.fronts import as_markdown, cost_at, hypervolumes, systems_of
from bench.experiments.peers import against_peers
from bench.experiments.peers import as_markdown as peers_as_markdown
from bench.experiments.schema import Experiment, Figure, Front, FrontLine, Panel, PeersSpec, Setting, Variant
from bench.measure.hypervolume import CostPoint
from bench.run.simulated import RunLine
from tests.unit.bench.run_lines import line

FRONT = Front(
    name="f",
    title="T",
    x_title="cost",
    y="e2e_p90_s",
    y_title="P90",
    systems=[FrontLine(name="ours", variant="a", grids=["g"], ours=True), FrontLine(name="base", variant="b")],
    published={"theirs": [(4.0, 0.9)]},
    against="base",
    reference_factor=1.1,
)
LINES = [
    line(variant, rate, seed, group="e/g", cost=rate * (1.0 if variant == "a" else 2.0) + seed, e2e_p90_s=4.0 / rate)
    for variant in ("a", "b")
    for rate in (4.0, 8.0)
    for seed in (0, 2)
]


def test_a_setting_is_one_point_the_mean_of_its_seeds() -> None:
    ours, base, theirs = systems_of(FRONT, LINES)
    assert ours.points == [CostPoint(5.0, 1.0), CostPoint(9.0, 0.5)]
    assert base.points == [CostPoint(9.0, 1.0), CostPoint(17.0, 0.5)]
    assert theirs.published
    assert theirs.points == [CostPoint(4.0, 0.9)]


def test_the_reference_counts_published_points_too() -> None:
    reference, volumes = hypervolumes(systems_of(FRONT, LINES), 1.1)
    assert tuple(reference) == pytest.approx((1.1 * 17.0, 1.1))
    assert volumes["ours"] > volumes["base"]


def test_the_text_says_who_is_dominated_and_what_is_saved() -> None:
    text = as_markdown(FRONT, LINES)
    assert "ours: 5.00 : 1 dominated by theirs" in text
    assert "ours: saves +44.4%, +47.1%" in text


def test_what_a_front_asks_for_a_latency() -> None:
    points = [CostPoint(1.0, 1.0), CostPoint(3.0, 0.25), CostPoint(9.0, 0.25)]
    assert cost_at(points, 2.0) == 1.0
    assert cost_at(points, 0.5) == pytest.approx(2.0)
    assert cost_at(points, 0.25) == 3.0
    assert cost_at(points, 0.1) is None


def test_a_front_is_drawn(tmp_path: Path) -> None:
    assert [path.suffix for path in draw_front(FRONT, systems_of(FRONT, LINES), tmp_path, caption="c")] == [
        ".png",
        ".pdf",
    ]
    assert draw_front(FRONT, [], tmp_path, caption="c") == []


EXPERIMENT = Experiment(
    name="e",
    title="T",
    system="own",
    source="S",
    variants=[Variant(name=name, values={}) for name in ("us", "dear", "sloppy", "perfect")],
    settings=[Setting(title="s", grid="g")],
    peers=PeersSpec(title="P", ours="us", bounds=["perfect"]),
)


def standings(**values: tuple[float, float, float]) -> list[RunLine]:
    return [
        line(name, 1.0, 0, group="e/g", cost=cost, slo_missed_share=missed, flaps_per_hour=flaps)
        for name, (cost, missed, flaps) in values.items()
    ]


def test_ours_is_set_against_who_misses_no_more_and_who_costs_no_more() -> None:
    assert EXPERIMENT.peers is not None
    lines = standings(us=(8.0, 0.01, 1.0), dear=(10.0, 0.0, 0.0), sloppy=(8.0, 0.2, 5.0), perfect=(1.0, 0.0, 0.0))
    [row] = against_peers(EXPERIMENT, EXPERIMENT.peers, lines)
    assert (row.cheapest, row.surest) != (None, None)
    # Of 9.89, what lies between the two at 1.1 % missed.
    assert row.saved == pytest.approx(1 - 8.0 / 9.89)
    # 0.192 is what lies between the two at 1 % more than ours costs.
    assert row.fewer == pytest.approx(0.193 / 0.011)
    assert row.is_met
    assert row.calmest == 0.0
    text = peers_as_markdown(EXPERIMENT.peers, [row])
    assert "| s | 8.00, 1.00%, 1.0 | dear: 10.00, 0.00% | 9.89 | 19.1% | sloppy: 8.00, 20.00% |" in text
    assert "perfect" not in text


def test_who_is_beaten_by_a_peer_has_not_met_it() -> None:
    assert EXPERIMENT.peers is not None
    lines = standings(us=(8.0, 0.01, 1.0), dear=(7.5, 0.01, 2.0), sloppy=(9.0, 0.2, 5.0))
    [row] = against_peers(EXPERIMENT, EXPERIMENT.peers, lines)
    assert row.saved is not None
    assert row.saved < 0
    assert not row.is_met


def test_a_setting_without_a_peer_is_left_out() -> None:
    assert EXPERIMENT.peers is not None
    assert against_peers(EXPERIMENT, EXPERIMENT.peers, standings(us=(8.0, 0.0, 0.0))) == []


def test_one_marker_per_variant_is_drawn(tmp_path: Path) -> None:
    figure = Figure(
        name="t",
        title="T",
        kind="tradeoff",
        x="cost",
        panels=[Panel(title="missed", measure="slo_missed_share", grid="g", limit=0.05)],
    )
    lines = standings(us=(8.0, 0.01, 1.0), dear=(10.0, 0.0, 0.0))
    assert [path.name for path in draw(figure, EXPERIMENT, lines, tmp_path, caption="c")] == ["t.png", "t.pdf"]
