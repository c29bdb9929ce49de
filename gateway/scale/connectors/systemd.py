"""Nodes as instances of a template unit on hosts of the user's own: `systemctl start`, `stop`, `show` over ssh.

Node `name-3` has the fourth place of its group, so that nobody need remember where a node runs. A host that does not
answer has what its places may hold: those nodes are told of, with the reason, until it says otherwise.
"""

from __future__ import annotations

import asyncio
import shlex
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from gateway.scale.connectors.base import ConnectorError, ConnectorNode
from gateway.scale.connectors.programs import run_program
from protos.runtime.addresses import parse_address

if TYPE_CHECKING:
    from gateway.scale.config import ScalingConfig

RESTARTS = 3
"""A unit that systemd has started again so often does not come up by itself."""


class _Place(NamedTuple):
    """Where one node runs."""

    node_id: str
    group: str
    host: str
    """As ssh takes it."""
    address: str
    unit: str


class SystemdConnector:
    """One place a node; systemd on the host is the only memory."""

    name: ClassVar[str] = "systemd"
    executes: ClassVar[bool] = True

    def __init__(self, config: ScalingConfig) -> None:
        own = config.systemd
        self._ssh, self._systemctl = own.ssh, own.systemctl
        self._places: dict[str, _Place] = {}
        for group, slots in own.hosts.items():
            for index, slot in enumerate(slots):
                node_id = f"{group}-{index}"
                user, _, where = slot.rpartition("@")
                address = parse_address(where)
                host = f"{user}@{address.host}" if user else address.host
                unit = own.unit.format(node=node_id)
                self._places[node_id] = _Place(node_id, group, host, str(address), unit)

    async def start(self, node_id: str, group: str) -> None:
        place = self._place(node_id)
        await self._do(place.host, ("reset-failed", place.unit), may_fail=True)
        # A unit that takes long to say that it is ready would keep the call waiting: what becomes of it, list tells.
        await self._do(place.host, ("start", "--no-block", place.unit))

    async def stop(self, node_id: str, group: str) -> None:
        place = self._place(node_id)
        await self._do(place.host, ("stop", place.unit))
        await self._do(place.host, ("reset-failed", place.unit), may_fail=True)

    async def list_nodes(self) -> list[ConnectorNode]:
        hosts: dict[str, list[_Place]] = {}
        for place in self._places.values():
            hosts.setdefault(place.host, []).append(place)
        told = await asyncio.gather(*(self._on(host, places) for host, places in hosts.items()))
        silent = [said for said in told if isinstance(said, ConnectorError)]
        if silent and len(silent) == len(told):
            raise silent[0]
        found: list[ConnectorNode] = []
        for places, said in zip(hosts.values(), told, strict=True):
            for place in places:
                state = str(said) if isinstance(said, ConnectorError) else said.get(place.unit, "")
                detail = "" if state == "runs" else state
                if state:
                    found.append(
                        ConnectorNode(node_id=place.node_id, group=place.group, address=place.address, detail=detail)
                    )
        return found

    async def close(self, *, ends: bool) -> None:
        """What runs goes on."""

    def _place(self, node_id: str) -> _Place:
        place = self._places.get(node_id)
        if place is None:
            raise ConnectorError(f"{node_id} has no place in [scaling.systemd.hosts]; add one to its group")
        return place

    async def _on(self, host: str, places: list[_Place]) -> dict[str, str] | ConnectorError:
        """By unit, what `_state` says of those that are there."""
        names = tuple(place.unit for place in places)
        try:
            output = await self._do(host, ("show", "--property=Id,ActiveState,SubState,Result,NRestarts", *names))
        except ConnectorError as bad:
            return bad
        units = {}
        for block in output.split("\n\n"):
            said = dict(line.partition("=")[::2] for line in block.splitlines())
            units[said.get("Id", "").removesuffix(".service")] = _state(said)
        return units

    async def _do(self, host: str, words: tuple[str, ...], *, may_fail: bool = False) -> str:
        command = (*self._systemctl, *words)
        # ssh hands one line to a shell there.
        said = await run_program((*self._ssh, host, shlex.join(command)) if self._ssh else command)
        if said.code and not may_fail:
            raise ConnectorError(f"{host}: {' '.join(command)}: exit code {said.code}: {said.errors or 'no word'}")
        return said.output.decode(errors="replace")


def _state(said: dict[str, str]) -> str:
    """`runs`, empty when the unit is not there, else what is wrong."""
    state, sub = said.get("ActiveState", ""), said.get("SubState", "")
    if state == "failed":
        return f"its unit has failed ({said.get('Result', '') or 'no reason'})"
    restarts = said.get("NRestarts", "0")
    if sub == "auto-restart" and int(restarts if restarts.isdecimal() else 0) >= RESTARTS:
        return f"its unit has failed {restarts} times ({said.get('Result', '') or 'no reason'})"
    return "" if state == "inactive" else "runs"
