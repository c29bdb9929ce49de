"""AIBrix's least-latency: mean times of past requests, for a typical request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.core.decision.policies.base import NodeView, Served
from gateway.core.events import RequestShape
from simcore.types import Forecast

GUESSED_PROMPT_TOKENS = 10.0
GUESSED_OUTPUT_TOKENS = 100.0


class _Means:
    """Sums over all whole answers of one node."""

    def __init__(self) -> None:
        self.answers = 0
        self.ttft_s = 0.0
        self.decode_s = 0.0
        self.prompt_tokens = 0
        self.output_tokens = 0


class AibrixLeastLatency:
    """cost = mean time to first token / mean prompt tokens x typical prompt + mean decode time / mean output tokens x
    typical answer, in ms.

    Means are over all that the node has served; typical is the mean over nodes of their mean tokens, 10 and 100 where
    nothing was served yet. A node that has served nothing costs 0: it is tried. Nothing in it tells of requests that
    are under way, and old times weigh as much as new ones: under load it sends everything to the node that was best in
    the past until its mean has grown past another's.

    Source: vllm-project/aibrix, pkg/plugins/gateway/algorithms/least_latency.go @0338af7.

    Not copied: the queue time is added as a histogram's simple value there, which is always 0
    (pkg/metrics/types.go @1b3fa96); here the time to the first token, as the gateway sees it, has it in.
    """

    name: ClassVar[str] = "aibrix_least_latency"
    cost_unit: ClassVar[str] = "ms"
    needs_forecasts: ClassVar[bool] = False

    def __init__(self) -> None:
        self._nodes: dict[str, _Means] = {}

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        known = [means for node in nodes if (means := self._nodes.get(node.node_id)) is not None]
        prompt_tokens, output_tokens = GUESSED_PROMPT_TOKENS, GUESSED_OUTPUT_TOKENS
        if known:
            prompt_tokens = sum(m.prompt_tokens / m.answers for m in known) / len(known)
            output_tokens = sum(m.output_tokens / m.answers for m in known) / len(known)
        return [
            0.0
            if (means := self._nodes.get(node.node_id)) is None
            else 1e3
            * (
                means.ttft_s / means.prompt_tokens * prompt_tokens
                + means.decode_s / means.output_tokens * output_tokens
            )
            for node in nodes
        ]

    def placed(self, request: RequestShape, node: NodeView) -> None:
        """Tells nothing here."""

    def began(self, request: RequestShape, node_id: str) -> None:
        """Tells nothing here."""

    def left(self, request: RequestShape, node_id: str, served: Served | None) -> None:
        if served is None or served.ttft_s is None or not served.output_tokens:
            return
        means = self._nodes.setdefault(node_id, _Means())
        means.answers += 1
        means.ttft_s += served.ttft_s
        means.decode_s += served.e2e_s - served.ttft_s
        means.prompt_tokens += request.prompt_tokens
        means.output_tokens += served.output_tokens
