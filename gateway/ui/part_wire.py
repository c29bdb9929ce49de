"""A worker's part of the page on the wire, both ways. What pages get as JSON goes as JSON."""

from __future__ import annotations

import msgspec
import orjson

from gateway.ui.part import NodePart, PagePart
from gateway.ui.timeline import FIELDS, Sample
from protos.v1 import astrolabe_workers_pb2 as pb

_ZEROS = dict.fromkeys(FIELDS[: -len(Sample.__struct_defaults__)], 0)
"""What messages leave out of a sample; the rest of it is None then."""


def part_to_wire(part: PagePart) -> pb.WorkerPart:
    """Of the scaling only what the worker that leads it has to say."""
    return pb.WorkerPart(
        nodes=[
            pb.WorkersNode(
                address=address,
                in_flight=node.in_flight,
                moves_out=node.out,
                moves_in=node.into,
                is_away=bool(node.away),
                alarm=node.alarm,
            )
            for address, node in part.nodes.items()
        ],
        under_way=part.under_way,
        held=part.held,
        wait_s=part.wait_s,
        moves=part.moves,
        samples=[pb.WorkersSample(**msgspec.structs.asdict(sample)) for sample in part.samples],
        lines=[orjson.dumps(line, default=str) for line in part.lines],
        skipped_lines=part.skipped_lines,
        scaling=orjson.dumps(part.scaling) if part.leads else b"",
    )


def part_from_wire(told: pb.WorkerPart) -> PagePart:
    return PagePart(
        nodes={
            node.address: NodePart(node.in_flight, node.moves_out, node.moves_in, int(node.is_away), node.alarm)
            for node in told.nodes
        },
        under_way=told.under_way,
        held=told.held,
        wait_s=told.wait_s,
        moves=told.moves,
        samples=tuple(_sample(sample) for sample in told.samples),
        lines=tuple(orjson.loads(line) for line in told.lines),
        skipped_lines=told.skipped_lines,
        scaling=orjson.loads(told.scaling) if told.scaling else None,
    )


def _sample(told: pb.WorkersSample) -> Sample:
    return Sample(**{**_ZEROS, **{field.name: value for field, value in told.ListFields()}})
