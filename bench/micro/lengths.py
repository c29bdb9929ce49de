"""What a belief about an answer's length costs a gateway, per request: the model alone, and with the way to its thread
and back. ShareGPT questions with the turns before them.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import platform
import time
from collections.abc import Iterator, Sequence

# Before numpy is loaded: one core is measured.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import uvloop

from gateway.intake.lengths import LengthDesk, Question, load_lengths
from length_model.core.conversation import Turn, answered_turns
from length_model.core.hints import Hint, LearnedHints
from length_model.core.query import LengthQuery, make_query
from length_model.models import load_model
from length_model.online import OnlineLengths
from length_model.sharegpt import package_file, read_conversations

LIMIT_TOKENS = 1024
DEADLINE_S = 0.02


def asked(count: int) -> Iterator[tuple[str, Sequence[Turn]]]:
    """Questions, each with the turns before it."""
    found = (
        (conversation.turns[i].text, conversation.turns[:i])
        for conversation in read_conversations(package_file())
        for i in list(answered_turns(conversation))[:4]
    )
    return itertools.islice(found, count)


def model_us(lengths: OnlineLengths, queries: Sequence[LengthQuery], batch: int) -> float:
    """Processor time per request, in microseconds."""
    parts = [queries[i : i + batch] for i in range(0, len(queries) - batch + 1, batch)]
    lengths.forecast_batch(parts[0])
    began_s = time.process_time()
    for part in parts:
        lengths.forecast_batch(part, [LIMIT_TOKENS] * len(part))
    return (time.process_time() - began_s) / (len(parts) * batch) * 1e6


def learning_us(lengths: OnlineLengths, queries: Sequence[LengthQuery], seed: int) -> float:
    """Processor time per answer learned, in microseconds: answers of another kind than the model knows."""
    forecasts = [lengths.forecast_batch([query])[0] for query in queries]
    tokens = np.maximum(1, np.random.default_rng(seed).lognormal(7.0, 0.7, len(queries))).astype(int).tolist()
    began_s = time.process_time()
    for forecast, output_tokens in zip(forecasts, tokens, strict=True):
        lengths.observe(forecast, output_tokens, censored=False)
    return (time.process_time() - began_s) / len(queries) * 1e6


def hints_us(count: int, seed: int) -> tuple[float, float]:
    """Processor time per request that says a number and per answer learned of one, in microseconds; numbers are off by
    a quarter."""
    rng = np.random.default_rng(seed)
    tokens = np.maximum(1, rng.lognormal(5.5, 1.0, count)).astype(int)
    said = [Hint(("", ""), hint) for hint in np.maximum(1, tokens * rng.normal(1.0, 0.25, count)).astype(int).tolist()]
    hints = LearnedHints()
    began_s = time.process_time()
    for hint, output_tokens in zip(said, tokens.tolist(), strict=True):
        hints.observe(hint, output_tokens, censored=False)
    learned_s = time.process_time()
    for hint in said:
        hints.belief(hint)
    return (time.process_time() - learned_s) / count * 1e6, (learned_s - began_s) / count * 1e6


async def desk_us(name: str, questions: Sequence[Question], rate_per_s: float, seed: int) -> tuple[float, float, float]:
    """Processor time per request in microseconds, less that of a loop which only waits; p50 and p99 of the wait for the
    belief in milliseconds."""
    desk = LengthDesk(load_lengths(name), deadline_s=DEADLINE_S, decode=lambda ids: "")
    waits_s: list[float] = []

    async def ask(question: Question) -> None:
        began_s = time.perf_counter()
        await desk.expect(question, said=None, max_tokens=LIMIT_TOKENS)
        waits_s.append(time.perf_counter() - began_s)

    async def nothing(question: Question) -> None:
        pass

    await asyncio.gather(*map(ask, questions[:64]))
    waits_s.clear()
    took_s = []
    for work in (ask, nothing):
        rng = np.random.default_rng(seed)
        tasks: list[asyncio.Task[None]] = []
        began_s = time.process_time()
        async with asyncio.TaskGroup() as group:
            for question in questions:
                await asyncio.sleep(float(rng.exponential(1 / rate_per_s)))
                tasks.append(group.create_task(work(question)))
        took_s.append(time.process_time() - began_s)
    await desk.close()
    p50, p99 = np.percentile(waits_s, [50, 99]) * 1e3
    return (took_s[0] - took_s[1]) / len(questions) * 1e6, float(p50), float(p99)


def main() -> None:
    """Prints machine, command, lines per model, and one for clients' own numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["hashed", "histogram"])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    pairs = list(asked(options.requests))
    queries = [make_query(text, history) for text, history in pairs]
    questions = [Question(text=text, history=history) for text, history in pairs]
    print(
        f"python -m bench.micro.lengths --models {' '.join(options.models)} --requests {options.requests} "
        f"--seed {options.seed}"
    )
    print(f"{platform.processor() or platform.machine()}, {platform.python_version()}, one core; µs of processor time")
    for name in options.models:
        lengths = OnlineLengths(load_model(name))
        alone, batched = (model_us(lengths, queries, batch) for batch in (1, 32))
        print(f"{name}: model alone {alone:.0f} µs, in batches of 32 {batched:.0f} µs per request")
        learning = learning_us(lengths, queries, options.seed)
        alone, batched = (model_us(lengths, queries, batch) for batch in (1, 32))
        print(f"  learning {learning:.0f} µs per answer; then {alone:.0f} µs, in batches {batched:.0f} µs per request")
        for rate in (200.0, 1000.0):
            cpu_us, p50_ms, p99_ms = uvloop.run(desk_us(name, questions, rate, options.seed))
            print(f"  at {rate:.0f} requests/s with its thread {cpu_us:.0f} µs; wait {p50_ms:.2f}, p99 {p99_ms:.2f} ms")
    believed, learning = hints_us(options.requests, options.seed)
    print(f"a client's own number: {believed:.0f} µs per request, learning {learning:.0f} µs per answer")


if __name__ == "__main__":
    main()
