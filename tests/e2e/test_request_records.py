"""Requests of a run as JSON lines and as Parquet."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from bench.measure.results import RequestResult
from bench.run.files import write_request_lines
from simcore.types import Outcome

ROWS = [
    RequestResult(
        request_id="a", arrival_s=0.0, node_id="n", outcome=Outcome.STOP, prompt_tokens=3, output_tokens=4,
        ttft_s=0.1, itl_s=(0.1, 0.2),
    ),
    RequestResult(request_id="b", arrival_s=1.0, node_id="", outcome=Outcome.NO_NODE, prompt_tokens=3, output_tokens=0),
]  # fmt: skip


def test_json_lines_are_the_rows(tmp_path: Path) -> None:
    write_request_lines(tmp_path / "run", ROWS, "jsonl")
    lines = (tmp_path / "run.jsonl").read_bytes().splitlines()
    assert [msgspec.json.decode(line, type=RequestResult) for line in lines] == ROWS


def test_parquet_has_the_same_columns_and_values(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra `parquet`")
    write_request_lines(tmp_path / "run", ROWS, "parquet")
    table = parquet.read_table(tmp_path / "run.parquet")
    assert table.schema.names == list(RequestResult.__struct_fields__)
    first, second = table.to_pylist()
    assert (first["request_id"], first["outcome"], first["itl_s"], first["ttft_s"]) == ("a", "stop", [0.1, 0.2], 0.1)
    assert (second["outcome"], second["ttft_s"]) == ("no_node", None)
