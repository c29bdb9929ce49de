"""How far placement rules are from the best that can be, where that can be computed.

`python -m bench.micro.small_worlds`. Two or three nodes as queues: answers of exponential length, Poisson arrivals;
a node with n requests ends them at rate min(n, seats) / (answer x step at that batch). The best rule is found by value
iteration over all states (uniformised; Puterman, Markov Decision Processes, section 8.5), every rule's mean latency by
the same iteration without a choice (Little). What the shipped cost adds for those to come is
`gateway.core.nodes.pace.later_waits` and `LATER_WAITS_PER_WAIT`, here without any forecast: what remains of the loss,
forecasts of known lengths may take. The price of harm (`gateway.core.decision.harm_price`) is in the shipped cost for
the pace of answers; here, where only the mean counts, the column before it shows what that costs.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.run.provenance import machine
from gateway.core.decision.harm_price import price_of_harm
from gateway.core.decision.later_cost import LATER_WAITS_PER_WAIT
from gateway.core.nodes.pace import later_waits

Floats = NDArray[np.float64]
Rule = Callable[["Queue", int, float], float]
"""The cost of a node with so many requests, where answers of the fleet take so many seconds a token."""
TOLERANCE = 1e-7
MOST_SWEEPS = 20_000


class Queue(msgspec.Struct, frozen=True):
    """One node. Times are those of one token."""

    seats: int
    base_s: float
    """Of a step, whatever the batch."""
    rise_s: float
    """More for each sequence."""
    answer_tokens: float = 100.0

    def step_s(self, batch: int) -> float:
        return self.base_s + self.rise_s * batch

    def stay_s(self, batch: int) -> float:
        """An answer in a batch of so many."""
        return self.answer_tokens * self.step_s(batch)

    def ends_per_s(self, here: int) -> float:
        batch = min(here, self.seats)
        return batch / self.stay_s(batch) if batch else 0.0

    def wait_s(self, here: int) -> float:
        """Of one who comes to so many."""
        return max(0, here + 1 - self.seats) * self.stay_s(self.seats) / self.seats


def requests(node: Queue, here: int, fleet_pace_s: float) -> float:
    return here


def own_latency(node: Queue, here: int, fleet_pace_s: float) -> float:
    return node.wait_s(here) + node.stay_s(min(here + 1, node.seats))


def harm_s(node: Queue, here: int) -> float:
    return min(here, node.seats - 1) * node.answer_tokens * node.rise_s


def own_and_harm(node: Queue, here: int, fleet_pace_s: float) -> float:
    return own_latency(node, here, fleet_pace_s) + harm_s(node, here)


def with_those_to_come(node: Queue, here: int, fleet_pace_s: float) -> float:
    """With what it takes from those to come."""
    room_s = later_waits(node.seats)[min(here, node.seats)] * node.stay_s(node.seats) / node.seats
    return own_and_harm(node, here, fleet_pace_s) + LATER_WAITS_PER_WAIT * node.wait_s(here) + room_s


def shipped(node: Queue, here: int, fleet_pace_s: float) -> float:
    """With the price of harm."""
    batch = min(here, node.seats - 1)
    step_s = node.step_s(batch + 1)
    price = price_of_harm(step_s / fleet_pace_s)
    return with_those_to_come(node, here, fleet_pace_s) + (price - 1.0) * harm_s(node, here)


RULES: dict[str, Rule] = {
    "least requests": requests,
    "own latency": own_latency,
    "own latency + harm": own_and_harm,
    "with those to come": with_those_to_come,
    "priced harm (shipped)": shipped,
}


def mean_latency_s(nodes: Sequence[Queue], rate_per_s: float, most: int, rule: Rule | None) -> float:
    """Mean seconds from arrival to end under a rule, or under the best there is; at most `most` requests at each node:
    beyond, an arrival is turned to another node, and where all are full it is lost."""
    shape = tuple(most + 1 for _ in nodes)
    states = np.indices(shape)
    present = states.sum(axis=0).astype(float)
    ends = [np.array([node.ends_per_s(n) for n in range(most + 1)])[states[i]] for i, node in enumerate(nodes)]
    total = rate_per_s + sum(float(e.max()) for e in ends)
    costs = None
    if rule is not None:
        fleet_pace_s = _fleet_pace_s(nodes, states)
        costs = np.stack(
            [
                np.where(
                    here < most, np.vectorize(rule, otypes=[float], excluded={0})(node, here, fleet_pace_s), np.inf
                )
                for node, here in zip(nodes, states, strict=True)
            ]
        )
    value = np.zeros(shape)
    gain = 0.0
    for _ in range(MOST_SWEEPS):
        arrived = np.stack([_after_arrival(value, i) for i in range(len(nodes))])
        if costs is None:
            chosen = arrived.min(axis=0)
        else:
            cheapest = costs.min(axis=0)
            tied = (costs <= cheapest + 1e-12) & np.isfinite(arrived)
            chosen = np.where(tied, np.where(np.isfinite(arrived), arrived, 0.0), 0.0).sum(axis=0)
            chosen = chosen / np.maximum(1, tied.sum(axis=0))
        chosen = np.where(np.isfinite(chosen), chosen, value)
        full = np.all(states == most, axis=0)
        chosen = np.where(full, value, chosen)
        new = present + rate_per_s * chosen
        stay = total - rate_per_s
        for i, end in enumerate(ends):
            new = new + end * _after_end(value, i)
            stay = stay - end
        new = (new + stay * value) / total
        change = new - value
        value = new - new.flat[0]
        gain = float(change.max() + change.min()) / 2 * total
        if float(change.max() - change.min()) * total < TOLERANCE * max(1.0, gain):
            break
    return gain / rate_per_s


def _fleet_pace_s(nodes: Sequence[Queue], states: NDArray[np.int_]) -> Floats:
    """Seconds per token of those there and one more at each node, in every state."""
    readers = [np.minimum(here, node.seats) + 1 for node, here in zip(nodes, states, strict=True)]
    paces_s = [
        node.base_s + node.rise_s * np.minimum(here + 1, node.seats) for node, here in zip(nodes, states, strict=True)
    ]
    total_s = np.stack([n * pace_s for n, pace_s in zip(readers, paces_s, strict=True)]).sum(axis=0)
    mean_s: Floats = total_s / np.stack(readers).sum(axis=0)
    return mean_s


def _after_arrival(value: Floats, node: int) -> Floats:
    moved = np.full_like(value, np.inf)
    source, target = [slice(None)] * value.ndim, [slice(None)] * value.ndim
    source[node], target[node] = slice(1, None), slice(None, -1)
    moved[tuple(target)] = value[tuple(source)]
    return moved


def _after_end(value: Floats, node: int) -> Floats:
    moved = value.copy()
    source, target = [slice(None)] * value.ndim, [slice(None)] * value.ndim
    source[node], target[node] = slice(None, -1), slice(1, None)
    moved[tuple(target)] = value[tuple(source)]
    return moved


WORLDS: dict[str, tuple[Queue, ...]] = {
    "two alike": (Queue(8, 0.02, 0.001), Queue(8, 0.02, 0.001)),
    "fast and slow": (Queue(8, 0.01, 0.0005), Queue(8, 0.03, 0.0015)),
    "fast and small, slow and large": (Queue(4, 0.01, 0.0005), Queue(12, 0.03, 0.001)),
    "flat and steep": (Queue(10, 0.025, 0.0002), Queue(10, 0.01, 0.003)),
    "three": (Queue(6, 0.01, 0.0005), Queue(6, 0.02, 0.001), Queue(6, 0.03, 0.0015)),
}


def main() -> None:
    """Prints machine, command and a table: mean latency of each rule above that of the best, in percent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", default="0.5,0.8,0.95", help="shares of the rate that all nodes together can end")
    options = parser.parse_args()
    print(f"python -m bench.micro.small_worlds --loads {options.loads}")
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print(f"\n{'world':34s}{'load':>6s}{'best, s':>9s}" + "".join(f"{name:>30s}" for name in RULES))
    loads = [float(word) for word in options.loads.split(",")]
    for (name, nodes), load in itertools.product(WORLDS.items(), loads):
        most = (3 if len(nodes) == 2 else 2) * max(node.seats for node in nodes)
        rate_per_s = load * sum(node.ends_per_s(node.seats) for node in nodes)
        best_s = mean_latency_s(nodes, rate_per_s, most, None)
        above = [100.0 * (mean_latency_s(nodes, rate_per_s, most, rule) / best_s - 1.0) for rule in RULES.values()]
        print(f"{name:34s}{load:6.2f}{best_s:9.3f}" + "".join(f"{loss:+29.1f}%" for loss in above), flush=True)


if __name__ == "__main__":
    main()
