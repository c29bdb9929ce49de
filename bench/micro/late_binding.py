"""What late binding buys past the knee: immediate dispatch against two orders of the queue, by knowledge of lengths.

    python -m bench.micro.late_binding --dataset-path workload.jsonl --rate 43 --rate 48 --rate 53 --output study.jsonl

Results go to `--output`, one JSON line per run; what stands there already is not run again. Prints a table in Markdown
and draws `--plot`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from bench.run.simulated import Task, run_task
from bench.run.spec import RunSpec, with_values
from bench.workload.item import LengthKnowledge

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AT_ONCE = "at once"
WAYS: Mapping[str, dict[str, str]] = {
    AT_ONCE: {"when": "never"},
    "held, fcfs": {"when": "always"},
    "held, shortest": {"when": "always", "order": "shortest_forecast"},
}
KNOWLEDGE: Mapping[LengthKnowledge, str] = {"known": "true", "predicted": "learned", "none": "none"}
T_95 = {1: 0.0, 2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t for so many seeds; one seed has no interval."""


class HoldingRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Times in seconds."""

    rate_per_s: float
    seed: int
    lengths: LengthKnowledge
    way: str
    ttft_mean_s: float
    ttft_p99_s: float
    ttft_max_s: float
    e2e_mean_s: float
    preemptions: int
    goodput: float
    """Share of requests with TTFT <= 3 s and TPOT <= 0.1 s."""

    @property
    def key(self) -> tuple[float, int, LengthKnowledge, str]:
        return self.rate_per_s, self.seed, self.lengths, self.way


def run(base: RunSpec, rate: float, seed: int, lengths: LengthKnowledge, way: str) -> HoldingRun:
    """One simulation of twelve A30 nodes."""
    values = {"rate": rate, "seed": seed, "lengths": lengths, "router": {"hold": WAYS[way]}}
    line = run_task(Task(group="late binding", variant=way, spec=with_values(base, values))).line
    measures = line.measures
    return HoldingRun(
        rate_per_s=rate,
        seed=seed,
        lengths=lengths,
        way=way,
        ttft_mean_s=measures["ttft_mean_s"],
        ttft_p99_s=measures["ttft_p99_s"],
        ttft_max_s=measures["ttft_max_s"],
        e2e_mean_s=measures["e2e_mean_s"],
        preemptions=round(measures["preemptions"]),
        goodput=measures["goodput_share"],
    )


def with_interval(values: Sequence[float], digits: int) -> str:
    """Mean and half the 95 % interval of the mean."""
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) < 2:
        return mean
    half = T_95[min(len(values), 5)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean} ± {half:.{digits}f}"


def table(found: Sequence[HoldingRun]) -> str:
    """Markdown, one row per rate, knowledge and way: means over the seeds, and P99 TTFT as a share of what the same
    requests have when dispatched at once. The shares have intervals; the values move with the load of a seed."""
    by_key = {f.key: f for f in found}
    lines = [
        "| rate | lengths | | mean TTFT s | P99 TTFT s | of at once | mean E2E s | good % | preemptions |",
        "|" + "---|" * 9,
    ]
    for rate in sorted({f.rate_per_s for f in found}):
        for lengths, words in KNOWLEDGE.items():
            for way in WAYS:
                rows = [f for f in found if (f.rate_per_s, f.lengths, f.way) == (rate, lengths, way)]
                if not rows:
                    continue
                first = [by_key.get((rate, f.seed, lengths, AT_ONCE)) for f in rows]
                shares = [f.ttft_p99_s / a.ttft_p99_s for f, a in zip(rows, first, strict=True) if a is not None]
                cells = (
                    f"{statistics.mean(f.ttft_mean_s for f in rows):.2f}",
                    f"{statistics.mean(f.ttft_p99_s for f in rows):.1f}",
                    with_interval(shares, 2) if shares and way != AT_ONCE else "",
                    f"{statistics.mean(f.e2e_mean_s for f in rows):.1f}",
                    f"{100 * statistics.mean(f.goodput for f in rows):.0f}",
                    f"{statistics.mean(f.preemptions for f in rows):,.0f}",
                )
                lines.append(f"| {rate:g} | {words} | {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(found: Sequence[HoldingRun], file: Path) -> None:
    """P99 TTFT and goodput over the rate, one column per knowledge of lengths."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.5), layout="constrained")
    axes = figure.subplots(2, len(KNOWLEDGE), sharex=True, sharey="row")
    for column, (lengths, words) in enumerate(KNOWLEDGE.items()):
        own = [f for f in found if f.lengths == lengths]
        axes[0][column].set_title(f"lengths: {words}")
        _curves(axes[0][column], own, {f.key: f.ttft_p99_s for f in own})
        _curves(axes[1][column], own, {f.key: 100 * f.goodput for f in own})
        axes[1][column].set_xlabel("requests/s")
    axes[0][0].set_ylabel("P99 TTFT, s")
    axes[1][0].set_ylabel("good requests, %")
    axes[0][0].legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def _curves(
    axes: Axes, found: Sequence[HoldingRun], values: Mapping[tuple[float, int, LengthKnowledge, str], float]
) -> None:
    for way in WAYS:
        rates = sorted({f.rate_per_s for f in found if f.way == way})
        means = [
            statistics.mean(values[f.key] for f in found if f.way == way and f.rate_per_s == rate) for rate in rates
        ]
        axes.plot(rates, means, marker="o", label=way)
    axes.grid(alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="jsonl", choices=["jsonl", "lengths"])
    parser.add_argument("--dataset-path", required=True)
    parser.add_argument("--rate", type=float, action="append", required=True, help="requests/s; may be repeated")
    parser.add_argument("--requests", type=int, default=6000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lengths", default=",".join(KNOWLEDGE), help="known, predicted, none")
    parser.add_argument("--policy", default="min_total_latency")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    base = RunSpec(
        policy=options.policy,
        dataset=options.dataset,
        dataset_path=options.dataset_path,
        arrivals="poisson",
        requests=options.requests,
    )
    lines = options.output.read_bytes().splitlines() if options.output.exists() else []
    found = {f.key: f for f in (msgspec.json.decode(line, type=HoldingRun) for line in lines)}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("ab") as out:
        for seed in range(options.seeds):
            for rate in options.rate:
                for lengths in options.lengths.split(","):
                    for way in WAYS:
                        if (rate, seed, lengths, way) not in found:
                            one = run(base, rate, seed, lengths, way)
                            found[one.key] = one
                            out.write(msgspec.json.encode(one) + b"\n")
                            out.flush()
    print(table(list(found.values())))
    if options.plot:
        draw(list(found.values()), options.plot)


if __name__ == "__main__":
    main()
