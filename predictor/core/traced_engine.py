"""An engine as its trace tells of it: mirror, prefix cache, step times, and the requests on their way to it. Pure.

The engine's own clock is never compared with the caller's (`now_s`): state ages are counted from the moment a trace
item was received.

A trace tells of a step when it has ended, so the state is always that of the past: the step in progress is missing, and
so are requests dispatched since. What-ifs therefore begin with a simulation of what the engine has done since then, up
to now: the step in progress, each dispatched request joining when it was sent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import msgspec

from length_model.core.belief import DEFAULT_PRIOR, given_produced, truncated
from predictor.core.cache_teller import CacheTeller
from predictor.core.draft_learning import DraftLearner
from predictor.core.mirror import Applied, NodeMirror
from predictor.core.prefix_content import PrefixContent
from predictor.core.reservations import Reservations
from predictor.core.step_learning import StepLearner
from simcore.cost.step_time import StepTimeModel
from simcore.lookahead import WhatIf
from simcore.node import SimNode, SimRequest
from simcore.scenarios import longest_output
from simcore.trace import CacheDelta, TraceDelta, TraceSnapshot, parent_id
from simcore.types import Candidate, EngineConfig, LengthBelief, NodeLoad, NodePace, RequestState, class_of

SAME_MOMENT_S = 0.001
"""An idle engine that gets several requests within this time begins its step with all of them."""

MOST_ASKED = 512
"""Prompts whose block names are kept from a question to its dispatch."""

SAME_SIZE_TOKENS = 64
"""How far two prompts may differ, beside half of one, to be taken for the same."""


class _Belief:
    """A length belief, and its expected total, which changes only when an atom has been passed."""

    __slots__ = ("_expected_tokens", "_next_atom_tokens", "belief")

    def __init__(self, belief: LengthBelief) -> None:
        self.belief = belief
        self._expected_tokens = 0
        self._next_atom_tokens = -1

    def expected_tokens(self, produced_tokens: int) -> int:
        if produced_tokens >= self._next_atom_tokens:
            left = given_produced(self.belief, produced_tokens)
            self._expected_tokens = round(left.mean_tokens)
            self._next_atom_tokens = left.atoms_tokens[0]
        return self._expected_tokens


class _Sent:
    """A dispatched request until it ends, under however many names the engine has it."""

    __slots__ = (
        "belief",
        "block_hashes",
        "donor",
        "donor_blocks",
        "found_tokens",
        "joins",
        "names",
        "priority",
        "prompt_tokens",
    )

    def __init__(self, candidate: Candidate, block_hashes: Sequence[int], donor: str, donor_blocks: int) -> None:
        self.belief = candidate.belief
        self.prompt_tokens = candidate.prompt_tokens
        self.priority = candidate.priority
        """As its client sent it: an engine that does not go by priorities is told of none."""
        self.block_hashes = block_hashes
        self.donor = donor
        """The request ahead of it whose prompt begins like it for longest; empty: none does."""
        self.donor_blocks = donor_blocks
        """For how many blocks."""
        self.names: set[str] = set()
        """Those of its requests in the trace."""
        self.joins = True
        """Whether the trace names it as we do."""
        self.found_tokens: int | None = None
        """Tokens found in the prefix cache when it was first admitted; None before that."""


class TracedEngine:
    """One engine, followed by its trace (`predictor.core.estimator.EngineState`). Not thread-safe; one owner."""

    def __init__(
        self,
        node_id: str,
        config: EngineConfig,
        step_time: StepTimeModel,
        *,
        scenarios: int = 8,
        reservation_ttl_s: float = 30.0,
        calibrate: bool = False,
    ) -> None:
        """`scenarios` are those of a what-if; a dispatched request that does not show up in the trace within
        `reservation_ttl_s` is given up; `calibrate`: step times are learned from the trace, `step_time` is only where
        that begins."""
        self.node_id = node_id
        self.config = config
        self.step_time = step_time
        self.reservation_ttl_s = reservation_ttl_s
        self.learner = StepLearner(step_time) if calibrate else None
        drafts = config.num_speculative_tokens
        self.draft_learner = DraftLearner(drafts, always_all=config.async_scheduling) if drafts else None
        self.mirror: NodeMirror | None = None
        self.reservations = Reservations()
        self.prefixes = PrefixContent(block_size_tokens=config.block_size_tokens, most_blocks=config.num_blocks)
        self.cache_teller = CacheTeller(self.prefixes.names)
        self._beliefs: dict[str, _Belief] = {}
        self._sent: dict[str, _Sent] = {}
        self._asked: dict[str, tuple[int, ...]] = {}
        """Block names of prompts that this node was asked about, oldest first: dispatches come without them."""
        self._received_s = -math.inf
        self._connected = False
        self._scenarios = scenarios
        self._what_if = WhatIf(node_id, config, step_time, scenarios=scenarios)
        self._learned_version = 0
        self._pace = step_time.pace(config)
        self._pace_of = 0
        self._base_of: tuple[int, int] | None = None
        self._base_until_s = -math.inf
        """Moment at which the base of the what-ifs holds: the end of the step in progress."""
        self._load: NodeLoad | None = None
        self._load_of: tuple[int, int] | None = None

    # --- what happens -------------------------------------------------------------------------------------------------

    def on_snapshot(self, snapshot: TraceSnapshot, now_s: float) -> None:
        """A trace has begun, or begun again."""
        if self.mirror is None:
            self.mirror = NodeMirror(snapshot)
        else:
            self.mirror.reset(snapshot)
        self._connected = True
        self._received_s = now_s
        self.prefixes.begin()
        self.cache_teller.changed_wholly()
        for state in (*snapshot.running, *snapshot.waiting):
            self._arrived(state)
        for request_id in [i for i in self._beliefs if not self._is_here(i)]:
            del self._beliefs[request_id]

    def on_delta(self, delta: TraceDelta, now_s: float) -> bool:
        """The next step of the trace. True: a delta was lost and the trace must be read anew, from a snapshot."""
        if self.mirror is None:
            return True
        applied = self.mirror.apply(delta)
        if applied is Applied.GAP:
            return True
        if applied is Applied.APPLIED:
            self._received_s = now_s
            if self.learner is not None:
                self.learner.add(delta.batch, delta.duration_s)
            if self.draft_learner is not None:
                self.draft_learner.add(delta)
            for state in delta.arrived:
                self._arrived(state)
            for request_id, found_tokens in self.mirror.admitted:
                sent = self._sent.get(request_id) or self._sent.get(parent_id(request_id))
                if sent is not None and sent.found_tokens is None:
                    sent.found_tokens = found_tokens
            for request_id in (*delta.finished, *delta.aborted):
                self._forget(request_id)
        return False

    def on_cache(self, delta: CacheDelta) -> bool:
        """A change of the engine's prefix cache. True: one was lost and the trace must be read anew."""
        if self.prefixes.apply(delta):
            return True
        if delta.cleared:
            self.cache_teller.changed_wholly()
        else:
            self.cache_teller.changed(delta.stored, delta.evicted)
        return False

    def on_disconnect(self) -> None:
        """The trace has broken. The last state stays, and ages."""
        self._connected = False

    def reserve(self, candidate: Candidate, *, now_s: float, ttl_s: float, sent: bool = False) -> None:
        """The candidate will come to this node, or (`sent`) the engine has just got it: it counts from now."""
        self._beliefs[candidate.request_id] = _Belief(candidate.belief)
        if self.mirror is None or candidate.request_id not in self.mirror:
            self.reservations.reserve(candidate, now_s=now_s, ttl_s=ttl_s, sent=sent)

    def dispatched(self, candidate: Candidate, now_s: float, *, by_others: bool = False) -> None:
        """The engine gets this request now, or (`by_others`) soon, of somebody else."""
        names = candidate.block_hashes or self._asked.pop(candidate.request_id, ())
        donor, blocks = self._donor(names)
        self._sent[candidate.request_id] = _Sent(candidate, names, donor, blocks)
        self.reserve(candidate, now_s=now_s, ttl_s=self.reservation_ttl_s, sent=not by_others)

    def comes_unnamed(self, request_id: str) -> None:
        """The engine gives the dispatched request a name that says nothing of ours: the next arrival of a stranger of
        about its size is taken to be it. If none comes its reservation expires as any other."""
        if (sent := self._sent.get(request_id)) is not None:
            sent.joins = False

    def release(self, request_id: str) -> bool:
        """It will not come, or it has ended. False if it was not reserved."""
        was_reserved = self.reservations.drop(request_id)
        self._forget(request_id)
        return was_reserved

    def ended(self, request_id: str) -> None:
        """A dispatched request has ended."""
        self._sent.pop(request_id, None)
        self.release(request_id)

    def names(self, request_id: str) -> int:
        """How many requests the engine has made of one that was dispatched and has not ended, as far as is known."""
        sent = self._sent.get(request_id)
        return 0 if sent is None else len(sent.names)

    def found_tokens(self, request_id: str) -> int | None:
        """Tokens of a dispatched request's prompt that the prefix cache had when it was admitted; None before that, and
        where the trace does not tell."""
        sent = self._sent.get(request_id)
        return None if sent is None else sent.found_tokens

    # --- what is known ------------------------------------------------------------------------------------------------

    @property
    def is_known(self) -> bool:
        """False: no snapshot has come yet."""
        return self.mirror is not None

    @property
    def synchronised(self) -> bool:
        """A trace is connected and no gap is open."""
        return self._connected and self.mirror is not None and self.mirror.synchronised

    @property
    def version(self) -> tuple[int, int]:
        """Changes whenever the state or the reservations do."""
        return (self.mirror.version if self.mirror is not None else -1, self.reservations.version)

    @property
    def seq(self) -> int:
        """Number of the last step seen; 0 without any state."""
        return self.mirror.seq if self.mirror is not None else 0

    @property
    def last_step_s(self) -> float:
        """Duration of the last step seen; 0 right after a snapshot."""
        return self.mirror.last_step_s if self.mirror is not None else 0.0

    def age_s(self, now_s: float) -> float:
        """Age of the state: 0 while a followed engine is idle (nothing can change unseen), inf without any state."""
        if self.mirror is None:
            return math.inf
        if self.synchronised and not self.mirror.running_count and not self.mirror.waiting_count:
            return 0.0
        return max(0.0, now_s - self._received_s)

    def expire(self, now_s: float) -> list[str]:
        """Drops reservations that nobody made good; their ids."""
        late = self.reservations.expire(now_s)
        for request_id in late:
            self._forget(request_id)
        return late

    def load(self, now_s: float) -> NodeLoad | None:
        """Summary for heuristic policies, reservations included. None without any state."""
        if self.mirror is None:
            return None
        self.expire(now_s)
        if self._load is None or self._load_of != self.version:
            self._load = self._summed(self.mirror)
            self._load_of = self.version
        age_s = self.age_s(now_s)
        return self._load if self._load.state_age_s == age_s else msgspec.structs.replace(self._load, state_age_s=age_s)

    @property
    def pace(self) -> NodePace:
        """How fast the engine works, as far as is known: the same object until that has changed."""
        learner = self.learner
        if learner is not None and learner.version != self._pace_of:
            self._pace, self._pace_of = learner.model.pace(self.config), learner.version
        return self._pace

    def name_here(self, request_id: str) -> str:
        """By which name the engine has a dispatched request; empty: it has made several of it."""
        sent = self._sent.get(request_id)
        if sent is None or not sent.names:
            return request_id
        return next(iter(sent.names)) if len(sent.names) == 1 else ""

    def cached_tokens(self, candidate: Candidate) -> int:
        """Tokens of its prompt that the engine's prefix cache holds, or will when the prompts ahead of it, of those
        dispatched here, are computed. Of one that is here and might leave, those in blocks that others hold too."""
        if candidate.leaving:
            return self._shared_tokens(candidate.request_id)
        names = candidate.block_hashes
        if not names or not self.config.enable_prefix_caching:
            return 0
        self._asked.pop(candidate.request_id, None)
        self._asked[candidate.request_id] = names
        if len(self._asked) > MOST_ASKED:
            del self._asked[next(iter(self._asked))]
        held = max(self._cached_tokens(names, candidate.prompt_tokens, self._donor(names)[1]))
        return max(0, held - self.config.dropped_blocks * self.config.block_size_tokens)

    def what_if(self, now_s: float, overdue_s: float) -> tuple[WhatIf, float]:
        """What-ifs from the state run on to `overdue_s` before now, and the seconds from then to the end of the step in
        progress, where their base lies. Raises ValueError for a state that cannot be simulated."""
        assert self.mirror is not None, "there is no state to begin with"
        self.expire(now_s)
        until_s = now_s - overdue_s
        if self._base_of != self.version or until_s > self._base_until_s:
            self._rebase(self.mirror, until_s)
        return self._what_if, max(0.0, self._base_until_s - until_s)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _arrived(self, state: RequestState) -> None:
        """The trace shows a request: of one that was reserved the first makes it good."""
        name = state.request_id
        self.reservations.drop(name)
        if name in self._beliefs:
            if name in self._sent:
                self._sent[name].names.add(name)
            return
        parent = parent_id(name)
        if parent == name:
            parent = self._unnamed_like(state.prompt_tokens)
        sent = self._sent.get(parent)
        if sent is not None:
            sent.names.add(name)
            sent.joins = True
            self.reservations.drop(parent)
            self._beliefs[name] = _Belief(sent.belief)

    def _unnamed_like(self, prompt_tokens: int) -> str:
        """The dispatched request that a stranger of that size can be; empty: none."""
        off_tokens = {
            request_id: abs(sent.prompt_tokens - prompt_tokens)
            for request_id, sent in self._sent.items()
            if not sent.joins and request_id in self.reservations
        }
        nearest = min(off_tokens, key=off_tokens.__getitem__, default="")
        # Of such a request the length is an estimate.
        return nearest if nearest and off_tokens[nearest] <= SAME_SIZE_TOKENS + prompt_tokens // 2 else ""

    def _donor(self, names: Sequence[int]) -> tuple[str, int]:
        """Of the requests here the one whose prompt begins with most of these names, and how many."""
        donor, blocks = "", 0
        for request_id, sent in self._sent.items():
            theirs = sent.block_hashes
            # Names chain: where one is equal, all before it are.
            while blocks < len(names) and blocks < len(theirs) and names[blocks] == theirs[blocks]:
                donor, blocks = request_id, blocks + 1
        return donor, blocks

    def _cached_tokens(self, names: Sequence[int], prompt_tokens: int, donor_blocks: int) -> tuple[int, int]:
        """Tokens of a prompt that are (cached now, left by a prompt ahead of it). Its last token is always computed."""
        size = self.config.block_size_tokens
        left_blocks = min(donor_blocks, (prompt_tokens - 1) // size)
        return self.prefixes.cached_tokens(names, prompt_tokens), left_blocks * size

    def _shared_tokens(self, request_id: str) -> int:
        """Tokens at the beginning of a request whose blocks others that run hold too, as far as is known."""
        sent = self._sent.get(request_id)
        if sent is None or not sent.block_hashes or self.mirror is None:
            return 0
        size = self.config.block_size_tokens
        computed = {r.request_id: r.computed_tokens // size for r in self.mirror.running()}
        mine, shared = sent.block_hashes, 0
        most = max((computed.get(name, 0) for name in sent.names), default=0)
        for other in self._sent.values():
            theirs = other.block_hashes
            if other is sent or not theirs or theirs[0] != mine[0]:
                continue
            held = max((computed.get(name, 0) for name in other.names), default=0)
            blocks, limit = 0, min(len(mine), len(theirs), held, most)
            while blocks < limit and mine[blocks] == theirs[blocks]:
                blocks += 1
            shared = max(shared, blocks)
        return shared * size

    def _assume_cached(self, engine: SimNode, request_id: str, sent: _Sent | None) -> None:
        """A waiting request finds what is cached now, or what its donor leaves, if that is still here."""
        if sent is None or not sent.block_hashes or not self.config.enable_prefix_caching:
            return
        donor_blocks = sent.donor_blocks if sent.donor in self._sent else 0
        cached, left = self._cached_tokens(sent.block_hashes, sent.prompt_tokens, donor_blocks)
        size = self.config.block_size_tokens
        engine.assume_cached(request_id, max(cached, left) // size, left // size if left > cached else 0)

    def _rebase(self, mirror: NodeMirror, until_s: float) -> None:
        """The base of what-ifs: the state, run on to the end of the step that is in progress at `until_s`."""
        if self.learner is not None and self.learner.version != self._learned_version:
            self._learned_version = self.learner.version
            self.step_time = self.learner.model
            self._what_if = WhatIf(self.node_id, self.config, self.step_time, scenarios=self._scenarios)
        engine = SimNode.from_snapshot(
            mirror.snapshot(),
            self.node_id,
            self.step_time,
            output_tokens=lambda s: self._likely_end(s.request_id, s.prompt_tokens, s.max_output_tokens),
            free_at_s=self._received_s,
            draft_odds=self.draft_learner.odds if self.draft_learner is not None else None,
        )
        for request in mirror.waiting():
            # One that was preempted finds its own blocks.
            if not request.output_tokens:
                self._assume_cached(engine, request.request_id, self._sent.get(request.request_id))
        held = self.reservations.held()
        woken_s = -math.inf
        for reservation in held:
            if reservation.sent:
                sent_s = reservation.reserved_s
                if sent_s - woken_s >= SAME_MOMENT_S:
                    engine.advance(min(until_s, sent_s))
                if not engine.has_work:
                    woken_s = sent_s
                engine.add(self._arriving(reservation.candidate), sent_s)
                request_id = reservation.candidate.request_id
                self._assume_cached(engine, request_id, self._sent.get(request_id))
        engine.advance(until_s)
        for reservation in held:
            if not reservation.sent:
                engine.add(self._arriving(reservation.candidate), until_s)
        beliefs = {i: self._belief(i, a.request.max_output_tokens).belief for i, a in engine.requests.items()}
        in_step = engine.free_at_s > until_s
        self._base_until_s = engine.free_at_s if in_step else until_s
        self._what_if.rebase_node(engine, beliefs, self._base_until_s)
        self._base_of = self.version

    def _likely_end(self, request_id: str, prompt_tokens: int, max_output_tokens: int) -> int:
        """Output tokens after which a request is taken to end within the next step or two: its length if that is
        known, else none."""
        longest = longest_output(self.config, prompt_tokens, max_output_tokens)
        belief = self._belief(request_id, max_output_tokens).belief
        return min(longest, belief.atoms_tokens[0]) if belief.is_known else longest

    def _arriving(self, candidate: Candidate) -> SimRequest:
        tokens = self._likely_end(candidate.request_id, candidate.prompt_tokens, candidate.max_output_tokens)
        return SimRequest(
            request_id=candidate.request_id,
            prompt_tokens=candidate.prompt_tokens,
            output_tokens=tokens,
            max_output_tokens=candidate.max_output_tokens,
            priority=candidate.priority,
            adapter=self.config.adapter_of(candidate.model),
        )

    def _summed(self, mirror: NodeMirror) -> NodeLoad:
        size = self.config.block_size_tokens
        unprocessed = prompt_blocks = prefill = 0
        for r in mirror.running():
            expected = self._belief(r.request_id, r.max_output_tokens).expected_tokens(r.output_tokens)
            unprocessed += max(0, r.prompt_tokens + expected - r.computed_tokens)
            prefill += max(0, r.prompt_tokens - r.computed_tokens)
        for r in mirror.waiting():
            expected = self._belief(r.request_id, r.max_output_tokens).expected_tokens(r.output_tokens)
            unprocessed += r.prompt_tokens + expected
            prefill += r.prompt_tokens
            prompt_blocks += -(-(r.prompt_tokens + r.output_tokens) // size)
        for candidate in self.reservations.candidates():
            expected = self._beliefs[candidate.request_id].expected_tokens(0)
            prefill += candidate.prompt_tokens
            unprocessed += candidate.prompt_tokens + min(expected, candidate.max_output_tokens)
            prompt_blocks += -(-candidate.prompt_tokens // size)
        reserved = len(self.reservations)
        return NodeLoad(
            node_id=self.node_id,
            trace_seq=mirror.seq,
            state_age_s=0.0,
            running=mirror.running_count,
            waiting=mirror.waiting_count + reserved,
            free_blocks=mirror.free_blocks,
            total_blocks=self.config.num_blocks,
            waiting_prompt_blocks=prompt_blocks,
            unprocessed_tokens=unprocessed,
            preemptions_total=mirror.preemptions_total,
            reserved=reserved,
            prefill_tokens=prefill,
            classes=self._classes(mirror),
        )

    def _classes(self, mirror: NodeMirror) -> dict[int, int]:
        counts = Counter(class_of(candidate.priority) for candidate in self.reservations.candidates())
        asked = {name: sent.priority for sent in self._sent.values() for name in sent.names}
        for r in (*mirror.running(), *mirror.waiting()):
            counts[class_of(asked.get(r.request_id, r.priority))] += 1
        del counts[0]
        return dict(counts)

    def _belief(self, request_id: str, max_output_tokens: int) -> _Belief:
        """What is believed of a request on the node; the prior for one that others sent."""
        belief = self._beliefs.get(request_id)
        if belief is None:
            belief = self._beliefs[request_id] = _Belief(truncated(DEFAULT_PRIOR, max_output_tokens))
        return belief

    def _is_here(self, request_id: str) -> bool:
        return request_id in self.reservations or (self.mirror is not None and request_id in self.mirror)

    def _forget(self, request_id: str) -> None:
        if not self._is_here(request_id):
            self._beliefs.pop(request_id, None)
