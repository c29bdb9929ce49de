"""The cheapest fleet that a simulation of the real one says will keep the objective. Pure."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec
import numpy as np

from gateway.core.nodes.pace import Pace
from gateway.core.scale.arrivals import Arrivals, RateAhead
from gateway.core.scale.config import Objective, ScaleConfig, ScaleGroup
from gateway.core.scale.events import RequestCame, RequestDone, RequestPlaced
from gateway.core.scale.fleet import FleetState, GroupState, SeenNode
from gateway.core.scale.rule import Wish

if TYPE_CHECKING:
    from gateway.core.scale.fleet_ahead import AheadOutcome, Demand, FleetAhead, Kind, NodeAhead

LENGTHS_KEPT = 4096
SETTLE_S = 60.0
WINDOW_S = 60.0
"""A fleet is simulated for so long until it is as it would stay, and then judged by those who come in so long."""
LEAST_ANSWER_S = 30.0
"""In less than that no change of the arrivals is seen and answered."""
LEAST_SEEN_S = 15.0
"""Before that it is not known what comes."""
IDLE_STARTS = 3.0
"""After so many times what a start takes without a request none is expected."""
LEAST_REGRET_S = 600.0
REGRET_STARTS = 3.0
REGRET_FACTOR = 3.0
MOST_PATIENCE = 30.0
PATIENCE_HALF_S = 3600.0
"""A node that is wanted back within so many times what a start takes was sent off too soon."""
BUDGET_HALF_S = 3600.0
"""After so long an answer counts half in the error budget."""
BUDGET_LEAST_S = 1800.0
"""What came in less time is taken for what comes in so long."""
WORTH = 0.2
"""What a request in time is worth when the error budget is used up, in times of what serving it costs and of one over
the share that may be late."""
WORTH_RANGE = 8.0
"""By so much what is only possible is worth less while nothing of the error budget is used."""
SURELY = 5.0
"""By so much more than when the budget is used up is worth what the rate in the middle has too many late of."""
SURER = 1.5
"""A request that a node's leaving would make late counts so many times."""
ROOM = 1.06
"""A smaller fleet must do for so many times what is expected: or a little more would have the node back."""
DRAWS = 6

Look = Literal["settled", "roomy", "later", "now"]


class ForecastOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `forecast`."""

    worth: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """What a request is worth that may come out late or not, in times of what it costs to serve one. None: as the
    objective's share has it, 4 for 95 %, when the error budget is used up, and down to an eighth before."""
    steady_s: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """A smaller fleet must have sufficed for so long; None: a third of what a start takes, between 15 and 120 s."""


class _Patience:
    """How many times as long as usual a smaller fleet must have sufficed: more each time that a node that left was
    wanted back soon, and less again as time passes."""

    def __init__(self) -> None:
        self._factor = 1.0
        self._since_s = self._left_s = -math.inf

    def left(self, now_s: float) -> None:
        self._left_s = now_s

    def wanted_back(self, now_s: float, start_s: float) -> None:
        if now_s - self._left_s < max(LEAST_REGRET_S, REGRET_STARTS * start_s):
            self._factor = min(MOST_PATIENCE, REGRET_FACTOR * self.factor(now_s))
            self._since_s, self._left_s = now_s, -math.inf

    def factor(self, now_s: float) -> float:
        return max(1.0, self._factor * math.exp2((self._since_s - now_s) / PATIENCE_HALF_S))


