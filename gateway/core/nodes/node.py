"""One node as the router knows it: what it last said of itself, and our own exact account of what we have there. Pure.

A note tells up to which of our dispatches it counts. Those after it are added to it as waiting, so that the decisions
between two notes see each other: without that they all fall on the node that looked best (herding, Block's defect).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from gateway.core.nodes.accuracy import AccuracyStatus, ForecastAccuracy
from gateway.core.nodes.health import Health
from gateway.core.nodes.liveness import Liveness
from gateway.core.nodes.pace import Pace
from gateway.core.nodes.prefix_index import PrefixIndex
from gateway.core.nodes.view import Moment, NodeView
from simcore.types import EngineConfig, NodeLoad, NodePace

QPM_WINDOW_S = 60.0
PROMISE_S = 0.1
"""How long a placement that somebody else carries out is added to the node's own words: time enough for the node to
take the reservation and say so, short enough not to count it twice for long."""

LOOK_AGAIN_S = 0.001
"""A view is made anew so long before time changes it: clocks of any reading tell such moments apart."""

NodeState = Literal["up", "draining", "down"]


class InFlight(msgspec.Struct, kw_only=True):
    """A place in a node's account: one request of ours that is there, or on its way."""

    request_id: str
    dispatch_seq: int
    prompt_blocks: int
    tokens: int
    """Prompt and expected output."""
    prompt_tokens: int
    delay_s: float | None
    """By how much it is forecast to delay each other request there; None when nobody forecast it."""
    request_class: int = 0
    """As `gateway.core.priority` has it."""


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One node for operators."""

    node_id: str
    status: NodeState
    config: EngineConfig
    profile: str
    detail: str
    """Why it is down; empty when it is not."""
    load: NodeLoad | None
    """The node's last words, as they came."""
    noted_s: float
    """When they came, on the router's clock."""
    in_flight: int
    drained: bool = False
    """An operator has taken it out of service."""
    retiring: bool = False
    """It says itself that it is to leave."""
    alarm: str = ""
    """What an operator should look at; empty when all is well."""
    forecasts: AccuracyStatus = AccuracyStatus()
    cached_blocks: int | None = None
    """In its prefix cache, by its own word; None where it tells nothing or is not believed."""

    def state_age_s(self, now_s: float) -> float | None:
        """Age of the node's state at `now_s`; None when nothing is known."""
        return None if self.load is None else self.load.state_age_s + (now_s - self.noted_s)


