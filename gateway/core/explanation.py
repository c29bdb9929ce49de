"""What was decided about a request and what became of it: kept for a while, for people who ask. Pure."""

from __future__ import annotations

import msgspec

from simcore.types import Decision, Outcome


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """All placements of one request and its real course."""

    request_id: str
    decisions: tuple[Decision, ...]
    """One per attempt, in order; empty when it was refused."""
    prompt_tokens: int
    output_tokens: int = 0
    """Tokens that came so far."""
    outcome: Outcome | None = None
    """None while it runs, and for a decision that somebody else carries out."""
    detail: str = ""
    ttft_s: float | None = None
    """From arrival to the first token; None if there was none."""
    e2e_s: float | None = None
    """From arrival to the end; None while it runs."""


class ExplanationLog:
    """The last `keep` explanations, packed: a decision over twelve forecasts is a thousand objects otherwise."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._packed: dict[str, bytes] = {}
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Explanation)

    def add(self, explanation: Explanation) -> None:
        """Keeps it; the oldest goes when there are too many. A reused id replaces its predecessor."""
        if self._keep <= 0:
            return
        packed = self._packed
        packed.pop(explanation.request_id, None)
        if len(packed) >= self._keep:
            del packed[next(iter(packed))]
        packed[explanation.request_id] = self._encoder.encode(explanation)

    def get(self, request_id: str) -> Explanation | None:
        packed = self._packed.get(request_id)
        return None if packed is None else self._decoder.decode(packed)
