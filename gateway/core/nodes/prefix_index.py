"""What one node's prefix cache holds, as far as a gateway can know it. Pure.

Where the node tells it (`simcore.cache_summary`), that is the truth, whoever sent the prompts: it is used, with the
prompts of ours that are on their way and not in it yet. What a node tells is checked by what its engine then finds
(`over`): a summary that claims hits which do not come is not used any more, until its claims hold again. Of a node that
tells nothing, or is not believed, this gateway's own account of what it sent there stands in.

Names chain, so a name that is known means that all before it are, too: searches are bisections.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence

import msgspec

from simcore.cache_summary import LOW_HALF, MOST_NAMES, MOST_ONE_IN, CacheSummary
from simcore.types import EngineConfig

MOST_OWN_BLOCKS = 16_384
"""Names in the own account at most (about 2 MB), however many blocks the node has."""
SETTLE_S = 0.1
"""How long after a request's first token a summary may come that does not count its prompt yet."""
LINGER_S = 2.0
"""A prompt that was computed so long ago is in the summary, or no summary was needed: it was cached before."""
ASK_AGAIN_S = 1.0
"""Least time between two summaries that lead nowhere after which the whole is asked for."""
MOST_BAD = 5
"""Such summaries in a row of which operators are told."""
MOST_AHEAD = 32
"""Of more prompts on their way that begin alike, the last so many are looked at."""
CLAIMS = 8
"""Claims checked before a summary is disbelieved."""
CLAIMS_MEMORY = 16
"""Claims over which is averaged, exponentially."""
DISBELIEVED = 0.5
BELIEVED = 0.75
"""Share of the claimed blocks that the engine must find for the summary to be believed again."""
CLAIM_HOLDS_S = 5.0
"""Of a request that waited longer for its first token nothing is concluded: what was there may have gone meanwhile."""


class _Sent(msgspec.Struct, gc=False):
    """A prompt of ours at the node."""

    names: Sequence[int]
    claimed_blocks: int
    """Of its blocks, those that were in the node's summary when it went there."""
    sent_s: float
    computed_s: float | None = None
    is_over: bool = False


