"""One try at one node, and the round of forecasts before it. Pure data.

A request usually has one attempt. It has another when its node fails it or is emptied, and may have two at once: one
that streams, and one that makes ready to take over.
"""

from __future__ import annotations

import msgspec

from gateway.core.events import RequestShape
from gateway.core.nodes.accuracy import ExpectedTimes
from gateway.core.nodes.node import Node
from simcore.types import Decision, Forecast


class Attempt(msgspec.Struct, kw_only=True, eq=False):
    """What one node was asked, what it forecast, and what came."""

    number: int
    """1 for the first of its request, 2 for the second, ..."""
    node: Node
    asked: RequestShape
    """After a resume the prompt holds the tokens so far."""
    decision: Decision
    dispatched_s: float
    expected: ExpectedTimes | None = None
    """What the node forecast when it was chosen; None when it did not."""
    pace_compared: bool = False
    """Whether the pace of its tokens has been compared with that."""
    output_tokens: int = 0
    """Output tokens that came of this attempt."""
    first_token_s: float | None = None
    """When its first token came; None: not yet, or with all others at once."""
    served_s: float | None = None
    """When its answer was whole."""
    is_stage: bool = False
    """It only makes ready for a move (`migration`): none of its tokens are the answer's."""
    is_at_node: bool = True
    """Whether its node has it: then it holds a place in the node's account."""


class ForecastRound(msgspec.Struct, kw_only=True, eq=False):
    """The questions of one placement, until all are answered or time is up."""

    timer_id: int
    nodes: list[Node]
    """All candidates, those that were not asked because their predictors are silent included."""
    pending: dict[int, str]
    """Node per question that has not been answered."""
    asked_seq: dict[str, int]
    """Per node, our last dispatch to it when it was asked: its answer counts those up to there."""
    forecasts: dict[str, Forecast] = {}
    failures: dict[str, str] = {}
    """Why a node gave none."""
