"""One client's request while it is ours: what it asked, what has come for it, how it ended.

The pump writes, one servicer call reads. Tokens that the reader has not taken yet merge into one list, so a slow reader
costs memory by the token, never by the message, and the pump ends it at a limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gateway.core.events import RequestShape
from protos.v1 import astrolabe_types_pb2 as pb
from simcore.types import Decision, Outcome


class ClientStream:
    """Mutable; lives from `Arrived` to `Finish`. Times are on the pump's clock, in seconds."""

    __slots__ = (
        "_waiter",
        "arrived_s",
        "decided_s",
        "decision",
        "detail",
        "expelled",
        "finished_s",
        "first_token_s",
        "node_id",
        "outcome",
        "output_tokens",
        "pending",
        "prompt_token_ids",
        "sampling",
        "shape",
        "usage",
    )

    def __init__(
        self,
        shape: RequestShape,
        *,
        prompt_token_ids: Sequence[int] = (),
        sampling: pb.SamplingParams | None = None,
    ) -> None:
        self.shape = shape
        self.prompt_token_ids = prompt_token_ids
        self.sampling = sampling if sampling is not None else pb.SamplingParams()
        self.arrived_s = 0.0
        self.decision: Decision | None = None
        """The last one."""
        self.decided_s: float | None = None
        """When it was carried out; the decision's own `decision_s` ends where the router began to choose."""
        self.node_id = ""
        """Where it was sent last; empty before the first dispatch."""
        self.pending: list[int] = []
        """Token ids that the reader has not taken."""
        self.output_tokens = 0
        self.first_token_s: float | None = None
        self.finished_s: float | None = None
        self.usage: pb.Usage | None = None
        self.outcome: Outcome | None = None
        """Set once: how it ended."""
        self.detail = ""
        self.expelled: tuple[Outcome, str] | None = None
        """The end that the gateway itself has chosen, while the router lets go of the request."""
        self._waiter: asyncio.Future[None] | None = None

    def put(self, token_ids: Sequence[int], now_s: float) -> None:
        """New tokens from the node."""
        if self.first_token_s is None:
            self.first_token_s = now_s
        self.output_tokens += len(token_ids)
        self.pending.extend(token_ids)
        self._wake()

    @property
    def decision_s(self) -> float | None:
        """Seconds from arrival to the (last) placement, all work included; None before it."""
        return None if self.decided_s is None else self.decided_s - self.arrived_s

    def placed(self, decision: Decision, now_s: float) -> None:
        self.decision = decision
        self.decided_s = now_s
        self.node_id = decision.node_id

    def end(self, outcome: Outcome, detail: str, now_s: float) -> None:
        """The one end. Raises AssertionError when it has ended before."""
        assert self.outcome is None, f"{self.shape.request_id} ended twice: {self.outcome}, then {outcome}"
        self.outcome, self.detail = self.expelled or (outcome, detail)
        self.finished_s = now_s
        self._wake()

    def take(self) -> list[int]:
        """Hands the waiting token ids over."""
        taken, self.pending = self.pending, []
        return taken

    async def changed(self) -> None:
        """Returns when there are tokens to take or the end has come; at once if so already. One reader only."""
        if self.pending or self.outcome is not None:
            return
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def final_usage(self) -> pb.Usage:
        """The node's count, or our own when the node has given none."""
        if self.usage is not None:
            return self.usage
        return pb.Usage(prompt_tokens=self.shape.prompt_tokens, output_tokens=self.output_tokens)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
