from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

import pytest

from gateway.core.events import RequestShape
from gateway.intake.client_stream import ClientStream
from gateway.intake.lengths import MAX_BATCH, ExpectedLength, LengthDesk, Question, kind_of, load_lengths
from length_model.artifact import ArtifactError
from length_model.baseline import ConstantModel
from length_model.core.belief import DEFAULT_PRIOR, known, truncated
from length_model.core.conversation import Turn
from length_model.core.distribution import Floats
from length_model.core.query import LengthQuery
from length_model.online import OnlineLengths
from simcore.types import LengthBelief, Outcome


class Gated(ConstantModel):
    """Answers when it is let go, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.started = threading.Event()
        self.batches: list[int] = []
        self.asked: list[LengthQuery] = []

    def pmf(self, queries: Sequence[LengthQuery]) -> Floats:
        self.batches.append(len(queries))
        self.asked.extend(queries)
        self.started.set()
        assert self.open.wait(20)
        return super().pmf(queries)


class Broken(ConstantModel):
    def pmf(self, queries: Sequence[LengthQuery]) -> Floats:
        raise MemoryError


def letters(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


def desk_of(
    lengths: OnlineLengths | None, *, deadline_s: float = 20.0, decode: Callable[[Sequence[int]], str] = letters
) -> LengthDesk:
    return LengthDesk(lengths, deadline_s=deadline_s, decode=decode)


async def ask(desk: LengthDesk, text: str = "x", max_tokens: int = 10_000) -> ExpectedLength:
    return await desk.expect(Question(text=text), said=None, max_tokens=max_tokens)


def ended(expected: ExpectedLength, *, tokens: int, outcome: Outcome) -> ClientStream:
    shape = RequestShape(request_id="r", prompt_tokens=1, max_output_tokens=10_000, belief=expected.belief)
    stream = ClientStream(shape, basis=expected.basis)
    if tokens:
        stream.put([1] * tokens, 1.0)
    stream.end(outcome, "", 2.0)
    return stream


async def test_requests_that_come_while_the_model_is_busy_are_answered_together() -> None:
    model = Gated()
    desk = desk_of(OnlineLengths(model))
    first = asyncio.create_task(ask(desk, "first"))
    assert await asyncio.to_thread(model.started.wait, 20)
    others = [asyncio.create_task(ask(desk, f"{i}", 100)) for i in range(MAX_BATCH + 3)]
    await asyncio.sleep(0)
    model.open.set()
    found = await asyncio.gather(first, *others)
    assert model.batches == [1, MAX_BATCH, 3]
    assert all(f.source == "constant" and f.basis is not None for f in found)
    assert all(f.belief.atoms_tokens[-1] <= 100 for f in found[1:])
    await desk.close()


async def test_late_beliefs_are_the_prior_and_counted_and_the_next_in_time_is_not() -> None:
    model = Gated()
    lengths = OnlineLengths(model)
    desk = desk_of(lengths, deadline_s=0.02)
    late = await asyncio.gather(*(ask(desk, max_tokens=50) for _ in range(3)))
    assert [f.belief for f in late] == [truncated(DEFAULT_PRIOR, 50)] * 3
    assert all(f.basis is None and "20 ms" in f.source for f in late)
    assert desk.counters.late == 3
    model.open.set()
    patient = desk_of(lengths)
    assert (await ask(patient)).source == "constant"
    await desk.close()
    await patient.close()


async def test_who_gave_up_costs_no_call() -> None:
    model = Gated()
    desk = desk_of(OnlineLengths(model))
    first = asyncio.create_task(ask(desk, "a"))
    assert await asyncio.to_thread(model.started.wait, 20)
    gone = asyncio.create_task(ask(desk, "b"))
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    model.open.set()
    await first
    assert model.batches == [1]
    await desk.close()


async def test_a_failing_model_gives_the_prior() -> None:
    desk = desk_of(OnlineLengths(Broken()))
    expected = await ask(desk)
    assert (expected.belief, expected.source) == (DEFAULT_PRIOR, "prior: the length model failed")
    desk.ended(ended(expected, tokens=10, outcome=Outcome.STOP))
    assert (desk.counters.failed, desk.counters.ignored) == (1, 1)
    await desk.close()


async def test_token_ids_that_cannot_be_read_give_the_prior_and_the_next_request_is_answered() -> None:
    def decode(ids: Sequence[int]) -> str:
        raise ValueError("not of this vocabulary")

    desk = desk_of(OnlineLengths(ConstantModel()), decode=decode)
    odd = await desk.expect(Question(token_ids=[1, 2]), said=None, max_tokens=50)
    assert odd.belief == truncated(DEFAULT_PRIOR, 50)
    assert (await ask(desk)).source == "constant"
    await desk.close()


async def test_what_is_known_is_not_guessed() -> None:
    model = Gated()
    desk = desk_of(OnlineLengths(model))
    said = LengthBelief((5, 500))
    question = Question(text="x")
    client = await desk.expect(question, said=said, max_tokens=100, runs_to_limit=True)
    assert (client.belief, client.source) == (LengthBelief((5, 100)), "client")
    certain = await desk.expect(question, said=None, max_tokens=70, runs_to_limit=True)
    assert certain.belief == known(70)
    nothing = await desk.expect(Question(), said=None, max_tokens=70)
    assert (nothing.belief, nothing.source) == (truncated(DEFAULT_PRIOR, 70), "prior")
    assert model.batches == []
    assert (await ask(desk_of(None), max_tokens=70)).belief == truncated(DEFAULT_PRIOR, 70)
    await desk.close()


async def test_a_clients_single_number_is_worth_what_its_others_came_to() -> None:
    desk = desk_of(None)

    async def say(caller: str, tokens: int = 100, max_tokens: int = 1000) -> ExpectedLength:
        return await desk.expect(Question(model="m"), said=known(tokens), max_tokens=max_tokens, caller=caller)

    for _ in range(20):
        desk.ended(ended(await say("alice"), tokens=150, outcome=Outcome.STOP))
        desk.ended(ended(await say("bob"), tokens=100, outcome=Outcome.STOP))
        desk.ended(ended(await say("carol"), tokens=50, outcome=Outcome.CLIENT_LEFT))
    alice = await say("alice")
    assert (alice.belief.atoms_tokens[0], alice.belief.quantile_tokens(0.5)) == (100, 150)
    assert (kind_of(alice.source), (await say("alice", max_tokens=120)).belief.atoms_tokens[-1]) == ("client", 120)
    assert (await say("bob")).belief == (await say("carol")).belief == (await say("dave")).belief == known(100)
    several = LengthBelief((100, 100))
    assert (await desk.expect(Question(model="m"), said=several, max_tokens=1000, caller="alice")).belief == several
    await desk.close()


@pytest.mark.parametrize(
    ("outcome", "censored"),
    [(Outcome.STOP, 0), (Outcome.LENGTH, 1), (Outcome.CLIENT_LEFT, 1), (Outcome.DEADLINE, 1), (Outcome.NODE_LOST, 1)],
)
async def test_every_end_teaches_and_cut_answers_count_as_cut(outcome: Outcome, censored: int) -> None:
    desk = desk_of(OnlineLengths(ConstantModel()))
    desk.ended(ended(await ask(desk), tokens=30, outcome=outcome))
    assert (desk.counters.observed, desk.counters.observed_censored) == (1, censored)
    desk.ended(ended(await ask(desk), tokens=0, outcome=outcome))
    assert desk.counters.ignored == 1
    await desk.close()


async def test_of_token_ids_the_beginning_and_the_end_are_read() -> None:
    model = Gated()
    model.open.set()
    desk = desk_of(OnlineLengths(model))
    ids = [ord("a")] * 50_000 + [ord("z")] * 50_000
    history = [Turn("user", "hi"), Turn("assistant", "hello")]
    await desk.expect(Question(token_ids=ids, history=history, model="m", request_class="c"), said=None, max_tokens=5)
    (query,) = model.asked
    assert (query.prompt[0], query.prompt[-1], len(query.prompt) < 5_000) == ("a", "z", True)
    assert query.chars == pytest.approx(100_000, rel=0.01)
    assert (query.model, query.request_class, len(query.history)) == ("m", "c", 2)
    await desk.close()


def test_models_are_found_by_name_and_none_means_none() -> None:
    assert load_lengths("none") is None
    hashed = load_lengths("hashed")
    assert hashed is not None
    assert hashed.model.name == "hashed"
    with pytest.raises(ArtifactError, match="histogram"):
        load_lengths("hashd")


async def test_sources_count_under_few_names() -> None:
    gated = Gated()
    late = desk_of(OnlineLengths(gated), deadline_s=0.001)
    assert kind_of((await ask(late)).source) == "late"
    gated.open.set()
    failing, good = desk_of(OnlineLengths(Broken())), desk_of(OnlineLengths(ConstantModel()))
    assert kind_of((await ask(failing)).source) == "failed"
    assert kind_of((await ask(good)).source) == "model"
    assert kind_of((await ask(desk_of(None))).source) == "prior"
    question = Question(text="x")
    assert kind_of((await good.expect(question, said=known(3), max_tokens=9)).source) == "client"
    assert kind_of((await good.expect(question, said=None, max_tokens=9, runs_to_limit=True)).source) == "limit"
    for desk in (late, failing, good):
        await desk.close()
