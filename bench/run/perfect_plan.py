"""What the perfect system does: the fewest nodes at every moment, from arrivals that are known. For `--scaler perfect`.

How many requests per second so many nodes serve within the objective is tried out: nodes alone in a simulated cluster,
Poisson arrivals, lengths as the workload has them. Of the run's arrivals the mean rate counts, of the next window
or of the last, whichever is higher: who came in the last is being answered still.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from bench.measure.measures import GoodputSlo, good_answers
from bench.run.by_group import by_group, price
from bench.simcluster import NodeSpec, SimCluster
from bench.simcluster.perfect import PerfectOptions
from bench.simcluster.scaling import ScaledFleet
from bench.workload.item import WorkloadItem
from gateway.core.router import RouterConfig

if TYPE_CHECKING:
    from bench.run.scaling import GroupPlan
    from bench.run.spec import RunSpec

STEP_S = 10.0
"""Between two moments of the plan."""
WINDOW_STEPS = 3
"""A window: over so long the rate is taken as one. Shorter bursts are those of a Poisson process."""
POLICY = "least_requests"
"""Places the requests while capacities are tried out."""
TRIAL_S = 120.0
TRIAL_REQUESTS = (300, 4000)
"""At least and at most, of a trial of `TRIAL_S`."""
PRECISION = 0.05
"""Of the rate, as a share."""
MOST_TRIED = 8
"""Nodes; of more each serves as much as each of so many."""
MOST_TIMES = 2.0
TRIALS = 4
"""Runs to find out how many times what nodes serve alone they may have to serve, at most `MOST_TIMES` or its inverse:
with the future known, the fleet is so small that the objective's share is just kept."""
MOST_OUTPUT_TOKENS = 2048
"""As simulated requests are limited, unless a longer one comes."""
_known: dict[bytes, float] = {}
"""Rates that were tried out in this process."""


