"""Who understands whom, one release and more apart."""

from __future__ import annotations

import pytest

from protos import codec
from protos.runtime.protocol import NUMBER, Protocol, disagreement, ours
from protos.v1 import astrolabe_predict_pb2 as pb


@pytest.mark.parametrize(
    ("theirs", "own", "behind"),
    [
        (Protocol(1, 1, "0.1.0"), Protocol(1, 1, "0.1.0"), ""),
        (Protocol(2, 1, "0.2.0"), Protocol(1, 1, "0.1.0"), ""),
        (Protocol(1, 1, "0.1.0"), Protocol(2, 1, "0.2.0"), ""),
        (Protocol(3, 2, "0.3.0"), Protocol(1, 1, "0.1.0"), "this gateway"),
        (Protocol(1, 1, "0.1.0"), Protocol(3, 2, "0.3.0"), "the node"),
    ],
)
def test_one_apart_is_understood_and_the_older_one_is_named(theirs: Protocol, own: Protocol, behind: str) -> None:
    why = disagreement(theirs, own, they="the node", we="this gateway")
    assert bool(why) == bool(behind)
    assert why.endswith(f"upgrade {behind}" if behind else "")
    assert "\n" not in why


def test_it_is_one_line_with_both_sides() -> None:
    why = disagreement(Protocol(3, 2, "0.3.0"), Protocol(1, 1, ""), they="the node", we="this gateway")
    assert why == (
        "the node speaks protocol 3 and from 2 on (release 0.3.0), this gateway protocol 1 (release unknown); "
        "upgrade this gateway"
    )


def test_it_goes_over_the_wire_and_back() -> None:
    assert codec.protocol_from_wire(codec.protocol_to_wire(ours())) == ours()
    assert ours().number == NUMBER


def test_who_says_nothing_speaks_the_first() -> None:
    assert codec.protocol_from_wire(pb.Protocol()) == Protocol(1, 1, "")
