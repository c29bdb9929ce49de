"""The page of several workers: their parts put together."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.ui.part import NodePart, PagePart
from gateway.ui.part_wire import part_from_wire, part_to_wire
from gateway.ui.picture import Picture
from gateway.ui.tail import KEPT as KEPT_LINES
from gateway.ui.tail import MOST_NEW
from gateway.ui.timeline import FIELDS, KEPT, Sample
from protos.v1 import astrolabe_workers_pb2 as pb

OWN, OTHER, THIRD = 0, 1, 2
EVERY_S = 5.0


def sample(moment: int, **fields: Any) -> Sample:
    """`moment`: how many times EVERY_S, a little late as timers are."""
    given: dict[str, Any] = {
        "at_s": moment * EVERY_S + 0.2, "placed_per_s": 1.5, "ended_per_s": 1.0, "failed": 1, "promised": 3, "kept": 2,
        "under_way": 4, "held": 1, "nodes_up": 8, "moves": 1,
    }  # fmt: skip
    return Sample(**{**given, **fields})


def line(second: int, event: str = "e") -> dict[str, Any]:
    return {"event": event, "timestamp": f"2026-01-01T00:{second // 60:02}:{second % 60:02}.000000Z"}


def picture(*parts: PagePart) -> Picture:
    """Of as many workers."""
    made = Picture(OWN, every_s=EVERY_S)
    for worker, part in enumerate(parts):
        assert made.take(worker, part)
    return made


def scaling(leads: bool, wanted: int) -> dict[str, Any]:
    return {"leads": leads, "groups": [{"name": "g", "wanted": wanted}]}


def test_counts_of_all_workers_are_added_up() -> None:
    made = picture(
        PagePart(nodes={"h:1": NodePart(2, 1, 0), "h:2": NodePart(1)}, under_way=3, held=1, wait_s=2.04, moves=1),
        PagePart(nodes={"h:1": NodePart(5, 0, 1, 1, "slow")}, under_way=5, held=2, wait_s=7.0),
    )
    assert made.nodes() == {"h:1": NodePart(7, 1, 1, 1, "slow"), "h:2": NodePart(1)}
    assert made.now() == {"under_way": 8, "held": 3, "wait_s": 7.0, "moves": 1, "workers": 2}


def test_what_a_worker_says_replaces_what_it_said_and_goes_with_it() -> None:
    made = picture(PagePart(under_way=1), PagePart(nodes={"h:1": NodePart(5)}, under_way=5))
    assert not made.take(OTHER, PagePart(nodes={"h:1": NodePart(2)}, under_way=2))
    assert (made.nodes()["h:1"].in_flight, made.now()["under_way"]) == (2, 3)
    made.forget(OTHER)
    assert (made.nodes(), made.now()["under_way"], made.workers) == ({}, 1, 1)
    assert made.take(OTHER, PagePart(under_way=4)), "it is new again"


def test_the_word_of_the_worker_that_leads_holds_for_the_fleet() -> None:
    own = PagePart(scaling=scaling(False, 3), samples=(sample(7, wanted=3, nodes_up=2),))
    assert picture(own, PagePart()).scaling() == own.scaling
    leader = PagePart(scaling=scaling(True, 9), samples=(sample(7, wanted=9, nodes_up=4),))
    made = picture(own, leader)
    assert made.scaling() == leader.scaling
    (shown,) = made.new_samples()
    assert (shown.wanted, shown.nodes_up, shown.held) == (9, 4, 2)
    made.forget(OTHER)
    assert made.scaling() == own.scaling


def test_moments_are_added_up_and_shown_when_all_have_told_them() -> None:
    made = picture(PagePart(samples=(sample(10), sample(11))), PagePart(samples=(sample(10, failed=4),)))
    (shown,) = made.new_samples()
    assert (shown.at_s, shown.placed_per_s, shown.failed, shown.under_way, shown.nodes_up) == (50.0, 3.0, 5, 8, 8)
    assert made.new_samples() == []
    made.take(OTHER, PagePart(samples=(sample(11),)))
    assert [one.at_s for one in made.new_samples()] == [55.0]
    assert made.columns()[FIELDS.index("failed")] == [5, 2]


def test_a_worker_that_is_late_is_not_waited_for_for_ever_nor_one_that_has_gone() -> None:
    made = picture(PagePart(samples=(sample(10),)), PagePart(samples=(sample(10),)), PagePart())
    assert [one.failed for one in made.new_samples()] == [2]
    made.take(OWN, PagePart(samples=(sample(11),)))
    assert made.new_samples() == []
    made.take(OWN, PagePart(samples=(sample(12),)))
    assert [one.failed for one in made.new_samples()] == [1]
    made.forget(OTHER)
    assert [one.at_s for one in made.new_samples()] == [60.0]


def test_a_worker_that_comes_again_is_neither_counted_twice_nor_are_its_words_told_twice() -> None:
    first = PagePart(samples=(sample(10), sample(11)), lines=(line(1), line(2)))
    made = picture(PagePart(samples=(sample(10), sample(11))), first)
    made.new_samples()
    made.new_lines()
    made.forget(OTHER)
    # The same process, whose connection was lost for a moment.
    made.take(OTHER, msgspec.structs.replace(first, lines=(line(1), line(2), line(3, "late"))))
    assert [one.failed for one in made.new_samples()] == [2, 2], "all are told anew"
    assert made.new_lines() == ([line(3, "late")], 0)
    assert made.lines() == [line(1), line(2), line(3, "late")]
    # A new process in its place knows nothing of what was.
    made.forget(OTHER)
    made.take(OTHER, PagePart(lines=(line(9, "anew"),)))
    assert made.lines()[-1:] + made.new_lines()[0] == [line(3, "late"), line(9, "anew")]
    made.new_samples()
    assert made.columns()[FIELDS.index("failed")] == [2, 2]


def test_lines_of_all_are_in_the_order_in_which_they_were_written() -> None:
    made = picture(PagePart(lines=(line(1), line(4))), PagePart(lines=(line(2), line(3)), skipped_lines=5))
    assert made.new_lines() == ([line(1), line(2), line(3), line(4)], 5)
    many = tuple(line(10 + second) for second in range(MOST_NEW))
    made.take(OWN, PagePart(lines=many))
    made.take(OTHER, PagePart(lines=(line(5), line(6))))
    assert made.new_lines() == (list(many), 2)
    for second in range(KEPT_LINES):
        made.take(OWN, PagePart(lines=(line(600 + second),)))
    made.new_lines()
    assert len(made.lines()) == KEPT_LINES


def test_a_picture_keeps_an_hour() -> None:
    made = picture(PagePart(samples=tuple(sample(moment) for moment in range(KEPT))))
    made.new_samples()
    made.take(OWN, PagePart(samples=(sample(KEPT), sample(KEPT + 1))))
    assert len(made.new_samples()) == 2
    assert made.columns()[0] == [moment * EVERY_S for moment in range(2, KEPT + 2)]


def test_a_part_comes_over_the_wire_as_it_is() -> None:
    part = PagePart(
        nodes={"h:1": NodePart(2, 1, 3, 1, "slow"), "h:2": NodePart(away=1)}, under_way=3, held=1, wait_s=2.5, moves=2,
        samples=(sample(1, wanted=0, serving=2, starting=1, draining=0), sample(2, failed=0)),
        lines=(line(1), {"event": "x", "levels": [1, None], "text": "ü"}), skipped_lines=4, scaling=scaling(True, 3),
    )  # fmt: skip
    assert part_from_wire(pb.WorkerPart.FromString(part_to_wire(part).SerializeToString())) == part
    assert part_from_wire(part_to_wire(PagePart())) == PagePart()


def test_only_the_worker_that_leads_tells_others_of_the_scaling() -> None:
    follower = PagePart(scaling=scaling(False, 3))
    assert part_from_wire(part_to_wire(follower)).scaling is None
