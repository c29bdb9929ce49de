"""Envoy's external processing on the wire: what is read of its messages, and the answers to them.

Names of headers and metadata are those of the endpoint picker protocol of the Gateway API's inference extension:
https://github.com/kubernetes-sigs/gateway-api-inference-extension/tree/main/docs/proposals/004-endpoint-picker-protocol
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec
from google.protobuf import struct_pb2

from protos.v1 import envoy_external_processor_pb2 as pb

DESTINATION = "x-gateway-destination-endpoint"
"""Header, and key in the metadata of `DESTINATION_SPACE`: host:port of the engine to go to."""
DESTINATION_SPACE = "envoy.lb"
SUBSET = "x-gateway-destination-endpoint-subset"
"""Key in the metadata of `SUBSET_SPACE`: the only engines to choose from."""
SUBSET_SPACE = "envoy.lb.subset_hint"
CODE_DETAILS = "response.code_details"
"""Attribute of an answer: who gave it."""
VIA_UPSTREAM = "via_upstream"
"""What it says of an engine's own answer."""
PIECE_BYTES = 60 * 1024
"""Envoy takes no more of a body in one message."""

Mode = pb.ProcessingMode.BodySendMode
WHOLE = pb.ProcessingMode.BUFFERED
HANDED_OVER = pb.ProcessingMode.FULL_DUPLEX_STREAMED
UNSEEN = pb.ProcessingMode.NONE


class ProxiedHead(msgspec.Struct, frozen=True, kw_only=True):
    """The head of a client's request as a proxy has it."""

    method: str
    target: str
    """Path and query."""
    headers: Mapping[str, str]
    """By lower-case name; of one that comes twice the last value."""


class Modes(msgspec.Struct, frozen=True):
    """How the proxy shows bodies. One that does not say hands them over, as the protocol wants it."""

    request: pb.ProcessingMode.BodySendMode.ValueType = HANDED_OVER
    response: pb.ProcessingMode.BodySendMode.ValueType = HANDED_OVER


# --- what the proxy says ----------------------------------------------------------------------------------------------


def modes_of(message: pb.ProtocolConfiguration) -> Modes:
    return Modes(message.request_body_mode, message.response_body_mode)


def mode_name(mode: pb.ProcessingMode.BodySendMode.ValueType) -> str:
    """As Envoy's configuration has it."""
    return pb.ProcessingMode.BodySendMode.Name(mode)


def request_head(message: pb.HttpHeaders) -> ProxiedHead:
    lines = header_lines(message)
    named = dict(lines)
    return ProxiedHead(
        method=named.get(":method", ""),
        target=named.get(":path", ""),
        headers={name: value for name, value in lines if not name.startswith(":")},
    )


def header_lines(message: pb.HttpHeaders) -> tuple[tuple[str, str], ...]:
    """All headers in their order, those of HTTP/2's own (`:path`, `:status`) included."""
    return tuple((line.key.lower(), line.value or line.raw_value.decode("latin-1")) for line in message.headers.headers)


def subset_of(message: pb.Metadata) -> tuple[str, ...] | None:
    """The only endpoints to choose from, which may be none at all; None: the proxy does not say."""
    told = message.filter_metadata.get(SUBSET_SPACE)
    if told is None or SUBSET not in told.fields:
        return None
    value = told.fields[SUBSET]
    if value.WhichOneof("kind") == "list_value":
        names = [entry.string_value for entry in value.list_value.values]
    else:
        names = value.string_value.split(",")
    return tuple(name for name in map(str.strip, names) if name)


def code_details(message: pb.ProcessingRequest) -> str:
    """Who gave the answer; empty: the proxy was not asked for it."""
    for attributes in message.attributes.values():
        if CODE_DETAILS in attributes.fields:
            return attributes.fields[CODE_DETAILS].string_value
    return ""


# --- what it is answered ----------------------------------------------------------------------------------------------


def go_on() -> pb.CommonResponse:
    """Nothing changes."""
    return pb.CommonResponse()


def to_endpoint(address: str, headers: Mapping[str, str], without: Sequence[str]) -> pb.CommonResponse:
    """The request goes to that engine, with `headers` set and others taken away."""
    return pb.CommonResponse(
        header_mutation=_mutation({DESTINATION: address, **headers}, without), clear_route_cache=True
    )


def noted(address: str) -> struct_pb2.Struct:
    """The same for the proxy's load balancer."""
    metadata = struct_pb2.Struct()
    metadata.update({DESTINATION_SPACE: {DESTINATION: address}})
    return metadata


def answered_with(headers: Mapping[str, str]) -> pb.CommonResponse:
    """The engine's answer goes on with these headers set."""
    return pb.CommonResponse(header_mutation=_mutation(headers))


def handed_back(data: bytes, *, is_last: bool) -> Iterator[pb.CommonResponse]:
    """A body that was handed over, piece by piece."""
    begin = 0
    while begin < len(data) or (is_last and begin == 0):
        piece, begin = data[begin : begin + PIECE_BYTES], begin + PIECE_BYTES
        streamed = pb.StreamedBodyResponse(body=piece, end_of_stream=is_last and begin >= len(data))
        yield pb.CommonResponse(body_mutation=pb.BodyMutation(streamed_response=streamed))


def to_request_head(response: pb.CommonResponse, metadata: struct_pb2.Struct | None = None) -> pb.ProcessingResponse:
    return pb.ProcessingResponse(request_headers=pb.HeadersResponse(response=response), dynamic_metadata=metadata)


def to_request_body(response: pb.CommonResponse, metadata: struct_pb2.Struct | None = None) -> pb.ProcessingResponse:
    return pb.ProcessingResponse(request_body=pb.BodyResponse(response=response), dynamic_metadata=metadata)


def to_request_trailers() -> pb.ProcessingResponse:
    return pb.ProcessingResponse(request_trailers=pb.TrailersResponse())


def to_response_head(response: pb.CommonResponse) -> pb.ProcessingResponse:
    return pb.ProcessingResponse(response_headers=pb.HeadersResponse(response=response))


def to_response_body(response: pb.CommonResponse) -> pb.ProcessingResponse:
    return pb.ProcessingResponse(response_body=pb.BodyResponse(response=response))


def to_response_trailers() -> pb.ProcessingResponse:
    return pb.ProcessingResponse(response_trailers=pb.TrailersResponse())


def refused(status: int, headers: Mapping[str, str], body: bytes, *, label: str) -> pb.ProcessingResponse:
    """The client gets this instead of an engine's answer; `label` is for the proxy's log."""
    return pb.ProcessingResponse(
        immediate_response=pb.ImmediateResponse(
            status=pb.HttpStatus(code=status), headers=_mutation(headers), body=body, details=f"astrolabe_{label}"
        )
    )


def _mutation(headers: Mapping[str, str], without: Sequence[str] = ()) -> pb.HeaderMutation:
    return pb.HeaderMutation(
        set_headers=[
            pb.HeaderValueOption(
                header=pb.HeaderValue(key=name, raw_value=value.encode("latin-1", errors="replace")),
                append_action=pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
            )
            for name, value in headers.items()
        ],
        remove_headers=without,
    )
