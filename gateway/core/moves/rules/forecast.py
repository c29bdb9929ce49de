"""Ours: who is forecast to be better off elsewhere, so much that the move pays. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, NamedTuple

import msgspec

from gateway.core.moves.rule import MoveWish, NodeSeen, RequestSeen
from gateway.core.nodes.pace import Pace
from gateway.core.nodes.view import NodeView
from simcore.types import NodeLoad


class ForecastMovesOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `forecast`."""

    propose: Annotated[int, msgspec.Meta(ge=1)] = 4
    """Requests whose move is priced by both nodes, at each tick."""
    horizon_s: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    """A node whose KV runs out within so long has a preemption ahead."""
    patience_s: Annotated[float, msgspec.Meta(ge=0)] = 0.5
    """A request without a token after so long waits in its node's queue."""
    times_slower: Annotated[float, msgspec.Meta(ge=1)] = 2.0
    """A node whose tokens take so many times as long as elsewhere is left for being slow; less than that is evened out
    by those that come, who go where it is faster, at no cost."""
    least_s: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    """Least time that a request must be estimated to save to be priced at all."""


class _Place(NamedTuple):
    """A node as a destination: what it can take, and how fast it would be with one more."""

    node_id: str
    free_tokens: float
    step_s: float
    load: NodeLoad
    pace: Pace


