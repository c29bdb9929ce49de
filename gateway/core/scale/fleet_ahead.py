"""The fleet simulated ahead of now, with nodes more or fewer: what share of requests would be served as asked. Pure.

Nodes begin as they are; requests are those that wait and those that are expected, with lengths as they were lately.
More than `MOST_NODES` are stood for by as many, for whom arrivals are fewer in the same measure as they can do less: a
decision costs the same for four nodes and for four hundred.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from gateway.core.nodes.pace import Pace
from gateway.core.scale.config import Objective
from simcore.compiled.fleet import FOREVER_S, run_fleet

Floats = npt.NDArray[np.float64]

MOST_NODES = 16
LEAST_NODES = 6
MOST_REQUESTS = 2000
"""In one run; beyond that fewer nodes stand for all, but not fewer than `LEAST_NODES`."""
TAIL_S = 20.0
"""Arrivals go on for so long after the window, so that nobody of it ends on an emptying fleet."""
ARRIVALS_BIN_S = 5.0


class Kind(msgspec.Struct, frozen=True):
    """What one node of a group can do."""

    pace: Pace
    seats: int
    kv_tokens: float


class NodeAhead(msgspec.Struct, frozen=True):
    """One node as it is now, or will be."""

    group: str
    ready_s: float
    """From now on."""
    running: int = 0
    left_tokens: float = 0.0
    """Output that those who run there are still to get, in the mean."""
    kv_tokens: float = 0.0
    prefill_tokens: float = 0.0
    """Of prompts that it has and must still compute."""
    leaves: bool = False
    """It gets nothing new."""


class Demand(msgspec.Struct, frozen=True):
    """Who comes."""

    rates_per_s: tuple[float, ...]
    """Equally likely ones, ascending; each is simulated."""
    dispersion: float
    prompts: Floats
    """Tokens to compute of requests as they were lately."""
    answers: Floats
    """Of the same requests."""
    held: int = 0
    """Requests that wait already."""


class _Begin(msgspec.Struct, frozen=True, kw_only=True):
    """A fleet as it begins, for `run_fleet`: the same for all draws."""

    group_of: npt.NDArray[np.int64]
    ready_s: Floats
    left_tokens: Floats
    left_node: npt.NDArray[np.int64]
    kv_tokens: Floats
    prefill_s: Floats


class AheadOutcome(msgspec.Struct, frozen=True):
    """Of those who come in a stretch of time ahead, in the mean of the rates that are possible."""

    came: float
    missed: float
    """Not served within all times asked."""
    typical: float
    """Share served in time at the rate in the middle."""

    @property
    def share(self) -> float:
        """Served in time."""
        return 1.0 - self.missed / self.came if self.came else 1.0


class FleetAhead:
    """One question after another about the same moment: all of them with the same draws."""

    def __init__(self, kinds: Mapping[str, Kind], objective: Objective, *, seed: int) -> None:
        self._kinds = kinds
        self._index = {name: i for i, name in enumerate(kinds)}
        seats = max((kind.seats for kind in kinds.values()), default=1)
        self._tables = np.empty((len(kinds), seats + 1))
        for i, kind in enumerate(kinds.values()):
            row = np.asarray(kind.pace.step_s[: seats + 1])
            self._tables[i, : len(row)] = row
            self._tables[i, len(row) :] = row[-1]
        self._paces = np.array(
            [[k.pace.kv_s_per_token, k.pace.prefill_s_per_token, k.pace.prefill_s_per_token2] for k in kinds.values()]
        ).reshape(len(kinds), 3)
        self._limits = np.array([[k.seats, k.kv_tokens] for k in kinds.values()], float).reshape(len(kinds), 2)
        self._objective = objective
        self._seed = seed
        self._capacities: dict[tuple[str, float, float], float] = {}
        """By group, mean prompt and mean answer."""
        self._begun: tuple[Sequence[NodeAhead], _Begin] | None = None
        """The fleet that was simulated last."""
        self.runs = 0

    def capacity_per_s(self, group: str, demand: Demand) -> float:
        """Requests per second that one node serves with as many at once as are still served in time: rough, only to
        compare groups."""
        prompt, answer = float(demand.prompts.mean()), float(demand.answers.mean())
        return self._capacity_per_s(group, prompt, answer)

    def _capacity_per_s(self, group: str, prompt: float, answer: float) -> float:
        known = self._capacities.get((group, prompt, answer))
        if known is not None:
            return known
        kind = self._kinds[group]
        table, pace = kind.pace.step_s, kind.pace
        fits = int(min(kind.seats, max(1.0, kind.kv_tokens / (prompt + 0.5 * answer))))
        limit_s = self._objective.tpot_s or FOREVER_S
        best = 0.0
        for batch in sorted({max(1, fits * i // 8) for i in range(1, 9)}):
            step_s = table[min(batch, len(table) - 1)] + pace.kv_s_per_token * batch * (prompt + 0.5 * answer)
            prefill_s = pace.prefill_s_per_token * prompt + pace.prefill_s_per_token2 * prompt * prompt
            rate = 1.0 / (prefill_s + answer * step_s / batch)
            if best == 0.0 or answer < 2 or step_s / max(1e-9, 1.0 - rate * prefill_s) <= limit_s:
                best = max(best, rate)
        self._capacities[group, prompt, answer] = best
        return best

    def outcome(self, nodes: Sequence[NodeAhead], demand: Demand, from_s: float, to_s: float) -> AheadOutcome:
        """What becomes of those who come between two moments from now."""
        rates = demand.rates_per_s
        if not any(not node.leaves for node in nodes):
            came = float(np.mean(rates)) * (to_s - from_s) + demand.held
            return AheadOutcome(came, came, 0.0 if came > 0 else 1.0)
        chosen, factor = self._stand_ins(list(nodes), demand, to_s)
        runs = []
        for path, rate_per_s in enumerate(rates):
            rng = np.random.default_rng((self._seed, path))
            runs.append(self._run(chosen, factor, demand, rate_per_s, from_s, to_s, rng))
        asked, met = (sum(each) / len(runs) / factor for each in zip(*runs, strict=True))
        middle = runs[(len(runs) - 1) // 2]
        return AheadOutcome(asked, asked - met, middle[1] / middle[0] if middle[0] else 1.0)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _stand_ins(self, nodes: list[NodeAhead], demand: Demand, to_s: float) -> tuple[list[NodeAhead], float]:
        """Nodes that stand for all, and the share of the arrivals that they get: what they can do of what all can.

        Every so-maniest in the order of groups, dates and loads is taken, so that each kind is there in its measure.
        """
        requests = float(np.mean(demand.rates_per_s)) * (to_s + TAIL_S)
        most = min(float(MOST_NODES), len(nodes) * MOST_REQUESTS / max(requests, 1.0))
        most = max(most, float(min(len(nodes), LEAST_NODES)))
        if len(nodes) <= most:
            return nodes, 1.0
        index = self._index
        order = sorted(nodes, key=lambda node: (node.leaves, index[node.group], node.ready_s, node.running))
        step = len(order) / int(most)
        chosen = [order[int((i + 0.5) * step)] for i in range(int(most))]
        prompt, answer = float(demand.prompts.mean()), float(demand.answers.mean())
        power = {group: self._capacity_per_s(group, prompt, answer) for group in {node.group for node in nodes}}
        can, all_can = (sum(power[node.group] for node in some if not node.leaves) for some in (chosen, nodes))
        return chosen, can / all_can

    def _run(
        self,
        nodes: Sequence[NodeAhead],
        factor: float,
        demand: Demand,
        rate_per_s: float,
        from_s: float,
        to_s: float,
        rng: np.random.Generator,
    ) -> tuple[float, float]:
        self.runs += 1
        end_s = to_s + TAIL_S
        held = round(demand.held * factor)
        coming = np.concatenate([np.full(held, -1e-3), self._arrivals(demand, rate_per_s, factor, end_s, rng)])
        picks = rng.integers(0, len(demand.prompts), len(coming))
        objective = self._objective
        if self._begun is None or self._begun[0] is not nodes:
            self._begun = nodes, self._begin(nodes)
        begin = self._begun[1]
        asked, met, _, _ = run_fleet(
            begin.group_of,
            begin.ready_s,
            self._tables,
            self._paces,
            self._limits,
            begin.left_tokens,
            begin.left_node,
            begin.kv_tokens,
            begin.prefill_s,
            coming,
            demand.prompts[picks],
            demand.answers[picks],
            float(demand.answers.mean()),
            # Compiled code is made per type: a whole number would compile it anew.
            float(from_s),
            float(to_s),
            float(objective.ttft_s or FOREVER_S),
            float(objective.tpot_s or FOREVER_S),
            float(objective.e2e_s or FOREVER_S),
        )
        return asked, met

    def _begin(self, nodes: Sequence[NodeAhead]) -> _Begin:
        index = [self._index[node.group] for node in nodes]
        running = [min(node.running, int(self._limits[g, 0])) for node, g in zip(nodes, index, strict=True)]
        left = [_spread(count, node.left_tokens) for count, node in zip(running, nodes, strict=True)]
        return _Begin(
            group_of=np.array(index, np.int64),
            ready_s=np.array([FOREVER_S if node.leaves else node.ready_s for node in nodes], float),
            left_tokens=np.concatenate(left),
            left_node=np.repeat(np.arange(len(nodes)), running),
            kv_tokens=np.array([node.kv_tokens for node in nodes], float),
            prefill_s=np.array([node.prefill_tokens for node in nodes], float) * self._paces[index, 1],
        )

    def _arrivals(
        self, demand: Demand, rate_per_s: float, factor: float, end_s: float, rng: np.random.Generator
    ) -> Floats:
        """Times at which requests come to the nodes that stand for all, in no order."""
        edges = np.arange(0.0, end_s, ARRIVALS_BIN_S)
        lengths = np.minimum(ARRIVALS_BIN_S, end_s - edges)
        means = rate_per_s * lengths
        if demand.dispersion > 1.0 and rate_per_s > 0:
            # Poisson with a gamma rate: variance over mean of a bin is the dispersion.
            shape = np.maximum(means, 1e-9) / (demand.dispersion - 1.0)
            means = rng.gamma(shape, demand.dispersion - 1.0)
        counts = rng.poisson(means * factor)
        times: Floats = np.repeat(edges, counts) + rng.random(int(counts.sum())) * np.repeat(lengths, counts)
        return times


def _spread(count: int, mean: float) -> Floats:
    """What so many running requests still get: their mean, and between nothing and twice of it, as those in the middle
    of their answers are."""
    return np.asarray(2.0 * mean * (np.arange(count) + 0.5) / max(count, 1), float)
