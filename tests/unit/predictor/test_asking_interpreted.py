"""What a node answers while its kernels are not compiled yet."""

from __future__ import annotations

import asyncio

from predictor.asking import INTERPRETED_REQUEST_S, INTERPRETED_S, Asking
from predictor.core.estimator import Answers, NoForecast
from simcore.kernel_cache import interpreting
from simcore.types import Forecast
from tests.unit.predictor.test_estimator import candidate
from tests.unit.predictor.test_looking_ahead import full_node

TOO_MANY = [candidate(f"c{i}") for i in range(int(INTERPRETED_S / INTERPRETED_REQUEST_S))]


def test_what_would_take_too_long_is_refused_at_once_and_the_rest_simulated_by_the_thread() -> None:
    async def ask() -> None:
        asking = Asking(full_node())
        few: list[Answers] = []
        many: list[Answers] = []
        answered = asyncio.Event()
        with interpreting():
            asking.ask(TOO_MANY, many.append)
            assert [type(answer) for answer in many[0]] == [NoForecast] * len(TOO_MANY)

            def deliver(answers: Answers) -> None:
                few.append(answers)
                answered.set()

            asking.ask([candidate("new")], deliver)
            assert not few
            await answered.wait()
            assert isinstance(few[0][0], Forecast)
            assert all(isinstance(answer, Forecast) for answer in await asking.forecast(TOO_MANY)), "a person can wait"
        asking.ask(TOO_MANY[:1], many.append)
        assert isinstance(many[1][0], Forecast)
        await asking.close()

    asyncio.run(ask())


def test_what_is_too_much_follows_what_it_takes_here() -> None:
    async def ask() -> None:
        asking = Asking(full_node())
        answers: list[Answers] = []
        with interpreting():
            asking._request_s = INTERPRETED_S
            asking.ask([candidate("slow")], answers.append)
            assert isinstance(answers[0][0], NoForecast)
            for _ in range(40):
                await asking.forecast([candidate("again")])
            assert asking._request_s < INTERPRETED_REQUEST_S, "these are compiled, in truth"
        await asking.close()

    asyncio.run(ask())


def test_who_waits_for_the_thread_counts_too() -> None:
    async def ask() -> None:
        asking = Asking(full_node())
        answers: list[Answers] = []
        with interpreting():
            for candidates in (TOO_MANY[:12], TOO_MANY[12:]):
                asking.ask(candidates, answers.append)
            assert isinstance(answers[0][0], NoForecast), "there is room for each of the two alone"
            assert len(answers) == 1
        await asking.close()

    asyncio.run(ask())


def test_nobody_looks_ahead_meanwhile() -> None:
    async def look() -> None:
        predictor = full_node()
        asking = Asking(predictor)
        with interpreting():
            asking.look_ahead(lambda: None)
            assert asking.is_busy
        assert predictor.lookout.looks == 0
        asking.look_ahead(lambda: None)
        assert predictor.lookout.looks == 1
        await asking.close()

    asyncio.run(look())