class ForecastMoves:
    """Names those who are estimated to save most by going, from what nodes tell of their pace and load; both nodes then
    price the move by simulation (`Mover`), and it is made only if it pays.

    Three things are worth a move, as those that come later do not cure them: a request that waits for its first token
    goes where it need not, or, where nobody holds it, the shortest that runs there makes room for it; of a node whose
    KV runs out within the horizon goes who would be preempted, which is the one that came last; and a node that turned
    slow, or is of a much slower kind, is left. What is saved is estimated by the prompts ahead, by what would be
    computed anew, and by the difference of the steps for each token that is left, less the KV's computing anew for all
    at the destination.
    """

    name: ClassVar[str] = "forecast"
    source: ClassVar[str] = "ours"
    options_type: ClassVar[type[msgspec.Struct]] = ForecastMovesOptions

    def __init__(self, options: ForecastMovesOptions, rng: random.Random) -> None:
        self._options = options

    def tick(self, nodes: Sequence[NodeSeen], now_s: float) -> Sequence[MoveWish]:
        places = sorted(_places(nodes), key=lambda place: place.step_s)
        if not places:
            return []
        found = [entry for node in nodes if not node.leaving for entry in self._of(node, places, now_s)]
        # The request's name last: equal savings must not depend on the order of nodes.
        found.sort(key=lambda entry: (-entry[0], entry[1].request_id))
        return [MoveWish(request_id=wish.request_id, why=wish.why) for _, wish in found[: self._options.propose]]

    def _of(self, node: NodeSeen, places: Sequence[_Place], now_s: float) -> Iterator[tuple[float, MoveWish]]:
        """Who should go from one node, with the seconds that it saves."""
        load, pace, told = node.view.load, node.view.pace, self._options
        if load is None or pace is None:
            return
        here = node.view.node_id
        step_s = _step_s(node.view, load, pace) * (2.0 if node.slow else 1.0)
        slower = step_s >= told.times_slower * places[0].step_s
        if not slower and load.waiting <= load.reserved and not self._may_run_out(node.view, load):
            return
        waits_s = max(load.head_waits_s, load.prefill_tokens * pace.prefill_s_per_token)
        last = self._preempted(node, load, step_s)
        stuck = False
        for request in node.requests:
            tokens = request.prompt_tokens + request.output_tokens
            place = _best(places, here, tokens + request.expected_left_tokens) if request.movable else None
            if not request.output_tokens:
                waited_s = now_s - request.dispatched_s
                if waited_s < told.patience_s:
                    continue
                if place is None:
                    stuck = True
                    continue
                saved_s = waits_s - place.load.prefill_tokens * place.pace.prefill_s_per_token
                why = f"it has waited {waited_s:.1f} s for its first token"
            elif place is None:
                continue
            else:
                saved_s = -tokens * place.pace.prefill_s_per_token * (1 + place.load.running)
                why = ""
                if step_s >= told.times_slower * place.step_s:
                    saved_s += request.expected_left_tokens * (step_s - place.step_s)
                    why = f"a token takes {step_s * 1e3:.0f} ms there and {place.step_s * 1e3:.0f} ms here"
                if request is last:
                    saved_s += tokens * pace.prefill_s_per_token * (1 + load.running)
                    why = "KV runs out there"
            if why and saved_s >= told.least_s:
                yield saved_s, MoveWish(request_id=request.request_id, why=why)
        if stuck and waits_s >= told.least_s:
            yield from self._make_room(node, places, waits_s)

    def _make_room(self, node: NodeSeen, places: Sequence[_Place], waits_s: float) -> Iterator[tuple[float, MoveWish]]:
        """The shortest that runs and fits elsewhere."""
        running = [request for request in node.requests if request.movable and request.output_tokens]
        for request in sorted(running, key=lambda r: (-r.priority, r.prompt_tokens + r.output_tokens)):
            tokens = request.prompt_tokens + request.output_tokens
            if _best(places, node.view.node_id, tokens + request.expected_left_tokens) is not None:
                yield waits_s, MoveWish(request_id=request.request_id, why="others wait there that nobody else holds")
                return

    def _may_run_out(self, view: NodeView, load: NodeLoad) -> bool:
        """Whether there is not room for all that is expected of those there."""
        if load.preemption_ahead_s >= 0.0:
            return load.preemption_ahead_s <= self._options.horizon_s
        return load.unprocessed_tokens > load.free_blocks * view.config.tokens_per_block

    def _preempted(self, node: NodeSeen, load: NodeLoad, step_s: float) -> RequestSeen | None:
        """Who would be preempted first, if anybody within the horizon: of those that run, the one that came last.

        A node that foresees a preemption has simulated it; of one that does not say, tokens and steps are counted.
        """
        running = [request for request in node.requests if request.output_tokens]
        if not running or step_s <= 0.0:
            return None
        if load.preemption_ahead_s >= 0.0:
            return running[-1] if load.preemption_ahead_s <= self._options.horizon_s else None
        steps = self._options.horizon_s / step_s
        grown = sum(min(request.expected_left_tokens, steps) for request in running)
        if load.running > len(running):
            grown *= load.running / len(running)
        free = load.free_blocks * node.view.config.tokens_per_block
        return running[-1] if grown > free else None


def _places(nodes: Sequence[NodeSeen]) -> Iterator[_Place]:
    for node in nodes:
        load, pace, config = node.view.load, node.view.pace, node.view.config
        if node.leaving or node.slow or load is None or pace is None or not config.enable_prefix_caching:
            continue
        if load.waiting > load.reserved or load.running + load.waiting >= config.max_num_seqs:
            continue
        free_tokens = (load.free_blocks - load.waiting_prompt_blocks) * config.tokens_per_block
        yield _Place(node.view.node_id, free_tokens, _step_s(node.view, load, pace, 1), load, pace)


def _best(places: Sequence[_Place], but: str, tokens: float) -> _Place | None:
    """The fastest that holds so many tokens."""
    return next((place for place in places if place.node_id != but and place.free_tokens >= tokens), None)


def _step_s(view: NodeView, load: NodeLoad, pace: Pace, more: int = 0) -> float:
    """Seconds of a decoding step there with so many sequences more."""
    batch = min(load.running + load.waiting + more, pace.seats)
    held_tokens = (load.total_blocks - load.free_blocks) * view.config.tokens_per_block
    return pace.step_s[batch] + pace.kv_s_per_token * held_tokens
