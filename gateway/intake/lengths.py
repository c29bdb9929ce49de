"""Beliefs about answer lengths for the event loop: one worker thread, batches, a deadline, the prior when late.

The one place where a request's belief is made and where its end is learnt from: every front asks `expect` before it
hands a request over, and the gateway tells `ended` of each request that is over.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence

import msgspec

from gateway.intake.client_stream import ClientStream
from length_model.core.belief import DEFAULT_PRIOR, known, truncated
from length_model.core.conversation import Turn
from length_model.core.hints import Hint, LearnedHints
from length_model.core.query import PROMPT_HEAD_CHARS, PROMPT_TAIL_CHARS, LengthQuery, make_query
from length_model.models import load_model
from length_model.online import Counters, LengthForecast, OnlineLengths
from simcore.types import LengthBelief, Outcome

MAX_BATCH = 32
"""Questions of one call of the model: what comes meanwhile waits for the next."""

NO_MODEL = "none"
"""Name that switches models off: the prior holds for every request."""

_LOOK_HEAD_TOKENS = PROMPT_HEAD_CHARS // 4
_LOOK_TAIL_TOKENS = PROMPT_TAIL_CHARS // 4
"""What is turned back into text of a prompt that comes as token ids."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What a front knows of a request when it asks for its length. Of text and token ids one is enough."""

    text: str = ""
    """The last user turn, or the whole prompt."""
    token_ids: Sequence[int] = ()
    history: Sequence[Turn] = ()
    """Turns before it, oldest first."""
    model: str = ""
    request_class: str = ""


class ExpectedLength(msgspec.Struct, frozen=True, kw_only=True):
    """The belief that a request goes with."""

    belief: LengthBelief
    source: str
    """Who says so, for people: `client`, `limit`, the model's name, or `prior` and why."""
    basis: LengthForecast | Hint | None = None
    """What `ended` learns with: the model's answer, or the client's one number; None when neither was there."""


_Waiter = tuple[Question, int, "asyncio.Future[LengthForecast | None]"]