class _Budget:
    """What share of the answers of late was outside the objective, over what share may be."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._answers = self._late = 0.0
        self._since_s = 0.0
        self._began_s: float | None = None

    def done(self, request: RequestDone, now_s: float) -> None:
        self._age(now_s)
        objective, tpot_s = self._objective, request.tpot_s
        self._began_s = now_s if self._began_s is None else self._began_s
        self._answers += 1.0
        self._late += not (
            _within(request.ttft_s, objective.ttft_s)
            and _within(tpot_s, objective.tpot_s)
            and _within(request.e2e_s, objective.e2e_s)
        )

    def used(self, now_s: float) -> float:
        """0: nothing of it; 1: all."""
        self._age(now_s)
        if self._began_s is None:
            return 0.0
        seen_s = now_s - self._began_s
        answers = self._answers * max(1.0, BUDGET_LEAST_S / max(seen_s, 1.0))
        return self._late / (answers * (1.0 - self._objective.share))

    def _age(self, now_s: float) -> None:
        fades = 0.5 ** (max(0.0, now_s - self._since_s) / BUDGET_HALF_S)
        self._answers, self._late, self._since_s = self._answers * fades, self._late * fades, now_s


def _within(value_s: float | None, limit_s: float | None) -> bool:
    return value_s is None or limit_s is None or value_s <= limit_s


class Change(msgspec.Struct, frozen=True):
    """A fleet that could be instead of the present one."""

    counts: Mapping[str, int]
    """Nodes that serve or start, per group."""
    cost: float
    """Of its nodes until the end of the time that was looked at."""
    outcome: AheadOutcome
    loss: float
    """Cost, and what the requests that are late would have been worth."""


class ForecastScaling:
    """Every tick, for each model: take the rates that are possible when a node asked for now would be there
    (`arrivals.Arrivals`, some draws), and simulate fleets at each of them (`fleet_ahead.FleetAhead`: nodes at their own
    pace, the router's choice, starting nodes with their dates). Of the fleets that keep the objective's share at the
    rate in the middle, the one that loses least is wanted: what its nodes cost, and what those are worth who would be
    late at all the rates.

    What is possible is judged by fleets that have settled, so that a fleet is as large as the rate needs; what has
    piled up until new nodes come is worth more nodes than that where they pay. Up at once; down when the smaller fleet
    has sufficed for `steady_s`, with some room, once it has settled and from now on.

    What a request is worth is a matter of the error budget: an objective of 95 % allows one of twenty to be late. As
    long as the answers of the last hour have not used that, what is only possible counts little.
    """

    name: ClassVar[str] = "forecast"
    source: ClassVar[str] = "Astrolabe: the fleet's own queue simulated over the start-up time"
    options_type: ClassVar[type[msgspec.Struct]] = ForecastOptions
    kernels: ClassVar[str] = "warm_fleet"

    def __init__(self, config: ScaleConfig, options: ForecastOptions, rng: random.Random) -> None:
        self._config = config
        self._options = options
        self._seed = rng.getrandbits(32)
        models = list(dict.fromkeys(group.model for group in config.groups))
        self._models = {model: _ModelScaling(model, config, options) for model in models}
        self._only = self._models[models[0]] if len(models) == 1 else None

    def came(self, request: RequestCame, now_s: float) -> None:
        model = self._of(request.model)
        if model is not None:
            model.came(request, now_s)

    def placed(self, request: RequestPlaced, now_s: float) -> None: ...

    def done(self, request: RequestDone, now_s: float) -> None:
        model = self._of(request.model)
        if model is not None:
            model.done(request, now_s)

    def tick(self, fleet: FleetState, now_s: float) -> Wish | None:
        wishes = []
        for name, model in self._models.items():
            groups = [state for state in fleet.groups if state.group.model == name]
            fixed = [node for node in fleet.fixed if len(self._models) == 1 or node.view.config.model == name]
            # Who waits for which of several models is not told; it is then found in the arrivals.
            held = fleet.held if self._only is not None else 0
            wish = model.tick(groups, fixed, held, now_s, seed=self._seed)
            if wish is not None:
                wishes.append((name, wish))
        if not wishes:
            return None
        wanted: dict[str, int] = {}
        seen: dict[str, float] = {}
        for name, wish in wishes:
            wanted |= wish.wanted
            seen |= {key if self._only is not None else f"{name} {key}": value for key, value in wish.seen.items()}
        return Wish(
            wanted=wanted,
            seen=seen,
            why="; ".join(wish.why if self._only is not None else f"{name}: {wish.why}" for name, wish in wishes),
            shortfall="; ".join(wish.shortfall for _, wish in wishes if wish.shortfall),
        )

    def _of(self, model: str) -> _ModelScaling | None:
        return self._only or self._models.get(model)


class _ModelScaling:
    """All that is known of one model's requests, and the search over fleets for it."""

    def __init__(self, model: str, config: ScaleConfig, options: ForecastOptions) -> None:
        self._config = config
        self._options = options
        self._arrivals = Arrivals()
        self._lengths: deque[tuple[float, float]] = deque(maxlen=LENGTHS_KEPT)
        self._guesses: deque[tuple[float, float]] = deque(maxlen=LENGTHS_KEPT)
        """Before answers have come: prompts and what is believed of their answers."""
        self._kinds: dict[str, Kind] = {}
        self._budget = _Budget(config.objective)
        self._patience = _Patience()
        self._spare_since_s: float | None = None
        """Since when a smaller fleet would have sufficed."""

    @property
    def objective(self) -> float:
        """Share of the requests that is to be served in time."""
        return self._config.objective.share

    def came(self, request: RequestCame, now_s: float) -> None:
        self._arrivals.came(now_s)
        self._guesses.append((float(request.prompt_tokens), max(1.0, request.expected_tokens)))

    def done(self, request: RequestDone, now_s: float) -> None:
        self._budget.done(request, now_s)
        self._lengths.append((float(request.prompt_tokens - request.cached_tokens), max(1.0, request.output_tokens)))

    def tick(
        self, groups: Sequence[GroupState], fixed: Sequence[SeenNode], held: int, now_s: float, *, seed: int
    ) -> Wish | None:
        arrivals = self._arrivals
        arrivals.look(now_s)
        self._learn_kinds(groups, fixed)
        known = [state for state in groups if state.group.name in self._kinds]
        if arrivals.seen_s < LEAST_SEEN_S or not known:
            return None
        able = [state for state in known if state.blocked_until_s <= now_s] or known
        start_s = min(state.start_p90_s for state in able)
        window_s = max(WINDOW_S, start_s)
        used = self._budget.used(now_s)
        most = WORTH / (1.0 - self.objective)
        worth = self._options.worth or most * WORTH_RANGE ** (min(used, 1.0) - 1.0)
        answer_s = max(LEAST_ANSWER_S, start_s)
        coming = arrivals.ahead(now_s, now_s + start_s, now_s + start_s + window_s, DRAWS, answer_s=answer_s)
        seen = {"requests_per_s": coming.median, "requests_per_s_high": coming.draws[-1], "held": float(held)}
        seen |= {"budget_used": used, "worth": worth}
        if not held and arrivals.idle_s(now_s) > IDLE_STARTS * start_s + WINDOW_S:
            # What has to be there without requests is said by the bounds.
            return Wish(wanted={state.group.name: 0 for state in known}, seen=seen, why="nothing comes")
        search = _Search(self, groups, fixed, self.demand(coming, held), now_s, seed, (worth, most), start_s)
        now = search.at(search.counts)
        seen |= {"share_kept": now.outcome.share, "start_s": start_s}
        rates = f"{coming.draws[0]:.3g} to {coming.draws[-1]:.3g} requests/s"
        piled = held > 0 or any(state.starting for state in groups)
        settled, change = search.grow(able, piled=piled)
        seen["simulated"] = float(search.runs)
        shortfall = ""
        if settled.outcome.typical < self.objective:
            at_most = search.at({**now.counts, **{s.group.name: max(s.group.max, s.count) for s in able}})
            if at_most.outcome.typical < self.objective:
                shortfall = (
                    f"{self.objective:.0%} in time cannot be had within the bounds: the best is "
                    f"{at_most.outcome.typical:.1%} with {_text(at_most.counts)}"
                )
        if change.counts != now.counts:
            self._spare_since_s = None
            self._patience.wanted_back(now_s, start_s)
            change = search.at(change.counts)
            seen["share_with_change"] = change.outcome.share
            what = _difference(search.counts, change.counts)
            why = f"{now.outcome.share:.1%} of {rates} would be served in time; {what} makes it "
            why += f"{change.outcome.share:.1%}"
            if change.counts != settled.counts:
                why += f"; for the queue, as {_difference(search.counts, settled.counts)} would do"
            return Wish(wanted=change.counts, seen=seen, why=why, shortfall=shortfall)
        if any(node.view.load is None for state in known for node in state.serving):
            self._spare_since_s = None
            why = "some nodes say nothing of themselves: none leaves"
            return Wish(wanted=now.counts, seen=seen, why=why, shortfall=shortfall)
        if held:
            self._spare_since_s = None
            return Wish(wanted=now.counts, seen=seen, why="some wait: none leaves", shortfall=shortfall)
        return self._maybe_shrink(search, now, now_s, start_s, rates, seen, shortfall)

    def _maybe_shrink(
        self,
        search: _Search,
        now: Change,
        now_s: float,
        start_s: float,
        rates: str,
        seen: dict[str, float],
        shortfall: str,
    ) -> Wish:
        smaller = search.shrink(SURER)
        seen["simulated"] = float(search.runs)
        kept = f"{now.outcome.share:.1%} of {rates} in time"
        if smaller is None:
            self._spare_since_s = None
            why = f"{kept}, and not with a node less"
            return Wish(wanted=now.counts, seen=seen, why=why, shortfall=shortfall)
        if self._spare_since_s is None:
            self._spare_since_s = now_s
        steady_s = self._options.steady_s
        if steady_s is None:
            steady_s = min(max(15.0, start_s / 3.0), 120.0)
        steady_s *= self._patience.factor(now_s)
        spare_s = now_s - self._spare_since_s
        if spare_s < steady_s:
            why = f"{kept}; one could go, but since {spare_s:.0f} s only"
            return Wish(wanted=now.counts, seen=seen, why=why, shortfall=shortfall)
        self._patience.left(now_s)
        why = f"{kept}; {_difference(now.counts, smaller.counts)} keeps {smaller.outcome.share:.1%}"
        return Wish(wanted=smaller.counts, seen=seen, why=why, shortfall=shortfall)

    # --- what is known ------------------------------------------------------------------------------------------------

    def demand(self, coming: RateAhead, held: int) -> Demand:
        """Who comes, when a node asked for now is there."""
        # Compiled code is loaded by those who use it: most gateways do not.
        from gateway.core.scale.fleet_ahead import Demand

        pairs = self._lengths if len(self._lengths) >= 20 or not self._guesses else [*self._lengths, *self._guesses]
        prompts, answers = np.array(list(pairs) or [(1.0, 1.0)], float).T
        return Demand(
            coming.draws,
            self._arrivals.dispersion,
            np.ascontiguousarray(prompts),
            np.ascontiguousarray(answers),
            held,
        )

    def ahead(self, seed: int) -> FleetAhead:
        from gateway.core.scale.fleet_ahead import FleetAhead

        return FleetAhead(self._kinds, self._config.objective, seed=seed)

    def nodes(self, state: GroupState, now_s: float) -> Iterator[NodeAhead]:
        """The group's nodes as they are now; those that leave first at the end."""
        from gateway.core.scale.fleet_ahead import NodeAhead

        name = state.group.name
        for node in sorted(state.serving, key=lambda node: -node.outstanding):
            yield _node_now(name, node)
        for start in state.starting:
            yield NodeAhead(name, max(0.0, start.ready_s - now_s))

    def _learn_kinds(self, groups: Sequence[GroupState], fixed: Sequence[SeenNode]) -> None:
        from gateway.core.scale.fleet_ahead import Kind

        for name, group, nodes in [
            *((state.group.name, state.group, [*state.serving, *state.draining]) for state in groups),
            *((node.node_id, ScaleGroup(name=node.node_id), [node]) for node in fixed),
        ]:
            told = next((node.view for node in nodes if node.view.pace is not None), None)
            engine = nodes[0].view.config if nodes else group.engine
            pace = told.pace if told is not None else None
            if engine is None or (pace is None and group.pace is None):
                continue
            if pace is None and group.pace is not None:
                pace = Pace(group.pace, engine.max_num_seqs)
            assert pace is not None, "one of the two is there"
            self._kinds[name] = Kind(pace, engine.max_num_seqs, float(engine.num_blocks * engine.tokens_per_block))


class _Search:
    """Fleets near the present one, each simulated at most once.

    `settled`: as if all of their nodes were there already and nobody waited, so that a fleet that is too small is found
    so however much has piled up. `roomy`: the same, with somewhat more to do. `later`: from the moment at which a node
    asked for now is there, with what has piled up until then. `now`: from now on.
    """

    def __init__(
        self,
        model: _ModelScaling,
        groups: Sequence[GroupState],
        fixed: Sequence[SeenNode],
        demand: Demand,
        now_s: float,
        seed: int,
        worths: tuple[float, float],
        start_s: float,
    ) -> None:
        self._windows = {
            "settled": (SETTLE_S, SETTLE_S + WINDOW_S),
            "roomy": (SETTLE_S, SETTLE_S + WINDOW_S),
            "later": (start_s, start_s + 2.0 * WINDOW_S),
            "now": (0.0, start_s + 2.0 * WINDOW_S),
        }
        self._model = model
        self._ahead = model.ahead(seed)
        self._groups = {state.group.name: state for state in groups}
        self._now = {name: list(model.nodes(state, now_s)) for name, state in self._groups.items()}
        self._leaving = [_node_now(name, node) for name, state in self._groups.items() for node in state.draining]
        self._leaving = [msgspec.structs.replace(node, leaves=True) for node in self._leaving]
        self._fixed = [_node_now(node.node_id, node) for node in fixed if node.state == "up"]
        self._fixed = [node for node in self._fixed if node.group in model._kinds]
        self._demand = demand
        self._done: dict[tuple[Look, tuple[int, ...]], Change] = {}
        self.counts = {name: state.count for name, state in self._groups.items()}
        free = not any(state.group.price_per_hour for state in groups)
        self._prices = {name: 1.0 if free else state.group.price_per_hour for name, state in self._groups.items()}
        known = [name for name in self._groups if name in model._kinds]
        dear = [self._prices[name] / self._ahead.capacity_per_s(name, demand) for name in known if self._prices[name]]
        self._worth, self._most = (worth * min(dear) for worth in worths)
        """Of a request in time, in the prices of nodes for a second: of what is possible, and of what has piled up."""

    @property
    def runs(self) -> int:
        """Simulations so far."""
        return self._ahead.runs

    def at(self, counts: Mapping[str, int], look: Look = "settled") -> Change:
        """How a fleet of so many nodes would do."""
        key = (look, tuple(counts[name] for name in self._groups))
        found = self._done.get(key)
        if found is None:
            nodes = [*self._fixed, *self._leaving]
            for name in self._groups:
                nodes += self._with(name, counts[name])
            demand = self._demand
            settled = look in ("settled", "roomy")
            if settled:
                nodes = [msgspec.structs.replace(node, ready_s=0.0) if node.ready_s else node for node in nodes]
                more = ROOM if look == "roomy" else 1.0
                rates = tuple(more * rate for rate in demand.rates_per_s)
                demand = msgspec.structs.replace(demand, held=0, rates_per_s=rates)
            outcome = self._ahead.outcome(nodes, demand, *self._windows[look])
            cost = self._cost(counts, look)
            loss = cost + (self._worth if settled else self._most) * outcome.missed
            if settled:
                lacking = max(0.0, self._model.objective - outcome.typical)
                loss += SURELY * self._most * lacking * outcome.came
            found = self._done[key] = Change(dict(counts), cost, outcome, loss)
        return found

    def grow(self, able: Sequence[GroupState], *, piled: bool) -> tuple[Change, Change]:
        """The fleet, as it is or larger, that loses least once it has settled; and that or a larger one, for what is
        left to do of what has piled up."""
        settled = self._larger(self.counts, able, "settled")
        if not piled and settled.counts == self.counts:
            return settled, settled
        return settled, self._larger(settled.counts, able, "later")

    def _larger(self, counts: Mapping[str, int], able: Sequence[GroupState], look: Look) -> Change:
        """Of several groups as many rounds as there are groups, each adding of the one that saves most."""
        best = self.at(counts, look)
        for _ in able:
            found = min((self._grown(best, state, look) for state in able), key=lambda change: change.loss)
            if found.loss >= best.loss:
                break
            best = found
        return best

    def _grown(self, base: Change, state: GroupState, look: Look) -> Change:
        """With more of one group: how many is looked for by growing steps, then between them."""
        name = state.group.name
        had, room = base.counts[name], max(0, state.group.max - base.counts[name])
        one = self._cost({name: 1}, look)
        best, best_more, tried = base, 0, [0]
        more = 1
        while more <= room and base.cost + more * one < best.loss:
            change = self.at({**base.counts, name: had + more}, look)
            tried.append(more)
            if change.loss < best.loss:
                best, best_more = change, more
            if change.loss - change.cost <= one or more == room:
                # What is late still is worth no other node.
                break
            more = min(room, max(more + 1, more * 4 // 3 if more % 2 else more * 3 // 2))
        place = tried.index(best_more)
        low = tried[max(0, place - 1)]
        high = tried[min(len(tried) - 1, place + 1)]
        while high - low > max(2, (had + high) // 32 + 1):
            for more in ((low + best_more) // 2, (best_more + high + 1) // 2):
                change = self.at({**base.counts, name: had + more}, look)
                if change.loss < best.loss:
                    low, high = (low, best_more) if more < best_more else (best_more, high)
                    best, best_more = change, more
                    break
            else:
                low, high = (low + best_more) // 2, (best_more + high + 1) // 2
                if high - low <= 2:
                    break
        return best

    def shrink(self, surer: float) -> Change | None:
        """The fleet with the one node less that saves most; None: it saves less than what is late for it is worth,
        `surer` times over."""
        best = None
        for name, state in self._groups.items():
            if self.counts[name] > state.group.min and name in self._model._kinds:
                counts = {**self.counts, name: self.counts[name] - 1}
                gain = self._gain(counts, "settled", "roomy", surer)
                if gain > 0:
                    gain = min(gain, self._gain(counts, "now", "now", surer))
                if gain > 0 and (best is None or gain > best[0]):
                    best = gain, self.at(counts)
        return best[1] if best else None

    def _gain(self, counts: Mapping[str, int], present: Look, look: Look, surer: float) -> float:
        """Share of the cost that a smaller fleet saves, less what is late for it."""
        now, smaller = self.at(self.counts, present), self.at(counts, look)
        late = max(0.0, (smaller.loss - smaller.cost) - (now.loss - now.cost))
        return (now.cost - smaller.cost - surer * late) / now.cost if now.cost else 0.0

    def _cost(self, counts: Mapping[str, int], look: Look) -> float:
        begin_s, end_s = self._windows[look]
        seconds = end_s - begin_s if look in ("settled", "roomy") else end_s
        return seconds * sum(count * self._prices[name] for name, count in counts.items())

    def _with(self, name: str, count: int) -> list[NodeAhead]:
        from gateway.core.scale.fleet_ahead import NodeAhead

        here, state = self._now[name], self._groups[name]
        if name not in self._model._kinds:
            return []
        if count >= len(here):
            back = [node for node in self._leaving if node.group == name]
            more = [NodeAhead(name, state.start_p90_s) for _ in range(count - len(here) - len(back))]
            return [*here, *more, *(NodeAhead(name, 0.0) for _ in back[: count - len(here)])]
        # Those that start are the first to go, then those with the fewest requests, which finish what they have.
        serving, starting = here[: len(state.serving)], here[len(state.serving) :]
        off = len(here) - count
        starting, off = starting[: max(0, len(starting) - off)], max(0, off - len(starting))
        stay = serving[: len(serving) - off]
        return [*stay, *(msgspec.structs.replace(n, leaves=True) for n in serving[len(stay) :]), *starting]


def _node_now(name: str, node: SeenNode) -> NodeAhead:
    from gateway.core.scale.fleet_ahead import NodeAhead

    load = node.view.load
    if load is None:
        # Unknown is not idle: as many as we have there, at the beginning of their answers.
        return NodeAhead(name, 0.0, node.view.in_flight, 500.0)
    # The work of those that wait at the node for a seat or for KV is left to those that run.
    there = max(load.running, 1) if load.waiting else max(load.running, node.view.in_flight)
    there = min(there, node.view.config.max_num_seqs)
    left = max(0.0, float(load.unprocessed_tokens - load.prefill_tokens)) / there if there else 0.0
    kv_tokens = float((load.total_blocks - load.free_blocks) * node.view.config.tokens_per_block)
    return NodeAhead(name, 0.0, there, left, kv_tokens, float(load.prefill_tokens))


def _difference(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    changes = [
        f"{abs(by)} {name} {'more' if by > 0 else 'less'}"
        for name in before
        if (by := after.get(name, before[name]) - before[name])
    ]
    return " and ".join(changes) or "no change"


def _text(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())
