"""Envoy's messages: what is read of them, and what they are answered with."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format, struct_pb2

from gateway.ext_proc import wire
from protos.v1 import envoy_external_processor_pb2 as pb


def headers(*lines: tuple[str, str]) -> pb.HttpHeaders:
    made = [pb.HeaderValue(key=name, raw_value=value.encode("latin-1")) for name, value in lines]
    return pb.HttpHeaders(headers=pb.HeaderMap(headers=made))


def hint(value: Any) -> pb.Metadata:
    space = struct_pb2.Struct()
    space.update({wire.SUBSET: value} if value is not None else {"other": 1})
    return pb.Metadata(filter_metadata={wire.SUBSET_SPACE: space})


def test_a_head_is_read_apart_from_what_http_2_says_of_it() -> None:
    head = wire.request_head(headers((":method", "POST"), (":path", "/v1/x?y=1"), ("X-Name", "v\xe9")))
    assert (head.method, head.target, dict(head.headers)) == ("POST", "/v1/x?y=1", {"x-name": "v\xe9"})


@pytest.mark.parametrize(
    ("value", "subset"),
    [
        (["1.2.3.4:80", " 5.6.7.8:80 "], ("1.2.3.4:80", "5.6.7.8:80")),
        ("a:1,b:2", ("a:1", "b:2")),
        ([], ()),
        (None, None),
    ],
)
def test_the_subset_hint(value: Any, subset: tuple[str, ...] | None) -> None:
    assert wire.subset_of(hint(value)) == subset


def test_without_metadata_there_is_no_subset() -> None:
    assert wire.subset_of(pb.Metadata()) is None


@pytest.mark.parametrize("size_bytes", [0, 1, wire.PIECE_BYTES, wire.PIECE_BYTES + 1, 3 * wire.PIECE_BYTES])
@pytest.mark.parametrize("is_last", [True, False])
def test_a_body_comes_back_whole_and_ends_once(size_bytes: int, is_last: bool) -> None:
    data = bytes(i % 251 for i in range(size_bytes))
    pieces = [p.body_mutation.streamed_response for p in wire.handed_back(data, is_last=is_last)]
    assert b"".join(p.body for p in pieces) == data
    assert all(len(p.body) <= wire.PIECE_BYTES for p in pieces)
    assert [p.end_of_stream for p in pieces] == [is_last and i == len(pieces) - 1 for i in range(len(pieces))]


def test_header_and_metadata_name_the_same_endpoint() -> None:
    reply = wire.to_request_head(
        wire.to_endpoint("10.0.0.1:8000", {"x-a": "b"}, ["authorization"]), wire.noted("10.0.0.1:8000")
    )
    mutation = reply.request_headers.response.header_mutation
    assert [(o.header.key, o.header.raw_value) for o in mutation.set_headers] == [
        (wire.DESTINATION, b"10.0.0.1:8000"),
        ("x-a", b"b"),
    ]
    assert list(mutation.remove_headers) == ["authorization"]
    assert json_format.MessageToDict(reply.dynamic_metadata) == {"envoy.lb": {wire.DESTINATION: "10.0.0.1:8000"}}


def test_who_gave_an_answer() -> None:
    attributes = struct_pb2.Struct()
    attributes.update({wire.CODE_DETAILS: "via_upstream"})
    assert (
        wire.code_details(pb.ProcessingRequest(attributes={"envoy.filters.http.ext_proc": attributes}))
        == "via_upstream"
    )
    assert wire.code_details(pb.ProcessingRequest()) == ""
