"""Today's code reads what earlier releases have said, all of it, and the contract breaks nothing of theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet

from protos.runtime.protocol import NUMBER, OLDEST
from tests.wire.breaking import breaking_changes
from tests.wire.filled import add_unknown_fields
from tests.wire.recorded import CONTRACT, FOLDER, SESSION, contract, load, meaning, read, releases

RELEASES = releases()


def test_there_is_something_to_hold_today_s_code_against() -> None:
    assert RELEASES
    assert OLDEST <= NUMBER


@pytest.mark.parametrize("release", RELEASES)
def test_every_recorded_message_means_what_it_meant(release: str) -> None:
    rows = load(release)
    assert {row.method for row in rows} >= {SESSION, "/astrolabe.v1.Dispatch/Generate"}
    wrong = [row for row in rows if meaning(read(row.method, row.way, row.raw)) != row.meaning]
    assert [(row.method, row.way, row.call) for row in wrong] == []


@pytest.mark.parametrize("release", RELEASES)
def test_fields_of_a_newer_release_change_nothing(release: str) -> None:
    for row in load(release):
        message = read(row.method, row.way, row.raw)
        add_unknown_fields(message)
        newer = message.SerializeToString()
        assert len(newer) > len(row.raw)
        assert meaning(read(row.method, row.way, newer)) == row.meaning


@pytest.mark.parametrize("release", RELEASES)
def test_each_way_of_every_call_was_recorded_with_all_its_fields(release: str) -> None:
    """Of a call that is newer than the release there is nothing to record."""
    before = FileDescriptorSet.FromString((FOLDER / release / CONTRACT).read_bytes())
    calls = {
        f"/{file.package}.{service.name}/{method.name}"
        for file in before.file
        for service in file.service
        for method in service.method
    }
    filled = {(row.method, row.way) for row in load(release) if row.call == 0}
    assert filled == {(call, way) for call in calls for way in ("request", "response")}


@pytest.mark.parametrize("release", RELEASES)
def test_the_contract_breaks_nothing_of_earlier_releases(release: str) -> None:
    before = FileDescriptorSet.FromString((FOLDER / release / CONTRACT).read_bytes())
    assert breaking_changes(before, contract()) == []


def hello(files: FileDescriptorSet) -> Any:
    return message(files, "Hello")


def message(files: FileDescriptorSet, name: str) -> Any:
    return next(m for file in files.file for m in file.message_type if m.name == name)


def field_of(of: Any, number: int) -> Any:
    (field,) = (f for f in of.field if f.number == number)
    return field


def remove(number: int, of: Any) -> None:
    of.field.remove(field_of(of, number))


def change(of: Any, which: int, **values: Any) -> None:
    field = field_of(of, which)
    for name, value in values.items():
        setattr(field, name, value)


def reserve(of: Any, number: int, name: str) -> None:
    of.reserved_range.add(start=number, end=number + 1)
    of.reserved_name.append(name)


def predict_file(files: FileDescriptorSet) -> FileDescriptorProto:
    return next(file for file in files.file if file.name.endswith("predict.proto"))


def service(files: FileDescriptorSet) -> Any:
    return predict_file(files).service[0]


STRING, INT = FieldDescriptorProto.TYPE_STRING, FieldDescriptorProto.TYPE_INT64
REPEATED = FieldDescriptorProto.LABEL_REPEATED


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda f: remove(1, hello(f)), "astrolabe.v1.Hello.gateway_id = 1 is gone and not reserved"),
        (lambda f: change(hello(f), 1, type=INT), "was optional string, is optional int64"),
        (lambda f: change(hello(f), 1, number=7), "gateway_id = 1 is gone and not reserved"),
        (lambda f: change(hello(f), 1, name="id"), "is id now"),
        (lambda f: change(hello(f), 1, label=REPEATED), "was optional string, is repeated string"),
        (lambda f: change(hello(f), 2, type_name=".astrolabe.v1.Ask"), "was optional astrolabe.v1.Protocol, is"),
        (lambda f: field_of(message(f, "Answer"), 3).ClearField("oneof_index"), "of oneof result, is optional string"),
        (lambda f: message(f, "DrainRequest").ClearField("reserved_range"), "number 3 is not reserved any more"),
        (
            lambda f: message(f, "DrainRequest").field.add(name="x", number=3, type=STRING),
            "DrainRequest.x = 3 uses a number that was reserved",
        ),
        (lambda f: predict_file(f).message_type.remove(hello(f)), "astrolabe.v1.Hello is gone"),
        (lambda f: predict_file(f).enum_type[0].value.pop(), "RETIREMENT_UNDO = 2 is gone and not reserved"),
        (lambda f: service(f).method.pop(), "astrolabe.v1.Predict.Session is gone"),
        (lambda f: setattr(service(f).method[0], "server_streaming", True), "Predict.Predict: server_streaming was"),
        (lambda f: predict_file(f).service.pop(), "astrolabe.v1.Predict is gone"),
    ],
)
def test_a_breaking_change_is_found(edit: Callable[[FileDescriptorSet], Any], says: str) -> None:
    changed = contract()
    edit(changed)
    (found,) = breaking_changes(contract(), changed)
    assert says in found


def test_what_grows_or_is_put_aside_in_good_order_breaks_nothing() -> None:
    changed = contract()
    hello(changed).field.add(name="colour", number=99, type=STRING)
    predict_file(changed).message_type.add(name="Newer")
    service(changed).method.add(name="Ponder", input_type=".astrolabe.v1.Hello", output_type=".astrolabe.v1.Hello")
    remove(1, hello(changed))
    reserve(hello(changed), 1, "gateway_id")
    assert breaking_changes(contract(), changed) == []