class PrefixIndex:
    """One node's cache. Bounded whatever the node tells: by MOST_NAMES and MOST_OWN_BLOCKS names, and by what of our
    requests is there."""

    def __init__(self) -> None:
        self._told: set[int] | None = None
        """By the node's own word; None: it has told nothing, or something that makes no sense."""
        self._one_in = 1
        self._number = 0
        self._bad = 0
        self._asked_s = -math.inf
        self._sent: dict[str, _Sent] = {}
        """Prompts that the summary may not count yet, by request id, oldest first."""
        self._ahead: dict[int, dict[str, Sequence[int]]] = {}
        """Names of these, by the first of them and request id."""
        self._own: OrderedDict[int, None] = OrderedDict()
        """Names of blocks that went there, oldest first."""
        self._found = 1.0
        self._checked = 0
        self._is_believed = True

    # --- what the node tells ------------------------------------------------------------------------------------------

    def hear(self, summary: CacheSummary | None, now_s: float) -> bool:
        """Takes in a summary; None: one that cannot be read. True: it leads nowhere, and the whole is to be asked for.

        After a gap or a summary that contradicts itself nothing is known until the whole comes.
        """
        if summary is not None and self._apply(summary):
            self._bad = 0
            for request_id in [i for i, sent in self._sent.items() if _is_counted(sent, now_s)]:
                self._drop(request_id)
            return False
        self._told = None
        self._bad += 1
        if now_s - self._asked_s < ASK_AGAIN_S:
            return False
        self._asked_s = now_s
        return True

    def session_ended(self) -> None:
        """What the node told does not hold any more, nor does what was sent there in that session."""
        self._told, self._bad, self._asked_s = None, 0, -math.inf
        self._sent.clear()
        self._ahead.clear()

    @property
    def is_told(self) -> bool:
        """Whether the node's own word is used."""
        return self._told is not None and self._is_believed

    @property
    def told_blocks(self) -> int | None:
        """About how many blocks are cached by the node's own word; None while that is not used."""
        return len(self._told) * self._one_in if self._told is not None and self._is_believed else None

    def alarm(self) -> str:
        """What is wrong with the summary, for operators; empty when all is well."""
        if self._bad >= MOST_BAD:
            return "its summary of the prefix cache makes no sense and is not used"
        if self._is_believed:
            return ""
        return f"of the cached blocks that it claims its engine finds {self._found:.0%}: not used"

    # --- what this gateway sends --------------------------------------------------------------------------------------

    def sent(self, request_id: str | None, names: Sequence[int], config: EngineConfig, now_s: float) -> None:
        """A prompt with these blocks goes to the node: they will be there. None: by other means than ours, so that its
        course is not heard of."""
        if not names:
            return
        for late in [i for i, sent in self._sent.items() if sent.computed_s and now_s - sent.computed_s > LINGER_S]:
            self._drop(late)
        if self._told is not None and request_id is not None:
            self._drop(request_id)
            self._sent[request_id] = _Sent(names=names, claimed_blocks=self._told_blocks(names), sent_s=now_s)
            self._ahead.setdefault(names[0], {})[request_id] = names
        if not self.is_told:
            self._remember(names, config)

    def computed(self, request_id: str, now_s: float) -> None:
        """Its first token has come: all of the prompt is cached."""
        sent = self._sent.get(request_id)
        if sent is not None and sent.computed_s is None:
            sent.computed_s = now_s

    def over(self, request_id: str, found_blocks: int | None = None) -> None:
        """The request has left the node; its engine found so many blocks of the prompt cached (None: not known)."""
        sent = self._sent.get(request_id)
        if sent is None or sent.is_over:
            return
        sent.is_over = True
        if sent.computed_s is None:
            self._drop(request_id)
        elif found_blocks is not None and sent.claimed_blocks and sent.computed_s - sent.sent_s <= CLAIM_HOLDS_S:
            self._check(min(1.0, found_blocks / sent.claimed_blocks))

    # --- what follows -------------------------------------------------------------------------------------------------

    def cached_blocks(self, names: Sequence[int]) -> int:
        """How many blocks of a prompt's beginning are there, or will be when those of ours ahead of it are computed. At
        least: where the node tells only some of its blocks, up to the last of those."""
        if not names:
            return 0
        if not self.is_told:
            return _beginning(len(names), lambda i: names[i] in self._own)
        blocks = self._told_blocks(names)
        ahead = self._ahead.get(names[0])
        if ahead is not None:
            for other in itertools.islice(reversed(ahead.values()), MOST_AHEAD):
                blocks = _common(names, other, blocks)
        return blocks

    # --- inside -------------------------------------------------------------------------------------------------------

    def _apply(self, summary: CacheSummary) -> bool:
        one_in = summary.one_in
        if summary.unknown:
            self._told, self._number = None, summary.number
            return summary.whole
        if not 0 < one_in <= MOST_ONE_IN or one_in & (one_in - 1):
            return False
        if summary.whole:
            told = set(summary.stored)
            if len(told) != summary.names or len(told) > MOST_NAMES or summary.evicted or not _are_names(told):
                return False
            self._told, self._one_in, self._number = told, one_in, summary.number
            return True
        known = self._told
        if known is None or summary.number != self._number + 1 or one_in != self._one_in:
            return False
        if len(summary.stored) > MOST_NAMES or not _are_names(summary.stored):
            return False
        known.difference_update(summary.evicted)
        known.update(summary.stored)
        self._number = summary.number
        return len(known) == summary.names <= MOST_NAMES

    def _told_blocks(self, names: Sequence[int]) -> int:
        told, one_in = self._told, self._one_in
        if not told or not names:
            return 0
        # Written out: asked for every node and every prompt.
        mask, low, high = (one_in - 1) << 32, 0, len(names)
        # The first is looked up first: most nodes know nothing of most prompts.
        begin = 0
        while True:
            place = begin
            while place < high and names[place] & mask:
                place += 1
            if place < high:
                if names[place] & LOW_HALF in told:
                    low = place + 1
                else:
                    high = place
            elif begin > low:
                # None of the upper half is told.
                high = begin
            else:
                return low
            if low >= high:
                return low
            begin = (low + high) // 2

    def _remember(self, names: Sequence[int], config: EngineConfig) -> None:
        own = self._own
        # From the end, so that the beginning of a prompt is forgotten last and what is known stays a beginning.
        for name in reversed(names):
            own[name] = None
            own.move_to_end(name)
        room = min(config.num_blocks, MOST_OWN_BLOCKS)
        while len(own) > room:
            own.popitem(last=False)

    def _drop(self, request_id: str) -> None:
        sent = self._sent.pop(request_id, None)
        if sent is None:
            return
        first = sent.names[0]
        ahead = self._ahead[first]
        del ahead[request_id]
        if not ahead:
            del self._ahead[first]

    def _check(self, found: float) -> None:
        """A claim was good for this share of its blocks."""
        self._checked += 1
        self._found += (found - self._found) / min(self._checked, CLAIMS_MEMORY)
        if self._is_believed and self._checked >= CLAIMS and self._found < DISBELIEVED:
            self._is_believed = False
        elif not self._is_believed and self._found > BELIEVED:
            self._is_believed = True
            self._own.clear()


def _is_counted(sent: _Sent, now_s: float) -> bool:
    return sent.computed_s is not None and now_s - sent.computed_s >= SETTLE_S


def _are_names(names: Sequence[int] | set[int]) -> bool:
    return not names or (min(names) >= 0 and max(names) < 1 << 32)


def _common(names: Sequence[int], other: Sequence[int], least: int) -> int:
    """With how many blocks both begin, if those are more than `least`, else `least`."""
    shorter = min(len(names), len(other))
    if least >= shorter or names[least] != other[least]:
        return least
    return _beginning(shorter, lambda i: names[i] == other[i])


def _beginning(count: int, is_known: Callable[[int], bool]) -> int:
    """How many of the first `count` are known. By bisection: what is known is a beginning."""
    if not count or not is_known(0):
        return 0
    low, high = 1, count
    while low < high:
        middle = (low + high + 1) // 2
        if is_known(middle - 1):
            low = middle
        else:
            high = middle - 1
    return low
