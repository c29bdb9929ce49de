"""Each node in its turn, the first one first: which node a request is at does not depend on the seed, as it does with
`round_robin`, which draws where it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.core.decision.policies.base import NodeView
from gateway.core.events import RequestShape
from simcore.types import Forecast


class InTurn:
    """The next node of a fixed set."""

    name: ClassVar[str] = "in_turn"
    cost_unit: ClassVar[str] = "turns"
    needs_forecasts: ClassVar[bool] = False

    def __init__(self) -> None:
        self._next = 0

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        turn, self._next = self._next, self._next + 1
        return [float((i - turn) % len(nodes)) for i in range(len(nodes))]
