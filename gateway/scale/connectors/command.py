"""A program of the user's own starts, stops and lists nodes.

It gets one JSON object on standard input and says by its exit code whether it did it (what it writes to standard error
is then the reason). `list` answers with one JSON object on standard output.

    {"do": "start", "node": "a30-0", "group": "a30", "options": {"profile": "a30/llama-2-7b", ...}}
    {"do": "stop", "node": "a30-0", "group": "a30"}
    {"do": "list", "groups": ["a30"]}
      -> {"nodes": [{"node": "a30-0", "group": "a30", "address": "10.0.0.11:8100", "detail": ""}]}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from gateway.scale.connectors.base import ConnectorError, ConnectorNode
from gateway.scale.connectors.programs import run_program

if TYPE_CHECKING:
    from gateway.scale.config import ScalingConfig


class _Told(msgspec.Struct, frozen=True, kw_only=True):
    node: str
    group: str
    address: str = ""
    detail: str = ""


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    nodes: list[_Told]


class CommandConnector:
    """Runs the program anew for each call."""

    name: ClassVar[str] = "command"
    executes: ClassVar[bool] = True

    def __init__(self, config: ScalingConfig) -> None:
        self._words = config.command.run
        self._options = {
            group.name: {key: value for key, value in group.predictor_options().items() if value is not None}
            for group in config.group
        }

    async def start(self, node_id: str, group: str) -> None:
        await self._run({"do": "start", "node": node_id, "group": group, "options": self._options[group]})

    async def stop(self, node_id: str, group: str) -> None:
        await self._run({"do": "stop", "node": node_id, "group": group})

    async def list_nodes(self) -> list[ConnectorNode]:
        output = await self._run({"do": "list", "groups": list(self._options)})
        try:
            told = msgspec.json.decode(output, type=_Answer).nodes
        except msgspec.DecodeError as bad:
            raise ConnectorError(f"{self._words[0]} answers list with no JSON of its form: {bad}") from None
        return [
            ConnectorNode(node_id=one.node, group=one.group, address=one.address, detail=one.detail) for one in told
        ]

    async def close(self, *, ends: bool) -> None:
        """Nothing is held: what runs is the program's affair."""

    async def _run(self, order: dict[str, Any]) -> bytes:
        said = await run_program(self._words, msgspec.json.encode(order) + b"\n")
        if said.code:
            raise ConnectorError(f"{self._words[0]} {order['do']}: exit code {said.code}: {said.errors or 'no word'}")
        return said.output
