"""Micro-benchmark: what one what-if costs. `python -m bench.micro.whatif`."""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

from bench.micro.states import A30_LLAMA2_7B, busy_states, share_gpt_lengths
from length_model.belief import DEFAULT_PRIOR, known, truncated
from simcore.lookahead import WhatIf
from simcore.node import SimNode
from simcore.reference import ReferenceRequest, ReferenceScheduler
from simcore.types import Candidate, EngineConfig, LengthBelief
from simcore.warmup import warm

SHAPES = (
    # (in the system, max_num_seqs, KV blocks)
    (16, 48, 1052),
    (64, 48, 1052),
    (64, 48, 4096),
    (272, 256, 16384),
)


def timed_us(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e3


def plain_reference_us(node: SimNode, candidate: Candidate) -> float:
    """The same question put to the plain Python scheduler, from scratch: everybody with a fresh prompt."""
    scheduler = ReferenceScheduler(node.config)
    waiting = [(i, a.request.prompt_tokens, a.request.output_tokens) for i, a in node.requests.items()]
    waiting.append((candidate.request_id, candidate.prompt_tokens, candidate.belief.atoms_tokens[0]))
    for order, (request_id, prompt, output) in enumerate(waiting):
        scheduler.add(
            ReferenceRequest(
                request_id=request_id,
                prompt_tokens=prompt,
                final_tokens=output,
                max_output_tokens=output,
                order=order,
            )
        )

    def run() -> None:
        while scheduler.running or scheduler.waiting:
            A30_LLAMA2_7B.seconds(scheduler.step().batch)

    return timed_us(run)


def measure(in_system: int, seqs: int, blocks: int, *, states: int, seed: int, asynchronous: bool) -> None:
    config = EngineConfig(
        model="bench",
        max_num_seqs=seqs,
        max_num_batched_tokens=512,
        num_blocks=blocks,
        async_scheduling=asynchronous,
    )
    lengths, _ = share_gpt_lengths(seed + 1)
    fast = WhatIf("bench", config, A30_LLAMA2_7B)
    plain = WhatIf("bench", config, A30_LLAMA2_7B, jumping=False)
    many = WhatIf("bench", config, A30_LLAMA2_7B, scenarios=16)
    columns: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        columns.setdefault(name, []).append(value)

    running: list[int] = []
    waiting: list[int] = []
    for k, node in enumerate(busy_states(config, in_system, states, seed)):
        now_s = node.free_at_s
        beliefs = {i: known(a.request.output_tokens) for i, a in node.requests.items()}
        prompt, output = lengths[k]
        candidate = Candidate(request_id=f"c{k}", prompt_tokens=prompt, max_output_tokens=output, belief=known(output))
        snapshot = node.snapshot(now_s)
        running.append(len(snapshot.running))
        waiting.append(len(snapshot.waiting))
        note("rebase from node", timed_us(lambda: fast.rebase_node(node, beliefs, now_s)))  # noqa: B023
        note("first what-if (with baseline)", timed_us(lambda: fast.forecast([candidate])))  # noqa: B023
        note("what-if", timed_us(lambda: fast.forecast([candidate])))  # noqa: B023
        plain.rebase_node(node, beliefs, now_s)
        plain.forecast([candidate])
        note("what-if, every step run", timed_us(lambda: plain.forecast([candidate])))  # noqa: B023
        note("rebase from snapshot", timed_us(lambda: fast.rebase(snapshot, beliefs)))  # noqa: B023
        unknown: dict[str, LengthBelief] = {i: truncated(DEFAULT_PRIOR, 2048) for i in node.requests}
        many.rebase_node(node, unknown, now_s)
        guess = Candidate(request_id=f"c{k}", prompt_tokens=prompt, max_output_tokens=2048, belief=DEFAULT_PRIOR)
        many.forecast([guess])
        note("what-if, 16 scenarios", timed_us(lambda: many.forecast([guess])))  # noqa: B023
        if k < 5:
            note("plain Python reference", plain_reference_us(node, candidate))
    middle = {name: statistics.median(values) for name, values in columns.items()}
    print(
        f"\n{statistics.median(running):.0f} running + {statistics.median(waiting):.0f} waiting "
        f"(max_num_seqs {seqs}, {blocks} blocks), {states} states"
    )
    for name, value in middle.items():
        p99 = sorted(columns[name])[int(0.99 * (len(columns[name]) - 1))]
        print(f"  {name:32s} {value:10.1f} µs median {p99:10.1f} µs p99 {value / middle['what-if']:9.1f} x")


def main() -> None:
    """Prints machine, command, seed and medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--states", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--asynchronous", action="store_true", help="engines that plan a step ahead (vLLM's default)")
    options = parser.parse_args()
    start = time.perf_counter()
    warm()
    ahead = " --asynchronous" if options.asynchronous else ""
    print(f"python -m bench.micro.whatif --states {options.states} --seed {options.seed}{ahead}")
    print(f"{platform.processor() or platform.machine()}, {platform.python_version()}, one core")
    print(f"lengths: {share_gpt_lengths(options.seed)[1]}; warm-up {time.perf_counter() - start:.2f} s")
    for in_system, seqs, blocks in SHAPES:
        measure(in_system, seqs, blocks, states=options.states, seed=options.seed, asynchronous=options.asynchronous)


if __name__ == "__main__":
    main()
