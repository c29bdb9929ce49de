"""What waits to be sent to one node: frames in the order in which the gateway asked for it."""

from __future__ import annotations

from collections import deque

from protos.v1 import astrolabe_predict_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb

MAX_PROMPT_TOKENS_PER_FRAME = 200_000
"""A frame is closed beyond this many prompt tokens: at up to 5 bytes each it stays below gRPC's usual 4 MB limit."""
TOKEN_BYTES = 5
BODY_PART_BYTES = 256 * 1024
"""Most of a call's body that travels in one frame."""

Body = bytes | bytearray


class Outbox:
    """Merges what comes up between two writes into one frame, as far as the order allows.

    A node applies a frame's aborts first, then its dispatches, then its asks. So an abort of a request that the same
    frame dispatches must go into the next one; an ask may fall behind a later dispatch, which it is glad to see.

    Long bodies of calls go in frames of their own, the calls in turns, and only while nothing else waits.
    """

    def __init__(self) -> None:
        self._frames: deque[pb.GatewayFrame] = deque()
        self._open_dispatches: set[str] = set()
        self._open_prompt_tokens = 0
        self._bodies: dict[str, tuple[Body, int]] = {}
        """By call, the body and how much of it has been sent; the next one first."""

    def __bool__(self) -> bool:
        return bool(self._frames or self._bodies)

    def __len__(self) -> int:
        """Frames that wait, bodies left out."""
        return len(self._frames)

    def hello(self, gateway_id: str) -> None:
        self._open().hello.gateway_id = gateway_id

    def abort(self, request_id: str) -> None:
        self.drop_body(request_id)
        if request_id in self._open_dispatches:
            self._next()
        self._open().abort_request_ids.append(request_id)

    def dispatch(self, dispatched: pb.Dispatched) -> None:
        forwards = dispatched.WhichOneof("work") == "forward"
        work = dispatched.forward if forwards else dispatched.request
        prompt_tokens = (
            len(dispatched.forward.body) // TOKEN_BYTES if forwards else len(dispatched.request.prompt_token_ids)
        )
        if self._open_dispatches and self._open_prompt_tokens + prompt_tokens > MAX_PROMPT_TOKENS_PER_FRAME:
            self._next()
        self._open().dispatches.append(dispatched)
        self._open_dispatches.add(work.request_id)
        self._open_prompt_tokens += prompt_tokens

    def body(self, request_id: str, body: Body, sent_bytes: int) -> None:
        """What a call's dispatch lacks of its body: all after the first `sent_bytes`."""
        if sent_bytes < len(body):
            self._bodies[request_id] = (body, sent_bytes)

    def drop_body(self, request_id: str) -> None:
        """Nobody wants the rest."""
        self._bodies.pop(request_id, None)

    def consumed(self, request_id: str, data_bytes: int) -> None:
        self._open().consumed.append(pb.Consumed(request_id=request_id, bytes=data_bytes))

    def ask(self, ask_id: int, candidate: types_pb.Candidate) -> None:
        self._open().asks.append(pb.Ask(ask_id=ask_id, candidate=candidate))

    def ping(self, number: int) -> None:
        self._open().ping = number

    def pop(self) -> pb.GatewayFrame:
        """The oldest frame. Raises IndexError when empty."""
        if not self._frames and self._bodies:
            return self._body_part()
        frame = self._frames.popleft()
        if not self._frames:
            self._forget()
        return frame

    def _body_part(self) -> pb.GatewayFrame:
        request_id, (body, sent_bytes) = next(iter(self._bodies.items()))
        del self._bodies[request_id]
        end = min(sent_bytes + BODY_PART_BYTES, len(body))
        self.body(request_id, body, end)
        part = pb.BodyPart(request_id=request_id, data=bytes(memoryview(body)[sent_bytes:end]))
        return pb.GatewayFrame(body_parts=[part])

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
