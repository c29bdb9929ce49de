"""Micro-benchmark: what a simulated cluster costs, and what it says. `python -m bench.micro.simcluster`.

Bars: 10,000 requests over 12 nodes in <= 1 s of processor time per heuristic policy and <= 10 s with every node asked
for every request (`--ask 0`), on one core.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from bench.measure.results import RequestResult, RunningSummary, Summary
from bench.micro.states import share_gpt_lengths
from bench.run.provenance import machine
from bench.simcluster import Delays, NodeSpec, SimCluster, SimResult
from bench.workload.compose import coming
from bench.workload.item import DataRow, LengthKnowledge, WorkloadItem
from gateway.core.decision.policies.registry import needs_forecasts, policy_names
from gateway.core.router import RouterConfig
from simcore.cost.shipped import load_shipped
from simcore.types import EngineConfig
from simcore.warmup import warm

RATE_PER_NODE_S = 2.5
"""Requests per second: 30 on 12 nodes, at which the bars are."""
LOOK_EVERY = 256
"""Ended requests between two looks at the clock."""
SHOW_EVERY_S = 5.0
HEURISTIC_BAR_S = 1.0
FORECAST_BAR_S = 10.0
PROFILE = "a30/llama-2-7b"
ENGINE = EngineConfig(
    model="llama-2-7b",
    max_num_seqs=48,
    max_num_batched_tokens=512,
    num_blocks=1052,
    max_model_len_tokens=4096,
    enable_prefix_caching=False,
)


class LongRun:
    """The requests of a run that have ended: what they come to, what they cost, and how far the run has got."""

    def __init__(self, requests: int, marks: Sequence[int], *, shows_progress: bool) -> None:
        """`marks`: after so many ended requests a line of the curve is printed."""
        self.so_far = RunningSummary()
        self._requests = requests
        self._marks = sorted(mark for mark in marks if mark <= requests)
        self._shows_progress = shows_progress
        self._began_s = self._last_s = time.process_time()
        self._wall_s = self._shown_s = time.monotonic()
        self._last_count = 0

    def ended(self, result: RequestResult) -> None:
        self.so_far.add(result)
        count = len(self.so_far)
        if self._marks and count >= self._marks[0]:
            del self._marks[0]
            self._mark(count)
        if self._shows_progress and not count % LOOK_EVERY and time.monotonic() - self._shown_s >= SHOW_EVERY_S:
            self._show(count)

    def _mark(self, count: int) -> None:
        now_s = time.process_time()
        each_s = (now_s - self._last_s) / (count - self._last_count)
        print(
            f"{count:12,d}{now_s - self._began_s:10.1f}{time.monotonic() - self._wall_s:10.1f}"
            f"{each_s * 1e6:14.0f}{each_s * 1e6 / 3600:12.2f}{resident_mib():9,.0f}{peak_mib():9,.0f}",
            flush=True,
        )
        self._last_s, self._last_count = now_s, count

    def _show(self, count: int) -> None:
        self._shown_s = time.monotonic()
        wall_s = self._shown_s - self._wall_s
        print(
            f"{count:,d} of {self._requests:,d} requests, {count / wall_s:,.0f} a second, "
            f"{resident_mib():,.0f} MB, {wall_s / count * (self._requests - count) / 60:,.1f} minutes left",
            file=sys.stderr,
            flush=True,
        )


CURVE_HEADER = (
    f"{'requests':>12s}{'cost s':>10s}{'wall s':>10s}{'us each since':>14s}{'h a million':>12s}"
    f"{'MB now':>9s}{'peak MB':>9s}"
)


def resident_mib() -> float:
    """Memory that this process has now."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 2**20


def peak_mib() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(
    policy: str,
    items: Iterable[WorkloadItem],
    ended: Callable[[RequestResult], object] | None = None,
    *,
    nodes: int,
    seed: int,
    sample: int,
    ask: int,
    lengths: LengthKnowledge,
) -> tuple[float, SimResult]:
    """Processor seconds of one run, and the run."""
    step_time = load_shipped(PROFILE)
    specs = [NodeSpec(node_id=f"n{i}", config=ENGINE, step_time=step_time) for i in range(nodes)]
    config = RouterConfig(policy=policy, seed=seed, sample=sample, ask=ask, explain_keep=0)
    cluster = SimCluster(specs, config, lengths=lengths)
    start_s = time.process_time()
    result = cluster.run(items, ended=ended)
    return time.process_time() - start_s, result


