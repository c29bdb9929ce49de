"""A gateway that is given no nodes and finds them: links come and go with what its sources say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from protos.v1 import astrolabe_dispatch_pb2 as pb
from tests.conformance.source_rigs import FileRig
from tests.e2e.in_process import configured, running, status, until
from tests.e2e.scripted_node import ScriptedNode

pytestmark = pytest.mark.e2e


def write(path: Path, *nodes: ScriptedNode) -> None:
    draft = path.with_name("draft")
    draft.write_text("# nodes\n" + "".join(f"{node.address}\n" for node in nodes))
    draft.replace(path)


async def test_nodes_come_and_go_with_a_file(node: ScriptedNode, other: ScriptedNode, tmp_path: Path) -> None:
    rig = FileRig(tmp_path)
    async with running(discovery_files=[str(rig.path)]) as (gateway, stub):
        write(rig.path, node)
        await until(lambda: status(gateway, "n") == "up")
        place = pb.PlaceRequest(prompt_tokens=5, max_output_tokens=5)
        assert (await stub.Place(place)).node_id == "n"
        write(rig.path, other)
        await until(lambda: (status(gateway, "n"), status(gateway, "o")) == ("absent", "up"))
        rig.fail()
        assert (await stub.Place(place)).node_id == "o"


async def test_a_reload_takes_sources_over(node: ScriptedNode, tmp_path: Path) -> None:
    file = tmp_path / "nodes"
    write(file, node)
    async with running() as (gateway, _):
        options: dict[str, Any] = {"discovery_files": [str(file)]}
        gateway.reload(configured(**options))
        await until(lambda: status(gateway, "n") == "up")
        gateway.reload(configured())
        await until(lambda: status(gateway, "n") == "absent")
