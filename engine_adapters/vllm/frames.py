"""The trace on the wire: frames of MessagePack between the plugin in the engine and the probe in the daemon.

    frame   = "ASTR" | length of payload (4 bytes, little endian) | CRC-32 of payload (4 bytes) | payload
    payload = one record of this module, as an array whose first item is its tag

Records map 1:1 to those of `simcore.trace`; what makes them compact is that requests have running numbers on the wire
(`key`), given in `RequestRow` on arrival, and that a batch lists keys in four bytes each plus the few entries that are
not a plain decode. New fields are added at the end; a change of meaning raises `SCHEMA`.
"""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from collections.abc import Sequence

import msgspec

from simcore.trace import CacheDelta, Scheduled, StepBatch, TraceDelta, TraceItem, TraceSnapshot
from simcore.types import EngineConfig, RequestState

SCHEMA = 2
MAGIC = b"ASTR"
HEADER = struct.Struct("<4sII")
MAX_PAYLOAD_BYTES = 64 << 20


class FrameError(ValueError):
    """Bytes that are no trace, or a record that does not fit those before it. The connection is of no more use."""


class Attach(msgspec.Struct, frozen=True, array_like=True, tag="attach"):
    """The reader's first and only frame."""

    schema: int
    exclusive: bool
    """A daemon that places requests: an engine takes one of those, and any number of onlookers."""
    who: str = ""


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """The engine, once per connection."""

    schema: int
    config: EngineConfig
    pid: int


class Refused(msgspec.Struct, frozen=True, array_like=True, tag="refused"):
    """Instead of Hello; the connection is closed behind it."""

    reason: str


class RequestRow(msgspec.Struct, frozen=True, array_like=True):
    """`RequestState` plus its number on the wire."""

    key: int
    request_id: str
    prompt_tokens: int
    output_tokens: int
    computed_tokens: int
    max_output_tokens: int
    priority: int
    arrival_s: float
    preemptions: int
    adapter: str = ""


class Snapshot(msgspec.Struct, frozen=True, array_like=True, tag="snapshot"):
    seq: int
    at_s: float
    running: tuple[RequestRow, ...]
    waiting: tuple[RequestRow, ...]
    free_blocks: int
    preemptions_total: int


class Delta(msgspec.Struct, frozen=True, array_like=True, tag="delta"):
    seq: int
    start_s: float
    duration_s: float
    arrived: tuple[RequestRow, ...]
    aborted: tuple[int, ...]
    preempted: tuple[int, ...]
    batch_keys: bytes
    """Keys in batch order, four bytes each, little endian. Each got one token and produced one unless listed next."""
    entries: tuple[tuple[int, int, int, int], ...]
    """(index in batch, tokens, produced, cached tokens) of the others."""
    finished: tuple[int, ...]
    free_blocks: int
    batch: tuple[int, float, int, int, int]
    """The fields of `StepBatch`."""
    drafts: tuple[tuple[int, int], ...] = ()
    """(index in batch, drafts) of those that had some. Their tokens are less the drafts that were wrong."""


class PrefixCache(msgspec.Struct, frozen=True, array_like=True, tag="cache"):
    """`CacheDelta`: names of `simcore.prefix`, eight bytes each, little endian."""

    number: int
    cleared: bool
    stored: bytes
    evicted: bytes


ToReader = Hello | Refused | Snapshot | Delta | PrefixCache

_encoder = msgspec.msgpack.Encoder()
_to_reader = msgspec.msgpack.Decoder(ToReader)
_attach = msgspec.msgpack.Decoder(Attach)


def frame(record: ToReader | Attach) -> bytes:
    payload = _encoder.encode(record)
    return HEADER.pack(MAGIC, len(payload), zlib.crc32(payload)) + payload


def parse_header(header: bytes) -> tuple[int, int]:
    """Length and checksum of the payload that follows. Raises FrameError."""
    magic, length, checksum = HEADER.unpack(header)
    if magic != MAGIC:
        raise FrameError(
            f"expected a trace frame, got bytes {header[:8].hex()}: is this the trace socket of an engine?"
        )
    if length > MAX_PAYLOAD_BYTES:
        raise FrameError(f"a trace frame of {length} bytes; the most is {MAX_PAYLOAD_BYTES}")
    return length, checksum


def parse_payload(payload: bytes, checksum: int) -> ToReader:
    """Raises FrameError."""
    _check(payload, checksum)
    try:
        record: ToReader = _to_reader.decode(payload)
        return record
    except (msgspec.MsgspecError, ValueError) as error:
        raise FrameError(f"a trace frame that this version cannot read ({error}); update the older side") from None


