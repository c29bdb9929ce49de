"""Hands on what gateways that scale this node's fleet tell each other of their requests; reads none of it."""

from __future__ import annotations

from collections.abc import Callable

from protos.v1 import astrolabe_predict_pb2 as pb

Hear = Callable[[pb.ScalingNews], None]


class NewsRelay:
    """One per node."""

    def __init__(self) -> None:
        self._hearers: list[Hear] = []

    def join(self, hear: Hear) -> None:
        """Idempotent."""
        if hear not in self._hearers:
            self._hearers.append(hear)

    def leave(self, hear: Hear) -> None:
        """Idempotent."""
        if hear in self._hearers:
            self._hearers.remove(hear)

    def tell(self, news: pb.ScalingNews, by: Hear) -> None:
        """To all but the one who tells it."""
        for hear in self._hearers:
            if hear != by:
                hear(news)