def perfect_options(spec: RunSpec, plans: Sequence[GroupPlan], items: Sequence[WorkloadItem]) -> PerfectOptions:
    """The plan of the rule `perfect`: as few nodes as keep the objective over the whole run, which is tried out.

    `--scaler-option rate=R` says what a node serves, by group if need be; then nothing is tried. Raises ValueError.
    """
    from bench.run.scaling import node_of, perfect_fleet

    rates = _given_rates(spec, plans)
    first_s, last_s = items[0].arrival_s, items[-1].arrival_s
    models: list[tuple[Sequence[GroupPlan], Mapping[str, Sequence[float]], list[float]]] = []
    for model in dict.fromkeys(p.group.served_model for p in plans):
        serving = [p for p in plans if p.group.served_model == model]
        own = [item for item in items if item.model in ("", model)]
        curves = {
            p.group.name: rates.get(p.group.name) or _curve(spec, node_of(spec, p), p.group.count, own) for p in serving
        }
        models.append((serving, curves, rates_needed([item.arrival_s - first_s for item in own], last_s - first_s)))

    def options(factor: float) -> PerfectOptions:
        """Nodes that serve so many times what was tried out."""
        plan: dict[str, list[tuple[float, int]]] = {p.group.name: [] for p in plans}
        for serving, curves, needed in models:
            for index, counts in enumerate(cheapest(serving, curves, [rate / factor for rate in needed])):
                for name, nodes in counts.items():
                    steps = plan[name]
                    if not steps or steps[-1][1] != nodes:
                        steps.append((first_s + index * STEP_S, nodes))
        return PerfectOptions(
            plan={name: tuple(steps) for name, steps in plan.items()},
            ahead_s={p.group.name: p.start_time.median_s for p in plans},
        )

    if rates:
        return options(1.0)
    tried: dict[str, bool] = {}

    def keeps(factor: float) -> bool:
        plan = options(factor)
        key = repr(plan.plan)
        if key not in tried:
            tried[key] = _keeps(spec, perfect_fleet(spec, plans, plan), items)
        return tried[key]

    low, high = (1.0, MOST_TIMES) if keeps(1.0) else (1.0 / MOST_TIMES, 1.0)
    for _ in range(TRIALS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return options(low)


def _keeps(spec: RunSpec, fleet: ScaledFleet, items: Sequence[WorkloadItem]) -> bool:
    """Whether the run keeps the objective with these nodes."""
    cluster = SimCluster(
        [],
        RouterConfig(policy=POLICY, seed=spec.seed, explain_keep=0),
        max_output_tokens=max(MOST_OUTPUT_TOKENS, *(item.output_tokens for item in items)),
        scaled=fleet,
    )
    return good_answers(cluster.run(items).results, _slo(spec)) >= spec.slo_share * len(items)


def _slo(spec: RunSpec) -> GoodputSlo:
    return GoodputSlo(ttft_s=spec.slo_ttft_s, tpot_s=spec.slo_tpot_s, e2e_s=spec.slo_e2e_s)


def rates_needed(arrivals_s: Sequence[float], until_s: float) -> list[float]:
    """At 0, `STEP_S`, 2 * `STEP_S`, ... until the end: requests per second of the window that begins or ends there."""
    arrived = [0] * (1 + int(until_s / STEP_S))
    for at_s in arrivals_s:
        arrived[int(at_s / STEP_S)] += 1
    means = []
    for first in range(1 - WINDOW_STEPS, len(arrived)):
        window = arrived[max(0, first) : first + WINDOW_STEPS]
        means.append(sum(window) / (len(window) * STEP_S))
    # Beside each other: the window that ends before a step, and the one that begins with it.
    before = [0.0, *means]
    return [max(before[index], means[index + WINDOW_STEPS - 1]) for index in range(len(arrived))]


def cheapest(
    plans: Sequence[GroupPlan], curves: Mapping[str, Sequence[float]], rates_per_s: Sequence[float]
) -> list[dict[str, int]]:
    """For each rate the cheapest nodes within the bounds that serve it; all of them where none do.

    `curves`: per group, requests per second that 1, 2, ... nodes serve; groups together serve the sum.
    """
    names = [plan.group.name for plan in plans]
    choices = []
    for counts in itertools.product(*(range(plan.least, plan.group.count + 1) for plan in plans)):
        serves = sum(curves[name][n - 1] for name, n in zip(names, counts, strict=True) if n)
        cost = sum(n * plan.price_per_hour for n, plan in zip(counts, plans, strict=True))
        choices.append((cost, sum(counts), -serves, counts))
    choices.sort()
    most = max(choices, key=lambda choice: (-choice[2], -choice[0]))
    found = []
    for rate in rates_per_s:
        chosen = next((choice for choice in choices if -choice[2] >= rate), most)
        found.append(dict(zip(names, chosen[3], strict=True)))
    return found


def _given_rates(spec: RunSpec, plans: Sequence[GroupPlan]) -> dict[str, list[float]]:
    unknown = [key for key in spec.scaler_options if key != "rate"]
    if unknown:
        raise ValueError(f"scaler_options: {unknown[0]!r} is no option of 'perfect'; it has rate")
    given = by_group(spec.scaler_options.get("rate", ""), [p.group.name for p in plans], price, key="rate")
    return {p.group.name: [given[p.group.name] * n for n in range(1, p.group.count + 1)] for p in plans if given}


def _curve(spec: RunSpec, node: NodeSpec, most: int, items: Sequence[WorkloadItem]) -> list[float]:
    """Requests per second within the objective that 1, 2, ... nodes serve: tried for 1, 2, 4 and `MOST_TRIED`, between
    them in a straight line."""
    rates = {0: 0.0}
    for n in (1, 2, 4, MOST_TRIED):
        if max(rates) < most:
            last = max(rates)
            rates[n] = _rate(spec, node, n, items, at_least=rates[last] * n / max(1, last))
    found = []
    for n in range(1, most + 1):
        if n >= MOST_TRIED:
            found.append(rates[MOST_TRIED] * n / MOST_TRIED)
            continue
        low = max(k for k in rates if k <= n)
        high = min(k for k in rates if k >= n)
        part = (n - low) / (high - low) if high > low else 0.0
        found.append(rates[low] + part * (rates[high] - rates[low]))
    return found


def _rate(spec: RunSpec, node: NodeSpec, nodes: int, items: Sequence[WorkloadItem], *, at_least: float) -> float:
    """The highest rate at which the objective's share of the requests keeps its times. So many times fewer nodes serve
    `at_least`: together they can do that too."""
    slo = _slo(spec)
    lengths = [(item.prompt_tokens, item.output_tokens) for item in items[:: max(1, len(items) // TRIAL_REQUESTS[1])]]
    random.Random(0).shuffle(lengths)
    key = msgspec.json.encode((node.config, node.step_time, nodes, slo, spec.slo_share, lengths))
    if key in _known:
        return _known[key]

    def keeps(rate_per_s: float) -> bool:
        count = int(min(max(rate_per_s * TRIAL_S, TRIAL_REQUESTS[0]), TRIAL_REQUESTS[1]))
        rng = random.Random(1)
        at_s, trial = 0.0, []
        for index in range(count):
            at_s += rng.expovariate(rate_per_s)
            prompt, output = lengths[index % len(lengths)]
            trial.append(
                WorkloadItem(request_id=str(index), arrival_s=at_s, prompt_tokens=prompt, output_tokens=output)
            )
        specs = [msgspec.structs.replace(node, node_id=f"n{i}") for i in range(nodes)]
        cluster = SimCluster(
            specs,
            RouterConfig(policy=POLICY, explain_keep=0),
            max_output_tokens=max(MOST_OUTPUT_TOKENS, *(output for _, output in lengths)),
        )
        return good_answers(cluster.run(trial).results, slo) >= spec.slo_share * count

    low, high = at_least, 1.3 * at_least or 1.0
    while keeps(high):
        low, high = high, (1.3 if at_least else 2.0) * high
    while low == 0.0 and high > 1e-3:
        half = high / 2
        if keeps(half):
            low = half
        else:
            high = half
    while low and high - low > PRECISION * low:
        middle = (low + high) / 2
        if keeps(middle):
            low = middle
        else:
            high = middle
    _known[key] = low
    return low
