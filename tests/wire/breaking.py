"""What a change of the `.proto` files breaks for a peer of the release before: two contracts in, words out."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

TypeName = FieldDescriptorProto.Type.Name
LabelName = FieldDescriptorProto.Label.Name


def breaking_changes(before: FileDescriptorSet, now: FileDescriptorSet) -> list[str]:
    """One line for each; empty if both sides still understand each other, and people's JSON with them."""
    found: list[str] = []
    messages, enums, services = _messages(now), _enums(now), _services(now)
    for name, message in _messages(before).items():
        found += [f"{name} is gone"] if name not in messages else _of_message(name, message, messages[name])
    for name, enum in _enums(before).items():
        found += [f"{name} is gone"] if name not in enums else _of_enum(name, enum, enums[name])
    for name, service in _services(before).items():
        found += [f"{name} is gone"] if name not in services else _of_service(name, service, services[name])
    return found


def _of_message(name: str, before: DescriptorProto, now: DescriptorProto) -> Iterator[str]:
    fields = {field.number: field for field in now.field}
    held = _numbers(now)
    for old in before.field:
        where = f"{name}.{old.name} = {old.number}"
        new = fields.get(old.number)
        if new is None:
            if old.number not in held or old.name not in now.reserved_name:
                yield f'{where} is gone and not reserved; write: reserved {old.number}; reserved "{old.name}";'
        elif new.name != old.name:
            yield f"{where} is {new.name} now: its number has another meaning, or JSON has lost its name"
        elif _kind(old, before) != _kind(new, now):
            yield f"{where} was {_kind(old, before)}, is {_kind(new, now)}"
    for number in sorted(_numbers(before)):
        if number in fields:
            yield f"{name}.{fields[number].name} = {number} uses a number that was reserved"
        elif number not in held:
            yield f"{name}: number {number} is not reserved any more"


def _of_enum(name: str, before: EnumDescriptorProto, now: EnumDescriptorProto) -> Iterator[str]:
    names = {value.number: value.name for value in now.value}
    held = {n for one in now.reserved_range for n in range(one.start, one.end + 1)}
    for value in before.value:
        if names.get(value.number) != value.name and not (value.number not in names and value.number in held):
            yield f"{name}: {value.name} = {value.number} is {names.get(value.number, 'gone and not reserved')}"


def _of_service(name: str, before: ServiceDescriptorProto, now: ServiceDescriptorProto) -> Iterator[str]:
    methods = {method.name: method for method in now.method}
    for old in before.method:
        new = methods.get(old.name)
        if new is None:
            yield f"{name}.{old.name} is gone"
            continue
        for what in ("input_type", "output_type", "client_streaming", "server_streaming"):
            if getattr(old, what) != getattr(new, what):
                yield f"{name}.{old.name}: {what} was {getattr(old, what)}, is {getattr(new, what)}"


def _kind(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    """All of a field that decides how its bytes are read, and whether its absence can be told."""
    one_of = ""
    if field.HasField("oneof_index") and not field.proto3_optional:
        one_of = f" of oneof {message.oneof_decl[field.oneof_index].name}"
    label = "optional" if field.proto3_optional else LabelName(field.label).removeprefix("LABEL_").lower()
    kind = field.type_name.lstrip(".") or TypeName(field.type).removeprefix("TYPE_").lower()
    return f"{label} {kind}{one_of}"


def _numbers(message: DescriptorProto) -> set[int]:
    """Those that nobody may use again."""
    return {n for one in message.reserved_range for n in range(one.start, one.end)}


def _messages(files: FileDescriptorSet) -> dict[str, DescriptorProto]:
    def below(prefix: str, message: DescriptorProto) -> Iterator[tuple[str, DescriptorProto]]:
        name = f"{prefix}.{message.name}"
        yield name, message
        for nested in message.nested_type:
            yield from below(name, nested)

    return dict(found for file in files.file for message in file.message_type for found in below(file.package, message))


def _enums(files: FileDescriptorSet) -> dict[str, EnumDescriptorProto]:
    nested = {f"{name}.{e.name}": e for name, message in _messages(files).items() for e in message.enum_type}
    return {f"{file.package}.{enum.name}": enum for file in files.file for enum in file.enum_type} | nested


def _services(files: FileDescriptorSet) -> dict[str, ServiceDescriptorProto]:
    return {f"{file.package}.{service.name}": service for file in files.file for service in file.service}
