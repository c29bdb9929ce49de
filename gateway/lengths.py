"""Beliefs about answer lengths for the event loop: one worker thread, batches, a deadline, the prior when late."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from length_model.online import LengthForecast, OnlineLengths, key_of
from length_model.query import LengthQuery

MAX_BATCH = 32
"""Queries of one call of the model: what comes meanwhile waits for the next."""

_Waiter = tuple[LengthQuery, int | None, "asyncio.Future[LengthForecast]"]


class LengthDesk:
    """Belongs to one event loop. Requests that come while the model is busy are answered together in its next call."""

    def __init__(self, lengths: OnlineLengths, *, deadline_s: float) -> None:
        self._lengths = lengths
        self._deadline_s = deadline_s
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lengths")
        self._waiting: list[_Waiter] = []
        self._task: asyncio.Task[None] | None = None

    async def forecast(self, query: LengthQuery, max_tokens: int | None) -> LengthForecast:
        """The belief within the deadline; else the prior, counted as late. Raises nothing but CancelledError."""
        answer: asyncio.Future[LengthForecast] = asyncio.get_running_loop().create_future()
        self._waiting.append((query, max_tokens, answer))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        try:
            async with asyncio.timeout(self._deadline_s):
                return await answer
        except TimeoutError:
            self._lengths.note_late()
            return LengthForecast(belief=self._lengths.prior_for(max_tokens), key=key_of(query))

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            # Whoever has given up by now is not worth the model's time.
            batch = [w for w in batch if not w[2].done()]
            if not batch:
                continue
            queries, limits = [w[0] for w in batch], [w[1] for w in batch]
            found = await loop.run_in_executor(self._worker, self._lengths.forecast_batch, queries, limits)
            for (_, _, answer), forecast in zip(batch, found, strict=True):
                if not answer.done():
                    answer.set_result(forecast)
        self._task = None

    def observe(self, forecast: LengthForecast, output_tokens: int, *, censored: bool) -> None:
        """Learns from a request that has ended: microseconds, done here."""
        self._lengths.observe(forecast, output_tokens, censored=censored)

    async def close(self) -> None:
        """Ends the worker; a call of the model that is under way is not waited for."""
        if self._task is not None:
            self._task.cancel()
        self._worker.shutdown(wait=False, cancel_futures=True)