class LengthDesk:
    """Asks the length model on behalf of the fronts, and knows what clients' own numbers are worth.

    Belongs to one event loop. Requests that come while the model is busy are answered together in its next call.

    `lengths` None: there is no model. `decode` turns token ids back into text; it runs in the worker thread.
    """

    def __init__(
        self, lengths: OnlineLengths | None, *, deadline_s: float, decode: Callable[[Sequence[int]], str]
    ) -> None:
        self._lengths = lengths
        self._hints = LearnedHints()
        self._deadline_s = deadline_s
        self._decode = decode
        self._asked: queue.SimpleQueue[_Waiter | None] = queue.SimpleQueue()
        self._worker: threading.Thread | None = None

    async def expect(
        self,
        question: Question,
        *,
        said: LengthBelief | None,
        max_tokens: int,
        runs_to_limit: bool = False,
        caller: str = "",
    ) -> ExpectedLength:
        """The belief under the answer's limit: the client's when it `said` one, a single number as far as those of
        this `caller` have come true; the limit itself when nothing can end the answer before (`ignore_eos` without
        stops); else the model's within the deadline; else the prior.

        Raises nothing but CancelledError.
        """
        if said is None and runs_to_limit:
            return ExpectedLength(belief=known(max_tokens), source="limit: ignore_eos runs to it")
        if said is not None and len(said.atoms_tokens) == 1:
            hint = Hint((caller, question.model), said.atoms_tokens[0])
            return ExpectedLength(
                belief=truncated(self._hints.belief(hint), max_tokens),
                source=f"client: {hint.tokens}, as its numbers have come true",
                basis=hint,
            )
        lengths = self._lengths
        if said is not None or lengths is None or not (question.text or question.token_ids):
            return expected_without_model(said, max_tokens)
        loop = asyncio.get_running_loop()
        if self._worker is None:
            # Its own thread: an executor costs twice as much per call, and a request waits for nothing else.
            self._worker = threading.Thread(target=self._work, args=(lengths, loop), name="lengths", daemon=True)
            self._worker.start()
        answer: asyncio.Future[LengthForecast | None] = loop.create_future()
        self._asked.put((question, max_tokens, answer))
        timer = loop.call_later(self._deadline_s, _give_up, answer)
        try:
            forecast = await answer
        finally:
            timer.cancel()
        if forecast is None:
            lengths.note_late()
            late = f"prior: no belief within {self._deadline_s * 1000:g} ms"
            return ExpectedLength(belief=lengths.prior_for(max_tokens), source=late)
        source = "prior: the length model failed" if forecast.hazards is None else lengths.model.name
        return ExpectedLength(belief=forecast.belief, source=source, basis=forecast)

    def _work(self, lengths: OnlineLengths, loop: asyncio.AbstractEventLoop) -> None:
        """The worker thread, until it is handed None."""
        while (first := self._asked.get()) is not None:
            batch = [first]
            ends = False
            while len(batch) < MAX_BATCH and not self._asked.empty():
                waiter = self._asked.get()
                if waiter is None:
                    ends = True
                    break
                batch.append(waiter)
            # Whoever has given up by now is not worth the model's time.
            batch = [w for w in batch if not w[2].done()]
            if batch and not ends:
                forecasts = self._answer(lengths, batch)
                try:
                    loop.call_soon_threadsafe(_deliver, batch, forecasts)
                except RuntimeError:
                    # The loop has been closed meanwhile: nobody waits any more.
                    return
            if ends:
                return

    def _answer(self, lengths: OnlineLengths, batch: Sequence[_Waiter]) -> list[LengthForecast]:
        """Forecasts for a batch of questions, in the worker thread. Raises nothing."""
        limits = [limit for _, limit, _ in batch]
        try:
            queries = [_query(question, self._decode) for question, _, _ in batch]
        except Exception:
            # Token ids that the tokenizer chokes on: the others of the batch are answered without them.
            if len(batch) > 1:
                return [self._answer(lengths, [one])[0] for one in batch]
            return [lengths.failed(limits[0])]
        return lengths.forecast_batch(queries, limits)

    def ended(self, stream: ClientStream) -> None:
        """Learns from a request that has ended, however it did: microseconds, done here. What did not stop by itself
        (limit, client gone, deadline, lost node) was at least as long as what came."""
        basis, tokens, censored = stream.basis, stream.output_tokens, stream.outcome is not Outcome.STOP
        # Of an engine's own answer the tokens cannot always be told: then there is nothing to learn.
        is_counted = stream.shape.lane == "tokens" or tokens > 0
        if isinstance(basis, Hint):
            self._hints.observe(basis, tokens, censored=censored)
        elif self._lengths is not None and basis is not None and is_counted:
            self._lengths.observe(basis, tokens, censored=censored)

    @property
    def counters(self) -> Counters:
        """Since the start; all zero without a model."""
        return self._lengths.counters if self._lengths is not None else Counters()

    async def close(self) -> None:
        """Ends the worker; a call of the model that is under way is not waited for."""
        self._asked.put(None)


def _give_up(answer: asyncio.Future[LengthForecast | None]) -> None:
    if not answer.done():
        answer.set_result(None)


def _deliver(batch: Sequence[_Waiter], forecasts: Sequence[LengthForecast]) -> None:
    for (_, _, answer), forecast in zip(batch, forecasts, strict=True):
        if not answer.done():
            answer.set_result(forecast)


def expected_without_model(said: LengthBelief | None, max_tokens: int) -> ExpectedLength:
    """The client's belief if it has one, else the prior; under the answer's limit."""
    source = "prior" if said is None else "client"
    return ExpectedLength(belief=truncated(said or DEFAULT_PRIOR, max_tokens), source=source)


def load_lengths(name: str) -> OnlineLengths | None:
    """The model of that name or file, at work; None for `none`. Raises ArtifactError."""
    return None if name == NO_MODEL else OnlineLengths(load_model(name))


def kind_of(source: str) -> str:
    """`client`, `limit`, `prior`, `late`, `failed` or `model`: a closed list, for counters."""
    said, _, why = source.partition(":")
    if said == "prior":
        return "late" if "within" in why else "failed" if why else "prior"
    return said if said in ("client", "limit") else "model"


def _query(question: Question, decode: Callable[[Sequence[int]], str]) -> LengthQuery:
    text, ids = question.text, question.token_ids
    if text or len(ids) <= _LOOK_HEAD_TOKENS + _LOOK_TAIL_TOKENS:
        return make_query(
            text or decode(ids), question.history, model=question.model, request_class=question.request_class
        )
    text = f"{decode(ids[:_LOOK_HEAD_TOKENS])}\n{decode(ids[-_LOOK_TAIL_TOKENS:])}"
    query = make_query(text, question.history, model=question.model, request_class=question.request_class)
    chars = round(query.chars * len(ids) / (_LOOK_HEAD_TOKENS + _LOOK_TAIL_TOKENS))
    return msgspec.structs.replace(query, prompt_chars=chars)