def parse_attach(payload: bytes, checksum: int) -> Attach:
    """Raises FrameError."""
    _check(payload, checksum)
    try:
        return _attach.decode(payload)
    except (msgspec.MsgspecError, ValueError) as error:
        raise FrameError(f"a reader that says something else than `attach` ({error})") from None


def _check(payload: bytes, checksum: int) -> None:
    if zlib.crc32(payload) != checksum:
        raise FrameError(f"a trace frame of {len(payload)} bytes is damaged (checksum)")


def pack_names(names: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(names)}Q", *names)


def pack_keys(keys: array[int]) -> bytes:
    """`keys` is an array of type I."""
    if sys.byteorder == "big":
        keys = keys[:]
        keys.byteswap()
    return keys.tobytes()


class Reader:
    """Turns the frames of one connection back into trace records. Not thread-safe; one owner."""

    def __init__(self) -> None:
        self.hello: Hello | None = None
        self._ids: dict[int, str] = {}
        self._seq: int | None = None
        """Of the last record; None when one was lost since the snapshot."""

    def read(self, record: ToReader) -> TraceItem | None:
        """The trace record in a frame; None for Hello. Raises FrameError if it does not fit what came before."""
        if isinstance(record, Hello):
            if record.schema != SCHEMA:
                raise FrameError(f"the engine's trace has schema {record.schema}, this daemon reads {SCHEMA}")
            self.hello = record
            return None
        if isinstance(record, Refused):
            raise FrameError(record.reason)
        if self.hello is None:
            raise FrameError("the trace does not begin with a greeting")
        if isinstance(record, PrefixCache):
            return CacheDelta(record.number, record.cleared, _names(record.stored), _names(record.evicted))
        try:
            return self._snapshot(record) if isinstance(record, Snapshot) else self._delta(record)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise FrameError(f"trace record {record.seq} does not fit those before it ({error!r})") from None

    def _snapshot(self, record: Snapshot) -> TraceSnapshot:
        assert self.hello is not None
        self._ids = {r.key: r.request_id for r in (*record.running, *record.waiting)}
        self._seq = record.seq
        return TraceSnapshot(
            seq=record.seq,
            at_s=record.at_s,
            config=self.hello.config,
            running=tuple([_state(r) for r in record.running]),
            waiting=tuple([_state(r) for r in record.waiting]),
            free_blocks=record.free_blocks,
            preemptions_total=record.preemptions_total,
        )

    def _delta(self, record: Delta) -> TraceDelta:
        if self._seq is None or record.seq != self._seq + 1:
            # What it names may have arrived in what was lost. Its number says all that the reader needs.
            self._seq = None
            return TraceDelta(
                seq=record.seq, start_s=record.start_s, duration_s=record.duration_s, free_blocks=record.free_blocks
            )
        self._seq = record.seq
        ids = self._ids
        aborted = tuple([ids.pop(k) for k in record.aborted])
        for row in record.arrived:
            ids[row.key] = row.request_id
        keys = array("I")
        keys.frombytes(record.batch_keys)
        if sys.byteorder == "big":
            keys.byteswap()
        scheduled = [Scheduled(ids[k], 1, 1) for k in keys]
        for index, tokens, produced, cached in record.entries:
            scheduled[index] = Scheduled(scheduled[index].request_id, tokens, produced, cached)
        for index, drafts in record.drafts:
            scheduled[index] = msgspec.structs.replace(scheduled[index], drafts=drafts)
        return TraceDelta(
            seq=record.seq,
            start_s=record.start_s,
            duration_s=record.duration_s,
            arrived=tuple([_state(r) for r in record.arrived]),
            aborted=aborted,
            preempted=tuple([ids[k] for k in record.preempted]),
            scheduled=tuple(scheduled),
            finished=tuple([ids.pop(k) for k in record.finished]),
            free_blocks=record.free_blocks,
            batch=StepBatch(*record.batch),
        )


def _names(packed: bytes) -> tuple[int, ...]:
    """Raises FrameError."""
    if len(packed) % 8:
        raise FrameError(f"a list of block names of {len(packed)} bytes, which are no whole names")
    return struct.unpack(f"<{len(packed) // 8}Q", packed)


def _state(row: RequestRow) -> RequestState:
    return RequestState(
        request_id=row.request_id,
        prompt_tokens=row.prompt_tokens,
        output_tokens=row.output_tokens,
        computed_tokens=row.computed_tokens,
        max_output_tokens=row.max_output_tokens,
        priority=row.priority,
        arrival_s=row.arrival_s,
        preemptions=row.preemptions,
        adapter=row.adapter,
    )
