"""Micro-benchmark: what a simulated cluster costs, and what it says. `python -m bench.micro.simcluster`.

Bars: 10,000 requests over 12 nodes in <= 1 s of processor time per heuristic policy and <= 10 s with every node asked
for every request (`--ask 0`), on one core.
"""

from __future__ import annotations

import argparse
import resource
import time

from bench.micro.states import share_gpt_lengths
from bench.run.provenance import machine
from bench.simcluster import Delays, NodeSpec, SimCluster, SimResult
from bench.workload.compose import generated
from bench.workload.item import DataRow, LengthKnowledge, WorkloadItem
from gateway.core.decision.policies.registry import needs_forecasts, policy_names
from gateway.core.router import RouterConfig
from simcore.cost.shipped import load_shipped
from simcore.types import EngineConfig
from simcore.warmup import warm

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


def measure(
    policy: str, items: list[WorkloadItem], *, nodes: int, seed: int, sample: int, ask: int, lengths: LengthKnowledge
) -> tuple[float, SimResult]:
    """Processor seconds of one run, and the run."""
    step_time = load_shipped(PROFILE)
    specs = [NodeSpec(node_id=f"n{i}", config=ENGINE, step_time=step_time) for i in range(nodes)]
    config = RouterConfig(policy=policy, seed=seed, sample=sample, ask=ask, explain_keep=0)
    cluster = SimCluster(specs, config, lengths=lengths)
    start_s = time.process_time()
    result = cluster.run(items)
    return time.process_time() - start_s, result


def line(policy: str, cost_s: float, result: SimResult) -> str:
    summary = result.summary()
    ttft, e2e, tpot = summary.ttft_s, summary.e2e_s, summary.tpot_s
    assert ttft is not None
    assert e2e is not None
    assert tpot is not None
    bar_s = FORECAST_BAR_S if needs_forecasts(policy) else HEURISTIC_BAR_S
    return (
        f"{policy:30s}{cost_s:8.2f}{bar_s:6.0f} {result.steps:9,d}{result.forecasts:9,d}"
        f"{ttft.mean:9.3f}{ttft.p99:8.2f}{tpot.mean * 1e3:7.1f}{e2e.mean:8.2f}{e2e.p99:8.2f}{result.preemptions:9,d}"
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:9,.0f}"
    )


def main() -> None:
    """Prints machine, command, seed and one line per policy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, default=12)
    parser.add_argument("--rate", type=float, default=30.0, help="requests per second, Poisson")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--sample", type=int, default=0, help="nodes drawn for each request; 0: the policy's own number"
    )
    parser.add_argument("--ask", type=int, default=RouterConfig().ask, help="nodes asked for forecasts; 0: all")
    parser.add_argument("--lengths", choices=["known", "none"], default="known")
    parser.add_argument("--policies", default=",".join(name for name in policy_names() if name != "session"))
    options = parser.parse_args()
    rows, source = share_gpt_lengths(options.seed)
    items = generated(
        [DataRow(prompt_tokens=prompt, output_tokens=output) for prompt, output in rows],
        seed=options.seed,
        kind="poisson",
        rate_per_s=options.rate,
        count=options.requests,
    )
    warm()
    # The first run of a process pays for loading compiled code and touching memory.
    measure("min_total_latency", items[:50], nodes=options.nodes, seed=0, sample=0, ask=0, lengths=options.lengths)
    print(
        f"python -m bench.micro.simcluster --requests {options.requests} --nodes {options.nodes} "
        f"--rate {options.rate:g} --seed {options.seed} --sample {options.sample} --ask {options.ask} "
        f"--lengths {options.lengths}"
    )
    print(", ".join(f"{name} {value}" for name, value in machine().items()) + "; one core used")
    print(f"{source}; {PROFILE}, {ENGINE.max_num_seqs} sequences, {ENGINE.max_num_batched_tokens} tokens a step,")
    print(f"{ENGINE.num_blocks:,} blocks of {ENGINE.block_size_tokens}; {Delays()}")
    print(
        f"\n{'policy':30s}{'cost s':>8s}{'bar':>6s} {'steps':>9s}{'what-ifs':>9s}{'TTFT':>9s}{'P99':>8s}{'TPOT':>7s}"
        f"{'E2E':>8s}{'P99':>8s}{'preempt.':>9s}{'peak MB':>9s}"
    )
    print(f"{'':30s}{'':8s}{'':6s} {'':9s}{'':9s}{'mean s':>9s}{'s':>8s}{'ms':>7s}{'mean s':>8s}{'s':>8s}")
    for policy in options.policies.split(","):
        cost_s, result = measure(
            policy,
            items,
            nodes=options.nodes,
            seed=options.seed,
            sample=options.sample,
            ask=options.ask,
            lengths=options.lengths,
        )
        print(line(policy, cost_s, result), flush=True)


if __name__ == "__main__":
    main()
