"""A running request goes on at another node: what comes next, and what is asked of that node. Pure.

The destination computes the request's KV while the source goes on decoding, as Llumnix copies it (OSDI '24, section
4.2), but by what every engine has: a *stage* is a request for the first tokens of prompt and answer so far with one
token of output that goes to nobody, and leaves their KV in the destination's prefix cache. What the source decoded
meanwhile is the next stage, each shorter than the one before. When what is left is below `LAST_BLOCKS` blocks comes the
*cut*: at the next token of the source it is told to stop, and the destination goes on with prompt and answer so far,
which is a cache hit but for the rest. Until the cut any failure leaves the request where it is.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from gateway.core.events import RequestShape
from gateway.core.moves.config import TransferConfig
from gateway.core.nodes.node import Node
from gateway.core.nodes.pace import Pace
from gateway.core.request.attempt import Attempt
from gateway.core.request.explanation import MoveTold
from gateway.core.request.live import LiveRequest
from gateway.core.request.verdict import Chosen

LAST_BLOCKS = 2
"""What the destination computes after the cut: one step's worth whatever the length."""
CUT_WAIT_S = 0.25
"""How long the cut waits for a token of the source. One whose request stands still, preempted or queued, sends none."""


class Move(msgspec.Struct, kw_only=True, eq=False):
    """One request on its way from one node to another."""

    live: LiveRequest
    source: Attempt
    prices: TransferConfig | None = None
    """How long engines take that fetch KV from each other; None: nobody fetches."""
    inquiry: LiveRequest
    """What a destination is asked for: the rest of the request as it stood when the move began."""
    told: MoveTold
    why: str
    began_s: float
    urgent: bool
    """Its node leaves, or an operator wants it: stages are not spread over time, and the move need not pay."""
    priced: bool
    chosen: Chosen | None = None
    """Destination and decision; None while they are sought."""
    stage: Attempt | None = None
    """The stage that is at the destination now."""
    stage_tokens: int = 0
    """Prompt of that stage."""
    last_tokens: int = 0
    """What the last stage computed."""
    ready_tokens: int = 0
    """Whose KV the destination has."""
    stages: int = 0
    timer_id: int = 0
    """Until which the next stage, or the cut, waits."""
    is_ready: bool = False
    """Only the cut is left."""

    @property
    def destination(self) -> Node:
        assert self.chosen is not None, "a move that has no destination yet does not go on"
        return self.chosen.node

    @property
    def transfer(self) -> TransferConfig | None:
        """How long the destination takes to fetch the KV from the source; None: it computes it."""
        return self.prices if self.source.node.config.kv_source and self.destination.config.kv_source else None

    @property
    def tokens(self) -> int:
        """Prompt and answer so far."""
        return self.live.request.prompt_tokens + self.live.output_tokens

    @property
    def stageable(self) -> bool:
        """Whether stages would leave anything at the destination that the rest would find."""
        return self.destination.config.enable_prefix_caching and self.live.shape.lane == "tokens"


class ComputeStage(NamedTuple):
    """The destination computes the KV of the first `tokens`."""

    tokens: int


class Cut(NamedTuple):
    """The destination has all but the last blocks: it goes on from here."""


def next_step(move: Move) -> ComputeStage | Cut:
    """What comes when the destination has been found, and after each stage.

    A stage of a move that is not urgent takes the destination about as long as one of its decoding steps, so nobody
    there waits longer for a token than two of them.
    """
    transfer = move.transfer
    if not move.live.output_tokens or not move.stageable or (transfer is not None and not transfer.overlap):
        return Cut()
    node = move.destination
    block = node.config.block_size_tokens
    rest = move.tokens - move.ready_tokens
    if rest < LAST_BLOCKS * block:
        return Cut()
    if move.urgent and 0 < move.last_tokens <= rest <= _slice_tokens(node):
        # Stages do not get shorter any more, and what is left takes a step.
        return Cut()
    if move.urgent or transfer is not None:
        return ComputeStage(move.tokens)
    slice_tokens = _slice_tokens(node)
    if rest <= slice_tokens:
        return ComputeStage(move.tokens)
    return ComputeStage((move.ready_tokens + slice_tokens) // block * block)


def staged(move: Move) -> None:
    """A stage is done: its whole blocks are in the destination's cache."""
    block = move.destination.config.block_size_tokens
    move.last_tokens = move.stage_tokens - move.ready_tokens
    move.ready_tokens = max(move.ready_tokens, move.stage_tokens // block * block)
    move.stage = None


def stage_time_s(move: Move, tokens: int) -> float | None:
    """What a stage of the first `tokens` takes of the destination's time beyond those that are ready; None where its
    pace is not known, and 0 where others need not be spared it."""
    if move.urgent or move.transfer is not None:
        return 0.0
    pace = move.destination.pace
    if pace is None:
        return None
    fresh = tokens - move.ready_tokens
    return fresh * pace.prefill_s_per_token + fresh * (move.ready_tokens + fresh / 2) * pace.prefill_s_per_token2


def stage_cost_s(move: Move, took_s: float) -> float:
    """What the stage that has just ended has cost the destination.

    A small piece of a prompt costs more than its part of a long one. A stage that is one waits for half a step of those
    who are there, then takes one with them: what it took beyond that counts, if it is more than its tokens should take.
    """
    told_s, pace = stage_time_s(move, move.stage_tokens), move.destination.pace
    if told_s is None or pace is None:
        return took_s if told_s is None else told_s
    return min(took_s, max(told_s, took_s - 1.5 * _step_s(move.destination, pace))) if told_s else 0.0


def stage_shape(shape: RequestShape, tokens: int) -> RequestShape:
    """A stage as the destination is asked for it."""
    return msgspec.structs.replace(shape, prompt_tokens=tokens, max_output_tokens=1)


def _slice_tokens(node: Node) -> int:
    """Tokens of a prompt that take a node about as long as one of its steps, in whole blocks."""
    block, most = node.config.block_size_tokens, node.config.max_num_batched_tokens
    pace = node.pace
    if pace is None or pace.prefill_s_per_token <= 0.0:
        return block
    tokens = _step_s(node, pace) / pace.prefill_s_per_token
    return max(1, int(min(tokens, most)) // block) * block


def _step_s(node: Node, pace: Pace) -> float:
    """A step of those who are at the node."""
    running = 1 if node.note is None else max(1, min(node.note.running, pace.seats))
    return pace.step_s[running]
