"""Dispatched requests that the engine's trace shows under several names, or under one that is not ours."""

from __future__ import annotations

from length_model.core.belief import known
from predictor.core.traced_engine import TracedEngine
from simcore.trace import TraceDelta, TraceSnapshot, child_id
from simcore.types import Candidate, EngineConfig, RequestState
from tests.helpers.step_time import STEP_TIME

CONFIG = EngineConfig(model="m", num_blocks=200, max_model_len_tokens=400)
TTL_S = 30.0


class Traced:
    """An engine whose trace the test tells."""

    def __init__(self) -> None:
        self.engine = TracedEngine("n", CONFIG, STEP_TIME, reservation_ttl_s=TTL_S)
        self.seq = 0
        self.here: list[RequestState] = []
        self.snapshot()

    def snapshot(self) -> None:
        here = tuple(self.here)
        self.engine.on_snapshot(
            TraceSnapshot(seq=self.seq, at_s=0.0, config=CONFIG, running=(), waiting=here, free_blocks=200), 0.0
        )

    def dispatch(self, name: str, *, prompt_tokens: int = 20, output_tokens: int = 7, priority: int = 0) -> None:
        candidate = Candidate(
            request_id=name,
            prompt_tokens=prompt_tokens,
            max_output_tokens=50,
            belief=known(output_tokens),
            priority=priority,
        )
        self.engine.dispatched(candidate, 0.0)

    def arrive(self, *names: str, prompt_tokens: int = 20) -> None:
        states = [RequestState(request_id=n, prompt_tokens=prompt_tokens, max_output_tokens=50) for n in names]
        self.here += states
        self.step(arrived=tuple(states))

    def step(self, *, arrived: tuple[RequestState, ...] = (), finished: tuple[str, ...] = ()) -> None:
        self.seq += 1
        delta = TraceDelta(
            seq=self.seq, start_s=0.0, duration_s=0.001, arrived=arrived, finished=finished, free_blocks=200
        )
        assert not self.engine.on_delta(delta, 0.0)

    def waiting(self) -> tuple[int, int]:
        """(waiting, of them reserved)."""
        load = self.engine.load(0.0)
        assert load is not None
        return load.waiting, load.reserved

    def believed(self, name: str) -> int:
        return self.engine._belief(name, 50).expected_tokens(0)


def test_the_first_of_several_makes_the_reservation_good_and_all_are_believed_alike() -> None:
    traced = Traced()
    traced.dispatch("a")
    assert traced.waiting() == (1, 1)
    traced.arrive("a", child_id("a", "1"), child_id("a", "2-1"))
    assert traced.waiting() == (3, 0)
    assert traced.engine.names("a") == 3
    assert [traced.believed(n) for n in ("a", "a=1", "a=2-1")] == [7, 7, 7]


def test_a_child_may_come_first_and_another_after_the_first_has_ended() -> None:
    traced = Traced()
    traced.dispatch("a")
    traced.arrive("a=0-beam-1")
    assert traced.waiting() == (1, 0)
    traced.step(finished=("a=0-beam-1",))
    traced.arrive("a=0-beam-2")
    assert traced.believed("a=0-beam-2") == 7
    traced.engine.ended("a")
    assert traced.engine.names("a") == 0
    traced.arrive("a=0-beam-3")
    assert traced.believed("a=0-beam-3") != 7, "nothing is left of what was believed"


def test_a_new_snapshot_counts_nobody_twice() -> None:
    traced = Traced()
    traced.dispatch("a")
    traced.arrive("a", "a=1")
    traced.snapshot()
    assert traced.engine.names("a") == 2
    assert traced.waiting() == (2, 0)
    traced.dispatch("b")
    traced.here.append(RequestState(request_id="b=1", prompt_tokens=20, max_output_tokens=50))
    traced.snapshot()
    assert traced.waiting() == (3, 0)
    assert traced.believed("b=1") == 7


def test_a_stranger_is_nobody_of_ours_unless_one_comes_unnamed() -> None:
    traced = Traced()
    traced.dispatch("a")
    traced.arrive("resp_1", "x=1")
    assert traced.waiting() == (3, 1)
    assert traced.believed("resp_1") != 7


def test_what_comes_unnamed_is_the_stranger_of_its_size() -> None:
    traced = Traced()
    for name, prompt_tokens, output_tokens in (("a", 300, 11), ("b", 900, 13)):
        traced.dispatch(name, prompt_tokens=prompt_tokens, output_tokens=output_tokens)
        traced.engine.comes_unnamed(name)
    traced.arrive("resp_far", prompt_tokens=3000)
    assert traced.waiting() == (3, 2), "no prompt of ours is as long"
    traced.arrive("resp_1", prompt_tokens=850)
    assert traced.waiting() == (3, 1)
    assert traced.believed("resp_1") == 13
    traced.arrive("resp_2", prompt_tokens=250)
    assert traced.waiting() == (3, 0)
    assert traced.believed("resp_2") == 11
    traced.arrive("resp_3", prompt_tokens=300)
    assert traced.waiting() == (4, 0), "each is found once"
    assert traced.engine.names("a") == 1


def test_what_never_shows_expires() -> None:
    traced = Traced()
    traced.dispatch("a")
    traced.engine.comes_unnamed("a")
    assert traced.engine.expire(TTL_S - 1.0) == []
    assert traced.engine.expire(TTL_S + 1.0) == ["a"]
    traced.arrive("resp_1")
    assert traced.waiting() == (1, 0)
    traced.engine.ended("a")


def test_classes_are_as_clients_asked_although_the_trace_of_an_engine_in_order_of_arrival_tells_none() -> None:
    traced = Traced()

    def classes() -> dict[int, int]:
        load = traced.engine.load(0.0)
        assert load is not None
        return load.classes

    traced.dispatch("normal")
    for name in ("high", "twice"):
        traced.dispatch(name, priority=-1)
    traced.dispatch("last", priority=99)
    assert classes() == {-1: 2, 8: 1}, "on their way"
    traced.arrive("normal", "high", "twice", child_id("twice", "1"))
    assert classes() == {-1: 3, 8: 1}
    traced.here.append(RequestState(request_id="of others", prompt_tokens=20, max_output_tokens=50, priority=3))
    traced.step(arrived=(traced.here[-1],), finished=("high",))
    traced.engine.ended("high")
    assert classes() == {-1: 2, 3: 1, 8: 1}
    traced.step(finished=("twice", child_id("twice", "1")))
    traced.engine.ended("twice")
    traced.engine.ended("last")
    assert classes() == {3: 1}


def test_a_request_under_a_name_of_the_engines_own_keeps_its_class() -> None:
    traced = Traced()
    traced.dispatch("ours", priority=-2)
    traced.engine.comes_unnamed("ours")
    traced.arrive("theirs")
    load = traced.engine.load(0.0)
    assert load is not None
    assert (load.classes, load.reserved) == ({-2: 1}, 0)
