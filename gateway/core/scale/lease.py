"""Which of several gateways scales: the one that holds the leases of most nodes. Pure; the keeper's half is
`predictor/core/lease.py`.

A gateway asks every node of its configuration that is up for that node's lease, and asks again every third of its
duration. It leads while it has those of more than half of the nodes that are up and can vote, and counts a lease from
when it asked and `MARGIN` shorter than the node does: so it stops to lead before any of them can be another's. Of two
that block each other the one with fewer leases gives its own back, of equals the one with the later name. A node that
has begun lately may have granted a lease before and votes after one duration only; one who leads already gets it at
once, so that nodes that come up change nothing. Where no node is up to be asked everybody leads.

Two may lead at once: when they see different nodes up (a split network), when no node is up, and never for another
reason. What that can do at worst, and why it does no harm:

- *Nothing is started twice.* Names are determined: the first free numbers of a group. Two that want one more want the
  same one, and a connector that is asked again for a node that starts or serves does nothing. They may see different
  lists, and then start different names: no more than `max` by either's list, and what each has under way.
- *Nothing in use is stopped.* A node is stopped after it has said itself that it retires and is empty, which no gateway
  can undo (`predictor/core/leaving.py`): whoever gave the order, and however late it is carried out. Retired by one and
  taken back by another it may be, while it has requests; that costs nothing but a change of mind.
- *One that is not up is not one that nobody uses.* Gateways tell nodes which nodes they have, and nodes tell the others
  (`elsewhere`): such a node is left alone. Beyond that, where several gateways are, one that has served is stopped only
  if its connector says that something is wrong with it, and nothing is that has not come up while the leader reaches no
  node at all (`ScaleEvent` `LeadershipSet.alone`).

What is left: a node that has come up in a part of the network which shares no node with the leader's, which never came
up for the leader, and which is given up after three times what a start takes. Its requests end with its daemon and go
on at other nodes.
"""

from __future__ import annotations

import math
from collections import Counter

import msgspec

MARGIN = 0.1
"""By what share a gateway counts a lease shorter than its node: clocks that run at different speeds, and then some."""
ROUNDS = 3
"""Asks per duration."""


class LeaseQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be sent to a node now; the fields are those of `predictor.core.lease.LeaseAsk`."""

    node_id: str
    number: int
    wants: bool
    leads: bool


class _Vote(msgspec.Struct, kw_only=True):
    """One node that is up."""

    is_known: bool = False
    """It has answered in this session."""
    until_s: float = -math.inf
    """Until when its lease is ours."""
    waits_until_s: float = -math.inf
    """Until when it does not vote."""
    holder: str = ""
    """As it said last."""
    given_back: int = 0
    """The last number by which its lease was given back."""
    sent_s: dict[int, float] = {}
    """When what is not answered yet was asked."""
    elsewhere: tuple[str, ...] = ()
    elsewhere_s: float = -math.inf
    others: int = 0
    """Other gateways that ask it."""


class LeaseSeeker:
    """One gateway's half. `gateway` is a name that no other run of any gateway's process has."""

    def __init__(self, gateway: str, ttl_s: float, now_s: float) -> None:
        self.gateway = gateway
        self.ttl_s = ttl_s
        self._begun_s = now_s
        self._term = 0
        self._led = False
        self._number = 0
        self._votes: dict[str, _Vote] = {}
        self._none_since_s = now_s
        """Since when no node that is up has answered."""
        self._round_s = -math.inf

    def node_up(self, node_id: str) -> None:
        """A session with it has begun; nothing of it counts before it has answered."""
        self._votes[node_id] = _Vote()
        self._round_s = -math.inf

    def node_down(self, node_id: str, now_s: float) -> None:
        """The session is over."""
        self.term(now_s)
        had_any = self._is_any_known()
        self._votes.pop(node_id, None)
        if had_any and not self._is_any_known():
            self._none_since_s = now_s

    def leads(self, now_s: float) -> bool:
        """Whether this gateway decides now. One that has just begun has not heard of all nodes yet."""
        if now_s - self._begun_s < self.ttl_s:
            return False
        known = [vote for vote in self._votes.values() if vote.is_known]
        if not known:
            return now_s - self._none_since_s >= self.ttl_s
        voters = [vote for vote in known if now_s >= vote.waits_until_s or now_s < vote.until_s]
        return 2 * sum(now_s < vote.until_s for vote in voters) > len(voters)

    def term(self, now_s: float) -> int:
        """The number of this gateway's present leadership, 0 while it does not lead. Another number means that it has
        not led in between, though nobody may have looked then: a process that stood still, for one."""
        leads = self.leads(now_s)
        if leads and not self._led:
            self._term += 1
        self._led = leads
        return self._term if leads else 0

    def elsewhere(self, now_s: float) -> set[str]:
        """Nodes that are up for other gateways and not for this one."""
        return {
            node_id
            for vote in self._votes.values()
            if now_s - vote.elsewhere_s <= self.ttl_s
            for node_id in vote.elsewhere
        } - self._votes.keys()

    def messenger(self, now_s: float) -> str:
        """The node over which other gateways hear of this one: the first that they ask too, if there is one that the
        leader has. Empty: there is none."""
        holders = {
            node_id: self._holder(vote, now_s) for node_id, vote in self._votes.items() if vote.is_known and vote.others
        }
        if not holders:
            return ""
        counts = Counter(holder for holder in holders.values() if holder)
        leader = min(counts, key=lambda gateway: (-counts[gateway], gateway), default="")
        return min(node_id for node_id, holder in holders.items() if not leader or holder == leader)

    def due_s(self) -> float:
        """When `questions` has something to say."""
        return self._round_s + self.ttl_s / ROUNDS

    def questions(self, now_s: float, *, leaves: bool = False) -> list[LeaseQuestion]:
        """What is to be asked now; nothing before `due_s`. `leaves`: all is given back, at once."""
        if now_s < self.due_s() and not leaves:
            return []
        self.term(now_s)
        self._round_s = now_s
        leads = self.leads(now_s) and not leaves
        wants = (leads or self._is_first(now_s)) and not leaves
        return [self._question(node_id, vote, wants, leads, now_s) for node_id, vote in self._votes.items()]

    def heard(
        self,
        node_id: str,
        number: int,
        *,
        granted: bool,
        holder: str,
        waits_s: float,
        elsewhere: tuple[str, ...],
        others: int = 0,
        now_s: float,
    ) -> None:
        """A node's answer. Those to questions of an earlier session, or answered already, count for nothing."""
        vote = self._votes.get(node_id)
        if vote is None or (sent_s := vote.sent_s.pop(number, None)) is None:
            return
        # Before this answer may hide that it has not led for a while.
        self.term(now_s)
        vote.is_known = True
        vote.sent_s = {later: at_s for later, at_s in vote.sent_s.items() if later > number}
        vote.holder = holder
        # Counted from the question, so that it ends here before it ends there.
        vote.waits_until_s = sent_s + (1.0 - MARGIN) * waits_s if waits_s > 0.0 else -math.inf
        vote.elsewhere, vote.elsewhere_s, vote.others = elsewhere, now_s, others
        if granted and number > vote.given_back:
            vote.until_s = sent_s + (1.0 - MARGIN) * self.ttl_s
        else:
            vote.until_s = -math.inf

    def _question(self, node_id: str, vote: _Vote, wants: bool, leads: bool, now_s: float) -> LeaseQuestion:
        self._number += 1
        vote.sent_s[self._number] = now_s
        if not wants:
            vote.given_back, vote.until_s = self._number, -math.inf
        return LeaseQuestion(node_id=node_id, number=self._number, wants=wants, leads=leads)

    def _is_first(self, now_s: float) -> bool:
        """Whether nobody has more leases, or as many and an earlier name."""
        counts = {self.gateway: 0}
        for vote in self._votes.values():
            holder = self._holder(vote, now_s)
            if holder:
                counts[holder] = counts.get(holder, 0) + 1
        return min(counts, key=lambda gateway: (-counts[gateway], gateway)) == self.gateway

    def _holder(self, vote: _Vote, now_s: float) -> str:
        return self.gateway if now_s < vote.until_s else vote.holder

    def _is_any_known(self) -> bool:
        return any(vote.is_known for vote in self._votes.values())
