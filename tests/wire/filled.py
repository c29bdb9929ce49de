"""Messages with every field set: what a run of some minutes does not say is in the contract too."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

WHOLE = frozenset(
    {
        *(FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64),
        *(FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64),
    }
)
REAL = frozenset({FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE})
UNKNOWN = b"\xfa\xff\x07\x06newest"
"""Field 16383 of any message, the bytes `newest`: what only a newer release knows."""


def fill(message: Message, variant: int = 0) -> None:
    """Sets every field, below too, to values that differ by field; of a oneof the one that `variant` says."""
    fields: Any = message.DESCRIPTOR.fields
    for field in fields:
        choice = field.containing_oneof
        if choice is not None and choice.fields[variant % len(choice.fields)] is not field:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
            getattr(message, field.name)[_scalar(key)] = _scalar(value)
        elif field.message_type is not None:
            below = getattr(message, field.name)
            fill(below.add() if field.is_repeated else below, variant)
            if not field.is_repeated:
                below.SetInParent()
        elif field.is_repeated:
            getattr(message, field.name).extend([_scalar(field), _scalar(field, 1)])
        else:
            setattr(message, field.name, _scalar(field))


def variants(descriptor: Descriptor) -> int:
    """How many messages show every alternative of every oneof, however deep."""
    seen: set[str] = set()

    def most(one: Descriptor) -> int:
        if one.full_name in seen:
            return 1
        seen.add(one.full_name)
        own = [len(choice.fields) for choice in one.oneofs]
        return max([1, *own, *(most(f.message_type) for f in one.fields if f.message_type is not None)])

    return most(descriptor)


def add_unknown_fields(message: Message) -> None:
    """To it and to all messages below: as a newer release sends it."""
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for one in value if field.is_repeated else [value]:
            add_unknown_fields(one)
    message.MergeFromString(UNKNOWN)


def _scalar(field: FieldDescriptor, more: int = 0) -> Any:
    number = field.number + more
    if field.enum_type is not None:
        values = field.enum_type.values
        return values[1 + number % (len(values) - 1)].number
    if field.cpp_type in WHOLE:
        return 100 + number
    if field.cpp_type in REAL:
        return number + 0.5
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return True
    return f"{field.name} {number}".encode() if field.type == FieldDescriptor.TYPE_BYTES else f"{field.name} {number}"
