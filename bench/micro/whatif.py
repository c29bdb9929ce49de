"""Micro-benchmark: what one what-if costs. `python -m bench.micro.whatif`.

Beside it, on the same states: every step run by compiled code, by the plain Python scheduler, and, where vLLM is
installed (`make test-vllm` makes such an environment), by vLLM's own scheduler driven by hand.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

from bench.measure.results import spread
from bench.micro.states import A30_LLAMA2_7B, busy_states, share_gpt_lengths
from length_model.core.belief import DEFAULT_PRIOR, known, truncated
from simcore.lookahead import WhatIf
from simcore.node import SimNode
from simcore.trace import TraceSnapshot
from simcore.types import Candidate, EngineConfig, LengthBelief
from simcore.warmup import warm
from tests.conformance.scheduler_workloads import OracleRequest, Scheduler
from tests.conformance.simulated_schedulers import Reference
from tests.conformance.vllm_scheduler import VllmScheduler, why_unavailable

SHAPES = (
    # (in the system, max_num_seqs, KV blocks)
    (16, 48, 1052),
    (64, 48, 1052),
    (64, 48, 4096),
    (272, 256, 16384),
)
ONE, GUESSED, MANY = "what-if", "what-if, lengths guessed, 1 scenario", "what-if, lengths guessed, 16 scenarios"
STEPPED_STATES = 3
"""States of each shape that are also run by schedulers that only step: seconds each."""


def timed_us(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e3


def from_snapshot(snapshot: TraceSnapshot) -> SimNode:
    """The node that a daemon makes of what its trace shows."""
    return SimNode.from_snapshot(
        snapshot, "bench", A30_LLAMA2_7B, output_tokens=lambda s: s.max_output_tokens, free_at_s=snapshot.at_s
    )


def stepped_us(scheduler: Scheduler, node: SimNode, candidate: Candidate) -> tuple[float, int]:
    """The same question put to a scheduler that only steps, and the steps it takes.

    It cannot be told a state, so those that run come with what they have so far as their prompt. Timed from the moment
    at which all of them decode.
    """
    states = node.snapshot(0.0)
    ahead = [
        (s.prompt_tokens + s.output_tokens, node.requests[s.request_id].request.output_tokens - s.output_tokens)
        for s in states.running
    ]
    behind = [(s.prompt_tokens, node.requests[s.request_id].request.output_tokens) for s in states.waiting]
    behind.append((candidate.prompt_tokens, candidate.belief.atoms_tokens[0]))
    for i, (prompt, output) in enumerate(ahead):
        scheduler.add(OracleRequest(request_id=f"r{i}", prompt_tokens=prompt, output_tokens=output), i * 1e-6)
    started: set[str] = set()
    while len(started) < len(ahead):
        started.update(r for r, _, produced, _ in scheduler.step().scheduled if produced)
    for i, (prompt, output) in enumerate(behind, start=len(ahead)):
        scheduler.add(OracleRequest(request_id=f"r{i}", prompt_tokens=prompt, output_tokens=output), 1.0 + i * 1e-6)
    steps = 0

    def run() -> None:
        nonlocal steps
        while scheduler.has_work:
            scheduler.step()
            steps += 1

    return timed_us(run), steps


def leaving(request_id: str) -> Candidate:
    """The question of a request that is there already."""
    return Candidate(request_id=request_id, prompt_tokens=1, max_output_tokens=1, belief=known(1), leaving=True)


def measure(in_system: int, seqs: int, blocks: int, *, states: int, seed: int, asynchronous: bool, vllm: bool) -> None:
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
    one = WhatIf("bench", config, A30_LLAMA2_7B, scenarios=1)
    many = WhatIf("bench", config, A30_LLAMA2_7B, scenarios=16)
    columns: dict[str, list[float]] = {}
    running, waiting, steps = [], [], []

    def note(name: str, value: float) -> None:
        columns.setdefault(name, []).append(value)

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
        note(ONE, timed_us(lambda: fast.forecast([candidate])))  # noqa: B023
        leaver = leaving(snapshot.running[len(snapshot.running) // 2].request_id)
        note("one of those there, if it left", timed_us(lambda: fast.forecast([leaver])))  # noqa: B023
        plain.rebase_node(node, beliefs, now_s)
        plain.forecast([candidate])
        note("what-if, compiled, every step run", timed_us(lambda: plain.forecast([candidate])))  # noqa: B023
        note("node from snapshot", timed_us(lambda: from_snapshot(snapshot)))  # noqa: B023
        unknown: dict[str, LengthBelief] = {i: truncated(DEFAULT_PRIOR, 2048) for i in node.requests}
        guess = Candidate(request_id=f"c{k}", prompt_tokens=prompt, max_output_tokens=2048, belief=DEFAULT_PRIOR)
        for name, what_if in ((GUESSED, one), (MANY, many)):
            what_if.rebase_node(node, unknown, now_s)
            what_if.forecast([guess])
            note(name, timed_us(lambda: what_if.forecast([guess])))  # noqa: B023
            note(f"{name}, if one left", timed_us(lambda: what_if.forecast([leaver])))  # noqa: B023
        if k < STEPPED_STATES:
            spent_us, n = stepped_us(Reference(config, checking=False), node, candidate)
            note("plain Python step loop", spent_us)
            steps.append(n)
            if vllm:
                note("vLLM's own scheduler, driven by hand", stepped_us(VllmScheduler(config), node, candidate)[0])
    middle = {name: statistics.median(values) for name, values in columns.items()}
    print(
        f"\n{statistics.median(running):.0f} running + {statistics.median(waiting):.0f} waiting "
        f"(max_num_seqs {seqs}, {blocks} blocks), {states} states, about {statistics.median(steps):.0f} steps ahead"
    )
    for name, value in middle.items():
        cost_us = spread(columns[name])
        assert cost_us is not None, "there are states"
        print(f"  {name:36s} {value:10.1f} µs median {cost_us.p99:10.1f} µs p99 {value / middle[ONE]:9.1f} x")
    print(f"  16 scenarios cost {middle[MANY] / middle[GUESSED]:.1f} x one scenario of the same beliefs")


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
    if why := why_unavailable():
        print(f"vLLM's own scheduler is left out: {why}")
    for in_system, seqs, blocks in SHAPES:
        measure(
            in_system,
            seqs,
            blocks,
            states=options.states,
            seed=options.seed,
            asynchronous=options.asynchronous,
            vllm=not why,
        )


if __name__ == "__main__":
    main()
