"""Recorded messages: the files, and what they hold."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.message import Message

from protos.v1 import astrolabe_dispatch_pb2, astrolabe_engine_pb2, astrolabe_length_pb2, astrolabe_predict_pb2
from protos.v1 import astrolabe_types_pb2 as types_pb

FOLDER = Path(__file__).parent / "recorded"
MESSAGES, CONTRACT = "messages.jsonl", "contract.binpb"
MODULES = (types_pb, astrolabe_engine_pb2, astrolabe_predict_pb2, astrolabe_dispatch_pb2, astrolabe_length_pb2)
SESSION = "/astrolabe.v1.Predict/Session"

Way = Literal["request", "response"]


class Recorded(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message as it went over the wire."""

    method: str
    """`/package.Service/Method`."""
    way: Way
    call: int
    """Calls are counted in the order in which they began; a session's frames have one number."""
    data: str
    """Its bytes, base64."""
    meaning: dict[str, Any]
    """As the release that sent it reads it: names of fields as in the contract, absent ones left out."""

    @property
    def raw(self) -> bytes:
        return base64.b64decode(self.data)


def recorded(method: str, way: Way, call: int, raw: bytes) -> Recorded:
    data = base64.b64encode(raw).decode()
    return Recorded(method, way, call, data, meaning(read(method, way, raw)))


def read(method: str, way: Way, raw: bytes) -> Message:
    """By today's stubs."""
    found = descriptor_pool.Default().FindMethodByName(method.strip("/").replace("/", "."))
    kind = message_factory.GetMessageClass(found.input_type if way == "request" else found.output_type)
    return kind.FromString(raw)


def meaning(message: Message) -> dict[str, Any]:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def contract() -> FileDescriptorSet:
    """Today's."""
    files = FileDescriptorSet()
    for module in MODULES:
        own = FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(own)
        files.file.append(own)
    return files


def releases() -> list[str]:
    """Those that are kept."""
    return sorted(path.name for path in FOLDER.iterdir() if (path / CONTRACT).is_file())


def load(release: str) -> list[Recorded]:
    lines = (FOLDER / release / MESSAGES).read_bytes()
    return msgspec.json.Decoder(Recorded).decode_lines(lines)


def write(release: str, messages: Iterable[Recorded]) -> Path:
    folder = FOLDER / release
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MESSAGES).write_bytes(msgspec.json.Encoder(order="deterministic").encode_lines(messages))
    (folder / CONTRACT).write_bytes(contract().SerializeToString(deterministic=True))
    return folder


def paths(found: Mapping[str, Any], prefix: str = "") -> frozenset[str]:
    """Which fields are there, whatever they hold."""
    names: set[str] = set()
    for name, value in found.items():
        names.add(prefix + name)
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict):
                names |= paths(one, f"{prefix}{name}.")
    return frozenset(names)
