"""The wire form of the trace: round trips, and bytes that are no trace."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_adapters.vllm import frames
from engine_adapters.vllm.frames import HEADER, Delta, FrameError, Hello, PrefixCache, Reader, RequestRow, Snapshot
from simcore.trace import CacheDelta, Scheduled, StepBatch, TraceDelta, TraceSnapshot
from simcore.types import EngineConfig, RequestState

CONFIG = EngineConfig(model="m", engine="vllm", engine_version="0.32.0")
HELLO = Hello(frames.SCHEMA, CONFIG, 42)


def row(key: int, name: str) -> RequestRow:
    return RequestRow(key, name, 10, 2, 3, 40, 1, 5.0, 0)


SNAPSHOT = Snapshot(7, 1.5, (row(1, "a"),), (row(2, "b"),), 99, 3)
DELTA = Delta(
    8,
    1.5,
    0.25,
    (row(3, "c"),),
    (),
    (),
    frames.pack_keys(array("I", [1, 2, 3])),
    ((1, 10, 1, 4), (2, 5, 0, 0)),
    (1,),
    90,
    (15, 12.5, 2, 1, 11),
)
CACHE = PrefixCache(1, False, frames.pack_names([5, 2**64 - 1]), frames.pack_names([6]))
ODD = Delta(8, 1.5, 0.25, (), (77,), (), b"", (), (), 90, (0, 0.0, 0, 0, 0))


def read_stream(data: bytes) -> list[object]:
    """What a reader makes of a byte stream; the one allowed error is FrameError (or the stream is cut)."""
    reader = Reader()
    items: list[object] = []
    at = 0
    while at + HEADER.size <= len(data):
        length, checksum = frames.parse_header(data[at : at + HEADER.size])
        at += HEADER.size
        if at + length > len(data):
            break
        items.append(reader.read(frames.parse_payload(data[at : at + length], checksum)))
        at += length
    return items


def test_records_come_back_as_trace_records() -> None:
    stream = b"".join(frames.frame(r) for r in (HELLO, SNAPSHOT, DELTA, CACHE))
    nothing, snapshot, delta, cache = read_stream(stream)
    assert cache == CacheDelta(1, False, (5, 2**64 - 1), (6,))
    assert nothing is None
    assert isinstance(snapshot, TraceSnapshot)
    assert snapshot.config == CONFIG
    assert snapshot.waiting[0] == RequestState(
        request_id="b",
        prompt_tokens=10,
        output_tokens=2,
        computed_tokens=3,
        max_output_tokens=40,
        priority=1,
        arrival_s=5.0,
        preemptions=0,
    )
    assert isinstance(delta, TraceDelta)
    assert delta.scheduled == (Scheduled("a", 1, 1), Scheduled("b", 10, 1, 4), Scheduled("c", 5, 0))
    assert delta.finished == ("a",)
    assert delta.batch == StepBatch(15, 12.5, 2, 1, 11)


def test_a_plain_decode_of_256_requests_is_compact() -> None:
    keys = frames.pack_keys(array("I", range(1, 257)))
    delta = Delta(1, 0.0, 0.1, (), (), (), keys, (), (), 5, (0, 0.0, 0, 256, 90_000))
    assert len(frames.frame(delta)) < 4 * 256 + 100


def test_after_a_lost_delta_the_next_ones_show_the_gap_and_name_nobody() -> None:
    later = Delta(9, 2.0, 0.25, (), (77,), (), b"", (), (), 80, (0, 0.0, 0, 0, 0))
    stream = b"".join(frames.frame(r) for r in (HELLO, SNAPSHOT, later))
    delta = read_stream(stream)[-1]
    assert isinstance(delta, TraceDelta)
    assert (delta.seq, delta.aborted) == (9, ())


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ((SNAPSHOT,), "greeting"),
        ((HELLO, SNAPSHOT, ODD), "does not fit"),
        ((HELLO, SNAPSHOT, PrefixCache(1, False, b"123", b"")), "no whole names"),
        ((Hello(99, CONFIG, 1),), "schema 99"),
        ((frames.Refused("already has a daemon"),), "already has a daemon"),
    ],
)
def test_records_out_of_place_are_one_clear_error(records: tuple[frames.ToReader, ...], says: str) -> None:
    with pytest.raises(FrameError, match=says):
        read_stream(b"".join(frames.frame(r) for r in records))


def test_what_is_no_trace_is_named() -> None:
    with pytest.raises(FrameError, match="trace socket"):
        read_stream(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@given(st.data())
def test_damaged_streams_parse_or_raise_the_one_error(data: st.DataObject) -> None:
    stream = bytearray(b"".join(frames.frame(r) for r in (HELLO, SNAPSHOT, DELTA, CACHE)))
    kind = data.draw(st.sampled_from(["cut", "flip", "insert", "noise"]))
    at = data.draw(st.integers(0, len(stream) - 1))
    if kind == "cut":
        del stream[at:]
    elif kind == "flip":
        stream[at] ^= data.draw(st.integers(1, 255))
    elif kind == "insert":
        stream[at:at] = data.draw(st.binary(min_size=1, max_size=40))
    else:
        stream = bytearray(data.draw(st.binary(max_size=200)))
    try:
        items = read_stream(bytes(stream))
    except FrameError:
        return
    # Nothing wrong was taken for right: what was read is a beginning of what was sent.
    sent = read_stream(b"".join(frames.frame(r) for r in (HELLO, SNAPSHOT, DELTA, CACHE)))
    assert items == sent[: len(items)]


@given(st.binary(max_size=300))
def test_any_payload_with_a_right_checksum_parses_or_raises_the_one_error(payload: bytes) -> None:
    import zlib

    reader = Reader()
    reader.read(HELLO)
    try:
        reader.read(frames.parse_payload(payload, zlib.crc32(payload)))
    except FrameError:
        pass


@given(
    st.lists(st.integers(0, 5), max_size=8),
    st.lists(st.tuples(*[st.integers(-3, 9)] * 4), max_size=4),
    st.lists(st.integers(0, 5), max_size=3),
    st.binary(max_size=9),
)
def test_deltas_that_do_not_fit_raise_the_one_error(
    keys: list[int], entries: list[tuple[int, int, int, int]], gone: list[int], tail: bytes
) -> None:
    reader = Reader()
    reader.read(HELLO)
    reader.read(SNAPSHOT)
    packed = frames.pack_keys(array("I", keys)) + tail
    delta = Delta(8, 0, 0, (), tuple(gone), (), packed, tuple(entries), (), 1, (0, 0.0, 0, 0, 0))
    try:
        reader.read(delta)
    except FrameError:
        pass


@given(st.binary(max_size=40), st.binary(max_size=40), st.integers(), st.booleans())
def test_lists_of_block_names_come_whole_or_raise_the_one_error(
    stored: bytes, evicted: bytes, number: int, cleared: bool
) -> None:
    reader = Reader()
    reader.read(HELLO)
    try:
        read = reader.read(PrefixCache(number, cleared, stored, evicted))
    except FrameError:
        assert len(stored) % 8 or len(evicted) % 8
        return
    assert isinstance(read, CacheDelta)
    assert frames.pack_names(read.stored) == stored
    assert frames.pack_names(read.evicted) == evicted