def line(policy: str, cost_s: float, result: SimResult, summary: Summary) -> str:
    ttft, e2e, tpot = summary.ttft_s, summary.e2e_s, summary.tpot_s
    assert ttft is not None
    assert e2e is not None
    assert tpot is not None
    bar_s = FORECAST_BAR_S if needs_forecasts(policy) else HEURISTIC_BAR_S
    return (
        f"{policy:30s}{cost_s:8.2f}{bar_s:6.0f} {result.steps:9,d}{result.forecasts:9,d}"
        f"{ttft.mean:9.3f}{ttft.p99:8.2f}{tpot.mean * 1e3:7.1f}{e2e.mean:8.2f}{e2e.p99:8.2f}{result.preemptions:9,d}"
        f"{peak_mib():9,.0f}"
    )


def main() -> None:
    """Prints machine, command, seed and one line per policy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, default=12)
    parser.add_argument(
        "--rate", type=float, help=f"requests per second, Poisson; {RATE_PER_NODE_S:g} a node if left out"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--sample", type=int, default=0, help="nodes drawn for each request; 0: the policy's own number"
    )
    parser.add_argument("--ask", type=int, default=RouterConfig().ask, help="nodes asked for forecasts; 0: all")
    parser.add_argument("--lengths", choices=["known", "none"], default="known")
    parser.add_argument("--policies", default=",".join(name for name in policy_names() if name != "session"))
    parser.add_argument(
        "--curve",
        default="",
        metavar="N,N,...",
        help="print what requests cost and what memory the process has after so many of them",
    )
    parser.add_argument("--progress", action="store_true", help="tell on stderr how far the run has got")
    options = parser.parse_args()
    options.rate = RATE_PER_NODE_S * options.nodes if options.rate is None else options.rate
    rows, source = share_gpt_lengths(options.seed)
    data = [DataRow(prompt_tokens=prompt, output_tokens=output) for prompt, output in rows]
    marks = [int(mark) for mark in options.curve.split(",") if mark]

    def items() -> Iterator[WorkloadItem]:
        rate_per_s = options.rate
        return coming(data, seed=options.seed, kind="poisson", rate_per_s=rate_per_s, count=options.requests)

    warm()
    # The first run of a process pays for loading compiled code and touching memory.
    measure(
        "min_total_latency",
        itertools.islice(items(), 50),
        nodes=options.nodes,
        seed=0,
        sample=0,
        ask=0,
        lengths=options.lengths,
    )
    print(
        f"python -m bench.micro.simcluster --requests {options.requests} --nodes {options.nodes} "
        f"--rate {options.rate:g} --seed {options.seed} --sample {options.sample} --ask {options.ask} "
        f"--lengths {options.lengths} --policies {options.policies}"
    )
    print(", ".join(f"{name} {value}" for name, value in machine().items()) + "; one core used")
    print(f"{source}; {PROFILE}, {ENGINE.max_num_seqs} sequences, {ENGINE.max_num_batched_tokens} tokens a step,")
    print(f"{ENGINE.num_blocks:,} blocks of {ENGINE.block_size_tokens}; {Delays()}")
    # What is told on the way is part of the cost; a run whose bar is looked at tells nothing and has its requests.
    is_long = bool(marks or options.progress)
    listed = [] if is_long else list(items())
    lines = []
    for policy in options.policies.split(","):
        if marks:
            print(f"\n{policy}\n{CURVE_HEADER}", flush=True)
        course = LongRun(options.requests, marks, shows_progress=options.progress) if is_long else None
        cost_s, result = measure(
            policy,
            items() if is_long else listed,
            None if course is None else course.ended,
            nodes=options.nodes,
            seed=options.seed,
            sample=options.sample,
            ask=options.ask,
            lengths=options.lengths,
        )
        preemptions = result.preemptions
        summary = result.summary() if course is None else course.so_far.summary(preemptions=preemptions)
        lines.append(line(policy, cost_s, result, summary))
    print(
        f"\n{'policy':30s}{'cost s':>8s}{'bar':>6s} {'steps':>9s}{'what-ifs':>9s}{'TTFT':>9s}{'P99':>8s}{'TPOT':>7s}"
        f"{'E2E':>8s}{'P99':>8s}{'preempt.':>9s}{'peak MB':>9s}"
    )
    print(f"{'':30s}{'':8s}{'':6s} {'':9s}{'':9s}{'mean s':>9s}{'s':>8s}{'ms':>7s}{'mean s':>8s}{'s':>8s}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
