"""One node for one conversation, by rendezvous hashing (Thaler and Ravishankar, 1998)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import ClassVar

from gateway.core.decision.policies.accounts import places
from gateway.core.decision.policies.base import NodeView
from gateway.core.events import RequestShape
from simcore.types import Forecast


class Session:
    """Every node draws a fixed lot for the session; the best lot wins.

    When a node leaves, only its own sessions move. The hash is fixed, so that all gateways, and one gateway before and
    after a restart, agree. Requests without a session go where fewest of ours are in flight.
    """

    name: ClassVar[str] = "session"
    cost_unit: ClassVar[str] = "rank"
    needs_forecasts: ClassVar[bool] = False

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        """Place of each node in the session's order, 0 first (without a session: in the order of requests in flight,
        equal loads sharing a place)."""
        if request.session:
            lots = [_lot(request.session, node.node_id) for node in nodes]
        else:
            lots = [node.in_flight for node in nodes]
        return places([(lot,) for lot in lots])


def _lot(session: str, node_id: str) -> int:
    return int.from_bytes(blake2b(f"{session}\0{node_id}".encode(), digest_size=8).digest(), "big")
