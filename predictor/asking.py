"""When and on which thread forecasts are simulated.

A short simulation runs on the event loop, at once. A long one would keep tokens and dispatches waiting: it runs on a
thread, together with whatever else is asked until that thread is free.

While the simulator's kernels are still being compiled Python runs them (`simcore.kernel_cache.interpreting`), a hundred
times slower, and the thread shares the interpreter with the event loop. A node with few requests is simulated all the
same; what would take too long is refused at once, so that gateways need not wait to do without it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from predictor.core.estimator import Answers, NoForecast
from predictor.core.node_predictor import NodePredictor
from simcore.kernel_cache import is_interpreting
from simcore.types import Candidate, NodeOutlook

INLINE_S = 0.001
"""Simulations that are expected to take longer run on the thread."""
SMOOTHING = 0.2
"""Weight of the latest simulation in the time that the next one is expected to take."""
INTERPRETED_S = 0.025
"""Simulations of interpreted kernels that are expected to take longer are not run for a gateway: half of what one waits
for an answer, since another may have to be finished first."""
INTERPRETED_REQUEST_S = 0.001
"""What one request of such a simulation is expected to take at first; after that as it is found
(`python -m bench.micro.cold_start`)."""
TOO_MANY = NoForecast("too many requests are there to be simulated before kernels are compiled")

Result = TypeVar("Result")


class Asking:
    """Questions to one predictor and their answers, on the event loop."""

    def __init__(self, predictor: NodePredictor) -> None:
        self._predictor = predictor
        self._asked: list[tuple[Sequence[Candidate], Callable[[Answers], None]]] = []
        self._simulating: asyncio.Task[None] | None = None
        self._candidate_s = 0.0
        """Smoothed time that the simulation of one candidate takes."""
        self._look_s = 0.0
        """As that of a look ahead."""
        self._request_s = INTERPRETED_REQUEST_S
        """As that of a request, while kernels are interpreted."""
        # One thread: the simulation is one state with one owner, and lets go of the interpreter while it runs.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="simulation")

    @property
    def is_busy(self) -> bool:
        """Whether nobody may simulate on the event loop now: the thread has the simulation's state, or it would take
        too long."""
        return self._simulating is not None or is_interpreting()

    def ask(self, candidates: Sequence[Candidate], deliver: Callable[[Answers], None]) -> None:
        """What-ifs from the state as it is now or a little later. `deliver` gets one answer per candidate: before this
        returns if the simulation is short, or too long for kernels that are not compiled yet, else when the thread has
        run it, together with what was asked meanwhile."""
        if is_interpreting():
            # Those that wait for the thread are simulated together with these.
            asked = sum(len(others) for others, _ in self._asked) + len(candidates)
            if self._request_s * self._simulated(asked) > INTERPRETED_S:
                deliver([TOO_MANY] * len(candidates))
                return
        if not self.is_busy and self._candidate_s * len(candidates) < INLINE_S:
            began_s = time.thread_time()
            answers = self._predictor.begin(candidates, time.monotonic())()
            deliver(self._corrected(candidates, answers, time.thread_time() - began_s))
            return
        self._simulate_aside(candidates, deliver)

    def look_ahead(self, on_seen: Callable[[], None]) -> None:
        """What is ahead of the requests that are here, for the node's loads from then on; `on_seen` is called when that
        is known. Nothing while the thread simulates, or kernels are interpreted: the next time is soon."""
        if self.is_busy:
            return
        now_s = time.monotonic()
        look = self._predictor.begin_look(now_s)
        if self._look_s >= INLINE_S:
            self._simulating = asyncio.create_task(self._look(look, now_s, on_seen), name="looking ahead")
            return
        self._saw(*_timed(look), now_s)
        on_seen()

    async def forecast(self, candidates: Sequence[Candidate]) -> Answers:
        """`ask`, waited for however long it takes."""
        answered: asyncio.Future[Answers] = asyncio.get_running_loop().create_future()

        def deliver(answers: Answers) -> None:
            if not answered.done():
                answered.set_result(answers)

        if is_interpreting():
            self._simulate_aside(candidates, deliver)
        else:
            self.ask(candidates, deliver)
        return await answered

    async def close(self) -> None:
        """Questions that are still open stay unanswered."""
        if self._simulating is not None:
            self._simulating.cancel()
            await asyncio.gather(self._simulating, return_exceptions=True)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _simulate_aside(self, candidates: Sequence[Candidate], deliver: Callable[[Answers], None]) -> None:
        self._asked.append((candidates, deliver))
        if self._simulating is None:
            self._simulating = asyncio.create_task(self._simulate(), name="simulation")

    def _simulated(self, candidates: int) -> int:
        """How many requests there are in a simulation of so many candidates."""
        load = self._predictor.load(time.monotonic())
        return candidates + (load.running + load.waiting if load is not None else 0)

    async def _simulate(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._asked:
                asked, self._asked = self._asked, []
                everybody = [c for candidates, _ in asked for c in candidates]
                simulation = self._predictor.begin(everybody, time.monotonic())
                answers = self._corrected(everybody, *await loop.run_in_executor(self._thread, _timed, simulation))
                at = 0
                for candidates, deliver in asked:
                    deliver(answers[at : at + len(candidates)])
                    at += len(candidates)
        finally:
            self._simulating = None

    async def _look(self, look: Callable[[], NodeOutlook | None], now_s: float, on_seen: Callable[[], None]) -> None:
        try:
            seen, took_s = await asyncio.get_running_loop().run_in_executor(self._thread, _timed, look)
        finally:
            self._simulating = None
        self._saw(seen, took_s, now_s)
        if self._asked:
            self._simulating = asyncio.create_task(self._simulate(), name="simulation")
        on_seen()

    def _saw(self, seen: NodeOutlook | None, took_s: float, now_s: float) -> None:
        self._look_s += SMOOTHING * (took_s - self._look_s)
        self._predictor.lookout.saw(seen, now_s, took_s)

    def _corrected(self, candidates: Sequence[Candidate], answers: Answers, took_s: float) -> Answers:
        """`took_s` is processor time: on a busy machine waiting for a core must not look like a long simulation."""
        if answers and is_interpreting():
            self._request_s += SMOOTHING * (took_s / self._simulated(len(answers)) - self._request_s)
        elif answers:
            self._candidate_s += SMOOTHING * (took_s / len(answers) - self._candidate_s)
        return self._predictor.corrected(candidates, answers, time.monotonic())


def _timed(simulation: Callable[[], Result]) -> tuple[Result, float]:
    """Its result and the processor seconds of this thread that it took."""
    began_s = time.thread_time()
    return simulation(), time.thread_time() - began_s
