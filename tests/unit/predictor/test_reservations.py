"""Requests on their way are counted exactly once."""

from __future__ import annotations

from predictor.core.reservations import Reservations
from simcore.types import Candidate, LengthBelief


def candidate(name: str, prompt_tokens: int = 10) -> Candidate:
    return Candidate(request_id=name, prompt_tokens=prompt_tokens, max_output_tokens=5, belief=LengthBelief((3,)))


def test_held_in_order_of_dispatch_until_dropped() -> None:
    held = Reservations()
    for name in ("b", "a", "c"):
        held.reserve(candidate(name), now_s=0.0, ttl_s=10.0)
    assert [c.request_id for c in held.candidates()] == ["b", "a", "c"]
    assert held.drop("a")
    assert not held.drop("a"), "a second time there is nothing to drop"
    assert [c.request_id for c in held.candidates()] == ["b", "c"]
    assert "b" in held
    assert "a" not in held


def test_the_same_id_again_counts_once_with_the_new_shape() -> None:
    held = Reservations()
    held.reserve(candidate("a", 10), now_s=0.0, ttl_s=1.0)
    held.reserve(candidate("a", 20), now_s=0.5, ttl_s=1.0)
    assert len(held) == 1
    assert held.candidates()[0].prompt_tokens == 20
    assert held.expire(1.2) == [], "its time to live began anew"


def test_what_does_not_come_expires() -> None:
    held = Reservations()
    held.reserve(candidate("early"), now_s=0.0, ttl_s=1.0)
    held.reserve(candidate("late"), now_s=0.0, ttl_s=2.0)
    assert held.expire(0.999) == []
    assert held.expire(1.0) == ["early"]
    assert held.expire(5.0) == ["late"]
    assert len(held) == 0


def test_the_version_changes_exactly_when_the_content_does() -> None:
    held = Reservations()
    versions = [held.version]
    held.reserve(candidate("a"), now_s=0.0, ttl_s=1.0)
    versions.append(held.version)
    held.drop("unknown")
    held.expire(0.5)
    assert held.version == versions[-1]
    held.expire(1.0)
    versions.append(held.version)
    assert len(set(versions)) == 3
