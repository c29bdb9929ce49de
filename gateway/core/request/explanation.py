"""What was decided about a request and what became of it: kept for a while, for people who ask. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

from gateway.core.events import Lane
from simcore.types import Decision, LengthBelief, Outcome

MoveCause = Literal["leaving", "operator", "rule"]
"""Who wanted a move: its node leaves, an operator, the rule of moving."""
MoveOutcome = Literal["under_way", "moved", "no_room", "does_not_pay", "too_slow", "node_failed", "ended"]
"""What became of it. All but the first two: given up, and the request stayed where it was, or had ended."""


class MoveTold(msgspec.Struct, kw_only=True, gc=False):
    """One move of a request, filled in as it goes on."""

    source: str
    destination: str = ""
    """Empty while it is sought, and where none was found."""
    cause: MoveCause
    why: str
    """For people."""
    after_s: float
    """From the request's arrival to the beginning of the move."""
    outcome: MoveOutcome = "under_way"
    detail: str = ""
    """Why it was given up, for people."""
    took_s: float | None = None
    """From its beginning until the destination went on or it was given up; None while it is under way."""
    stages: int = 0
    """Times that the destination was asked for the KV of a part."""
    stage_tokens: int = 0
    """Whose KV these computed there, at most."""
    tokens: int = 0
    """Prompt and answer so far when the destination went on."""
    found_tokens: int | None = None
    """Those of them that the destination found in its cache then; None where it does not tell, or not yet."""
    gap_s: float | None = None
    """From that moment to the destination's first token: what the client waited. None before it."""


class Explanation(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """All placements of one request and its real course."""

    request_id: str
    decisions: tuple[Decision, ...]
    """One per attempt, in order; empty when it was refused."""
    prompt_tokens: int
    belief: LengthBelief | None = None
    """Belief of the answer's length; of what is left of it when another node goes on with it."""
    belief_source: str = ""
    lane: Lane = "tokens"
    """How it went to its engine."""
    prompt_counted_by: str = ""
    """Who counted `prompt_tokens`, as `RequestShape` says it."""
    found_tokens: int = 0
    """Of the prompt, found in the prefix cache of the node that answered, as far as that tells."""
    output_tokens: int = 0
    """Tokens that came so far."""
    outcome: Outcome | None = None
    """None while it runs, and for a decision that somebody else carries out."""
    detail: str = ""
    ttft_s: float | None = None
    """From arrival to the first token; None if there was none."""
    e2e_s: float | None = None
    """From arrival to the end; None while it runs."""
    queued_after_s: float | None = None
    """From arrival until it first joined the gateway's queue; None: it never did."""
    moves: tuple[MoveTold, ...] = ()
    """From one node to another while it ran, in order; the latest `MOVES_KEPT`, and of equal ones the last."""


MOVES_KEPT = 16
KEEP_BYTES = 48 * 2**20
"""Most memory for explanations, whatever their number. With 12 forecasts each, some 10,000 fit."""


class ExplanationLog:
    """The last `keep` explanations, packed: a decision over twelve forecasts is a thousand objects otherwise."""

    def __init__(self, keep: int, keep_bytes: int = KEEP_BYTES) -> None:
        self.keeps = keep > 0
        """Whether it keeps any."""
        self._keep = keep
        self._keep_bytes = keep_bytes
        self._bytes = 0
        self._packed: dict[str, bytes] = {}
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Explanation)

    def add(self, explanation: Explanation) -> None:
        """Keeps it; the oldest go when there are too many. A reused id replaces its predecessor."""
        if not self.keeps:
            return
        self._drop(explanation.request_id)
        packed = self._encoder.encode(explanation)
        self._packed[explanation.request_id] = packed
        self._bytes += len(packed)
        while len(self._packed) > self._keep or self._bytes > self._keep_bytes:
            self._drop(next(iter(self._packed)))

    def get(self, request_id: str) -> Explanation | None:
        packed = self._packed.get(request_id)
        return None if packed is None else self._decoder.decode(packed)

    def _drop(self, request_id: str) -> None:
        packed = self._packed.pop(request_id, None)
        if packed is not None:
            self._bytes -= len(packed)
