"""What waits to be sent to one node: frames in the order in which the gateway asked for it."""

from __future__ import annotations

from collections import deque

from protos.v1 import astrolabe_predict_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb

MAX_PROMPT_TOKENS_PER_FRAME = 200_000
"""A frame is closed beyond this many prompt tokens: at up to 5 bytes each it stays below gRPC's usual 4 MB limit."""


class Outbox:
    """Merges what comes up between two writes into one frame, as far as the order allows.

    A node applies a frame's aborts first, then its dispatches, then its asks. So an abort of a request that the same
    frame dispatches must go into the next one; an ask may fall behind a later dispatch, which it is glad to see.
    """

    def __init__(self) -> None:
        self._frames: deque[pb.GatewayFrame] = deque()
        self._open_dispatches: set[str] = set()
        self._open_prompt_tokens = 0

    def __bool__(self) -> bool:
        return bool(self._frames)

    def __len__(self) -> int:
        return len(self._frames)

    def hello(self, gateway_id: str) -> None:
        self._open().hello.gateway_id = gateway_id

    def abort(self, request_id: str) -> None:
        if request_id in self._open_dispatches:
            self._next()
        self._open().abort_request_ids.append(request_id)

    def dispatch(self, dispatched: pb.Dispatched) -> None:
        prompt_tokens = len(dispatched.request.prompt_token_ids)
        if self._open_dispatches and self._open_prompt_tokens + prompt_tokens > MAX_PROMPT_TOKENS_PER_FRAME:
            self._next()
        self._open().dispatches.append(dispatched)
        self._open_dispatches.add(dispatched.request.request_id)
        self._open_prompt_tokens += prompt_tokens

    def ask(self, ask_id: int, candidate: types_pb.Candidate) -> None:
        self._open().asks.append(pb.Ask(ask_id=ask_id, candidate=candidate))

    def ping(self, number: int) -> None:
        self._open().ping = number

    def pop(self) -> pb.GatewayFrame:
        """The oldest frame. Raises IndexError when empty."""
        frame = self._frames.popleft()
        if not self._frames:
            self._forget()
        return frame

    def _open(self) -> pb.GatewayFrame:
        if not self._frames:
            self._frames.append(pb.GatewayFrame())
        return self._frames[-1]

    def _next(self) -> None:
        self._frames.append(pb.GatewayFrame())
        self._forget()

    def _forget(self) -> None:
        self._open_dispatches.clear()
        self._open_prompt_tokens = 0
