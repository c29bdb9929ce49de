"""One HTTP request of a proxy, from its head to the end of its answer: where it goes, and what is seen of it.

The proxy says each part of it in turn and waits for the answers, so this hears one message at a time and says what is
to be answered. Its place in the node's account begins with the decision and ends with the engine's answer, or when the
proxy leaves (`close`).
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
from google.protobuf import struct_pb2

from engine_adapters.answer_tokens import AnswerTokens
from engine_adapters.vllm.request_ids import engine_request_id
from gateway.core.outcomes import CODES, DENIALS, Denial
from gateway.ext_proc import wire
from gateway.http.delivery import JSON, retry_after
from gateway.http.errors import error_body
from gateway.intake.call_facts import facts_of, said_in_headers
from gateway.intake.call_paths import CallTarget, may_be_handed_on, target_of
from gateway.intake.callers import KeyRing, require, said_key
from gateway.intake.client_stream import ClientStream
from gateway.intake.denied import Denied
from gateway.intake.submission import Intake
from gateway.nodes.registry import NodeRegistry
from protos.answer_status import outcome_of_status
from protos.v1 import envoy_external_processor_pb2 as pb
from simcore.types import Outcome

log = structlog.get_logger("gateway.ext_proc")

UNNAMED_PATH = "/responses"
"""Calls that vLLM names by an id of its own, whatever their X-Request-Id."""
KEY_HEADERS = ("authorization", "x-api-key")
"""Keys are the gateway's own, and no engine's business."""

Replies = list[pb.ProcessingResponse]


class ProxiedCall:
    """From its first message to `close`."""

    def __init__(self, intake: Intake, nodes: NodeRegistry, keys: KeyRing, *, max_body_bytes: int) -> None:
        self._intake = intake
        self._nodes = nodes
        self._keys = keys
        self._max_body_bytes = max_body_bytes
        self._modes = wire.Modes()
        self._head = wire.ProxiedHead(method="", target="", headers={})
        self._target: CallTarget = target_of("")
        self._endpoints: tuple[str, ...] | None = None
        self._body = bytearray()
        self._stream: ClientStream | None = None
        self._is_decided = False
        """Whether the proxy has been told where to go, or that there is nowhere."""
        self._status = 0
        self._code_details = ""
        self._counts: AnswerTokens | None = None

    async def hear(self, message: pb.ProcessingRequest) -> Replies:
        """What is to be answered, in this order."""
        if message.HasField("protocol_config"):
            self._modes = wire.modes_of(message.protocol_config)
        match message.WhichOneof("request"):
            case "request_headers":
                self._endpoints = wire.subset_of(message.metadata_context)
                return await self._on_request_head(message.request_headers)
            case "request_body":
                return await self._on_request_body(message.request_body)
            case "request_trailers":
                return await self._on_request_trailers()
            case "response_headers":
                self._code_details = wire.code_details(message)
                return self._on_response_head(message.response_headers)
            case "response_body":
                return self._on_response_body(message.response_body)
            case "response_trailers":
                self._ended()
                return [wire.to_response_trailers()]
            case _:
                return []

    def close(self) -> None:
        """The proxy says no more. What has not ended is over: its client has left."""
        if self._stream is not None:
            self._intake.close(self._stream)

    # --- the request --------------------------------------------------------------------------------------------------

    async def _on_request_head(self, message: pb.HttpHeaders) -> Replies:
        self._head = wire.request_head(message)
        self._target = target_of(self._head.target)
        if message.end_of_stream:
            return await self._decide(wire.to_request_head)
        if self._modes.request == wire.HANDED_OVER:
            # The head waits for the body, which says what is asked.
            return []
        if self._modes.request == wire.WHOLE:
            return [wire.to_request_head(wire.go_on())]
        mode = wire.mode_name(self._modes.request)
        log.error("the proxy does not show requests whole", request_body_mode=mode)
        text = f"the proxy's request_body_mode is {mode}; set it to FULL_DUPLEX_STREAMED or BUFFERED"
        return self._refuse(Outcome.INTERNAL, text)

    async def _on_request_body(self, message: pb.HttpBody) -> Replies:
        if self._is_decided:
            return []
        self._body += message.body
        if len(self._body) > self._max_body_bytes:
            what = f"the body exceeds {self._max_body_bytes} bytes (max_call_bytes)"
            return self._deny(Denied(Denial.TOO_LARGE, what))
        if self._modes.request == wire.WHOLE:
            return await self._decide(wire.to_request_body)
        return await self._hand_over(is_last=True) if message.end_of_stream else []

    async def _on_request_trailers(self) -> Replies:
        if self._is_decided:
            return [wire.to_request_trailers()] if self._stream is not None else []
        replies = await self._hand_over(is_last=False)
        return [*replies, wire.to_request_trailers()] if self._stream is not None else replies

    async def _hand_over(self, *, is_last: bool) -> Replies:
        """The decision, and the body back; `is_last`: nothing follows it."""
        replies = await self._decide(wire.to_request_head)
        if self._stream is not None:
            replies += [wire.to_request_body(piece) for piece in wire.handed_back(bytes(self._body), is_last=is_last)]
        self._body.clear()
        return replies

    async def _decide(self, answer: Callable[[pb.CommonResponse, struct_pb2.Struct], pb.ProcessingResponse]) -> Replies:
        self._is_decided = True
        try:
            stream = await self._placed()
        except Denied as denied:
            return self._deny(denied)
        if stream.outcome is not None:
            return self._refuse(stream.outcome, stream.detail, retry_after_s=stream.retry_after_s)
        address = self._nodes.engine_address(stream.node_id)
        if not address:
            return self._refuse(Outcome.NO_NODE, f"node {stream.node_id} went away when it was chosen")
        self._stream = stream
        # By this name the node's trace knows it.
        named = {"x-request-id": engine_request_id(stream.wire_id)}
        without = KEY_HEADERS if self._keys.asks_for_keys else ()
        return [answer(wire.to_endpoint(address, named, without), wire.noted(address))]

    async def _placed(self) -> ClientStream:
        """The request with its node, or with its end if it has none. Raises Denied."""
        head, target = self._head, self._target
        caller = self._keys.identify(said_key(head.headers))
        require(caller, "client")
        if not target.is_canonical or not may_be_handed_on(target.path):
            raise Denied(Denial.UNKNOWN, f"{target.path[:100]} is not for clients; ask the node itself")
        facts = facts_of(target.kind, head.headers, self._body)
        said_in_headers(head.headers, facts)
        stream = await self._intake.place_call(
            facts, caller, endpoints=self._endpoints, is_unnamed=target.path.endswith(UNNAMED_PATH)
        )
        try:
            await stream.decided()
        except BaseException:
            self._intake.close(stream)
            raise
        if stream.outcome is not None:
            self._intake.close(stream)
        return stream

    def _deny(self, denied: Denied) -> Replies:
        self._intake.on_denial(denied.denial)
        return self._refuse(denied.denial, str(denied), param=denied.param, retry_after_s=denied.retry_after_s)

    def _refuse(
        self, why: Outcome | Denial, detail: str, *, param: str = "", retry_after_s: float | None = None
    ) -> Replies:
        self._is_decided = True
        codes = CODES[why] if isinstance(why, Outcome) else DENIALS[why]
        headers = {"content-type": JSON}
        if codes.http in (429, 503):
            headers["retry-after"] = retry_after(retry_after_s)
        if why is Denial.NO_KEY:
            headers["www-authenticate"] = "Bearer"
        body = error_body(self._target.path, why, detail, param)
        return [wire.refused(codes.http, headers, body, label=why.value)]

    # --- the answer ---------------------------------------------------------------------------------------------------

    def _on_response_head(self, message: pb.HttpHeaders) -> Replies:
        lines = wire.header_lines(message)
        status = dict(lines).get(":status", "")
        self._status = int(status) if status.isdecimal() else 0
        self._counts = AnswerTokens(self._target.written(), lines)
        stream = self._stream
        if message.end_of_stream or self._modes.response == wire.UNSEEN:
            self._ended()
        if stream is None:
            return [wire.to_response_head(wire.go_on())]
        told = {"x-astrolabe-node": stream.node_id, "x-request-id": stream.shape.request_id}
        return [wire.to_response_head(wire.answered_with(told))]

    def _on_response_body(self, message: pb.HttpBody) -> Replies:
        if self._stream is not None and self._counts is not None:
            tokens = self._counts.add(message.body)
            if tokens:
                self._intake.seen(self._stream, tokens, is_streamed=self._counts.is_stream)
        if message.end_of_stream:
            self._ended()
        if self._modes.response != wire.HANDED_OVER:
            return [wire.to_response_body(wire.go_on())]
        pieces = wire.handed_back(message.body, is_last=message.end_of_stream)
        return [wire.to_response_body(piece) for piece in pieces]

    def _ended(self) -> None:
        """The answer is whole."""
        stream, counts = self._stream, self._counts
        if stream is None or counts is None:
            return
        if self._code_details not in ("", wire.VIA_UPSTREAM):
            # No engine has said that.
            detail = f"the proxy got no answer of the engine: {self._code_details}"
            self._intake.seen_end(stream, Outcome.ENGINE_FAILED, detail=detail)
            return
        outcome = outcome_of_status(self._status)
        detail = "" if outcome is Outcome.STOP else f"the engine's server answers {self._status}"
        if outcome is Outcome.STOP and counts.at_limit:
            outcome = Outcome.LENGTH
        self._intake.seen_end(stream, outcome, cached_tokens=counts.usage().cached_tokens, detail=detail)
