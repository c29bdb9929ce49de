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


class _Upload:
    """A body on its way."""

    __slots__ = ("body", "sent_bytes", "taken_bytes")

    def __init__(self, body: Body, sent_bytes: int) -> None:
        self.body = body
        self.sent_bytes = sent_bytes
        self.taken_bytes = 0


class Outbox:
    """Merges what comes up between two writes into one frame, as far as the order allows.

    A node applies a frame's aborts first, then its dispatches, then its asks. So an abort of a request that the same
    frame dispatches must go into the next one; an ask may fall behind a later dispatch, which it is glad to see.

    Long bodies of calls go in frames of their own, the calls in turns, and only while nothing else waits. Of each so
    much is sent ahead of what its engine has read as the node allows.
    """

    def __init__(self) -> None:
        self.body_window_bytes = 0
        """How much of a body may be sent that the node has not `taken`; 0: all of it."""
        self._frames: deque[pb.GatewayFrame] = deque()
        self._open_dispatches: set[str] = set()
        self._open_prompt_tokens = 0
        self._bodies: dict[str, _Upload] = {}
        """By call, what may be sent now; the next one first."""
        self._waiting: dict[str, _Upload] = {}
        """By call, what its engine must read of first."""

    def __bool__(self) -> bool:
        return bool(self._frames or self._bodies)

    def __len__(self) -> int:
        """Frames that wait, bodies left out."""
        return len(self._frames)

    def hello(self, gateway_id: str, protocol: pb.Protocol) -> None:
        hello = self._open().hello
        hello.gateway_id = gateway_id
        hello.protocol.CopyFrom(protocol)

    def abort(self, request_id: str) -> None:
        self.drop_body(request_id)
        if request_id in self._open_dispatches:
            self._next()
        self._open().abort_request_ids.append(request_id)

    def dispatch(self, dispatched: pb.Dispatched) -> None:
        match dispatched.WhichOneof("work"):
            case "forward":
                request_id = dispatched.forward.request_id
                prompt_tokens = len(dispatched.forward.body) // TOKEN_BYTES
            case "announced":
                request_id, prompt_tokens = dispatched.announced.candidate.request_id, 0
            case _:
                request_id = dispatched.request.request_id
                prompt_tokens = len(dispatched.request.prompt_token_ids)
        if self._open_dispatches and self._open_prompt_tokens + prompt_tokens > MAX_PROMPT_TOKENS_PER_FRAME:
            self._next()
        self._open().dispatches.append(dispatched)
        self._open_dispatches.add(request_id)
        self._open_prompt_tokens += prompt_tokens

    def body(self, request_id: str, body: Body, sent_bytes: int) -> None:
        """What a call's dispatch lacks of its body: all after the first `sent_bytes`."""
        if sent_bytes < len(body):
            self._send_on(request_id, _Upload(body, sent_bytes))

    def drop_body(self, request_id: str) -> None:
        """Nobody wants the rest."""
        self._bodies.pop(request_id, None)
        self._waiting.pop(request_id, None)

    def taken(self, request_id: str, size_bytes: int) -> None:
        """So much more of a body is not held at the node any more."""
        upload = self._waiting.pop(request_id, None)
        if upload is not None:
            upload.taken_bytes += size_bytes
            self._send_on(request_id, upload)
        elif request_id in self._bodies:
            self._bodies[request_id].taken_bytes += size_bytes

    def consumed(self, request_id: str, data_bytes: int) -> None:
        self._open().consumed.append(pb.Consumed(request_id=request_id, bytes=data_bytes))

    def ask(self, ask_id: int, candidate: types_pb.Candidate) -> None:
        self._open().asks.append(pb.Ask(ask_id=ask_id, candidate=candidate))

    def expected(self, work: pb.ExpectedWork) -> None:
        """The last word counts."""
        self._open().expected_work.CopyFrom(work)

    def tell_cache(self) -> None:
        self._open().tell_cache = True

    def retire(self, undo: bool) -> None:
        """The last word counts."""
        self._open().retire = pb.RETIREMENT_UNDO if undo else pb.RETIREMENT_RETIRE

    def lease(self, ask: pb.LeaseAsk) -> None:
        """A frame brings one: of two the later."""
        self._open().lease.CopyFrom(ask)

    def news(self, news: pb.ScalingNews) -> None:
        """A frame brings one, and each is heard."""
        if self._open().HasField("news"):
            self._next()
        self._open().news.CopyFrom(news)

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
        request_id, upload = next(iter(self._bodies.items()))
        del self._bodies[request_id]
        begin = upload.sent_bytes
        upload.sent_bytes = end = min(begin + BODY_PART_BYTES, len(upload.body))
        if end < len(upload.body):
            self._send_on(request_id, upload)
        part = pb.BodyPart(request_id=request_id, data=bytes(memoryview(upload.body)[begin:end]))
        return pb.GatewayFrame(body_parts=[part])

    def _send_on(self, request_id: str, upload: _Upload) -> None:
        window_bytes = self.body_window_bytes
        is_full = window_bytes and upload.sent_bytes - upload.taken_bytes >= window_bytes
        (self._waiting if is_full else self._bodies)[request_id] = upload

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