class Node:
    """One node as the router knows it."""

    def __init__(self, node_id: str, config: EngineConfig, profile: str, now_s: float, *, number: int = 0) -> None:
        self.node_id = node_id
        self.number = number
        """Its place in the order in which nodes came."""
        self.config = config
        self.names = frozenset(config.names)
        self.longest_tokens = config.longest_tokens
        """The most prompt and output tokens that one request can have here."""
        self.profile = profile
        self.joined_s = now_s
        self.drained = False
        """An operator has taken it out of service."""
        self.retiring = False
        """It says itself that it is to leave."""
        self.may_stay = False
        """What it runs may end there although it takes nothing new."""
        self.up = True
        self.detail = ""
        self.weight = 1.0
        """What it can do, compared with others, as the configuration says."""
        self.health = Health()
        self.accuracy = ForecastAccuracy()
        self.liveness = Liveness()
        self.prefixes = PrefixIndex()
        self.next_stage_s = 0.0
        """Until then it has spent on stages of moves what it may."""
        self.in_flight: dict[str, InFlight] = {}
        """Per request id, in the order of dispatch."""
        self.classes: Mapping[int, int] = {}
        """How many requests there are of each class other than 0, by its own word and our account, whichever has more;
        replaced, never changed."""
        self._own_classes: dict[int, int] = {}
        self.dispatch_seq = 0
        self.delivered = False
        """Whether a token has come from it in this session."""
        self.session = 1
        """Grows with each `NodeJoined`."""
        self.adapters: frozenset[str] | None = None
        """LoRA adapters that requests there use; None: not known."""
        self.told_pace: NodePace | None = None
        """How fast it says that it works; None: it has not said."""
        self.pace: Pace | None = None
        """How fast it is taken to work; None: nobody has said."""
        self.pace_doubt = ""
        """Why it is not believed; empty: it is."""
        self.note: NodeLoad | None = None
        self.noted_s = 0.0
        self._unnoted: dict[int, InFlight] = {}
        """Dispatches after the note, by number, in that order."""
        self._unnoted_blocks = 0
        self._unnoted_tokens = 0
        self._unnoted_prompt_tokens = 0
        self._promised: deque[tuple[float, InFlight]] = deque()
        self._recent: deque[float] = deque()
        self._merged: NodeLoad | None = None
        self._changed = False
        self.kept_view: NodeView | None = None
        """As it looked when that was last asked, without a prompt's share of the cache; holds before `kept_until_s`."""
        self.kept_until_s = -math.inf

    @property
    def draining(self) -> bool:
        """Whether it gets nothing new."""
        return self.drained or self.retiring

    @property
    def is_ready(self) -> bool:
        """Whether it may get new requests."""
        return self.up and not (self.drained or self.retiring)

    @property
    def to_be_emptied(self) -> bool:
        """Whether what it runs is to go on elsewhere."""
        return self.up and (self.retiring or (self.drained and not self.may_stay))

    def serves(self, model: str) -> bool:
        """Whether clients may ask it for the model; empty: any."""
        return not model or model == self.config.model or model in self.config.other_names

    def rename(self, names: Sequence[str]) -> None:
        """It is asked by these names from now on, its own first; nothing else of it changes."""
        self.config = msgspec.structs.replace(self.config, model=names[0], other_names=tuple(names[1:]))
        self.names = frozenset(names)
        self.kept_until_s = -math.inf

    def rejoin(self, config: EngineConfig, profile: str, now_s: float) -> None:
        """A new session: dispatches are numbered from 1 again, and nothing is known until the node speaks."""
        self.config = config
        self.names = frozenset(config.names)
        self.longest_tokens = config.longest_tokens
        self.profile = profile
        self.joined_s = now_s
        self.up = True
        self.retiring = False
        self.detail = ""
        self.dispatch_seq = 0
        self.session += 1
        self.delivered = False
        for sent in self.in_flight.values():
            sent.dispatch_seq = 0
        self.accuracy.start_anew()
        self.prefixes.session_ended()
        self._forget()

    def reckon_with(self, pace: NodePace) -> None:
        """This is how fast it is taken to work from now on."""
        seats = self.config.max_num_seqs
        if self.pace is None or self.pace.told is not pace or self.pace.seats != seats:
            self.pace = Pace(pace, seats)
            self.kept_until_s = -math.inf

    def lose(self, detail: str) -> None:
        self.up = False
        self.detail = detail
        self.prefixes.session_ended()
        self._forget()

    def hear(self, load: NodeLoad, dispatch_seq: int, now_s: float) -> None:
        """Takes a note that counts our dispatches up to `dispatch_seq`."""
        told_before = {} if self.note is None else self.note.classes
        self.note = load
        if load.classes != told_before:
            self._reckon_classes()
        self.noted_s = now_s
        self.liveness.trace(load.trace_seq, now_s)
        unnoted = self._unnoted
        while unnoted and (first := next(iter(unnoted))) <= dispatch_seq:
            self._subtract(unnoted.pop(first))
        self._changed = True
        self.kept_until_s = -math.inf

    def tokens_came(self, now_s: float) -> None:
        """A sign of life: tokens of one of its requests."""
        liveness = self.liveness
        liveness.tokens(now_s)
        if liveness.may_be_frozen:
            self.kept_until_s = -math.inf

    def take(self, sent: InFlight, now_s: float) -> None:
        """Counts a dispatch; its number is the node's last from now on."""
        self.dispatch_seq = sent.dispatch_seq
        if not self.in_flight:
            self.liveness.busy(now_s)
        self.in_flight[sent.request_id] = sent
        self._count(sent, 1)
        self._unnoted[sent.dispatch_seq] = sent
        self._unnoted_blocks += sent.prompt_blocks
        self._unnoted_tokens += sent.tokens
        self._unnoted_prompt_tokens += sent.prompt_tokens
        self._placed(now_s)

    def promise(self, sent: InFlight, now_s: float) -> None:
        """Counts a placement that somebody else will carry out."""
        self._promised.append((now_s, sent))
        self._placed(now_s)

    def release(self, request_id: str) -> None:
        """Gives a place back. KeyError if there is none: an account is released exactly once."""
        sent = self.in_flight.pop(request_id)
        self._count(sent, -1)
        self.prefixes.over(request_id)
        if self._unnoted.pop(sent.dispatch_seq, None) is not None:
            self._subtract(sent)
            self._changed = True
        self.kept_until_s = -math.inf

    def cached_tokens(self, names: Sequence[int], prompt_tokens: int) -> int:
        """Tokens of a prompt with blocks of these names that need no computing here, as far as is known. The last token
        is always computed, and with it its block."""
        size = self.config.block_size_tokens
        blocks = min(self.prefixes.cached_blocks(names), (prompt_tokens - 1) // size)
        return max(0, blocks - self.config.dropped_blocks) * size

    def sent_since(self, dispatch_seq: int) -> list[InFlight]:
        """Our requests that went there after `dispatch_seq` and still are."""
        later = []
        for sent in reversed(self.in_flight.values()):
            if sent.dispatch_seq <= dispatch_seq:
                break
            later.append(sent)
        return later

    def view(
        self, now_s: float, stale_after_s: float, *, cached_tokens: int = 0, moment: Moment | None = None
    ) -> NodeView:
        """The node as a policy sees it now, to be kept if it is of a `moment` that goes on telling the time.

        A busy node that has been silent for longer than `stale_after_s` is unknown (`load` None), and so is one whose
        trace is frozen; an idle one has nothing to say.
        """
        note, load = self.note, None
        until_s = -math.inf
        if note is not None:
            until_s = math.inf
            promised = self._promised
            while promised and promised[0][0] <= now_s - PROMISE_S:
                promised.popleft()
                self._changed = True
            if promised:
                until_s = promised[0][0] + PROMISE_S
            if self._changed:
                self._merged = self._merge(note)
                self._changed = False
            load = self._merged
            if load is not None and (load.running or load.waiting):
                stale_s = self.noted_s + stale_after_s - note.state_age_s
                if stale_s < until_s:
                    until_s = stale_s
                if note.state_age_s + (now_s - self.noted_s) > stale_after_s:
                    load = None
            liveness = self.liveness
            if liveness.may_be_frozen:
                until_s = -math.inf
                if liveness.frozen_s:
                    load = None
        recent = self._recent
        while recent and recent[0] <= now_s - QPM_WINDOW_S:
            recent.popleft()
        if recent and recent[0] + QPM_WINDOW_S < until_s:
            until_s = recent[0] + QPM_WINDOW_S
        view = NodeView(
            node_id=self.node_id,
            config=self.config,
            load=load,
            moment=Moment(now_s) if moment is None else moment,
            note_age_s=0.0 if note is None else note.state_age_s,
            noted_s=now_s if note is None else self.noted_s,
            joined_s=self.joined_s,
            in_flight=len(self.in_flight),
            dispatches_60s=len(recent),
            classes=self.classes,
            cached_tokens=cached_tokens,
            weight=self.weight,
            pace=self.pace,
        )
        if moment is not None and not cached_tokens:
            self.kept_view, self.kept_until_s = view, until_s - LOOK_AGAIN_S
        return view

    def status(self) -> NodeStatus:
        return NodeStatus(
            node_id=self.node_id,
            status="draining" if self.up and self.draining else "up" if self.up else "down",
            config=self.config,
            profile=self.profile,
            detail=self.detail,
            load=self.note,
            noted_s=self.noted_s,
            in_flight=len(self.in_flight),
            drained=self.drained,
            retiring=self.up and self.retiring,
            alarm=self._alarm() if self.up else "",
            forecasts=self.accuracy.status(),
            cached_blocks=self.prefixes.told_blocks if self.up else None,
        )

    def state(self) -> str:
        """Why it gets nothing new, for people."""
        if self.up:
            return "retiring" if self.retiring else "draining"
        return f"down ({self.detail})" if self.detail else "down"

    def _alarm(self) -> str:
        frozen_s = self.liveness.frozen_s
        frozen = f"its trace is frozen: {frozen_s:.1f} s of tokens are not in it" if frozen_s else ""
        doubts = (self.health.alarm, frozen, self.accuracy.alarm(), self.pace_doubt, self.prefixes.alarm())
        return "; ".join(filter(None, doubts))

    def _merge(self, note: NodeLoad) -> NodeLoad:
        if not self._unnoted and not self._promised:
            return note
        ours = len(self._unnoted) + len(self._promised)
        blocks, tokens, prompts = self._unnoted_blocks, self._unnoted_tokens, self._unnoted_prompt_tokens
        for _, sent in self._promised:
            blocks += sent.prompt_blocks
            tokens += sent.tokens
            prompts += sent.prompt_tokens
        return NodeLoad(
            node_id=note.node_id,
            trace_seq=note.trace_seq,
            state_age_s=note.state_age_s,
            running=note.running,
            waiting=note.waiting + ours,
            free_blocks=note.free_blocks,
            total_blocks=note.total_blocks,
            waiting_prompt_blocks=note.waiting_prompt_blocks + blocks,
            unprocessed_tokens=note.unprocessed_tokens + tokens,
            preemptions_total=note.preemptions_total,
            reserved=note.reserved + ours,
            prefill_tokens=note.prefill_tokens + prompts,
            preemption_ahead_s=note.preemption_ahead_s,
            head_waits_s=note.head_waits_s,
            classes=note.classes,
            trusted=note.trusted,
        )

    def _placed(self, now_s: float) -> None:
        recent = self._recent
        while recent and recent[0] <= now_s - QPM_WINDOW_S:
            recent.popleft()
        recent.append(now_s)
        self._changed = True
        self.kept_until_s = -math.inf

    def _count(self, sent: InFlight, by: int) -> None:
        if request_class := sent.request_class:
            own = self._own_classes
            own[request_class] = own.get(request_class, 0) + by
            if not own[request_class]:
                del own[request_class]
            self._reckon_classes()

    def _reckon_classes(self) -> None:
        own, told = self._own_classes, {} if self.note is None else self.note.classes
        self.kept_until_s = -math.inf
        self.classes = {name: max(own.get(name, 0), told.get(name, 0)) for name in {**told, **own}}

    def _subtract(self, sent: InFlight) -> None:
        self._unnoted_blocks -= sent.prompt_blocks
        self._unnoted_tokens -= sent.tokens
        self._unnoted_prompt_tokens -= sent.prompt_tokens

    def _forget(self) -> None:
        self.note = None
        self._reckon_classes()
        self.adapters = None
        self.told_pace = self.pace = None
        self.kept_until_s = -math.inf
        self.pace_doubt = ""
        self._merged = None
        self._unnoted.clear()
        self._unnoted_blocks = 0
        self._unnoted_tokens = 0
        self._unnoted_prompt_tokens = 0
        self._promised.clear()
        self.liveness = Liveness()
        self._changed = False
